//! A record is read back as it was written, by this version and by others.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use llmproxy_core::{
    Backend, Cost, End, Endpoint, Exchange, RouteStep, Target, TokenUsage, UnitKind, Units, UsageRecord, UsageSource,
    UsageSources,
};
use serde_json::Value;
use uuid::Uuid;

/// A record of which everything is known.
fn full() -> UsageRecord {
    UsageRecord {
        request_id: Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
        client_request_id: Some("a \"client's\" \u{1f600}".into()),
        upstream_id: Some("chatcmpl-1".into()),
        timestamp: Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap(),
        key_name: Some("alice".into()),
        key_fingerprint: Some("0a1b".into()),
        user_id: Some("u1".into()),
        client_ip: Some("2001:db8::1".parse().unwrap()),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        endpoint: Endpoint::of("/v1/chat/completions"),
        model: Some("qwen".into()),
        served_model: Some("Qwen/Qwen2.5".into()),
        stream: true,
        backend: Some("a".into()),
        backend_url: Some("http://a:8000".into()),
        attempts: 2,
        route: vec![
            RouteStep { backend: "b".into(), reason: "its turn".into(), status: None, error: Some("reset".into()) },
            RouteStep { backend: "a".into(), reason: "the only one".into(), status: Some(200), error: None },
        ],
        status: 499,
        end: End::ClientGone,
        error: Some("connection reset\n".into()),
        usage: Some(TokenUsage { prompt: 12, completion: u64::MAX, cached: Some(0), reasoning: None }),
        delivered_tokens: Some(7),
        usage_source: Some(UsageSources { prompt: UsageSource::Backend, completion: UsageSource::Counted }),
        cost: Some(Cost { trillionths: u64::MAX, currency: "EUR".into() }),
        units: Some(Units { kind: UnitKind::Seconds, count: 3 }),
        latency: Duration::new(3, 141_592_653),
        time_to_first_byte: Some(Duration::from_nanos(1)),
        time_to_first_token: Some(Duration::ZERO),
        longest_gap: Some(Duration::from_micros(7)),
        queue_time: Some(Duration::from_secs(86_400)),
        proxy_time: Some(Duration::from_nanos(123_456)),
    }
}

fn to_json(record: &UsageRecord) -> String {
    serde_json::to_string(record).unwrap()
}

fn from_json(json: &str) -> UsageRecord {
    serde_json::from_str(json).unwrap()
}

#[test]
fn what_is_written_is_read_back_whatever_is_known() {
    let full: UsageRecord = full();
    assert_eq!(from_json(&to_json(&full)), full);
    let Value::Object(members) = serde_json::to_value(&full).unwrap() else { panic!("no object") };
    for left_out in members.keys() {
        let mut members = members.clone();
        members.remove(left_out);
        // Either it is a record that lacks this, and nothing but this, or it is none.
        if let Ok(record) = serde_json::from_value::<UsageRecord>(Value::Object(members.clone())) {
            assert_eq!(serde_json::to_value(&record).unwrap(), Value::Object(members), "{left_out}");
            assert_eq!(from_json(&to_json(&record)), record, "{left_out}");
        }
    }
}

#[test]
fn every_name_is_read_back() {
    let ends = [
        End::Complete,
        End::ClientGone,
        End::BackendFailed,
        End::Timeout,
        End::Shutdown,
        End::ProxyFailed,
        End::ProxyDied,
    ];
    for end in ends {
        let record = UsageRecord { end, ..full() };
        assert!(to_json(&record).contains(&format!(r#""end":"{}""#, end.as_str())));
        assert_eq!(from_json(&to_json(&record)), record);
    }
    let kinds = [UnitKind::Images, UnitKind::Characters, UnitKind::Documents, UnitKind::Inputs, UnitKind::Seconds];
    for kind in kinds {
        let record = UsageRecord { units: Some(Units { kind, count: 1 }), ..full() };
        assert!(to_json(&record).contains(&format!(r#""kind":"{}""#, kind.as_str())));
        assert_eq!(from_json(&to_json(&record)), record);
    }
}

#[test]
fn what_is_not_known_takes_no_room() {
    let timestamp = Timestamp::from_second(1_700_000_000).unwrap();
    let record = UsageRecord { timestamp, ..UsageRecord::new(Endpoint::of("/x")) };
    let expected = concat!(
        r#"{"request_id":"00000000-0000-0000-0000-000000000000","timestamp":"2023-11-14T22:13:20Z","#,
        r#""method":"POST","path":"other","endpoint":"other","stream":false,"attempts":1,"status":200,"#,
        r#""end":"complete","latency":0}"#
    );
    assert_eq!(to_json(&record), expected);
    assert_eq!(from_json(expected), record);
}

#[test]
fn what_a_newer_version_adds_is_passed_over() {
    let json = to_json(&full());
    let newer = json.replacen('{', r#"{"schema":2,"mood":{"was":["good"]},"#, 1);
    assert_eq!(from_json(&newer), full());
}

#[test]
fn what_every_record_has_is_not_made_up() {
    for name in ["request_id", "timestamp", "path", "endpoint", "status", "end", "latency"] {
        let Value::Object(mut members) = serde_json::to_value(full()).unwrap() else { panic!("no object") };
        members.remove(name).unwrap();
        let error = serde_json::from_value::<UsageRecord>(Value::Object(members)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn of_many_attempts_the_first_ones_and_the_last_are_kept() {
    let exchange = Exchange::new();
    let long = "é".repeat(200);
    let steps = || UsageRecord::of(&exchange, &http::Method::POST, &"/v1/chat/completions".into()).route;
    let target = |number: usize| {
        let backend = Arc::new(Backend::new(&format!("http://b{number}")).unwrap());
        Target { backend, model: None, inject_usage: false }
    };
    assert_eq!(steps(), []);
    for number in 0..20 {
        let attempt = exchange.begin_attempt(&target(number), format!("{number}{long}").into());
        exchange.finish_attempt(attempt, Err(long.as_str().into()));
        let expected: Vec<usize> = if number < 8 { (0..=number).collect() } else { (0..7).chain([number]).collect() };
        let names: Vec<_> = steps().iter().map(|step| step.backend.to_string()).collect();
        assert_eq!(names, expected.iter().map(|number| format!("http://b{number}")).collect::<Vec<_>>());
    }
    let last = steps().pop().unwrap();
    assert_eq!((last.reason.len(), last.error.map(|error| error.len()), last.status), (256, Some(256), None));
    assert_eq!(UsageRecord::of(&exchange, &http::Method::POST, &"/".into()).attempts, 20);
}
