//! How answers are counted, and what is billed of them: `metering:`.

use super::{Key, Kind::*, Words, block, key};

/// What is billed of an answer that its client left.
pub(super) const ON_ABORT: Words = Words::of(&["delivered", "drain"]);

pub(super) const KEYS: &[Key] = &[
    block("metering", "what is counted of an answer"),
    key(
        "metering.on_abort",
        Word(&ON_ABORT),
        "delivered",
        "what is billed when a client leaves before the end: what it was given, and the backend stops; or all that the \
         backend makes, which may finish",
    ),
    key("metering.drain_timeout", Duration, "60s", "how long a backend may take to finish for `drain`"),
    key(
        "metering.drain_max_tokens",
        Integer,
        "4096",
        "tokens of a stream that it may make in that time, as far as the stream's pieces tell",
    ),
    key(
        "metering.drain_max_streams",
        Integer,
        "16",
        "answers that may be finished for `drain` at a time; when one more client leaves, it is billed what it was given",
    ),
];
