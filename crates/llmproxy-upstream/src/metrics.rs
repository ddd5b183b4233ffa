//! Names of what is counted here, through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, counter, describe_counter};

/// Requests that found their pooled connection closed by the backend and were sent again over a fresh one.
pub const STALE_CONNECTIONS: &str = "llmproxy_upstream_stale_connections_total";

/// Waits for a backend that were given up, with `kind` `connect` here; the other kinds are `llmproxy-sse`'s.
pub const TIMEOUTS: &str = "llmproxy_upstream_timeouts_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(
        STALE_CONNECTIONS,
        Unit::Count,
        "Requests sent again because the backend had closed the pooled connection"
    );
}

pub(crate) fn connect_timeout() {
    counter!(TIMEOUTS, "kind" => "connect").increment(1);
}

pub(crate) fn stale_connection() {
    counter!(STALE_CONNECTIONS).increment(1);
}
