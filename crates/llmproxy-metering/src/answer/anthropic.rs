//! Anthropic's messages, which vLLM, llama.cpp and Ollama offer as well.
//!
//! <https://docs.anthropic.com/en/docs/build-with-claude/streaming>
//!
//! `message_start` says how many tokens went in; what it says of those that come out is a placeholder. Each
//! `message_delta` has the totals so far, in which members may be missing that were given before. What was read from the
//! cache or written to it is not among `input_tokens`.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{
    json::{Member, Names},
    scan::{self, Key},
};
use crate::counts::{Counts, count};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    #[serde(deserialize_with = "count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    cache_read_input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<u64>,
}

struct Keys {
    usage: Key,
    kind: Key,
    deltas: [Key; 4],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    usage: Key::new("\"usage\""),
    kind: Key::new("\"type\""),
    deltas: [Key::new("\"text\""), Key::new("\"partial_json\""), Key::new("\"thinking\""), Key::new("\"name\"")],
});

/// The members of an event or of a plain answer, and of the message that a stream starts with.
pub(super) const NAMES: Names = Names {
    top: Names::TYPED,
    inside: Some(("message", &[("id", Member::Id), ("model", Member::Model), ("usage", Member::PromptUsage)])),
    in_list: false,
};

/// Whether nothing follows an event of this type.
pub(super) fn is_terminal(kind: &[u8]) -> bool {
    kind == b"message_stop"
}

/// The length of a piece of text, of thinking, or of a tool's call. Only where `data` carries one.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.deltas, data)
}

/// Whether `data` may say something about usage, an error or the end.
pub(super) fn is_worth_parsing(name: Option<&[u8]>, data: &[u8]) -> bool {
    let is_last = |value: &[u8]| scan::begins_with_string(value, is_terminal);
    KEYS.usage.any_object(data) || scan::has_error(data) || (name.is_none() && KEYS.kind.any(data, is_last))
}

/// What a `usage` object counts.
pub(super) fn counts(member: Member, json: &[u8]) -> Option<Counts> {
    let usage: Usage = serde_json::from_slice(json).ok()?;
    let completion = usage.output_tokens.filter(|_| member == Member::Usage);
    Counts::with_cache_apart(
        usage.input_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
        completion,
    )
}
