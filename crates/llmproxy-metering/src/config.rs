//! What an operator may say about the reading of requests.

use std::time::Duration;

use serde::Deserialize;

/// How much of a request is read, and how long that may take.
///
/// ```
/// use llmproxy_metering::InspectConfig;
///
/// let config = InspectConfig { max_body_size: 1024 * 1024, ..InspectConfig::default() };
/// assert_eq!(config.body_gap_timeout.as_secs(), 30);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InspectConfig {
    /// The largest body that is read whole, in bytes.
    pub max_body_size: u64,
    /// The largest body that passes through, in bytes.
    pub max_upload_size: u64,
    /// The most that the bodies of all requests may take together while they are held, in bytes. It is the limit of the
    /// [`BodyBudget`](crate::BodyBudget), which outlives the layer.
    pub max_buffered_bytes: u64,
    /// The longest wait for the next piece of a body.
    #[serde(with = "llmproxy_core::duration")]
    pub body_gap_timeout: Duration,
}

// === impl InspectConfig ===

impl InspectConfig {
    /// 10 MiB, in bytes: a long conversation with a few images.
    pub const DEFAULT_MAX_BODY_SIZE: u64 = 10 * 1024 * 1024;
    /// 256 MiB, in bytes: two dozen of the largest bodies, some thousands of usual ones.
    pub const DEFAULT_MAX_BUFFERED_BYTES: u64 = 256 * 1024 * 1024;
    /// 30 s.
    pub const DEFAULT_BODY_GAP_TIMEOUT: Duration = Duration::from_secs(30);
}

impl Default for InspectConfig {
    fn default() -> Self {
        Self {
            max_body_size: Self::DEFAULT_MAX_BODY_SIZE,
            max_upload_size: Self::DEFAULT_MAX_BODY_SIZE,
            max_buffered_bytes: Self::DEFAULT_MAX_BUFFERED_BYTES,
            body_gap_timeout: Self::DEFAULT_BODY_GAP_TIMEOUT,
        }
    }
}
