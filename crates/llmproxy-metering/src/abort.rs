//! What an operator may say about clients that leave before the end.

use std::time::Duration;

use llmproxy_core::OnAbort;
use serde::Deserialize;

/// What is billed when a client leaves, and how far the rest of its answer is read for the count.
///
/// ```
/// use llmproxy_core::OnAbort;
/// use llmproxy_metering::AbortConfig;
///
/// let config = AbortConfig { on_abort: OnAbort::Drain, drain_max_streams: 0, ..AbortConfig::default() };
/// assert_eq!(config.validate()[0].0, "drain_max_streams");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AbortConfig {
    /// For callers whose key says nothing else.
    pub on_abort: OnAbort,
    /// The longest that one rest is read.
    #[serde(with = "llmproxy_core::duration")]
    pub drain_timeout: Duration,
    /// The most tokens of one rest, as far as its pieces tell.
    pub drain_max_tokens: u64,
    /// The most rests that are read at a time.
    pub drain_max_streams: usize,
}

// === impl AbortConfig ===

impl AbortConfig {
    /// 60 s.
    pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
    /// 4096 tokens: what most answers stay below.
    pub const DEFAULT_DRAIN_MAX_TOKENS: u64 = 4096;
    /// 16 rests: each keeps a backend at work for nobody.
    pub const DEFAULT_DRAIN_MAX_STREAMS: usize = 16;

    /// Everything that is wrong: the key below `metering`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let none = "0 would let no backend finish; where none is to, set on_abort to delivered";
        [
            ("drain_timeout", self.drain_timeout.is_zero()),
            ("drain_max_tokens", self.drain_max_tokens == 0),
            ("drain_max_streams", self.drain_max_streams == 0),
        ]
        .into_iter()
        .filter(|(_, is_wrong)| *is_wrong)
        .map(|(key, _)| (key.to_owned(), none.to_owned()))
        .collect()
    }
}

impl Default for AbortConfig {
    fn default() -> Self {
        Self {
            on_abort: OnAbort::default(),
            drain_timeout: Self::DEFAULT_DRAIN_TIMEOUT,
            drain_max_tokens: Self::DEFAULT_DRAIN_MAX_TOKENS,
            drain_max_streams: Self::DEFAULT_DRAIN_MAX_STREAMS,
        }
    }
}
