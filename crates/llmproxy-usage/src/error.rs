//! Why a request is refused.

use std::time::Duration;

/// A request for whose record there is no room; answered with 503.
///
/// ```
/// assert_eq!(llmproxy_usage::UsageError::Full.retry_after().as_secs(), 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// A reporter is too far behind.
    #[error("too many usage records are waiting to be delivered; try again later")]
    Full,
    /// A reporter has stopped, which happens only when the whole proxy does.
    #[error("usage records are no longer taken, as the proxy is stopping; try again later")]
    Stopped,
}

// === impl UsageError ===

impl UsageError {
    /// How long until it makes sense to try again.
    pub fn retry_after(&self) -> Duration {
        Duration::from_secs(1)
    }
}
