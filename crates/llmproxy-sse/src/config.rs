//! What an operator may write about streams.

use std::time::Duration;

use llmproxy_core::duration;
use serde::Deserialize;

/// How long a backend may be silent, and how that is bridged.
///
/// ```
/// use std::time::Duration;
///
/// let config = llmproxy_sse::SseConfig { heartbeat: Some(Duration::from_secs(15)), ..Default::default() };
/// assert_eq!(config.gap_timeout, Duration::from_secs(120));
/// assert!(config.validate().is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SseConfig {
    /// The longest silence inside an answer, after its first byte; then it ends as timed out. It also ends streams
    /// whose client has left without that being noticed. `0` means without limit. Default: 120s.
    #[serde(with = "duration")]
    pub gap_timeout: Duration,
    /// After how much silence a stream's client is sent a comment, which keeps proxies and load balancers in between
    /// from closing the connection. Event streams then never have a `content-length`. Default: off.
    #[serde(with = "duration::option")]
    pub heartbeat: Option<Duration>,
}

// === impl SseConfig ===

impl SseConfig {
    /// 120 s: servers are silent while they work through a long prompt of someone else's.
    pub const DEFAULT_GAP_TIMEOUT: Duration = Duration::from_secs(120);
    /// 100 ms, the least that `heartbeat` may be, so that a typing error does not flood clients.
    pub const MIN_HEARTBEAT: Duration = Duration::from_millis(100);

    /// What is wrong with it: each mistake's key and a sentence. Empty if nothing is.
    pub fn validate(&self) -> Vec<(String, String)> {
        match self.heartbeat {
            Some(heartbeat) if !heartbeat.is_zero() && heartbeat < Self::MIN_HEARTBEAT => vec![(
                "heartbeat".into(),
                format!(
                    "{} is too short; write at least {}, or 0 to turn it off",
                    duration::format(heartbeat),
                    duration::format(Self::MIN_HEARTBEAT)
                ),
            )],
            _ => Vec::new(),
        }
    }
}

impl Default for SseConfig {
    fn default() -> Self {
        Self { gap_timeout: Self::DEFAULT_GAP_TIMEOUT, heartbeat: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_that_floods_clients_is_refused() {
        let with = |heartbeat| SseConfig { heartbeat: Some(heartbeat), ..SseConfig::default() }.validate().len();
        assert_eq!(with(Duration::from_millis(15)), 1);
        assert_eq!(with(Duration::from_secs(15)), 0);
        assert_eq!(with(Duration::ZERO), 0);
    }
}
