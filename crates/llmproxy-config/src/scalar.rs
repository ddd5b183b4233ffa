//! Plain values, made into what a key wants.
//!
//! A value comes from YAML with a type, or from a variable as a string; either way it is the key that says what it must
//! be. Every error is the sentence that follows the key's path.

use std::net::IpAddr;

use figment::value::{Num, Tag, Value};
use ipnet::IpNet;
use llmproxy_core::{duration, nearest};

use crate::{
    table::{Kind, Words},
    tree::string,
};

/// Ten years. Past this, a bare number is no number of seconds that anyone means, but the Go program's nanoseconds; and
/// a time that far ahead can't be told by the clock, so that a deadline made of it would panic.
const MOST_SECONDS: u64 = 10 * 365 * 24 * 3600;

/// A value as a key wants it, and what there is to say about it.
#[derive(Debug, PartialEq)]
pub(crate) struct Coerced {
    pub value: Value,
    pub warning: Option<String>,
}

/// Makes `value` what `kind` wants.
pub(crate) fn coerce(kind: Kind, value: &Value) -> Result<Coerced, String> {
    let plain = |value| Ok(Coerced { value, warning: None });
    match kind {
        Kind::Text | Kind::File | Kind::Url => plain(string(text(value)?)),
        Kind::Secret => match value {
            Value::String(_, text) => plain(string(text)),
            // A number has lost its leading zeros, and a long one its last digits.
            _ => Err("must be a string; put it in quotes".into()),
        },
        Kind::Texts => plain(list(value, |item| text(item).map(string))?),
        Kind::Networks => plain(list(value, network)?),
        Kind::Numbers => plain(list(value, |item| number(item).map(Value::from))?),
        Kind::Switch => match switch(value) {
            Some(on) => plain(on.into()),
            None => Err(format!("must be true or false, not {}", quote(value))),
        },
        Kind::Integer => plain(integer(value)?.into()),
        Kind::Bytes => plain(bytes(value)?.into()),
        Kind::Number => plain(number(value)?.into()),
        Kind::Duration => time(value),
        Kind::Word(words) => word(words, value),
        Kind::Scalar => match value {
            Value::String(..) | Value::Num(..) => plain(value.clone()),
            _ => Err("must be a string or a number".into()),
        },
        Kind::Block | Kind::Blocks | Kind::Like(_) | Kind::Map | Kind::Script | Kind::LogFile | Kind::Any => {
            plain(value.clone())
        }
    }
}

/// true or false, in any of the words that YAML has had for them.
pub(crate) fn switch(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(_, on) => Some(*on),
        Value::String(_, text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Some(true),
            "false" | "no" | "off" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(_, text) => Ok(text.clone()),
        Value::Bool(_, on) => Ok(on.to_string()),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(number), _) => Ok(number.to_string()),
            (_, Some(number)) => Ok(number.to_string()),
            _ => Err("must be a string; put it in quotes".into()),
        },
        _ => Err(format!("must be a string, not {}", quote(value))),
    }
}

fn integer(value: &Value) -> Result<u64, String> {
    let wrong = || format!("must be a whole number, 0 or more, not {}", quote(value));
    let number = match value {
        Value::Num(_, number) => *number,
        Value::String(_, text) => parse_number(text).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    match (number.to_u128(), number.to_f64()) {
        (Some(number), _) => u64::try_from(number).map_err(|_| wrong()),
        // What is written 1e6 is whole as well; the bound is where a float stops to tell whole numbers apart.
        (_, Some(float)) if float.fract() == 0.0 && (0.0..=9e15).contains(&float) => Ok(float as u64),
        _ => Err(wrong()),
    }
}

fn number(value: &Value) -> Result<f64, String> {
    let wrong = || format!("must be a number, not {}", quote(value));
    let number = match value {
        Value::Num(_, number) => *number,
        Value::String(_, text) => parse_number(text).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    let float =
        number.to_f64().or_else(|| number.to_u128().map(|n| n as f64)).or_else(|| number.to_i128().map(|n| n as f64));
    float.filter(|float| float.is_finite()).ok_or_else(wrong)
}

fn parse_number(text: &str) -> Option<Num> {
    let text = text.trim();
    let whole = text.parse::<u64>().map(Num::from).or_else(|_| text.parse::<i64>().map(Num::from));
    whole.ok().or_else(|| text.parse::<f64>().ok().map(Num::from))
}

fn bytes(value: &Value) -> Result<u64, String> {
    let wrong = || format!("must be a number of bytes, or a size like 10MiB or 512KiB, not {}", quote(value));
    let Value::String(_, text) = value else { return integer(value).map_err(|_| wrong()) };
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

fn time(value: &Value) -> Result<Coerced, String> {
    let wrong = || format!("must be a duration like 500ms, 30s, 1m30s or 2h, not {}", quote(value));
    if let Value::String(_, text) = value
        && parse_number(text).is_none()
    {
        return match duration::parse(text) {
            Ok(long) if long.as_secs() > MOST_SECONDS => {
                Err(format!("`{text}` is too long; the most is {}h, ten years", MOST_SECONDS / 3600))
            }
            Ok(_) => Ok(Coerced { value: string(text.trim()), warning: None }),
            Err(_) => Err(wrong()),
        };
    }
    let seconds = number(value).ok().filter(|seconds| *seconds >= 0.0).ok_or_else(wrong)?;
    if seconds > MOST_SECONDS as f64 {
        return Err(format!("{seconds} has no unit; write it like 30s or 500ms"));
    }
    let value = string(format!("{seconds}s"));
    let warning = (seconds != 0.0).then(|| format!("{seconds} has no unit and is taken for seconds; write {seconds}s"));
    Ok(Coerced { value, warning })
}

fn word(words: &Words, value: &Value) -> Result<Coerced, String> {
    let said = text(value)?.trim().to_ascii_lowercase();
    if words.allowed.contains(&&*said) {
        return Ok(Coerced { value: string(said), warning: None });
    }
    if let Some((_, meant)) = words.meant.iter().find(|(other, _)| *other == said) {
        let warning = Some(format!("`{said}` is taken for `{meant}`; write that"));
        return Ok(Coerced { value: string(*meant), warning });
    }
    if words.later.contains(&&*said) {
        return Err(format!("`{said}` is not supported yet: {}", words.why));
    }
    let allowed = words.allowed.join(", ");
    Err(match nearest(&said, words.allowed.iter().copied()) {
        Some(near) => format!("must be one of {allowed}; did you mean {near} by `{said}`?"),
        None => format!("must be one of {allowed}, not `{said}`"),
    })
}

fn network(value: &Value) -> Result<Value, String> {
    let text = text(value)?;
    let text = text.trim();
    let single = text.parse::<IpAddr>().map(IpNet::from);
    let network = single.or_else(|_| text.parse::<IpNet>());
    network
        .map(|network| string(network.to_string()))
        .map_err(|_| format!("must be an address or a network like 10.0.0.0/8, not `{text}`"))
}

/// Each entry as `entry` makes it. One string stands for its parts between commas, since a variable can't hold a list.
fn list(value: &Value, entry: impl Fn(&Value) -> Result<Value, String>) -> Result<Value, String> {
    let entries = match value {
        Value::Array(_, entries) => entries.clone(),
        Value::String(_, text) => {
            let text = text.trim();
            let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            let parts = text.split(',').map(|part| part.trim().trim_matches(['"', '\'']));
            parts.filter(|part| !part.is_empty()).map(string).collect()
        }
        Value::Num(..) => vec![value.clone()],
        _ => return Err(format!("must be a list, not {}", quote(value))),
    };
    let entries: Result<Vec<Value>, String> = entries.iter().map(entry).collect();
    Ok(Value::Array(Tag::Default, entries?))
}

/// How a value is named in a message.
fn quote(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("`{text}`"),
        Value::Char(_, char) => format!("`{char}`"),
        Value::Bool(_, on) => format!("`{on}`"),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(number), ..) => format!("`{number}`"),
            (_, Some(number), _) => format!("`{number}`"),
            (_, _, Some(number)) => format!("`{number}`"),
            _ => "a number".into(),
        },
        Value::Empty(..) => "nothing".into(),
        Value::Dict(..) => "a map".into(),
        Value::Array(..) => "a list".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words =
        Words { allowed: &["memory", "disk"], later: &["redis"], why: "not shared", meant: &[("ram", "memory")] };

    fn check(kind: Kind, value: impl Into<Value>, expected: impl Into<Value>) {
        let value = value.into();
        assert_eq!(coerce(kind, &value).map(|coerced| coerced.value), Ok(expected.into()), "{kind:?} {value:?}");
    }

    fn refuse(kind: Kind, value: impl Into<Value>, part: &str) {
        let value = value.into();
        let error = coerce(kind, &value).unwrap_err();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn the_key_says_what_a_variable_becomes() {
        check(Kind::Integer, "8000", 8000u64);
        check(Kind::Text, "007", "007");
        check(Kind::Text, 8000u64, "8000");
        check(Kind::Switch, "yes", true);
        check(Kind::Switch, "Off", false);
        check(Kind::Number, "1.5", 1.5);
        check(Kind::Number, 2u64, 2.0);
        check(Kind::Integer, 1e6, 1_000_000u64);
    }

    #[test]
    fn what_is_no_number_is_refused_with_what_is_allowed() {
        refuse(Kind::Integer, -1i64, "whole number, 0 or more, not `-1`");
        refuse(Kind::Integer, "many", "not `many`");
        refuse(Kind::Integer, 1.5, "not `1.5`");
        refuse(Kind::Number, "NaN", "must be a number");
        refuse(Kind::Switch, "maybe", "true or false");
    }

    #[test]
    fn a_bare_duration_is_seconds_and_says_so() {
        let coerced = coerce(Kind::Duration, &30u64.into()).unwrap();
        assert_eq!(coerced.value, string("30s"));
        assert!(coerced.warning.unwrap().contains("seconds"));
        check(Kind::Duration, "1m30s", "1m30s");
        check(Kind::Duration, "5", "5s");
        assert_eq!(coerce(Kind::Duration, &0u64.into()).unwrap().warning, None);
        refuse(Kind::Duration, 30_000_000_000u64, "no unit");
        refuse(Kind::Duration, "soon", "500ms");
        refuse(Kind::Duration, -5i64, "duration");
    }

    #[test]
    fn a_duration_that_no_clock_can_tell_is_refused() {
        check(Kind::Duration, "87600h", "87600h");
        refuse(Kind::Duration, "87601h", "too long");
        refuse(Kind::Duration, "4000000000000000h", "ten years");
    }

    #[test]
    fn sizes_have_units() {
        check(Kind::Bytes, 1024u64, 1024u64);
        check(Kind::Bytes, "10MiB", 10u64 << 20);
        check(Kind::Bytes, "512 kb", 512_000u64);
        refuse(Kind::Bytes, "10 apples", "10MiB");
        refuse(Kind::Bytes, "99999999999999999999", "bytes");
    }

    #[test]
    fn words_are_checked_translated_and_suggested() {
        check(Kind::Word(&WORDS), "Memory", "memory");
        check(Kind::Word(&WORDS), "ram", "memory");
        refuse(Kind::Word(&WORDS), "redis", "not supported yet: not shared");
        refuse(Kind::Word(&WORDS), "memmory", "did you mean memory");
        refuse(Kind::Word(&WORDS), "moon", "one of memory, disk, not `moon`");
    }

    #[test]
    fn one_string_can_be_a_list() {
        let list = |items: &[&str]| Value::from(items.iter().map(|item| Value::from(*item)).collect::<Vec<_>>());
        check(Kind::Texts, "a, b", list(&["a", "b"]));
        check(Kind::Texts, r#"["a","b"]"#, list(&["a", "b"]));
        check(Kind::Networks, "10.0.0.0/8, ::1", list(&["10.0.0.0/8", "::1/128"]));
        refuse(Kind::Networks, "10.0.0.0/99", "10.0.0.0/99");
        refuse(Kind::Texts, true, "must be a list");
    }

    #[test]
    fn a_secret_that_yaml_took_for_a_number_is_refused_unquoted() {
        let error = coerce(Kind::Secret, &12345u64.into()).unwrap_err();
        assert!(error.contains("quotes") && !error.contains("12345"), "{error}");
    }
}
