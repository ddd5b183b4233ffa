//! A record as JSON.

use std::{sync::Arc, time::Duration};

use llmproxy_core::UsageRecord;
use serde_json::{Map, Value, json};

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
pub fn to_json(record: &UsageRecord) -> Value {
    let usage = record.usage.unwrap_or_default();
    let tokens = json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total(),
    });
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    set("request_id", record.request_id.to_string().into());
    set("timestamp", format!("{:.9}", record.timestamp).into());
    set("method", (&*record.method).into());
    set("path", (&*record.path).into());
    set("endpoint", record.endpoint.template().into());
    set("backend_url", record.backend_url.as_deref().unwrap_or_default().into());
    set("status_code", record.status.into());
    set("latency_ms", millis(record.latency));
    set("model", record.model.as_deref().unwrap_or_default().into());
    set("prompt_tokens", usage.prompt.into());
    set("completion_tokens", usage.completion.into());
    set("total_tokens", usage.total().into());
    set("is_stream", record.stream.into());
    set("end", record.end.as_str().into());
    set("attempts", record.attempts.into());

    let mut set_known = |name: &str, value: Option<Value>| {
        fields.extend(value.map(|value| (name.to_owned(), value)));
    };
    set_known("usage", record.usage.map(|_| tokens));
    set_known("usage_source", record.usage_source.map(|source| source.as_str().into()));
    set_known("cached_tokens", usage.cached.map(Value::from));
    set_known("reasoning_tokens", usage.reasoning.map(Value::from));
    set_known("user_id", text(&record.user_id));
    set_known("key_name", text(&record.key_name));
    set_known("key_fingerprint", text(&record.key_fingerprint));
    set_known("client_ip", record.client_ip.map(|ip| ip.to_string().into()));
    set_known("client_request_id", text(&record.client_request_id));
    set_known("upstream_id", text(&record.upstream_id));
    set_known("served_model", text(&record.served_model));
    set_known("error", text(&record.error));
    set_known("time_to_first_byte_ms", record.time_to_first_byte.map(millis));
    set_known("time_to_first_token_ms", record.time_to_first_token.map(millis));
    // Two decimals: more would be noise.
    let rate = record.tokens_per_second().map(|rate| (rate * 100.0).round() / 100.0);
    set_known("tokens_per_second", rate.map(Value::from));
    Value::Object(fields)
}

fn text(text: &Option<Arc<str>>) -> Option<Value> {
    text.as_deref().map(Value::from)
}

fn millis(duration: Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}
