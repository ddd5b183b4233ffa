//! The names of this crate's metrics, counted through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, describe_counter, describe_gauge};

/// Requests refused for their body, by `reason`: [`InspectError::code`](crate::InspectError::code).
pub const REFUSED: &str = "llmproxy_inspect_refused_total";
/// Memory that the bodies of requests take now, in bytes.
pub const BUFFERED_BYTES: &str = "llmproxy_inspect_buffered_bytes";
/// Usage events that we had asked for and took out of an answer.
pub const WITHHELD: &str = "llmproxy_usage_events_withheld_total";

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
}
