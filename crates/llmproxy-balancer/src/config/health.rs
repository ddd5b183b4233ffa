//! What an operator may write about the health of backends.

use std::time::Duration;

use llmproxy_core::duration;
use serde::Deserialize;

/// The `health_check` block.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct HealthCheckConfig {
    /// Whether backends are checked. Without checks one that refused a connection is tried again by a request after five
    /// seconds.
    pub enabled: bool,
    /// From one check of a backend to the next.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// The longest wait for the answer to a check.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The method of a check.
    pub method: String,
    /// What is asked. Given, its answer must have the expected status; without, any answer below 500 on `/health`, or
    /// else on `/v1/models`, will do.
    pub path: Option<String>,
    /// The status that `path` must answer.
    pub expected_status: u16,
    /// Consecutive failures after which a backend is out: of checks, or of requests.
    pub unhealthy_threshold: u32,
    /// Consecutive good checks after which a backend that failed its checks is up again.
    pub healthy_threshold: u32,
    /// When a backend is ejected because requests fail there.
    pub passive: PassiveConfig,
    /// How long a backend that has come back gets a share of the work that is smaller than its own, and grows; 0: none.
    #[serde(with = "duration")]
    pub slow_start: Duration,
    /// Where less than this part of a hundred of the backends that could serve a request is not out, those that are out for
    /// failed requests or failed checks are asked too; 0: never.
    pub panic_threshold: u32,
}

/// `health_check.passive`: when a backend is ejected because requests fail there, and for how long.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct PassiveConfig {
    /// Whether the share of requests that fail is looked at. If not, only failures in a row count, as
    /// [`HealthCheckConfig::unhealthy_threshold`] says.
    pub enabled: bool,
    /// The time of which requests are counted.
    #[serde(with = "duration")]
    pub window: Duration,
    /// Fewer requests than this say nothing of a share.
    pub min_requests: u32,
    /// The share of failures, from 0 to 1, from which on a backend is ejected.
    pub error_rate: f64,
    /// How long a backend that was ejected gets nothing; then one request may show that it works. Doubled each time that it
    /// does not.
    #[serde(with = "duration")]
    pub base_ejection: Duration,
    /// The longest such time.
    #[serde(with = "duration")]
    pub max_ejection: Duration,
}

/// 30 s.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// 5 s.
pub const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// A plain GET.
pub const DEFAULT_METHOD: &str = "GET";
/// OK.
pub const DEFAULT_EXPECTED_STATUS: u16 = 200;
/// Three in a row.
pub const DEFAULT_UNHEALTHY_THRESHOLD: u32 = 3;
/// Two in a row.
pub const DEFAULT_HEALTHY_THRESHOLD: u32 = 2;
/// 30 s: enough for a share to mean something where a few people ask, and soon over.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(30);
/// Ten: of fewer, half may fail by chance.
pub const DEFAULT_MIN_REQUESTS: u32 = 10;
/// A half.
pub const DEFAULT_ERROR_RATE: f64 = 0.5;
/// 5 s: a hiccup costs no more.
pub const DEFAULT_BASE_EJECTION: Duration = Duration::from_secs(5);
/// 2 min: one request in two minutes is not missed, and nobody waits long for a backend that was mended.
pub const DEFAULT_MAX_EJECTION: Duration = Duration::from_secs(120);
/// 30 s: long enough for caches to fill and kernels to be compiled.
pub const DEFAULT_SLOW_START: Duration = Duration::from_secs(30);
/// A half.
pub const DEFAULT_PANIC_THRESHOLD: u32 = 50;

// === impl HealthCheckConfig ===

impl Default for HealthCheckConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: DEFAULT_INTERVAL,
            timeout: DEFAULT_CHECK_TIMEOUT,
            method: DEFAULT_METHOD.to_owned(),
            path: None,
            expected_status: DEFAULT_EXPECTED_STATUS,
            unhealthy_threshold: DEFAULT_UNHEALTHY_THRESHOLD,
            healthy_threshold: DEFAULT_HEALTHY_THRESHOLD,
            passive: PassiveConfig::default(),
            slow_start: DEFAULT_SLOW_START,
            panic_threshold: DEFAULT_PANIC_THRESHOLD,
        }
    }
}

// === impl PassiveConfig ===

impl Default for PassiveConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            window: DEFAULT_WINDOW,
            min_requests: DEFAULT_MIN_REQUESTS,
            error_rate: DEFAULT_ERROR_RATE,
            base_ejection: DEFAULT_BASE_EJECTION,
            max_ejection: DEFAULT_MAX_EJECTION,
        }
    }
}
