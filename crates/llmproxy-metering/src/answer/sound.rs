//! What is listened to: transcriptions and translations.
//!
//! <https://platform.openai.com/docs/api-reference/audio>
//!
//! Some models count tokens, as everything else does; others say how long the recording was, in the place of usage or
//! beside the text (`verbose_json`).

use std::sync::LazyLock;

use serde::Deserialize;

use super::{
    json::{Member, Names},
    openai,
    scan::{self, Key},
};
use crate::counts;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    #[serde(deserialize_with = "counts::seconds")]
    seconds: Option<u64>,
}

struct Keys {
    delta: [Key; 1],
    kind: Key,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys { delta: [Key::new("\"delta\"")], kind: Key::new("\"type\"") });

/// The members of an event or of a plain answer.
pub(super) const NAMES: Names = Names {
    top: &[
        ("type", Member::Kind),
        ("id", Member::Id),
        ("model", Member::Model),
        ("usage", Member::Usage),
        ("duration", Member::Duration),
        ("error", Member::Error),
        ("detail", Member::Detail),
    ],
    inside: None,
    in_list: false,
};

/// Whether nothing follows an event of this type.
pub(super) fn is_terminal(kind: &[u8]) -> bool {
    kind == b"transcript.text.done"
}

/// The length of a piece of text. Only where `data` carries one; vLLM's are those of chat.
pub(super) fn delta(data: &[u8]) -> Option<u64> {
    scan::text_len(&KEYS.delta, data).or_else(|| openai::delta(data))
}

/// Whether `data` may say something about usage, an error or the end.
pub(super) fn is_worth_parsing(data: &[u8]) -> bool {
    openai::is_worth_parsing(data) || KEYS.kind.any(data, |value| scan::begins_with_string(value, is_terminal))
}

/// How many seconds were listened to.
pub(super) fn seconds(member: Member, value: &[u8]) -> Option<u64> {
    match member {
        Member::Usage => serde_json::from_slice::<Usage>(value).ok()?.seconds,
        Member::Duration => counts::of_seconds(&serde_json::from_slice(value).ok()?),
        _ => None,
    }
}
