//! One event of a stream: JSON is parsed only where a search for its keys says that it pays.
//!
//! A key can't stand unescaped inside a JSON string, so a search for the key with its quotes finds nothing in text.

use std::sync::{Arc, LazyLock};

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::tally::text;
use crate::counts::Counts;

/// The members of a chunk of a stream.
#[derive(Default, Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    timings: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorObject {
    message: Option<String>,
}

/// Searches for one key, quotes included.
struct Key(Finder<'static>);

struct Keys {
    usage: Key,
    timings: Key,
    error: Key,
    deltas: [Key; 6],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    usage: Key::new("\"usage\""),
    timings: Key::new("\"timings\""),
    error: Key::new("\"error\""),
    deltas: [
        Key::new("\"content\""),
        Key::new("\"text\""),
        Key::new("\"arguments\""),
        Key::new("\"reasoning_content\""),
        Key::new("\"reasoning\""),
        Key::new("\"name\""),
    ],
});

/// The longest text of an error that is kept, in bytes.
const MAX_ERROR: usize = 512;

/// Whether `data` carries a piece of the answer: text, reasoning, a call of a tool.
pub(super) fn has_delta(data: &[u8]) -> bool {
    KEYS.deltas.iter().any(|key| key.values(data).any(|value| matches!(value, [b'"', next, ..] if *next != b'"')))
}

/// Whether `data` may say something about usage or an error, so that it is worth parsing.
pub(super) fn is_worth_parsing(data: &[u8]) -> bool {
    let object = |value: &[u8]| value.first() == Some(&b'{');
    let something = |value: &[u8]| matches!(value.first(), Some(b'{' | b'"'));
    KEYS.usage.values(data).any(object)
        || KEYS.timings.values(data).any(object)
        || KEYS.error.values(data).any(something)
}

// === impl Key ===

impl Key {
    fn new(key: &'static str) -> Self {
        Self(Finder::new(key))
    }

    /// The rest of `data` from each value on that stands under the key.
    fn values<'a>(&'a self, data: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
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
}

// === impl Chunk ===

impl<'a> Chunk<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(data).ok()
    }

    pub(super) fn id(&self) -> Option<Arc<str>> {
        text(self.id?.get().as_bytes())
    }

    pub(super) fn model(&self) -> Option<Arc<str>> {
        text(self.model?.get().as_bytes())
    }

    pub(super) fn usage(&self) -> Option<Counts> {
        Counts::of_usage(self.usage?.get().as_bytes())
    }

    pub(super) fn timings(&self) -> Option<Counts> {
        Counts::of_timings(self.timings?.get().as_bytes())
    }

    /// Whether there are choices and they are none.
    pub(super) fn has_no_choices(&self) -> bool {
        let inside = self.choices.and_then(|choices| choices.get().strip_prefix('[')?.strip_suffix(']'));
        inside.is_some_and(|inside| inside.trim_start().is_empty())
    }

    /// Whether it is the event that closes a stream for which usage was asked: usage, and nothing else.
    pub(super) fn is_usage_event(&self) -> bool {
        self.has_no_choices() && self.usage.is_some_and(|usage| usage.get().starts_with('{'))
    }

    /// What went wrong, in words.
    pub(super) fn error(&self) -> Option<Arc<str>> {
        let raw = self.error?.get();
        let message = match serde_json::from_str::<ErrorObject>(raw) {
            Ok(ErrorObject { message: Some(message) }) => message,
            _ => serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned()),
        };
        Some(message[..message.floor_char_boundary(MAX_ERROR)].into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_an_answer_are_told_from_the_rest() {
        let check = |json: &str, expected| assert_eq!(has_delta(json.as_bytes()), expected, "{json}");
        check(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, false);
        check(r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#, false);
        check(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false);
        check(r#"{"choices":[{"delta":{"content":"a"}}]}"#, true);
        check(r#"{"choices": [{"delta": {"content": "\""}}]}"#, true);
        check(r#"{"choices": [{"text" : "a"}]}"#, true);
        check(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}"#, true);
        check(r#"{"choices":[{"delta":{"content":"","reasoning":"hm"}}]}"#, true);
        check(r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":""}}]}}]}"#, true);
        check(r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}"#, true);
        check(r#"{"choices":[{"delta":{"content":""},"logprobs":{"content":[]}}]}"#, false);
    }

    #[test]
    fn text_that_looks_like_usage_is_not_parsed() {
        let check = |json: &str, expected| assert_eq!(is_worth_parsing(json.as_bytes()), expected, "{json}");
        check(r#"{"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":9}"}}]}"#, false);
        check(r#"{"choices":[{"delta":{"content":"usage"}}],"usage":null}"#, false);
        check(r#"{"choices":[],"usage" : {"prompt_tokens":9}}"#, true);
        check(r#"{"error":null}"#, false);
        check(r#"{"error":"no"}"#, true);
    }

    #[test]
    fn only_an_event_of_usage_alone_is_the_usage_event() {
        let check = |json: &str, expected| {
            assert_eq!(Chunk::parse(json.as_bytes()).unwrap().is_usage_event(), expected, "{json}");
        };
        check(r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, true);
        check(r#"{"usage":{}, "id":"", "choices": [ ]}"#, true);
        check(r#"{"choices":[],"usage":null}"#, false);
        check(r#"{"choices":[],"prompt_filter_results":[]}"#, false);
        check(r#"{"choices":[{"index":0}],"usage":{"prompt_tokens":1}}"#, false);
        check(r#"{"usage":{"prompt_tokens":1}}"#, false);
        check(r#"{"choices":null,"usage":{"prompt_tokens":1}}"#, false);
    }

    #[test]
    fn errors_of_every_shape_are_put_into_words() {
        let check = |json: &str, expected: &str| {
            assert_eq!(Chunk::parse(json.as_bytes()).unwrap().error().as_deref(), Some(expected), "{json}");
        };
        check(r#"{"error":{"message":"out of memory","code":500}}"#, "out of memory");
        check(r#"{"error":"overloaded","error_type":"overloaded"}"#, "overloaded");
        check(r#"{"error":{"code":7}}"#, r#"{"code":7}"#);
    }
}
