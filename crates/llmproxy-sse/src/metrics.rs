//! Names of what is counted here, through the `metrics` facade; without a recorder nothing is.

use metrics::{Unit, counter, describe_counter};

/// Answers that were ended because the backend was silent for too long, by `kind`: `first_byte`, `whole`, `gap`; and
/// tunnels on which both sides were: `idle`.
pub const TIMEOUTS: &str = "llmproxy_upstream_timeouts_total";
/// Streams that broke after their head was sent, by `visible`: whether the client was sent an error event.
pub const BROKEN_STREAMS: &str = "llmproxy_broken_streams_total";

/// Registers the help texts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(TIMEOUTS, Unit::Count, "Answers ended because the backend was silent for too long");
    describe_counter!(BROKEN_STREAMS, Unit::Count, "Event streams that broke, by whether an error event was sent");
}

pub(crate) fn timeout(kind: &'static str) {
    counter!(TIMEOUTS, "kind" => kind).increment(1);
}

pub(crate) fn broken_stream(visible: bool) {
    counter!(BROKEN_STREAMS, "visible" => if visible { "true" } else { "false" }).increment(1);
}
