//! What is counted, through the `metrics` facade; without a recorder nothing is.

use crate::RateLimitError;

/// Requests refused, by `scope` (`key`, `global`) and `limit`: a limit's name in the configuration, or
/// `allowed_models`, or `request_size`.
pub const RATE_LIMITED_TOTAL: &str = "llmproxy_rate_limited_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    metrics::describe_counter!(RATE_LIMITED_TOTAL, "Requests refused by a limit, by scope and limit.");
}

/// Counts a refusal.
pub(crate) fn refused(error: &RateLimitError) {
    let (scope, limit) = error.labels();
    metrics::counter!(RATE_LIMITED_TOTAL, "scope" => scope, "limit" => limit).increment(1);
}
