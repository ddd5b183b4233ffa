//! The names of this crate's metrics, counted through the `metrics` facade; without a recorder nothing is.

use std::time::Duration;

use metrics::{Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

/// Requests refused for their body, by `reason`: [`InspectError::code`](crate::InspectError::code).
pub const REFUSED: &str = "llmproxy_inspect_refused_total";
/// Memory that the bodies of requests take now, in bytes.
pub const BUFFERED_BYTES: &str = "llmproxy_inspect_buffered_bytes";
/// Usage events that we had asked for and took out of an answer.
pub const WITHHELD: &str = "llmproxy_usage_events_withheld_total";
/// Steps of counting tokens that wait or are at work: a prompt, a piece of an answer, an end.
pub const COUNT_PENDING: &str = "llmproxy_usage_count_pending";
/// Exchanges whose tokens were to be counted and could not be, or not all, by `reason`: `full`, `failed`, `template` or
/// `stopped`. What is left is estimated.
pub const COUNT_REFUSED: &str = "llmproxy_usage_count_refused_total";
/// Time that the counting of tokens takes, for each step, in seconds.
pub const COUNT_SECONDS: &str = "llmproxy_usage_count_seconds";
/// How far an estimate would have been off, by `kind`: `prompt` or `completion`; estimated by true number, so that 1 is right.
pub const ESTIMATE_ERROR: &str = "llmproxy_usage_estimate_error_ratio";
/// Tokens that were counted less those that the backend counted of the same, by `kind`: `prompt` or `completion`.
pub const DRIFT: &str = "llmproxy_usage_drift_tokens";
/// Questions to backends for a number of tokens, by `result`: `counted`, `unknown` (it offers no such thing), `unfit`
/// (there is no way to ask it for this), `failed`, `busy`, `stopped` (the proxy did).
pub const ASKED: &str = "llmproxy_usage_count_asked_total";

/// The upper bounds of each histogram's buckets, in the histogram's unit, for whoever exports.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (COUNT_SECONDS, &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]),
    (DRIFT, &[-256.0, -64.0, -16.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 16.0, 64.0, 256.0]),
    (ESTIMATE_ERROR, &[0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0]),
];

/// Answers that are read on after their clients left.
pub const DRAINS_RUNNING: &str = "llmproxy_drains_running";
/// Answers that were to be read on after their clients left, by `result`: how that ended (`finished`, `time`, `tokens`,
/// `stopped`), or `full` where too many were.
pub const DRAINS: &str = "llmproxy_drains_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(REFUSED, "requests refused for their body, by reason");
    describe_gauge!(BUFFERED_BYTES, Unit::Bytes, "memory that the bodies of requests take");
    describe_counter!(WITHHELD, "usage events asked for by the proxy and taken out of the answer");
    describe_gauge!(DRAINS_RUNNING, "answers that are read on after their clients left");
    describe_counter!(DRAINS, "answers that were to be read on after their clients left, by result");
    describe_gauge!(COUNT_PENDING, "steps of counting tokens that wait or are at work");
    describe_counter!(COUNT_REFUSED, "exchanges whose tokens could not be counted and are estimated, by reason");
    describe_histogram!(COUNT_SECONDS, Unit::Seconds, "time that a step of counting tokens takes");
    describe_histogram!(ESTIMATE_ERROR, "estimated tokens by true ones, by kind (prompt or completion)");
    describe_histogram!(DRIFT, "counted tokens less those that the backend counted of the same, by kind");
    describe_counter!(ASKED, "questions to backends for a number of tokens, by result");
}

/// So many steps more, or fewer.
pub(crate) fn count_pending(change: i64) {
    gauge!(COUNT_PENDING).increment(change as f64);
}

pub(crate) fn count_refused(reason: &'static str) {
    counter!(COUNT_REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn count_took(time: Duration) {
    histogram!(COUNT_SECONDS).record(time);
}

pub(crate) fn estimate_error(kind: &'static str) -> Histogram {
    histogram!(ESTIMATE_ERROR, "kind" => kind)
}

pub(crate) fn drift(kind: &'static str, tokens: f64) {
    histogram!(DRIFT, "kind" => kind).record(tokens);
}

pub(crate) fn asked(result: &'static str) {
    counter!(ASKED, "result" => result).increment(1);
}
