//! A record as JSON.

use std::{fmt, time::Duration};

use llmproxy_core::{Cost, TokenUsage, Units, UsageRecord, UsageSource};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use crate::Entry;

/// Records that are written at a stretch, in some tens of microseconds; one with a request's body takes as long by itself.
const BETWEEN_YIELDS: usize = 64;

/// A record as webhooks receive it.
///
/// The fields of all the shapes that receivers were written for: `usage` as an object and its numbers beside it. `model`
/// and `backend_url` are empty and the numbers 0 where they are not known; every other field that is not known is left
/// out. Times in milliseconds, `timestamp` as RFC 3339 in UTC.
///
/// ```
/// # fn example(record: &llmproxy_core::UsageRecord) {
/// let json = llmproxy_usage::to_json(record);
/// assert_eq!(json["request_id"], record.request_id.to_string());
/// # }
/// ```
#[expect(clippy::missing_panics_doc, reason = "there is nothing in a record that JSON can't say")]
pub fn to_json(record: &UsageRecord) -> Value {
    serde_json::to_value(Json { record, request_body: None }).expect("its keys are text")
}

/// The bytes that carry one record: an object.
pub(crate) fn object(entry: &Entry) -> Vec<u8> {
    let mut text = Vec::with_capacity(space(entry));
    write(&mut text, entry);
    text
}

/// The bytes that carry several: an array of the same objects. Streams run on this thread, too: it is theirs in between.
pub(crate) async fn array(entries: &[Entry]) -> Vec<u8> {
    let mut text = Vec::with_capacity(entries.iter().map(space).sum());
    text.push(b'[');
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write(&mut text, entry);
        if index % BETWEEN_YIELDS == BETWEEN_YIELDS - 1 || entry.request_body.is_some() {
            tokio::task::yield_now().await;
        }
    }
    text.push(b']');
    text
}

/// Enough for most, in bytes, so that the buffer does not grow.
fn space(entry: &Entry) -> usize {
    1024 + entry.request_body.as_ref().map_or(0, |body| body.len())
}

fn write(text: &mut Vec<u8>, entry: &Entry) {
    // Read and written anew, not copied: what a client nests too deep, or a string that is no text, would make a receiver
    // refuse the record, and the request would be free.
    let request_body = entry.request_body.as_deref().and_then(|body| serde_json::from_slice(body).ok());
    let json = Json { record: &entry.record, request_body };
    serde_json::to_writer(text, &json).expect("its keys are text, and it is written to memory");
}

/// Written straight into a buffer; a tree of values costs an allocation for each key.
struct Json<'a> {
    record: &'a UsageRecord,
    request_body: Option<Value>,
}

/// As it is displayed.
struct Text<T>(T);

struct Tokens(TokenUsage);

struct Counted(Units);

// === impl Json ===

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = self.record;
        let usage = record.usage.unwrap_or_default();
        let sources = record.usage_source;
        // Two decimals: more would be noise.
        let rate = record.tokens_per_second().map(|rate| (rate * 100.0).round() / 100.0);
        // In the order of the alphabet, as a tree would be written.
        let mut map = serializer.serialize_map(None)?;
        set(&mut map, "attempts", record.attempts)?;
        set(&mut map, "backend_url", record.backend_url.as_deref().unwrap_or_default())?;
        set_known(&mut map, "cached_tokens", usage.cached)?;
        set_known(&mut map, "client_ip", record.client_ip.map(Text))?;
        set_known(&mut map, "client_request_id", record.client_request_id.as_deref())?;
        set(&mut map, "completion_tokens", usage.completion)?;
        set_known(&mut map, "completion_usage_source", sources.map(|sources| sources.completion.as_str()))?;
        set_known(&mut map, "cost", record.cost.as_ref().map(Cost::amount))?;
        set_known(&mut map, "currency", record.cost.as_ref().map(|cost| &*cost.currency))?;
        set_known(&mut map, "delivered_tokens", record.delivered_tokens)?;
        set(&mut map, "end", record.end.as_str())?;
        set(&mut map, "endpoint", record.endpoint.template())?;
        set_known(&mut map, "error", record.error.as_deref())?;
        set(&mut map, "is_stream", record.stream)?;
        set_known(&mut map, "key_fingerprint", record.key_fingerprint.as_deref())?;
        set_known(&mut map, "key_name", record.key_name.as_deref())?;
        set(&mut map, "latency_ms", millis(record.latency))?;
        set_known(&mut map, "longest_gap_ms", record.longest_gap.map(fine_millis))?;
        set(&mut map, "method", &*record.method)?;
        set(&mut map, "model", record.model.as_deref().unwrap_or_default())?;
        set(&mut map, "path", &*record.path)?;
        set(&mut map, "prompt_tokens", usage.prompt)?;
        set_known(&mut map, "prompt_usage_source", sources.map(|sources| sources.prompt.as_str()))?;
        set_known(&mut map, "proxy_time_ms", record.proxy_time.map(fine_millis))?;
        set_known(&mut map, "queue_time_ms", record.queue_time.map(fine_millis))?;
        set_known(&mut map, "reasoning_tokens", usage.reasoning)?;
        set_known(&mut map, "request_body", self.request_body.as_ref())?;
        set(&mut map, "request_id", Text(record.request_id))?;
        set_known(&mut map, "served_model", record.served_model.as_deref())?;
        set(&mut map, "status_code", record.status)?;
        set_known(&mut map, "time_per_output_token_ms", record.time_per_output_token().map(fine_millis))?;
        set_known(&mut map, "time_to_first_byte_ms", record.time_to_first_byte.map(millis))?;
        set_known(&mut map, "time_to_first_token_ms", record.time_to_first_token.map(millis))?;
        set(&mut map, "timestamp", Text(format_args!("{:.9}", record.timestamp)))?;
        set_known(&mut map, "tokens_per_second", rate)?;
        set(&mut map, "total_tokens", usage.total())?;
        set_known(&mut map, "units", record.units.map(Counted))?;
        set_known(&mut map, "upstream_id", record.upstream_id.as_deref())?;
        set_known(&mut map, "usage", record.usage.map(Tokens))?;
        set_known(&mut map, "usage_source", record.source().map(UsageSource::as_str))?;
        set_known(&mut map, "user_id", record.user_id.as_deref())?;
        map.end()
    }
}

fn set<M: SerializeMap>(map: &mut M, name: &str, value: impl Serialize) -> Result<(), M::Error> {
    map.serialize_entry(name, &value)
}

fn set_known<M: SerializeMap>(map: &mut M, name: &str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| set(map, name, value))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is short, to the microsecond.
fn fine_millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

// === impl Text ===

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

// === impl Tokens ===

impl Serialize for Tokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        set(&mut map, "completion_tokens", self.0.completion)?;
        set(&mut map, "prompt_tokens", self.0.prompt)?;
        set(&mut map, "total_tokens", self.0.total())?;
        map.end()
    }
}

// === impl Counted ===

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        set(&mut map, "count", self.0.count)?;
        set(&mut map, "kind", self.0.kind.as_str())?;
        map.end()
    }
}
