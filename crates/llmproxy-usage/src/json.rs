//! A record as JSON.

use std::{fmt, time::Duration};

use llmproxy_core::{Cost, TokenUsage, Units, UsageRecord, UsageSource};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use crate::{Entry, fields::Fields};

/// The version of the JSON; another one only where a receiver could take the new for the old and be wrong.
pub(crate) const SCHEMA: u32 = 1;

/// Records that are written at a stretch, in some tens of microseconds; one with a request's body takes as long by itself.
const BETWEEN_YIELDS: usize = 64;

/// A record as webhooks receive it.
///
/// docs/usage-record.schema.json describes it; `schema` says which version it is. It has
/// the fields of all the shapes that receivers were written for: `usage` as an object and its numbers beside it. `model`
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
    serde_json::to_value(Json { record, request_body: None, fields: &Fields::default() }).expect("its keys are text")
}

/// The bytes that carry one record: an object.
pub(crate) fn object(entry: &Entry, fields: &Fields) -> Vec<u8> {
    let mut text = Vec::with_capacity(space(entry));
    write(&mut text, entry, fields);
    text
}

/// The bytes that carry several: an array of the same objects. Streams run on this thread, too: it is theirs in between.
pub(crate) async fn array(entries: &[Entry], fields: &Fields) -> Vec<u8> {
    let mut text = Vec::with_capacity(entries.iter().map(space).sum());
    text.push(b'[');
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write(&mut text, entry, fields);
        pause(index, entry).await;
    }
    text.push(b']');
    text
}

/// The bytes that carry several: a line for each of the same objects.
pub(crate) async fn lines(entries: &[Entry], fields: &Fields) -> Vec<u8> {
    let mut text = Vec::with_capacity(entries.iter().map(space).sum());
    for (index, entry) in entries.iter().enumerate() {
        write(&mut text, entry, fields);
        text.push(b'\n');
        pause(index, entry).await;
    }
    text
}

async fn pause(index: usize, entry: &Entry) {
    if index % BETWEEN_YIELDS == BETWEEN_YIELDS - 1 || entry.request_body.is_some() {
        tokio::task::yield_now().await;
    }
}

/// Enough for most, in bytes, so that the buffer does not grow.
fn space(entry: &Entry) -> usize {
    1024 + entry.request_body.as_ref().map_or(0, |body| body.len())
}

/// Writes one object.
pub(crate) fn write(text: &mut Vec<u8>, entry: &Entry, fields: &Fields) {
    let body = entry.request_body.as_deref().filter(|_| fields.has("request_body"));
    let request_body = body.and_then(whole_body);
    let json = Json { record: &entry.record, request_body, fields };
    serde_json::to_writer(text, &json).expect("its keys are text, and it is written to memory");
}

/// A request's body as JSON that every receiver can read; none of one that is empty. Read and written anew, not copied: what a
/// client nests too deep, or a string that is no text, would make a receiver refuse the record, and the request would be
/// free. What can't be read so is the text of the body as one string, or a client could keep its prompt to itself.
pub(crate) fn whole_body(body: &[u8]) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    Some(serde_json::from_slice(body).unwrap_or_else(|_| text_of(body)))
}

/// A body as one string.
pub(crate) fn text_of(body: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(body).into_owned())
}

/// Written straight into a buffer; a tree of values costs an allocation for each key.
struct Json<'a> {
    record: &'a UsageRecord,
    request_body: Option<Value>,
    fields: &'a Fields,
}

/// A map of which only some fields are written.
struct Chosen<'a, M> {
    map: M,
    fields: &'a Fields,
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
        let mut map = Chosen { map: serializer.serialize_map(None)?, fields: self.fields };
        map.set("attempts", record.attempts)?;
        map.set("backend_url", record.backend_url.as_deref().unwrap_or_default())?;
        map.set_known("cached_tokens", usage.cached)?;
        map.set_known("client_ip", record.client_ip.map(Text))?;
        map.set_known("client_request_id", record.client_request_id.as_deref())?;
        map.set("completion_tokens", usage.completion)?;
        map.set_known("completion_usage_source", sources.map(|sources| sources.completion.as_str()))?;
        map.set_known("cost", record.cost.as_ref().map(Cost::amount))?;
        map.set_known("currency", record.cost.as_ref().map(|cost| &*cost.currency))?;
        map.set_known("delivered_tokens", record.delivered_tokens)?;
        map.set("end", record.end.as_str())?;
        map.set("endpoint", record.endpoint.template())?;
        map.set_known("error", record.error.as_deref())?;
        map.set("is_stream", record.stream)?;
        map.set_known("key_fingerprint", record.key_fingerprint.as_deref())?;
        map.set_known("key_name", record.key_name.as_deref())?;
        map.set("latency_ms", millis(record.latency))?;
        map.set_known("longest_gap_ms", record.longest_gap.map(fine_millis))?;
        map.set("method", &*record.method)?;
        map.set("model", record.model.as_deref().unwrap_or_default())?;
        map.set("path", &*record.path)?;
        map.set("prompt_tokens", usage.prompt)?;
        map.set_known("prompt_usage_source", sources.map(|sources| sources.prompt.as_str()))?;
        map.set_known("proxy_time_ms", record.proxy_time.map(fine_millis))?;
        map.set_known("queue_time_ms", record.queue_time.map(fine_millis))?;
        map.set_known("reasoning_tokens", usage.reasoning)?;
        map.set_known("request_body", self.request_body.as_ref())?;
        map.set("request_id", Text(record.request_id))?;
        map.set_known("route", Some(&record.route).filter(|route| !route.is_empty()))?;
        map.set("schema", SCHEMA)?;
        map.set_known("served_model", record.served_model.as_deref())?;
        map.set("status_code", record.status)?;
        map.set_known("time_per_output_token_ms", record.time_per_output_token().map(fine_millis))?;
        map.set_known("time_to_first_byte_ms", record.time_to_first_byte.map(millis))?;
        map.set_known("time_to_first_token_ms", record.time_to_first_token.map(millis))?;
        map.set("timestamp", Text(format_args!("{:.9}", record.timestamp)))?;
        map.set_known("tokens_per_second", rate)?;
        map.set("total_tokens", usage.total())?;
        map.set_known("units", record.units.map(Counted))?;
        map.set_known("upstream_id", record.upstream_id.as_deref())?;
        map.set_known("usage", record.usage.map(Tokens))?;
        map.set_known("usage_source", record.source().map(UsageSource::as_str))?;
        map.set_known("user_id", record.user_id.as_deref())?;
        map.map.end()
    }
}

// === impl Chosen ===

impl<M: SerializeMap> Chosen<'_, M> {
    fn set(&mut self, name: &str, value: impl Serialize) -> Result<(), M::Error> {
        if self.fields.has(name) { self.map.serialize_entry(name, &value) } else { Ok(()) }
    }

    fn set_known(&mut self, name: &str, value: Option<impl Serialize>) -> Result<(), M::Error> {
        value.map_or(Ok(()), |value| self.set(name, value))
    }
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
        map.serialize_entry("completion_tokens", &self.0.completion)?;
        map.serialize_entry("prompt_tokens", &self.0.prompt)?;
        map.serialize_entry("total_tokens", &self.0.total())?;
        map.end()
    }
}

// === impl Counted ===

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.0.count)?;
        map.serialize_entry("kind", self.0.kind.as_str())?;
        map.end()
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
