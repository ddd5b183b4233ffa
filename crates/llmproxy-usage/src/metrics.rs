//! The metrics of this crate, counted through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, describe_counter, describe_gauge};

/// Records that a webhook has taken.
pub const WEBHOOK_SUCCESS: &str = "llmproxy_webhook_success_total";
/// Records that no webhook took, in spite of retries.
pub const WEBHOOK_FAILURE: &str = "llmproxy_webhook_failure_total";
/// Records that wait for delivery or are being delivered, by `reporter`.
pub const PENDING: &str = "llmproxy_usage_records_pending";
/// Records that were given up, by `reporter` and `reason`: `refused`, `retries`.
pub const DROPPED: &str = "llmproxy_usage_records_dropped_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(WEBHOOK_SUCCESS, Unit::Count, "Usage records that a webhook has taken.");
    describe_counter!(WEBHOOK_FAILURE, Unit::Count, "Usage records that a webhook did not take, in spite of retries.");
    describe_gauge!(PENDING, Unit::Count, "Usage records that wait for delivery, by reporter.");
    describe_counter!(DROPPED, Unit::Count, "Usage records that were given up, by reporter and reason.");
}
