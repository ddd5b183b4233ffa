//! What is known so far of an answer.

use std::{borrow::Cow, sync::Arc};

use llmproxy_sse::Event;

use super::{
    Member,
    event::{self, Chunk},
};
use crate::counts::Counts;

/// What an answer has said about itself so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The backend's id of the answer.
    pub(crate) id: Option<Arc<str>>,
    /// The model that the backend says has answered.
    pub(crate) model: Option<Arc<str>>,
    /// Pieces of a stream that carried something.
    pub(crate) deltas: u64,
    /// What went wrong inside a stream, in words.
    pub(crate) error: Option<Arc<str>>,
    /// Whether the event has passed that says that nothing follows.
    pub(crate) terminal: bool,
    identified: bool,
    usage: Option<Counted>,
    timings: Option<Counted>,
}

/// Counts and how many deltas had passed when they were given.
#[derive(Clone, Copy, Debug)]
struct Counted {
    counts: Counts,
    deltas: u64,
}

/// What one event was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// It was more than a comment.
    pub(crate) data: bool,
    /// It carried a piece of the answer.
    pub(crate) delta: bool,
    /// It carried usage and nothing else.
    pub(crate) usage_event: bool,
}

/// The longest id or name of a model that is kept, in bytes.
const MAX_TEXT: usize = 256;

/// A JSON string as text, cut where it is too long; `None` where it is none or empty.
pub(super) fn text(json: &[u8]) -> Option<Arc<str>> {
    // Nearly every one is written without an escape.
    let plain = json.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let plain = plain.filter(|text| !text.iter().any(|byte| *byte < b' ' || matches!(byte, b'"' | b'\\')));
    let text: Cow<'_, str> = match plain {
        Some(plain) => str::from_utf8(plain).ok()?.into(),
        None => serde_json::from_slice::<String>(json).ok()?.into(),
    };
    (!text.is_empty()).then(|| text[..text.floor_char_boundary(MAX_TEXT)].into())
}

// === impl Tally ===

impl Tally {
    /// Takes note of one event of a stream.
    pub(crate) fn event(&mut self, event: &Event<'_>) -> Seen {
        let data = event.data.trim_ascii();
        if data.is_empty() {
            return Seen::default();
        }
        let mut seen = Seen { data: true, ..Seen::default() };
        if data == b"[DONE]" {
            self.terminal = true;
            return seen;
        }
        match event.name {
            Some(b"message_stop" | b"response.completed" | b"response.incomplete" | b"response.failed") => {
                self.terminal = true;
            }
            Some(b"error") => self.error = Some("the backend sent an error event".into()),
            _ => {}
        }
        seen.delta = event::has_delta(data);
        self.deltas += u64::from(seen.delta);
        let parse = !event.truncated && (!self.identified || event::is_worth_parsing(data));
        if let Some(chunk) = parse.then(|| Chunk::parse(data)).flatten() {
            self.chunk(&chunk);
            seen.usage_event = chunk.is_usage_event();
        }
        seen
    }

    /// Takes note of one member of a JSON answer.
    pub(crate) fn member(&mut self, member: Member, value: &[u8]) {
        let counted = |counts| Counted { counts, deltas: 0 };
        match member {
            Member::Usage => self.usage = Counts::of_usage(value).map(counted),
            Member::Timings => self.timings = Counts::of_timings(value).map(counted),
            Member::Model => self.model = text(value),
            Member::Id => self.id = text(value),
        }
    }

    /// What the backend counted, and how many pieces passed after it did.
    pub(crate) fn counts(&self) -> Option<(Counts, u64)> {
        let counted = self.usage.or(self.timings)?;
        Some((counted.counts, self.deltas - counted.deltas))
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) {
        if !self.identified {
            self.identified = true;
            self.id = chunk.id();
            self.model = chunk.model();
        }
        if let Some(error) = chunk.error() {
            self.error = Some(error);
        }
        if let Some(counts) = chunk.timings() {
            self.timings = Some(Counted { counts, deltas: self.deltas });
        }
        // The last one counts. Zeros in an event with choices are a placeholder, which says nothing at all.
        let placeholder = |counts: &Counts| counts.is_zero() && (self.usage.is_some() || !chunk.has_no_choices());
        if let Some(counts) = chunk.usage().filter(|counts| !placeholder(counts)) {
            self.usage = Some(Counted { counts, deltas: self.deltas });
        }
    }
}
