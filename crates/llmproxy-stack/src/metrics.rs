//! The proxy's own series, beside those that the parts name.
//!
//! A series is looked up in the recorder when it is first counted, and kept: install the recorder before the first request.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{PoisonError, RwLock},
};

use metrics::{Unit, describe_counter, describe_histogram};

/// Requests that were answered, refused ones included.
pub const REQUESTS: &str = "llmproxy_requests_total";
/// The whole duration of a request, in milliseconds.
pub const LATENCY: &str = "llmproxy_latency_ms";
/// Tokens, by type.
pub const TOKENS: &str = "llmproxy_usage_tokens_total";
/// Exchanges for which a backend was asked, by how they ended and who counted their tokens.
pub const EXCHANGES: &str = "llmproxy_exchanges_total";
/// Tokens, by type, model and backend, and by whom where that is asked for.
pub const TOKENS_BY_MODEL: &str = "llmproxy_tokens_total";
/// What they cost, in millionths of the currency's unit.
pub const COST: &str = "llmproxy_cost_millionths_total";
/// Tokens of an exchange, as OpenTelemetry's `gen_ai.client.token.usage`.
pub const TOKEN_USAGE: &str = "gen_ai_client_token_usage";
/// The whole duration of an exchange, in seconds, as `gen_ai.server.request.duration`.
pub const REQUEST_DURATION: &str = "gen_ai_server_request_duration_seconds";
/// Time to the first token of a stream, in seconds, as `gen_ai.server.time_to_first_token`.
pub const TIME_TO_FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
/// The mean time from one token of a stream to the next, in seconds, as `gen_ai.server.time_per_output_token`.
pub const TIME_PER_OUTPUT_TOKEN: &str = "gen_ai_server_time_per_output_token_seconds";
/// The longest wait between two pieces of a stream, in seconds.
pub const LONGEST_GAP: &str = "llmproxy_longest_gap_seconds";
/// Time to the first byte of an answer's body, in seconds.
pub const TIME_TO_FIRST_BYTE: &str = "llmproxy_time_to_first_byte_seconds";
/// Tokens of an answer per second.
pub const TOKENS_PER_SECOND: &str = "llmproxy_tokens_per_second";
/// How long a request waited for a backend to be found, in seconds.
pub const QUEUE_TIME: &str = "llmproxy_queue_time_seconds";
/// How long the proxy itself took until a backend was asked, in seconds.
pub const PROXY_TIME: &str = "llmproxy_proxy_time_seconds";
/// How many times a backend was asked for one request.
pub const ATTEMPTS: &str = "llmproxy_attempts";
/// Lines that the access log could not write.
pub const ACCESS_LOG_DROPPED: &str = "llmproxy_access_log_dropped_total";
/// Connections that are open.
pub const CONNECTIONS: &str = "llmproxy_connections";
/// WebSockets that are open.
pub const TUNNELS: &str = "llmproxy_tunnels";
/// Connections that were refused since there were too many.
pub const CONNECTIONS_REFUSED: &str = "llmproxy_connections_refused_total";
/// Clients that were given up since they kept the server waiting, by what for.
pub const CLIENT_TIMEOUTS: &str = "llmproxy_client_timeouts_total";
/// Reloads of the configuration, by result.
pub const RELOADS: &str = "llmproxy_config_reloads_total";

/// The upper bounds of the proxy's own histograms' buckets, in the histogram's unit.
const BUCKETS: &[(&str, &[f64])] = &[
    (LATENCY, &[10.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0]),
    (TOKEN_USAGE, &TOKEN_BUCKETS),
    (REQUEST_DURATION, &DURATION_BUCKETS),
    (TIME_TO_FIRST_TOKEN, &WAIT_BUCKETS),
    (TIME_TO_FIRST_BYTE, &WAIT_BUCKETS),
    (TIME_PER_OUTPUT_TOKEN, &[0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5]),
    (LONGEST_GAP, &WAIT_BUCKETS),
    (TOKENS_PER_SECOND, &[1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0]),
    (QUEUE_TIME, &[0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]),
    (PROXY_TIME, &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1.0]),
    (ATTEMPTS, &[1.0, 2.0, 3.0, 4.0, 6.0, 10.0]),
];
/// The convention's own: powers of four.
const TOKEN_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// The convention's own: powers of two, from a hundredth of a second on.
const DURATION_BUCKETS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const WAIT_BUCKETS: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// The upper bounds of each histogram's buckets, in the histogram's unit, for whoever exports.
pub fn buckets() -> impl Iterator<Item = (&'static str, &'static [f64])> {
    [BUCKETS, llmproxy_metering::metrics::BUCKETS].into_iter().flatten().copied()
}

/// Registers the help texts of all parts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(REQUESTS, "requests answered, refused ones included");
    describe_histogram!(LATENCY, Unit::Milliseconds, "whole duration of a request in milliseconds");
    describe_counter!(TOKENS, "tokens of prompts and completions");
    describe_counter!(EXCHANGES, "exchanges for which a backend was asked, by end and by who counted");
    describe_counter!(
        TOKENS_BY_MODEL,
        "tokens by type, model and backend; cached ones are among the prompt's, reasoning ones among the completion's"
    );
    describe_counter!(COST, "what tokens cost, in millionths of the currency's unit");
    describe_histogram!(TOKEN_USAGE, "tokens of an exchange");
    describe_histogram!(REQUEST_DURATION, Unit::Seconds, "whole duration of an exchange in seconds");
    describe_histogram!(TIME_TO_FIRST_TOKEN, Unit::Seconds, "time to the first token of a stream in seconds");
    describe_histogram!(
        TIME_PER_OUTPUT_TOKEN,
        Unit::Seconds,
        "mean time from one token of a stream to the next in seconds"
    );
    describe_histogram!(LONGEST_GAP, Unit::Seconds, "longest wait between two pieces of a stream in seconds");
    describe_histogram!(TIME_TO_FIRST_BYTE, Unit::Seconds, "time to the first byte of an answer in seconds");
    describe_histogram!(TOKENS_PER_SECOND, "tokens of an answer per second");
    describe_histogram!(QUEUE_TIME, Unit::Seconds, "wait for a backend to be found in seconds");
    describe_histogram!(
        PROXY_TIME,
        Unit::Seconds,
        "time that the proxy itself took until a backend was asked in seconds"
    );
    describe_histogram!(ATTEMPTS, "how many times a backend was asked for one request");
    describe_counter!(ACCESS_LOG_DROPPED, "access lines that could not be written");
    metrics::describe_gauge!(CONNECTIONS, "open client connections");
    metrics::describe_gauge!(TUNNELS, "open WebSockets");
    describe_counter!(CONNECTIONS_REFUSED, "connections refused since there were too many");
    describe_counter!(CLIENT_TIMEOUTS, "clients given up since they kept the server waiting, by what for");
    describe_counter!(RELOADS, "reloads of the configuration, by result");
    llmproxy_auth::metrics::describe();
    llmproxy_balancer::metrics::describe();
    llmproxy_metering::metrics::describe();
    llmproxy_ratelimit::metrics::describe();
    llmproxy_sse::metrics::describe();
    llmproxy_upstream::metrics::describe();
    llmproxy_usage::metrics::describe();
}

/// Series by what tells them apart. The facade finds one by its labels, which it allocates, sorts and hashes for it: too
/// much for each request. No more are kept here than the recorder keeps.
#[derive(Debug)]
pub(crate) struct Known<K, S>(RwLock<HashMap<K, S>>);

// === impl Known ===

impl<K, S> Default for Known<K, S> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Eq + Hash, S: Clone> Known<K, S> {
    /// The series of `key`; `find` finds it the first time.
    pub(crate) fn get(&self, key: K, find: impl FnOnce(&K) -> S) -> S {
        if let Some(series) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return series.clone();
        }
        let series = find(&key);
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, series.clone());
        series
    }
}
