//! The JSON of records against its published schema.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use bytes::Bytes;
use llmproxy_core::{End, Endpoint, RouteStep, TokenUsage, UnitKind, UsageSources};
use serde_json::json;

use super::*;
use crate::fields;

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/usage-record.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Everything that is wrong with `value`, by the words that the schema uses. A word that it does not know is wrong, and so
/// is a field that the schema does not have.
fn check(schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let mut complain = |what: String| wrong.push(format!("{at}: {what}"));
    let mut below = Vec::new();
    for (word, rule) in schema.as_object().unwrap() {
        let holds = match word.as_str() {
            "description" | "title" | "$schema" | "format" | "additionalProperties" => true,
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "array" => value.is_array(),
                "integer" => value.is_u64() || value.is_i64(),
                "number" => value.is_number(),
                other => panic!("{other}"),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_f64().is_some_and(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_some_and(|number| number <= rule.as_f64().unwrap()),
            "required" => rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some()),
            "properties" => {
                let names = value.as_object().into_iter().flatten();
                for (name, value) in names {
                    match rule.get(name) {
                        Some(rule) => below.push((rule, value, format!("{at}.{name}"))),
                        None => complain(format!("{name} is not in the schema")),
                    }
                }
                true
            }
            "maxItems" => value.as_array().is_some_and(|list| list.len() as u64 <= rule.as_u64().unwrap()),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                below.extend(items.map(|(index, value)| (rule, value, format!("{at}[{index}]"))));
                true
            }
            other => panic!("this test does not know the word {other}"),
        };
        if !holds {
            complain(format!("{value} is not {word} {rule}"));
        }
    }
    for (schema, value, at) in below {
        check(schema, value, &at, wrong);
    }
}

fn mistakes(value: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    check(&schema(), value, "", &mut wrong);
    wrong
}

fn nothing() -> UsageRecord {
    UsageRecord::new(Endpoint::of("/v1/chat/completions"))
}

fn everything() -> UsageRecord {
    let text = |text: &str| Some(text.into());
    UsageRecord {
        client_request_id: text("c"),
        upstream_id: text("u"),
        key_name: text("alice"),
        key_fingerprint: text("ab12"),
        user_id: text("u-1"),
        client_ip: Some("::1".parse().unwrap()),
        model: text("m"),
        served_model: text("m-2"),
        stream: true,
        backend: text("gpu-1"),
        backend_url: text("http://gpu-1"),
        attempts: 2,
        route: vec![
            RouteStep { backend: "b".into(), reason: "its turn".into(), status: None, error: text("reset") },
            RouteStep { backend: "gpu-1".into(), reason: "the only one".into(), status: Some(200), error: None },
        ],
        error: text("reset"),
        usage: Some(TokenUsage { prompt: 7, completion: 21, cached: Some(4), reasoning: Some(3) }),
        delivered_tokens: Some(20),
        usage_source: Some(UsageSources::both(UsageSource::Counted)),
        cost: Some(Cost { trillionths: 16_800_000, currency: "EUR".into() }),
        units: Some(Units { kind: UnitKind::Images, count: 2 }),
        latency: Duration::from_millis(1500),
        time_to_first_byte: Some(Duration::from_millis(400)),
        time_to_first_token: Some(Duration::from_millis(500)),
        longest_gap: Some(Duration::from_micros(70_250)),
        queue_time: Some(Duration::ZERO),
        proxy_time: Some(Duration::from_micros(90)),
        ..nothing()
    }
}

/// As a webhook sends it.
fn sent(record: UsageRecord, request_body: Option<&'static str>, fields: &Fields) -> Value {
    let entry = Entry { record: Arc::new(record), request_body: request_body.map(Bytes::from) };
    serde_json::from_slice(&object(&entry, fields)).unwrap()
}

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_record_with_everything_has_exactly_the_fields_of_the_schema() {
    let (schema, all) = (schema(), sent(everything(), Some("[1]"), &Fields::default()));
    assert_eq!(mistakes(&all), [] as [String; 0]);
    assert_eq!(names(&all), names(&schema["properties"]));
    assert_eq!(names(&all), fields::NAMES.iter().copied().collect());
}

#[test]
fn a_record_with_nothing_has_exactly_what_the_schema_requires() {
    let (schema, least) = (schema(), sent(nothing(), None, &Fields::default()));
    assert_eq!(mistakes(&least), [] as [String; 0]);
    let required: BTreeSet<_> =
        schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names(&least), required);
}

#[test]
fn every_way_to_end_and_to_count_is_in_the_schema() {
    use End::*;
    let ends = [Complete, ClientGone, BackendFailed, Timeout, Shutdown, ProxyFailed, ProxyDied];
    for end in ends {
        // One that is not above is missing here, too.
        match end {
            Complete | ClientGone | BackendFailed | Timeout | Shutdown | ProxyFailed | ProxyDied => {}
        }
        assert_eq!(mistakes(&sent(UsageRecord { end, ..nothing() }, None, &Fields::default())), [] as [String; 0]);
    }
    assert_eq!(schema()["properties"]["end"]["enum"], json!(ends.map(End::as_str)));
    for source in [UsageSource::Backend, UsageSource::Counted, UsageSource::Estimated] {
        let record = UsageRecord { usage_source: Some(UsageSources::both(source)), ..nothing() };
        assert_eq!(mistakes(&to_json(&record)), [] as [String; 0]);
    }
    use UnitKind::*;
    for kind in [Images, Characters, Documents, Inputs, Seconds] {
        match kind {
            Images | Characters | Documents | Inputs | Seconds => {}
        }
        let record = UsageRecord { units: Some(Units { kind, count: 1 }), ..nothing() };
        assert_eq!(mistakes(&to_json(&record)), [] as [String; 0]);
    }
}

#[test]
fn what_does_not_fit_the_schema_is_found() {
    let check = |name: &str, value: Value| {
        let mut record = to_json(&everything());
        record[name] = value;
        assert_eq!(mistakes(&record).len(), 1, "{name}: {:?}", mistakes(&record));
    };
    check("unheard_of", json!(1));
    check("model", json!(1));
    check("latency_ms", json!(1.5));
    check("attempts", json!(-1));
    check("end", json!("lost"));
    check("route", json!([{"backend": "a"}]));
    check("route", json!([{"backend": "a", "reason": "its turn", "why": 1}]));
    check("route", json!(vec![json!({"backend": "a", "reason": "its turn"}); 9]));
    check("schema", json!(2));
    check("usage", json!({"prompt_tokens": 1, "completion_tokens": 2}));
    let mut record = to_json(&nothing());
    record.as_object_mut().unwrap().remove("path");
    assert_eq!(mistakes(&record).len(), 1);
}

#[test]
fn every_field_is_described() {
    let schema = schema();
    let fields = [
        "/properties",
        "/properties/usage/properties",
        "/properties/units/properties",
        "/properties/route/items/properties",
    ];
    for (name, field) in fields.iter().flat_map(|at| schema.pointer(at).unwrap().as_object().unwrap()) {
        let description = field["description"].as_str().unwrap_or_default();
        assert!(description.ends_with('.'), "{name}");
        assert!(!name.ends_with("_ms") || description.contains("milliseconds"), "{name} has no unit");
    }
}

#[test]
fn only_the_chosen_fields_are_sent() {
    let only = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        sent(everything(), Some("[1]"), &Fields::compile(&names).unwrap())
    };
    let expected = json!({"cost": 0.0000168, "model": "m", "request_id": nothing().request_id, "schema": 1});
    assert_eq!(only(&["model", "cost"]), expected);
    assert_eq!(only(&["request_body"])["request_body"], json!([1]));
    assert_eq!(only(&["model"]).get("request_body"), None);
}

#[test]
fn what_was_written_is_read_as_the_same_record() {
    let read = |value: &Value| -> Entry {
        let delivered: crate::read::Delivered = serde_json::from_str(&value.to_string()).unwrap();
        delivered.into_entry().unwrap()
    };
    for record in [everything(), nothing()] {
        let value = sent(record.clone(), None, &Fields::default());
        // The backend's name is in no JSON.
        assert_eq!(*read(&value).record, UsageRecord { backend: None, ..record });
    }
    let value = sent(everything(), Some(r#"{"n": 12345678901234567890, "x": [1.5]}"#), &Fields::default());
    let entry = read(&value);
    assert_eq!(serde_json::from_slice::<Value>(&object(&entry, &Fields::default())).unwrap(), value);
    let mut later = value;
    later["schema"] = json!(2);
    let delivered: crate::read::Delivered = serde_json::from_str(&later.to_string()).unwrap();
    assert!(delivered.into_entry().unwrap_err().contains("schema is 2"));
}
