//! Ollama's own API: a stream of lines, each an object, the last of which has the counts.
//!
//! <https://github.com/ollama/ollama/blob/main/docs/api.md>
//!
//! Counts that are zero are left out: of the answer where nothing was generated, of the prompt where all of it was cached.

use std::sync::LazyLock;

use super::{
    json::{Member, Names},
    scan::{self, Key},
};
use crate::counts::Counts;

struct Keys {
    done: Key,
    deltas: [Key; 4],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    done: Key::new("\"done\""),
    deltas: [Key::new("\"content\""), Key::new("\"response\""), Key::new("\"thinking\""), Key::new("\"name\"")],
});

/// The members of a line or of a plain answer.
pub(super) const NAMES: Names = Names {
    top: &[
        ("model", Member::Model),
        ("error", Member::Error),
        ("done", Member::Done),
        ("done_reason", Member::Reason),
        ("prompt_eval_count", Member::Prompt),
        ("eval_count", Member::Completion),
    ],
    inside: None,
    in_list: false,
};

/// The length of a piece of text, of thinking, or a call of a tool. Only where a line carries one.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.deltas, data)
}

/// Whether a line is the last, or tells of an error.
pub(super) fn is_worth_parsing(data: &[u8]) -> bool {
    KEYS.done.any(data, |value| value.starts_with(b"t")) || scan::has_error(data)
}

/// A model that was only loaded or unloaded has read and written nothing.
pub(super) fn counts_of_reason(reason: &[u8]) -> Option<Counts> {
    matches!(reason, b"\"load\"" | b"\"unload\"").then(|| Counts::new(0, 0))
}
