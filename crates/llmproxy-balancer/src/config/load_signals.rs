//! Whether backends are asked for their own load.

use std::time::Duration;

use llmproxy_core::duration;
use serde::Deserialize;

/// `routing.load_signals`: what backends say of their own load, on pages for machines that most servers have.
///
/// ```
/// use std::time::Duration;
///
/// use llmproxy_balancer::{LoadSignalsConfig, RoutingConfig, validate_routing};
///
/// let load_signals = LoadSignalsConfig { interval: Duration::from_secs(2), ..LoadSignalsConfig::default() };
/// assert!(validate_routing(&RoutingConfig { load_signals, ..RoutingConfig::default() }).is_empty());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadSignalsConfig {
    /// Whether they are asked. One that is the only one never is: there is nothing to choose.
    pub enabled: bool,
    /// From one answer to the next question. An answer counts for three of these.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// The longest wait for an answer.
    #[serde(with = "duration")]
    pub timeout: Duration,
}

/// 5 s: what changes faster is our own work, which we count; and making such a page takes a server some milliseconds.
pub const DEFAULT_SIGNALS_INTERVAL: Duration = Duration::from_secs(5);
/// 1 s: what comes later is old.
pub const DEFAULT_SIGNALS_TIMEOUT: Duration = Duration::from_secs(1);

// === impl LoadSignalsConfig ===

impl Default for LoadSignalsConfig {
    fn default() -> Self {
        Self { enabled: true, interval: DEFAULT_SIGNALS_INTERVAL, timeout: DEFAULT_SIGNALS_TIMEOUT }
    }
}
