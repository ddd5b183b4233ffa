//! OpenAI's Responses API.
//!
//! <https://platform.openai.com/docs/api-reference/responses-streaming>
//!
//! Every event of a stream says its type, in its name and in its JSON. The last one, of three types, carries the whole
//! response with its usage; a plain answer is that response.

use std::sync::LazyLock;

use super::{
    json::{Member, Names},
    scan::{self, Key},
};

struct Keys {
    delta: [Key; 1],
    kind: Key,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys { delta: [Key::new("\"delta\"")], kind: Key::new("\"type\"") });

/// The members of an event, and of the response that some events carry.
pub(super) const NAMES: Names = Names {
    top: Names::TYPED,
    inside: Some((
        "response",
        &[("id", Member::Id), ("model", Member::Model), ("usage", Member::Usage), ("error", Member::Error)],
    )),
    in_list: false,
};

/// Whether nothing follows an event of this type.
pub(super) fn is_terminal(kind: &[u8]) -> bool {
    matches!(kind, b"response.completed" | b"response.incomplete" | b"response.failed")
}

/// The length of a piece of text, of reasoning, or of a call's arguments. Only where `data` carries one.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.delta, data)
}

/// Whether an event is one of the last, or may tell of an error.
pub(super) fn is_worth_parsing(name: Option<&[u8]>, data: &[u8]) -> bool {
    let is_last = |kind: &[u8]| is_terminal(kind) || kind == b"error";
    match name {
        Some(name) if is_last(name) => true,
        _ => KEYS.kind.any(data, |value| scan::begins_with_string(value, is_last)) || scan::has_error(data),
    }
}
