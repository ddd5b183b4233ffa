//! OpenAI's chat, completions and embeddings, as all servers offer them, and whatever else has a `usage` at its top.
//!
//! <https://platform.openai.com/docs/api-reference/chat-streaming>; `timings` are llama.cpp's
//! (<https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md>).
//!
//! Usage comes in an event of its own at the end, beside the last choice, with every event as a running total
//! (vLLM's `continuous_usage_stats`), as zeros until it is known (Ollama), as null, or not at all.
//!
//! Beside a choice it is that choice's; where there are none it is the whole answer's. Only llama.cpp has an event of the
//! latter kind for each choice, with its `timings`, and they add up. Its plain answer has all choices and the usage of the
//! first alone.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Dialect, Tally,
    json::{Member, Names},
    scan::{self, Key},
    totals::Place,
};
use crate::counts::Counts;

/// Which one a choice is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Choice {
    index: u64,
}

/// The members of a chunk of a stream.
#[derive(Default, Deserialize)]
struct Chunk<'a> {
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
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
}

struct Keys {
    usage: Key,
    timings: Key,
    deltas: [Key; 6],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    usage: Key::new("\"usage\""),
    timings: Key::new("\"timings\""),
    deltas: [
        Key::new("\"content\""),
        Key::new("\"text\""),
        Key::new("\"arguments\""),
        Key::new("\"reasoning_content\""),
        Key::new("\"reasoning\""),
        Key::new("\"name\""),
    ],
});

/// The members of an answer that is no stream.
pub(super) const NAMES: Names = Names {
    top: &[
        ("usage", Member::Usage),
        ("timings", Member::Timings),
        ("model", Member::Model),
        ("id", Member::Id),
        ("error", Member::Error),
        ("detail", Member::Detail),
    ],
    inside: Some(("choices", &[("index", Member::Index)])),
    in_list: true,
};

/// The members of a chunk of a stream that is too large to be read whole, so that it has a choice.
pub(super) const EVENT_NAMES: Names = Names {
    top: &[
        ("usage", Member::Usage),
        ("timings", Member::Timings),
        ("model", Member::Model),
        ("id", Member::Id),
        ("error", Member::Error),
    ],
    inside: Some(("choices", &[("index", Member::Index)])),
    in_list: true,
};

/// The length of a piece of the answer: text, reasoning, a call of a tool. Only where `data` carries one.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.deltas, data)
}

/// Whether `data` may say something about usage or an error, so that it is worth parsing.
pub(super) fn is_worth_parsing(data: &[u8]) -> bool {
    KEYS.usage.any_object(data) || KEYS.timings.any_object(data) || scan::has_error(data)
}

/// Reads an event of a stream into `tally`. Says whether it is the one that closes a stream for which usage was asked:
/// usage, and nothing else.
pub(super) fn read(tally: &mut Tally, data: &[u8]) -> bool {
    let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else { return false };
    let mut member = |member, raw: Option<&RawValue>| {
        if let Some(raw) = raw {
            tally.member(member, raw.get().as_bytes());
        }
    };
    member(Member::Id, chunk.id);
    member(Member::Model, chunk.model);
    member(Member::Error, chunk.error);
    member(Member::Detail, chunk.detail.filter(|_| chunk.choices.is_none()));
    member(Member::Timings, chunk.timings);
    // Zeros in an event with choices are a placeholder, which says nothing at all.
    let placeholder = |counts: &Counts| counts.is_zero() && (tally.has_usage() || !chunk.has_no_choices());
    if let Some(counts) = chunk.usage(tally.dialect).filter(|counts| !placeholder(counts)) {
        tally.count(counts);
    }
    tally.settle(chunk.place(tally.dialect));
    if chunk.is_usage_event() && chunk.timings.is_some() {
        tally.close();
    }
    chunk.is_usage_event()
}

// === impl Chunk ===

impl<'a> Chunk<'a> {
    fn usage(&self, dialect: Dialect) -> Option<Counts> {
        dialect.counts(Member::Usage, self.usage?.get().as_bytes())
    }

    /// What its usage is of.
    fn place(&self, dialect: Dialect) -> Place {
        let may_count = self.usage.is_some() || self.timings.is_some();
        let choices = self.choices.filter(|_| may_count && !self.has_no_choices());
        let choices: Vec<Choice> = choices.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        match &*choices {
            [choice] => dialect.place(choice.index),
            _ => Place::Whole,
        }
    }

    /// Whether there are choices and they are none.
    fn has_no_choices(&self) -> bool {
        let inside = self.choices.and_then(|choices| choices.get().strip_prefix('[')?.strip_suffix(']'));
        inside.is_some_and(|inside| inside.trim_start().is_empty())
    }

    fn is_usage_event(&self) -> bool {
        self.has_no_choices() && self.usage.is_some_and(|usage| usage.get().starts_with('{'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_an_answer_are_told_from_the_rest() {
        let check = |json: &str, expected| assert_eq!(delta(json.as_bytes()).is_some(), expected, "{json}");
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
            assert_eq!(read(&mut Tally::default(), json.as_bytes()), expected, "{json}");
        };
        check(r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, true);
        check(r#"{"usage":{}, "id":"", "choices": [ ]}"#, true);
        check(r#"{"choices":[],"usage":null}"#, false);
        check(r#"{"choices":[],"prompt_filter_results":[]}"#, false);
        check(r#"{"choices":[{"index":0}],"usage":{"prompt_tokens":1}}"#, false);
        check(r#"{"usage":{"prompt_tokens":1}}"#, false);
        check(r#"{"choices":null,"usage":{"prompt_tokens":1}}"#, false);
    }
}
