//! What is counted, through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, describe_counter, describe_gauge};

/// Requests refused by authentication, by `code` (as in the answer).
pub const REFUSALS: &str = "llmproxy_auth_refusals_total";

/// Keys in the builtin store, whatever their status.
pub const KEYS: &str = "llmproxy_auth_keys";

/// Failed attempts to read the builtin store again after someone else wrote it.
pub const REFRESH_FAILURES: &str = "llmproxy_auth_refresh_failures_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(REFUSALS, Unit::Count, "Requests refused by authentication, by the answer's code.");
    describe_gauge!(KEYS, Unit::Count, "Keys in the builtin store, whatever their status.");
    describe_counter!(REFRESH_FAILURES, Unit::Count, "Failed attempts to read the builtin key store again.");
}
