//! The metrics of this crate, counted through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, describe_counter, describe_gauge};

/// Records that a webhook has taken.
pub const WEBHOOK_SUCCESS: &str = "llmproxy_webhook_success_total";
/// Records that no webhook took.
pub const WEBHOOK_FAILURE: &str = "llmproxy_webhook_failure_total";
/// Records that wait for delivery or are being delivered, by `reporter`.
pub const PENDING: &str = "llmproxy_usage_records_pending";
/// Records that were given up, by `reporter` and `reason`: `refused`, `expired`; and of the ledger itself, `full` and
/// `unwritable`.
pub const DROPPED: &str = "llmproxy_usage_records_dropped_total";
/// Whether a `reporter` takes records, 1 or 0: not since its last tries have failed, or it asked to be left alone for long.
pub const UP: &str = "llmproxy_usage_reporter_up";
/// What the records in the ledger take, in bytes.
pub const LEDGER_BYTES: &str = "llmproxy_usage_ledger_bytes";
/// Whether the ledger could not be written when that was tried last, 1 or 0.
pub const LEDGER_FAILING: &str = "llmproxy_usage_ledger_failing";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(WEBHOOK_SUCCESS, Unit::Count, "Usage records that a webhook has taken.");
    describe_counter!(
        WEBHOOK_FAILURE,
        Unit::Count,
        "Usage records that a webhook did not take and that were given up."
    );
    describe_gauge!(PENDING, Unit::Count, "Usage records that wait for delivery, by reporter.");
    describe_gauge!(UP, Unit::Count, "Whether a reporter takes usage records.");
    describe_gauge!(LEDGER_BYTES, Unit::Bytes, "What the records in the usage ledger take.");
    describe_gauge!(LEDGER_FAILING, Unit::Count, "Whether the usage ledger can't be written.");
    describe_counter!(DROPPED, Unit::Count, "Usage records that were given up, by reporter and reason.");
}
