//! llama.cpp's own `/completion`.
//!
//! <https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md>
//!
//! Each event has the totals so far; the last one, and a plain answer, `timings` beside them, which know what was cached.
//! Of several prompts, or several answers to one (`n_cmpl`), each event says which it is about, and its totals are of
//! that one; there is a last event for each. A plain answer is a list then.

use std::sync::LazyLock;

use super::{
    json::{Member, Names},
    scan::{self, Key},
};

struct Keys {
    index: Key,
    stop: Key,
    timings: Key,
    content: [Key; 1],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    index: Key::new("\"index\""),
    stop: Key::new("\"stop\""),
    timings: Key::new("\"timings\""),
    content: [Key::new("\"content\"")],
});

/// The members of an event or of a plain answer.
pub(super) const NAMES: Names = Names {
    top: &[
        ("model", Member::Model),
        ("error", Member::Error),
        ("stop", Member::Done),
        ("index", Member::Index),
        ("tokens_evaluated", Member::Prompt),
        ("tokens_predicted", Member::Completion),
        ("timings", Member::Timings),
    ],
    inside: None,
    in_list: false,
};

/// The length of a piece of text. Only where `data` carries one.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.content, data)
}

/// Whether `data` is the last event, may tell of an error, or is of another part than the first.
pub(super) fn is_worth_parsing(data: &[u8]) -> bool {
    let is_of_another = KEYS.index.values(data).next().is_some_and(|index| !index.starts_with(b"0"));
    is_of_another
        || KEYS.stop.any(data, |value| value.starts_with(b"t"))
        || KEYS.timings.any_object(data)
        || scan::has_error(data)
}
