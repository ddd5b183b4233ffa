//! A record out of the JSON that it was delivered as.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use llmproxy_core::{
    Cost, End, Endpoint, RouteStep, TokenUsage, UnitKind, Units, UsageRecord, UsageSource, UsageSources,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{Entry, json::SCHEMA};

/// What is written of a record. Rates and sums are left out: they follow from the rest.
#[derive(Deserialize)]
pub(crate) struct Delivered {
    attempts: u32,
    backend_url: Arc<str>,
    cached_tokens: Option<u64>,
    client_ip: Option<IpAddr>,
    client_request_id: Option<Arc<str>>,
    completion_usage_source: Option<UsageSource>,
    cost: Option<f64>,
    currency: Option<Arc<str>>,
    delivered_tokens: Option<u64>,
    end: End,
    endpoint: Endpoint,
    error: Option<Arc<str>>,
    is_stream: bool,
    key_fingerprint: Option<Arc<str>>,
    key_name: Option<Arc<str>>,
    latency_ms: u64,
    longest_gap_ms: Option<f64>,
    method: Arc<str>,
    model: Arc<str>,
    path: Arc<str>,
    prompt_usage_source: Option<UsageSource>,
    proxy_time_ms: Option<f64>,
    queue_time_ms: Option<f64>,
    reasoning_tokens: Option<u64>,
    request_body: Option<Box<RawValue>>,
    request_id: Uuid,
    #[serde(default)]
    route: Vec<RouteStep>,
    schema: u32,
    served_model: Option<Arc<str>>,
    status_code: u16,
    time_to_first_byte_ms: Option<u64>,
    time_to_first_token_ms: Option<u64>,
    timestamp: Timestamp,
    units: Option<Counted>,
    upstream_id: Option<Arc<str>>,
    usage: Option<Tokens>,
    user_id: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct Tokens {
    completion_tokens: u64,
    prompt_tokens: u64,
}

#[derive(Deserialize)]
struct Counted {
    count: u64,
    kind: UnitKind,
}

// === impl Delivered ===

impl Delivered {
    /// The record, with its times as exact as they were written. An error where a later version has written it.
    pub(crate) fn into_entry(self) -> Result<Entry, String> {
        if self.schema > SCHEMA {
            return Err(format!("its schema is {}, and this program knows up to {SCHEMA}", self.schema));
        }
        let sources = self.prompt_usage_source.zip(self.completion_usage_source);
        let known = |text: Arc<str>| (!text.is_empty()).then_some(text);
        let cost =
            |(amount, currency): (f64, _)| Cost { trillionths: (amount * Cost::UNIT as f64).round() as u64, currency };
        let usage = self.usage.map(|tokens| TokenUsage {
            prompt: tokens.prompt_tokens,
            completion: tokens.completion_tokens,
            cached: self.cached_tokens,
            reasoning: self.reasoning_tokens,
        });
        let record = UsageRecord {
            request_id: self.request_id,
            client_request_id: self.client_request_id,
            upstream_id: self.upstream_id,
            timestamp: self.timestamp,
            key_name: self.key_name,
            key_fingerprint: self.key_fingerprint,
            user_id: self.user_id,
            client_ip: self.client_ip,
            method: self.method,
            path: self.path,
            model: known(self.model),
            served_model: self.served_model,
            stream: self.is_stream,
            backend_url: known(self.backend_url),
            attempts: self.attempts,
            route: self.route,
            status: self.status_code,
            end: self.end,
            error: self.error,
            usage,
            delivered_tokens: self.delivered_tokens,
            usage_source: sources.map(|(prompt, completion)| UsageSources { prompt, completion }),
            cost: self.cost.zip(self.currency).map(cost),
            units: self.units.map(|units| Units { kind: units.kind, count: units.count }),
            latency: Duration::from_millis(self.latency_ms),
            time_to_first_byte: self.time_to_first_byte_ms.map(Duration::from_millis),
            time_to_first_token: self.time_to_first_token_ms.map(Duration::from_millis),
            longest_gap: self.longest_gap_ms.map(fine),
            queue_time: self.queue_time_ms.map(fine),
            proxy_time: self.proxy_time_ms.map(fine),
            ..UsageRecord::new(self.endpoint)
        };
        let body = self.request_body.map(|body| Bytes::from(String::from(Box::<str>::from(body))));
        Ok(Entry { record: Arc::new(record), request_body: body })
    }
}

/// Milliseconds with their microseconds.
fn fine(milliseconds: f64) -> Duration {
    Duration::from_micros((milliseconds * 1000.0).round() as u64)
}
