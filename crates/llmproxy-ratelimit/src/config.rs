//! What an operator may write under `rate_limit:`.

use serde::Deserialize;

/// The `rate_limit:` block.
///
/// In every limit 0, which is also the default, means that there is no such limit. A caller's list of allowed models is
/// part of its key and holds whether or not this block is enabled.
///
/// ```
/// use llmproxy_ratelimit::{LimitsConfig, RateLimitConfig};
///
/// let config = RateLimitConfig {
///     enabled: true,
///     per_key: LimitsConfig { requests_per_minute: 60, tokens_per_minute: 100_000, ..LimitsConfig::default() },
///     ..RateLimitConfig::default()
/// };
/// assert!(config.validate().is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RateLimitConfig {
    /// `enabled` (false): whether any of the limits below holds.
    pub enabled: bool,
    /// `global`: limits of all callers together.
    pub global: LimitsConfig,
    /// `per_key`: limits of each caller: each key, or each client address where there are no keys.
    pub per_key: LimitsConfig,
    /// `default_completion_tokens` (1024): tokens that are set aside for an answer whose length the request does not
    /// bound, until the model's mean is known.
    pub default_completion_tokens: u64,
}

/// A set of limits: `rate_limit.global` or `rate_limit.per_key`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// `enabled` (true): `false` switches the whole set off, whatever it says.
    pub enabled: Option<bool>,
    /// `requests_per_second` (0).
    pub requests_per_second: u32,
    /// `requests_per_minute` (0); a whole minute's may come at once.
    pub requests_per_minute: u32,
    /// `tokens_per_minute` (0): of prompts and answers together; a whole minute's may come at once.
    pub tokens_per_minute: u64,
    /// `max_concurrent` (0): requests whose answers have not ended.
    pub max_concurrent: u32,
    /// `burst_size` (twice `requests_per_second`): how many requests may come at once under `requests_per_second`.
    pub burst_size: u32,
}

/// 1024 tokens, set aside for an answer of which nothing is known.
pub const DEFAULT_COMPLETION_TOKENS: u64 = 1024;

/// The burst without a `burst_size`, in seconds' worth of requests: 2.
pub const DEFAULT_BURST_SECONDS: u32 = 2;

/// The clock counts nanoseconds: more requests per second than those can't be told apart.
const MAX_REQUESTS_PER_SECOND: u32 = 1_000_000_000;

/// Far above any server, and far below where the arithmetic of budgets would lose single tokens.
const MAX_TOKENS: u64 = 1_000_000_000_000;

// === impl RateLimitConfig ===

impl RateLimitConfig {
    /// All mistakes at once, each as a key path below `rate_limit` and what is wrong there. Empty if there are none.
    ///
    /// ```
    /// use llmproxy_ratelimit::RateLimitConfig;
    ///
    /// let mut config = RateLimitConfig::default();
    /// assert!(config.validate().is_empty());
    /// config.per_key.requests_per_second = 4_000_000_000;
    /// assert_eq!(config.validate()[0].0, "per_key.requests_per_second");
    /// ```
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        let mut at_most = |key: String, value: u64, max: u64| {
            if value > max {
                mistakes.push((key, format!("{value} is too large; allowed are 0 (no limit) to {max}")));
            }
        };
        for (block, limits) in [("global", &self.global), ("per_key", &self.per_key)] {
            at_most(
                format!("{block}.requests_per_second"),
                limits.requests_per_second.into(),
                MAX_REQUESTS_PER_SECOND.into(),
            );
            at_most(format!("{block}.tokens_per_minute"), limits.tokens_per_minute, MAX_TOKENS);
        }
        at_most("default_completion_tokens".into(), self.default_completion_tokens, MAX_TOKENS);
        mistakes
    }
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            global: LimitsConfig::default(),
            per_key: LimitsConfig::default(),
            default_completion_tokens: DEFAULT_COMPLETION_TOKENS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let config = RateLimitConfig {
            global: LimitsConfig { requests_per_second: u32::MAX, ..LimitsConfig::default() },
            per_key: LimitsConfig { tokens_per_minute: u64::MAX, ..LimitsConfig::default() },
            default_completion_tokens: u64::MAX,
            ..RateLimitConfig::default()
        };
        let keys: Vec<_> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["global.requests_per_second", "per_key.tokens_per_minute", "default_completion_tokens"]);
    }

    #[test]
    fn zero_is_no_limit_and_no_mistake() {
        assert!(RateLimitConfig { enabled: true, ..RateLimitConfig::default() }.validate().is_empty());
    }
}
