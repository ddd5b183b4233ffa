//! The limits in force: what a configuration comes to.

use std::num::NonZeroU32;

use tokio::time::Instant;

use crate::{LimitsConfig, RateLimitConfig, config::DEFAULT_BURST_SECONDS, requests::RequestLimit};

/// Everything that a reload replaces, at once.
pub(crate) struct Limits {
    /// Each caller's.
    pub(crate) per_key: LimitSet,
    /// Of all callers together.
    pub(crate) global: LimitSet,
    /// Tokens to set aside for an answer of which nothing is known.
    pub(crate) default_completion: u64,
}

/// The limits of one account.
#[derive(Default)]
pub(crate) struct LimitSet {
    /// Of requests: per second, per minute.
    pub(crate) requests: [Option<RequestLimit>; 2],
    /// Tokens per minute.
    pub(crate) tokens: Option<u64>,
    /// Requests in flight.
    pub(crate) concurrent: Option<u64>,
}

// === impl Limits ===

impl Limits {
    /// The limits that `config` asks for, over states that count from `epoch`.
    pub(crate) fn new(config: &RateLimitConfig, epoch: Instant) -> Self {
        let set = |key, limits: &LimitsConfig| {
            if config.enabled && limits.enabled != Some(false) {
                LimitSet::new(key, limits, epoch)
            } else {
                LimitSet::default()
            }
        };
        Self {
            per_key: set("rate_limit.per_key", &config.per_key),
            global: set("rate_limit.global", &config.global),
            default_completion: config.default_completion_tokens,
        }
    }
}

// === impl LimitSet ===

impl LimitSet {
    fn new(key: &str, config: &LimitsConfig, epoch: Instant) -> Self {
        let burst = NonZeroU32::new(config.burst_size);
        let per_second = NonZeroU32::new(config.requests_per_second).map(|limit| {
            let default = limit.saturating_mul(NonZeroU32::MIN.saturating_add(DEFAULT_BURST_SECONDS - 1));
            RequestLimit::per_second(limit, burst.unwrap_or(default), epoch)
        });
        if per_second.is_none() && burst.is_some() {
            tracing::warn!("{key}.burst_size has no effect without {key}.requests_per_second");
        }
        let per_minute =
            NonZeroU32::new(config.requests_per_minute).map(|limit| RequestLimit::per_minute(limit, epoch));
        Self {
            requests: [per_second, per_minute],
            tokens: Some(config.tokens_per_minute).filter(|&tokens| tokens > 0),
            concurrent: Some(config.max_concurrent.into()).filter(|&max| max > 0),
        }
    }
}
