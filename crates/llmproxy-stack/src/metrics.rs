//! The proxy's own series, beside those that the parts name.
//!
//! A series is looked up in the recorder when it is first counted, and kept: install the recorder before the first request.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use llmproxy_core::{End, UsageRecord, UsageSink, UsageSource};
use metrics::{Counter, Histogram, Unit, describe_counter, describe_histogram};

/// Requests that were answered, refused ones included.
pub const REQUESTS: &str = "llmproxy_requests_total";
/// The whole duration of a request, in milliseconds.
pub const LATENCY: &str = "llmproxy_latency_ms";
/// Tokens, by type.
pub const TOKENS: &str = "llmproxy_usage_tokens_total";
/// Exchanges for which a backend was asked, by how they ended and who counted their tokens.
pub const EXCHANGES: &str = "llmproxy_exchanges_total";
/// Time to the first token of a stream, in seconds.
pub const TIME_TO_FIRST_TOKEN: &str = "llmproxy_time_to_first_token_seconds";
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

/// The upper bounds of each histogram's buckets, in the histogram's unit, for whoever exports.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (LATENCY, &[10.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0]),
    (TIME_TO_FIRST_TOKEN, &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]),
];

/// Registers the help texts of all parts with the recorder that is installed; call it after that.
pub fn describe() {
    describe_counter!(REQUESTS, "requests answered, refused ones included");
    describe_histogram!(LATENCY, Unit::Milliseconds, "whole duration of a request in milliseconds");
    describe_counter!(TOKENS, "tokens of prompts and completions");
    describe_counter!(EXCHANGES, "exchanges for which a backend was asked, by end and by who counted");
    describe_histogram!(TIME_TO_FIRST_TOKEN, Unit::Seconds, "time to the first token of a stream in seconds");
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

/// Makes series of records.
#[derive(Debug, Default)]
pub(crate) struct MetricsSink {
    exchanges: Known<(End, Option<UsageSource>), Counter>,
    prompt: OnceLock<Counter>,
    completion: OnceLock<Counter>,
    first_token: Known<Option<Arc<str>>, Histogram>,
}

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

// === impl MetricsSink ===

impl UsageSink for MetricsSink {
    fn record(&self, record: &Arc<UsageRecord>) {
        let exchanges = self.exchanges.get((record.end, record.source()), |(end, source)| {
            let source = source.map_or("none", UsageSource::as_str);
            metrics::counter!(EXCHANGES, "end" => end.as_str(), "usage_source" => source)
        });
        exchanges.increment(1);
        if let Some(usage) = record.usage {
            let tokens = |kind| move || metrics::counter!(TOKENS, "type" => kind);
            self.prompt.get_or_init(tokens("prompt")).increment(usage.prompt);
            self.completion.get_or_init(tokens("completion")).increment(usage.completion);
        }
        if let Some(time) = record.time_to_first_token {
            let series = self.first_token.get(record.backend.clone(), |backend| {
                let backend = backend.as_deref().unwrap_or_default().to_owned();
                metrics::histogram!(TIME_TO_FIRST_TOKEN, "backend" => backend)
            });
            series.record(time.as_secs_f64());
        }
    }
}
