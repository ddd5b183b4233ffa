//! `/generate` and `/generate_stream` of TGI, and SGLang's `/generate`.
//!
//! <https://huggingface.github.io/text-generation-inference/>, <https://docs.sglang.ai/basic_usage/native_api.html>
//!
//! TGI has an event for each token. `details` come with the last one if they were asked for; of a plain answer the head
//! has the counts in any case; an event's `index` is that of the token. SGLang's `meta_info` has totals in each event. Of
//! several prompts, or several answers to one (`n`), they are of the one whose `index` the event has; a plain answer is a
//! list then.

use std::sync::LazyLock;

use http::HeaderMap;
use serde::de::IgnoredAny;

use super::{
    json::{Member, Names},
    scan::{self, Key},
};
use crate::counts::Counts;

struct Keys {
    token: Key,
    text: [Key; 1],
    details: Key,
    meta_info: Key,
    generated_text: Key,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    token: Key::new("\"token\""),
    text: [Key::new("\"text\"")],
    details: Key::new("\"details\""),
    meta_info: Key::new("\"meta_info\""),
    generated_text: Key::new("\"generated_text\""),
});

/// The members of an event or of a plain answer, and of its details.
pub(super) const NAMES: Names = Names {
    top: &[
        ("error", Member::Error),
        ("detail", Member::Detail),
        ("meta_info", Member::PartUsage),
        ("index", Member::Index),
    ],
    inside: Some((
        "details",
        &[("generated_tokens", Member::Completion), ("input_length", Member::Prompt), ("prefill", Member::Prefill)],
    )),
    in_list: false,
};

/// What the head says.
pub(super) fn counts_of_head(headers: &HeaderMap) -> Option<Counts> {
    // No answer has more tokens than that.
    let of = |name| headers.get(name)?.to_str().ok()?.trim().parse::<u32>().ok().map(u64::from);
    Some(Counts::new(of("x-prompt-tokens")?, of("x-generated-tokens")?))
}

/// How many tokens of the prompt are listed, where it was asked for that.
pub(super) fn counts_of_prefill(list: &[u8]) -> Option<Counts> {
    let tokens: Vec<IgnoredAny> = serde_json::from_slice(list).ok()?;
    (!tokens.is_empty()).then(|| Counts::of_prompt(tokens.len() as u64))
}

/// Whether `data` carries a token, be its text empty, or text.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.text, data).or_else(|| KEYS.token.any_object(data).then_some(0))
}

/// Whether `data` may have counts or tell of an error.
pub(super) fn is_worth_parsing(data: &[u8]) -> bool {
    KEYS.details.any_object(data) || KEYS.meta_info.any_object(data) || scan::has_error(data)
}

/// Whether nothing follows: the last event has the whole text.
pub(super) fn is_last(data: &[u8]) -> bool {
    KEYS.generated_text.any(data, |value| value.starts_with(b"\""))
}
