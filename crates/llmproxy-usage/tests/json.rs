//! What a record looks like to a webhook.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::sync::Arc;

use common::record;
use llmproxy_core::{UnitKind, Units};
use llmproxy_usage::to_json;
use serde_json::{Value, json};

#[test]
fn the_json_serves_every_receiver() {
    let record = record();
    let expected = json!({
        "schema": 1,
        "request_id": record.request_id.to_string(),
        "timestamp": "2026-01-23T10:30:00.500000000Z",
        "user_id": "u-1",
        "key_name": "alice",
        "key_fingerprint": "ab12",
        "usage": {"prompt_tokens": 7, "completion_tokens": 21, "total_tokens": 28},
        "method": "POST",
        "path": "/v1/chat/completions",
        "endpoint": "/v1/chat/completions",
        "backend_url": "http://gpu-1:8000",
        "status_code": 200,
        "latency_ms": 1500,
        "model": "demo",
        "prompt_tokens": 7,
        "completion_tokens": 21,
        "total_tokens": 28,
        "is_stream": true,
        "upstream_id": "chatcmpl-1",
        "usage_source": "backend",
        "prompt_usage_source": "backend",
        "completion_usage_source": "backend",
        "cost": 0.0000168,
        "currency": "EUR",
        "longest_gap_ms": 70.25,
        "queue_time_ms": 0.0,
        "proxy_time_ms": 0.09,
        "time_per_output_token_ms": 50.0,
        "end": "complete",
        "attempts": 2,
        "time_to_first_byte_ms": 400,
        "time_to_first_token_ms": 500,
        "tokens_per_second": 20.0,
        "cached_tokens": 4,
        "client_ip": "10.0.0.1",
    });
    assert_eq!(to_json(&record), expected);
}

#[test]
fn what_is_not_known_is_left_out_or_zero() {
    let mut record = Arc::unwrap_or_clone(record());
    record.usage = None;
    record.model = None;
    record.error = Some("reset".into());
    assert_eq!(to_json(&record).get("delivered_tokens"), None);
    record.delivered_tokens = Some(0);
    record.units = Some(Units { kind: UnitKind::Images, count: 2 });
    let json = to_json(&record);
    assert_eq!((&json["usage"], &json["prompt_tokens"], &json["model"]), (&Value::Null, &json!(0), &json!("")));
    assert_eq!((&json["error"], &json["delivered_tokens"]), (&json!("reset"), &json!(0)));
    assert_eq!(json["units"], json!({"kind": "images", "count": 2}));
    assert!(!json.as_object().unwrap().values().any(Value::is_null));
}
