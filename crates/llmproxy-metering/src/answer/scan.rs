//! What is looked for in one piece of a stream: JSON is parsed only where a search for its keys says that it pays.
//!
//! A key can't stand unescaped inside a JSON string, so a search for the key with its quotes finds nothing in text.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use memchr::memmem::Finder;
use serde::Deserialize;

use super::json::end_or_escape;

/// Searches for one key, quotes included.
pub(super) struct Key(Finder<'static>);

#[derive(Deserialize)]
struct ErrorObject {
    message: Option<String>,
}

/// The longest text of an error that is kept, in bytes.
const MAX_ERROR: usize = 512;
/// The longest id or name of a model that is kept, in bytes.
const MAX_TEXT: usize = 256;

/// How much text stands under the first of `keys` that has any, in bytes; `None` where none has.
pub(super) fn text_len(keys: &[Key], data: &[u8]) -> Option<u64> {
    let of = |key: &Key| key.values(data).filter_map(|value| Some(string_len(value.strip_prefix(b"\"")?))).sum();
    keys.iter().map(of).find(|len| *len > 0)
}

/// The bytes of the text of a string, from behind its first quote on; an escape stands for one, or for one character of about
/// three (`\uXXXX`).
fn string_len(json: &[u8]) -> u64 {
    let (mut at, mut saved) = (0, 0);
    while let Some(found) = end_or_escape(&json[at..]) {
        at += found;
        if json[at] == b'"' {
            return (at - saved) as u64;
        }
        let (len, stands_for) = if json.get(at + 1) == Some(&b'u') { (6, 3) } else { (2, 1) };
        at = (at + len).min(json.len());
        saved += len - stands_for;
    }
    json.len().saturating_sub(saved) as u64
}

/// Whether `data` may say that something went wrong.
pub(super) fn has_error(data: &[u8]) -> bool {
    static ERROR: LazyLock<Key> = LazyLock::new(|| Key::new("\"error\""));
    ERROR.values(data).any(|value| matches!(value.first(), Some(b'{' | b'"')))
}

/// Whether `json` begins with a string that satisfies `is`, as it is written.
pub(super) fn begins_with_string(json: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
    let string = json.strip_prefix(b"\"").and_then(|rest| rest.split(|byte| *byte == b'"').next());
    string.is_some_and(is)
}

/// What went wrong, in words, of the JSON that servers put it in: an object with a message, a string, a list. `None`
/// where it is anything else, such as null.
pub(super) fn words(json: &[u8]) -> Option<Arc<str>> {
    let raw = || String::from_utf8_lossy(json).into_owned();
    let said = match json.first()? {
        b'"' => serde_json::from_slice::<String>(json).unwrap_or_else(|_| raw()),
        b'{' => match serde_json::from_slice(json) {
            Ok(ErrorObject { message: Some(message) }) => message,
            _ => raw(),
        },
        b'[' => raw(),
        _ => return None,
    };
    cut(&said, MAX_ERROR)
}

/// What went wrong, where no JSON says so.
pub(super) fn plain_words(text: &[u8]) -> Option<Arc<str>> {
    cut(&String::from_utf8_lossy(text), MAX_ERROR)
}

/// A JSON string as text, cut where it is too long; `None` where it is none or empty.
pub(super) fn text(json: &[u8]) -> Option<Arc<str>> {
    // Nearly every one is written without an escape.
    let plain = json.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let plain = plain.filter(|text| !text.iter().any(|byte| *byte < b' ' || matches!(byte, b'"' | b'\\')));
    let text: Cow<'_, str> = match plain {
        Some(plain) => str::from_utf8(plain).ok()?.into(),
        None => serde_json::from_slice::<String>(json).ok()?.into(),
    };
    cut(&text, MAX_TEXT)
}

fn cut(text: &str, max: usize) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text[..text.floor_char_boundary(max)].into())
}

// === impl Key ===

impl Key {
    pub(super) fn new(key: &'static str) -> Self {
        Self(Finder::new(key))
    }

    /// The rest of `data` from each value on that stands under the key.
    pub(super) fn values<'a>(&'a self, data: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = data;
        // Not find_iter: it copies the searcher, which takes as long as to search through a short event.
        std::iter::from_fn(move || {
            loop {
                rest = &rest[self.0.find(rest)? + self.0.needle().len()..];
                if let Some(value) = rest.trim_ascii_start().strip_prefix(b":") {
                    return Some(value.trim_ascii_start());
                }
            }
        })
    }

    /// Whether one of the values satisfies `is`.
    pub(super) fn any(&self, data: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
        self.values(data).any(is)
    }

    /// Whether one of the values is an object.
    pub(super) fn any_object(&self, data: &[u8]) -> bool {
        self.any(data, |value| value.first() == Some(&b'{'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_text_is_that_of_what_it_stands_for() {
        let keys = [Key::new("\"a\""), Key::new("\"b\"")];
        let check = |json: &str, expected| assert_eq!(text_len(&keys, json.as_bytes()), expected, "{json}");
        check(r#"{"a":"","b":null}"#, None);
        check(r#"{"a":"","b":"xyz"}"#, Some(3));
        check(r#"{"b":"xyz","a":"1","x":{"a":"22"}}"#, Some(3));
        check(r#"{"a":"\n\"\u00e9"}"#, Some(5));
        check(r#"{"a":"broken o"#, Some(8));
        check(r#"{"a":"broken \"#, Some(7));
        check(r#"{"a":"broken \u0"#, Some(7));
    }

    #[test]
    fn errors_of_every_shape_are_put_into_words() {
        let check = |json: &str, expected: Option<&str>| {
            assert_eq!(words(json.as_bytes()).as_deref(), expected, "{json}");
        };
        check(r#"{"message":"out of memory","type":"x","code":500}"#, Some("out of memory"));
        check(r#"{"message":"out of memory","code":"server_error"}"#, Some("out of memory"));
        check(r#""overloaded""#, Some("overloaded"));
        check(r#"{"code":7}"#, Some(r#"{"code":7}"#));
        check(r#"[{"loc":["body"],"msg":"no"}]"#, Some(r#"[{"loc":["body"],"msg":"no"}]"#));
        for none in ["null", "false", "\"\"", "0", ""] {
            check(none, None);
        }
    }
}
