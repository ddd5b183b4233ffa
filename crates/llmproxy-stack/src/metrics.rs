//! The proxy's own series, beside those that the parts name.

use std::sync::Arc;

use llmproxy_core::{UsageRecord, UsageSink};
use metrics::{Unit, describe_counter, describe_histogram};

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
    describe_counter!(RELOADS, "reloads of the configuration, by result");
    llmproxy_auth::metrics::describe();
    llmproxy_balancer::metrics::describe();
    llmproxy_metering::metrics::describe();
    llmproxy_ratelimit::metrics::describe();
    llmproxy_sse::metrics::describe();
    llmproxy_upstream::metrics::describe();
    llmproxy_usage::metrics::describe();
}

/// Makes series of records.
#[derive(Debug)]
pub(crate) struct MetricsSink;

// === impl MetricsSink ===

impl UsageSink for MetricsSink {
    fn record(&self, record: &Arc<UsageRecord>) {
        let source = record.usage_source.map_or("none", llmproxy_core::UsageSource::as_str);
        metrics::counter!(EXCHANGES, "end" => record.end.as_str(), "usage_source" => source).increment(1);
        if let Some(usage) = record.usage {
            metrics::counter!(TOKENS, "type" => "prompt").increment(usage.prompt);
            metrics::counter!(TOKENS, "type" => "completion").increment(usage.completion);
        }
        if let Some(time) = record.time_to_first_token {
            let backend = record.backend.as_deref().unwrap_or_default().to_owned();
            metrics::histogram!(TIME_TO_FIRST_TOKEN, "backend" => backend).record(time.as_secs_f64());
        }
    }
}
