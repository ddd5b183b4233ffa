//! The metrics of this crate, counted through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, describe_counter, describe_gauge};

/// 1 while a backend is up, else 0; label `backend`. A backend that a reload took away stays at 0.
pub const BACKEND_UP: &str = "llmproxy_backend_up";
/// 1 for the state that a backend is in, 0 for each other one; labels `backend` and `state`.
pub const BACKEND_STATE: &str = "llmproxy_backend_state";
/// Requests at a backend whose answers have not ended; label `backend`.
pub const IN_FLIGHT: &str = "llmproxy_in_flight";
/// Requests in the line before backends that are full.
pub const QUEUE_WAITING: &str = "llmproxy_queue_waiting";
/// Requests that were refused because every backend was full; label `reason`, `full` where the line was full too, or
/// `timeout`.
pub const QUEUE_REFUSED: &str = "llmproxy_queue_refused_total";
/// Attempts after the first one; labels `backend` (the one that failed) and `reason`.
pub const RETRIES: &str = "llmproxy_retries_total";
/// Attempts that would have followed one that failed, had the budget of retries not been spent; labels `backend` (the one that
/// failed) and `reason`.
pub const RETRIES_REFUSED: &str = "llmproxy_retries_refused_total";
/// How often a backend came up or went out; labels `backend` and `to`, `up` or `out`.
pub const HEALTH_CHANGES: &str = "llmproxy_backend_health_changes_total";

/// Requests at a backend as it says itself, whoever has sent them; labels `backend` and `kind`, `running` or `waiting`. Not a
/// number where it has not said so lately.
pub const BACKEND_LOAD: &str = "llmproxy_backend_load";
/// How much of a backend's KV cache is in use as it says itself, from 0 to 1; label `backend`. Not a number where it has not
/// said so lately.
pub const BACKEND_KV_USAGE: &str = "llmproxy_backend_kv_usage";
/// How often a backend was found to refuse requests for usage that its clients did not ask for; label `backend`.
pub const INJECTION_REFUSED: &str = "llmproxy_usage_injection_refused_total";
/// Backends that a source of `discovery` told last; label `source`. A source that a reload took away stays at 0.
pub const DISCOVERED: &str = "llmproxy_discovered_backends";
/// How often a source of `discovery` could not be asked, or gave no list; label `source`.
pub const DISCOVERY_FAILURES: &str = "llmproxy_discovery_failures_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_gauge!(BACKEND_UP, "Whether the backend is up (1) or out (0)");
    describe_gauge!(BACKEND_STATE, "1 for the state that the backend is in, 0 for the others");
    describe_gauge!(IN_FLIGHT, Unit::Count, "Requests at the backend whose answers have not ended");
    describe_gauge!(QUEUE_WAITING, Unit::Count, "Requests in the line before backends that are full");
    describe_counter!(QUEUE_REFUSED, Unit::Count, "Requests refused because every backend was full, by the reason");
    describe_counter!(RETRIES, Unit::Count, "Attempts that followed one that failed, by the backend and how it failed");
    describe_counter!(
        RETRIES_REFUSED,
        Unit::Count,
        "Attempts that were not made because routing.retry.budget was spent"
    );
    describe_counter!(HEALTH_CHANGES, Unit::Count, "How often the backend came up or went out");
    describe_gauge!(BACKEND_LOAD, Unit::Count, "Requests that run or wait at the backend, as it says itself");
    describe_gauge!(BACKEND_KV_USAGE, "How much of the backend's KV cache is in use, from 0 to 1, as it says itself");
    describe_counter!(INJECTION_REFUSED, Unit::Count, "How often the backend was found not to take include_usage");
    describe_gauge!(DISCOVERED, Unit::Count, "Backends that the source told last");
    describe_counter!(DISCOVERY_FAILURES, Unit::Count, "How often the source could not be asked");
}
