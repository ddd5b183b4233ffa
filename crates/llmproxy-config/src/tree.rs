//! YAML into values, stricter than the parser alone: a key that is written twice is a mistake.

use std::fmt;

use figment::{
    providers::{Format, Yaml},
    value::{Dict, Tag, Value},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

use crate::LoadError;

/// The values of a file. An empty file has none.
pub(crate) fn parse(text: &str) -> Result<Dict, LoadError> {
    let parse_error = |message: String| LoadError::Parse { message };
    // The parser takes a text without any document for an error.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Dict::new());
    }
    match Yaml::from_str::<Strict>(text).map_err(|error| parse_error(error.to_string()))?.0 {
        Value::Dict(_, dict) => Ok(dict),
        Value::Empty(..) => Ok(Dict::new()),
        _ => Err(parse_error("the file must be a map of keys, like `server:` and `backends:`".into())),
    }
}

/// Puts `value` at `path`, making the maps on the way there. What stood there, or was no map, is replaced.
pub(crate) fn insert(dict: &mut Dict, path: &[&str], value: Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        dict.insert((*first).into(), value);
        return;
    }
    let next = dict.entry((*first).into()).or_insert_with(empty_map);
    if !matches!(next, Value::Dict(..)) {
        *next = empty_map();
    }
    if let Value::Dict(_, next) = next {
        insert(next, rest, value);
    }
}

/// Takes the value at `path` out.
pub(crate) fn remove(dict: &mut Dict, path: &[&str]) -> Option<Value> {
    match path {
        [] => None,
        [last] => dict.remove(*last),
        [first, rest @ ..] => match dict.get_mut(*first)? {
            Value::Dict(_, next) => remove(next, rest),
            _ => None,
        },
    }
}

/// The value at `path`.
pub(crate) fn get<'a>(dict: &'a Dict, path: &[&str]) -> Option<&'a Value> {
    match path {
        [] => None,
        [last] => dict.get(*last),
        [first, rest @ ..] => match dict.get(*first)? {
            Value::Dict(_, next) => get(next, rest),
            _ => None,
        },
    }
}

pub(crate) fn string(text: impl Into<String>) -> Value {
    Value::String(Tag::Default, text.into())
}

fn empty_map() -> Value {
    Value::Dict(Tag::Default, Dict::new())
}

/// A value none of whose maps has a key twice.
struct Strict(Value);

struct StrictVisitor;

/// A key that its map does not have yet. Refused as it is read, so that the parser names the line.
struct NewKey<'a>(&'a Dict);

// === impl Strict ===

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map, a list or a plain value without a tag")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Empty(Tag::Default, figment::value::Empty::None)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            list.push(value);
        }
        Ok(Strict(Value::Array(Tag::Default, list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut dict = Dict::new();
        let mut merged = Vec::new();
        while let Some(key) = map.next_key_seed(NewKey(&dict))? {
            let Strict(value) = map.next_value()?;
            // YAML's merge key: what it brings gives way to what is written beside it.
            if key == "<<" {
                match value {
                    Value::Array(_, values) => merged.extend(values),
                    value => merged.push(value),
                }
                continue;
            }
            dict.insert(key, value);
        }
        for value in merged {
            let Value::Dict(_, value) = value else {
                return Err(A::Error::custom("`<<` merges a map, or a list of maps"));
            };
            for (key, value) in value {
                dict.entry(key).or_insert(value);
            }
        }
        Ok(Strict(Value::Dict(Tag::Default, dict)))
    }
}

// === impl NewKey ===

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        // With the last one winning in silence, a second `auth:` further down would switch the first one off.
        if self.0.contains_key(key) {
            return Err(E::custom(format!("the key `{key}` is written twice in one map")));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_an_empty_map() {
        for text in ["", "\n\n", "# only a comment\n", "---\n", "~\n"] {
            assert_eq!(parse(text).unwrap(), Dict::new(), "{text:?}");
        }
    }

    #[test]
    fn a_syntax_error_keeps_its_line_and_column() {
        let message = error("server:\n  listen: \":8000\"\n bad\n");
        assert!(message.contains("line 3") && message.contains("column"), "{message}");
    }

    #[test]
    fn a_key_written_twice_is_a_mistake_with_its_line() {
        let message = error("auth:\n  enabled: true\nserver: {}\nauth:\n  enabled: false\n");
        assert!(message.contains("`auth` is written twice") && message.contains("line 4"), "{message}");
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let text = "x-base: &base {weight: 2, timeout: 5s}\nb:\n  <<: *base\n  weight: 3\n";
        let dict = parse(text).unwrap();
        assert_eq!(get(&dict, &["b", "weight"]), Some(&Value::from(3u64)));
        assert_eq!(get(&dict, &["b", "timeout"]), Some(&Value::from("5s")));
    }

    #[test]
    fn a_file_that_is_no_map_is_refused() {
        for text in ["- a\n", "hello\n", "8000\n"] {
            assert!(error(text).contains("must be a map"), "{text}");
        }
    }

    #[test]
    fn values_are_put_and_taken_by_path() {
        let mut dict = parse("a: 1\n").unwrap();
        insert(&mut dict, &["a", "b"], string("x"));
        assert_eq!(get(&dict, &["a", "b"]), Some(&string("x")));
        assert_eq!(remove(&mut dict, &["a", "b"]), Some(string("x")));
        assert_eq!(get(&dict, &["a", "b"]), None);
    }
}
