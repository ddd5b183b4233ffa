//! What entries of a list say, made into what their keys want: as databases give it, and as people write it under
//! `backends`, so that a list that is moved from there means the same.

use llmproxy_core::duration;
use serde_json::{Map, Value};

/// Ten years: a time that far ahead can't be told by the clock.
const MOST_SECONDS: u64 = 10 * 365 * 24 * 3600;
/// The bound at which a float stops to tell whole numbers apart.
const MOST_WHOLE: f64 = 9e15;

/// Makes each value what its key wants. What no backend has stays as it is, and what is null is not there.
pub(super) fn coerce(entry: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut coerced = Map::new();
    for (key, value) in entry {
        if value.is_null() {
            continue;
        }
        let made = match key.as_str() {
            // What is left empty is left out, where nothing depends on it.
            "url" | "name" | "ca_file" | "metrics_path" if value.as_str().is_some_and(str::is_empty) => continue,
            "url" | "name" | "ca_file" | "metrics_path" => text(&value),
            "group" => text(&value).filter(|value| value.as_str().is_none_or(|text| !text.is_empty())),
            "weight" | "tier" | "max_idle_conns" | "max_concurrent" | "max_tokens" => integer(&value).map(Value::from),
            "timeout" | "connect_timeout" => time(&value).map(Value::from),
            "http2" | "preserve_host" => switch(&value).map(Value::from),
            "inject_usage" => injection(&value).map(Value::from),
            "models" => list(&value).map(Value::from),
            _ => Some(value.clone()),
        };
        let made = made.ok_or_else(|| format!("{key} {}", wanted(&key)))?;
        coerced.insert(key, made);
    }
    Ok(coerced)
}

/// What is said of a value that can't be what its key wants. It is not quoted: what stands in a wrong place may be a secret.
fn wanted(key: &str) -> &'static str {
    match key {
        "weight" | "tier" | "max_idle_conns" | "max_concurrent" | "max_tokens" => "must be a whole number, 0 or more",
        "timeout" | "connect_timeout" => "must be a duration like 500ms, 30s, 1m30s or 2h, and at most ten years",
        "http2" | "preserve_host" => "must be true or false",
        "inject_usage" => "must be one of auto, always, never",
        "models" => "must be a list of names",
        "group" => "must be a string, and not an empty one",
        _ => "must be a string",
    }
}

fn text(value: &Value) -> Option<Value> {
    match value {
        Value::String(_) => Some(value.clone()),
        Value::Bool(_) => Some(value.to_string().into()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string().into()),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn integer(value: &Value) -> Option<u64> {
    let exact = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..=MOST_WHOLE).contains(number);
    exact.or_else(|| number(value).filter(whole).map(|number| number as u64))
}

/// A number without a unit is one of seconds.
fn time(value: &Value) -> Option<String> {
    if let Some(seconds) = number(value) {
        return (0.0..=MOST_SECONDS as f64).contains(&seconds).then(|| format!("{seconds}s"));
    }
    let text = value.as_str()?.trim();
    duration::parse(text).ok().filter(|long| long.as_secs() <= MOST_SECONDS).map(|_| text.to_owned())
}

/// In any of the words that YAML has had for it; a database may have no other than 0 and 1.
fn switch(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        Value::Number(number) => match number.as_u64()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Some(true),
            "false" | "no" | "off" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn injection(value: &Value) -> Option<&'static str> {
    match text(value)?.as_str()?.trim().to_ascii_lowercase().as_str() {
        "auto" => Some("auto"),
        "always" | "true" | "on" => Some("always"),
        "never" | "false" | "off" => Some("never"),
        _ => None,
    }
}

/// One string stands for its parts between commas.
fn list(value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(entries) => entries.iter().map(text).collect(),
        Value::String(names) => {
            let names = names.trim();
            let names = names.strip_prefix('[').and_then(|names| names.strip_suffix(']')).unwrap_or(names);
            let names = names.split(',').map(|name| name.trim().trim_matches(['"', '\'']));
            Some(names.filter(|name| !name.is_empty()).map(Value::from).collect())
        }
        Value::Number(_) => Some(vec![text(value)?]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(key: &str, value: Value, expected: Option<Value>) {
        let entry = Map::from_iter([(key.to_owned(), value.clone())]);
        assert_eq!(coerce(entry).ok().and_then(|mut entry| entry.remove(key)), expected, "{key}: {value}");
    }

    #[test]
    fn the_key_says_what_a_value_becomes() {
        check("timeout", json!(30), Some(json!("30s")));
        check("timeout", json!("30"), Some(json!("30s")));
        check("timeout", json!(0.5), Some(json!("0.5s")));
        check("connect_timeout", json!(" 1m30s "), Some(json!("1m30s")));
        check("max_concurrent", json!("8"), Some(json!(8)));
        check("max_tokens", json!(1e6), Some(json!(1_000_000)));
        check("weight", json!(" 2 "), Some(json!(2)));
        check("http2", json!("no"), Some(json!(false)));
        check("http2", json!("On"), Some(json!(true)));
        check("preserve_host", json!(1), Some(json!(true)));
        check("inject_usage", json!(false), Some(json!("never")));
        check("inject_usage", json!("Auto"), Some(json!("auto")));
        check("name", json!(7), Some(json!("7")));
        check("name", json!(""), None);
        check("models", json!("m, 'n'"), Some(json!(["m", "n"])));
        check("models", json!([7, "m"]), Some(json!(["7", "m"])));
        check("priority", json!({"a": 1}), Some(json!({"a": 1})));
    }

    #[test]
    fn what_can_not_be_meant_is_refused_and_not_quoted() {
        for (key, value) in [
            ("timeout", json!("soon")),
            ("timeout", json!(-1)),
            ("timeout", json!(30_000_000_000_u64)),
            ("timeout", json!("9999999h")),
            ("max_concurrent", json!("many")),
            ("max_concurrent", json!(1.5)),
            ("tier", json!(-1)),
            ("http2", json!("maybe")),
            ("http2", json!(2)),
            ("inject_usage", json!("sometimes")),
            ("models", json!({})),
            ("models", json!([["m"]])),
            ("group", json!("")),
            ("name", json!(["n"])),
        ] {
            let error = coerce(Map::from_iter([(key.to_owned(), value.clone())])).unwrap_err();
            assert!(error.starts_with(key), "{error}");
            assert!(value.as_str().is_none_or(|text| text.is_empty() || !error.contains(text)), "{error}");
        }
    }
}
