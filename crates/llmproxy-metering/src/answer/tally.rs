//! What is known so far of an answer.

use std::sync::Arc;

use http::HeaderMap;
use llmproxy_sse::Event;

use super::{
    Dialect, Heard, Large,
    json::Member,
    scan::{begins_with_string, plain_words, text, words},
    totals::{Given, Place, Totals},
};
use crate::counts::{Counts, number};

/// What an answer has said about itself so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The backend's id of the answer.
    pub(crate) id: Option<Arc<str>>,
    /// The model that the backend says has answered.
    pub(crate) model: Option<Arc<str>>,
    /// Seconds of sound that were listened to.
    pub(crate) seconds: Option<u64>,
    /// Pieces of a stream that carried something.
    pub(crate) deltas: u64,
    /// The text in them, in bytes.
    pub(crate) text_bytes: u64,
    /// What becomes of that text, where it is wanted.
    pub(crate) heard: Option<Box<Heard>>,
    /// What went wrong, in words.
    pub(crate) error: Option<Arc<str>>,
    /// Whether the event has passed that says that nothing follows.
    pub(crate) terminal: bool,
    /// Whose conventions it follows.
    pub(crate) dialect: Dialect,
    // Whether a piece has been read that would have named id and model.
    identified: bool,
    // Whether an event has passed whose type is an error.
    error_event: bool,
    // Whether the last event carried a piece.
    is_delta: bool,
    // What the object that is being read has counted so far, and which part of the answer it says that it is about.
    given: Option<Given>,
    index: Option<u64>,
    is_of_part: bool,
    // Choices in a plain answer, and whether llama.cpp's timings stand beside them.
    choices: u64,
    has_timings: bool,
    totals: Totals,
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

// === impl Tally ===

impl Tally {
    /// Of an answer of which nothing has come yet.
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { dialect, ..Self::default() }
    }

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
        let dialect = self.dialect;
        self.terminal |= event.name.is_some_and(|kind| dialect.is_terminal(kind));
        self.error_event |= event.name == Some(b"error");
        let delta = dialect.delta(data);
        seen.delta = delta.is_some();
        self.text_bytes += delta.unwrap_or(0);
        if let (Some(heard), Some(found)) = (&mut self.heard, delta) {
            heard.event(dialect, data, found, event.truncated);
        }
        self.is_delta = seen.delta;
        // One of several parts had its last event, and more comes of another.
        self.terminal &= !(seen.delta && dialect.has_parts());
        self.terminal |= dialect.is_last(data);
        self.deltas += u64::from(seen.delta);
        // Whose a piece is must be known where there are several that it may be of.
        let is_shared = dialect == Dialect::Llama && self.totals.has_parts();
        if !event.truncated && (!self.identified || is_shared || dialect.is_worth_parsing(event.name, data)) {
            self.identified = true;
            seen.usage_event = dialect.read(self, data);
        }
        if self.error_event && self.error.is_none() {
            self.error = words(data).or_else(|| plain_words(data));
        }
        seen
    }

    /// The same of an event that may have begun in an earlier chunk; `rest` is what this one has of it.
    pub(crate) fn split_event(&mut self, event: &Event<'_>, rest: &[u8], large: &mut Option<Box<Large>>) -> Seen {
        let seen = self.event(event);
        if event.truncated {
            large.get_or_insert_with(|| Box::new(Large::new(self.dialect))).end(rest, self);
        } else if let Some(large) = large {
            large.forget();
        }
        seen
    }

    /// An event has begun, or goes on, that does not end in this chunk; `part` is what the chunk has of it.
    pub(crate) fn begin_event(&self, part: &[u8], large: &mut Option<Box<Large>>) {
        if !part.is_empty() {
            large.get_or_insert_with(|| Box::new(Large::new(self.dialect))).feed(part);
        }
    }

    /// Takes the next piece of an answer that is no stream: its text, which its members do not tell.
    pub(crate) fn plain_text(&mut self, data: &[u8]) {
        if let Some(heard) = &mut self.heard {
            self.text_bytes += heard.plain(data);
        }
    }

    /// Takes note of what the head of a good answer says.
    pub(crate) fn head(&mut self, headers: &HeaderMap) {
        if let Some(counts) = self.dialect.counts_of_head(headers) {
            self.count(counts);
            self.settle(Place::Whole);
        }
    }

    /// Takes note of one member of interest.
    pub(crate) fn member(&mut self, member: Member, value: &[u8]) {
        match member {
            Member::Id if self.id.is_none() => self.id = text(value),
            Member::Model if self.model.is_none() => self.model = text(value),
            Member::Id | Member::Model => {}
            Member::Error | Member::Detail => self.error = words(value).or(self.error.take()),
            Member::Timings => {
                if let Some(counts) = self.dialect.counts(member, value) {
                    self.timings(counts);
                }
            }
            Member::Kind => {
                self.terminal |= begins_with_string(value, |kind| self.dialect.is_terminal(kind));
                self.error_event |= value == b"\"error\"";
            }
            Member::Done => self.terminal |= value == b"true",
            Member::Duration => self.seconds = self.seconds.or(self.dialect.seconds(member, value)),
            Member::Index => {
                self.index = number(value);
                self.is_of_part |= self.dialect != Dialect::Tgi;
                self.choices = self.choices.saturating_add(1);
            }
            Member::Item => {
                self.end_object();
                self.totals.close();
            }
            _ => {
                self.is_of_part |= member == Member::PartUsage;
                self.seconds = self.dialect.seconds(member, value).or(self.seconds);
                if let Some(counts) = self.dialect.counts(member, value) {
                    self.count(counts);
                }
            }
        }
    }

    /// Takes note of what was found of an event while it passed.
    pub(super) fn add(&mut self, found: Self) {
        self.id = self.id.take().or(found.id);
        self.model = self.model.take().or(found.model);
        self.error = self.error.take().or(found.error);
        self.seconds = found.seconds.or(self.seconds);
        self.terminal |= found.terminal;
        self.error_event |= found.error_event;
        (self.given, self.index, self.is_of_part) = (found.given, found.index, found.is_of_part);
        // Zeros beside a choice are a placeholder.
        if matches!(self.place(), Place::Choice { .. }) && self.given.is_some_and(|given| given.counts.is_zero()) {
            self.given = None;
        }
        self.end_object();
    }

    /// The object that was being read counts so much, in the last of its totals that it gives, part by part.
    pub(super) fn count(&mut self, counts: Counts) {
        let counts = self.given.map_or(counts, |known| counts.or_else(known.counts));
        self.given = Some(Given { counts, by_timings: false });
    }

    /// llama.cpp counts beside or instead of usage.
    pub(super) fn timings(&mut self, counts: Counts) {
        self.has_timings = true;
        self.given = Some(match self.given {
            Some(known) => Given { counts: known.counts.or_else(counts), ..known },
            None => Given { counts, by_timings: true },
        });
    }

    /// The object that was being read has ended.
    pub(super) fn end_object(&mut self) {
        self.settle(self.place());
        (self.index, self.is_of_part) = (None, false);
    }

    /// What the object that is being read counts.
    fn place(&self) -> Place {
        self.index.filter(|_| self.is_of_part).map_or(Place::Whole, |index| self.dialect.place(index))
    }

    /// What the object that was being read has counted is of this place.
    pub(super) fn settle(&mut self, place: Place) {
        if let Some(given) = self.given.take() {
            self.totals.count(place, given, self.deltas, self.is_delta);
        }
    }

    /// What was counted of a part is complete.
    pub(super) fn close(&mut self) {
        self.totals.close();
    }

    /// Whether the backend has counted at all.
    pub(super) fn has_usage(&self) -> bool {
        self.totals.has_usage()
    }

    /// What the backend counted, and how many pieces passed after it did.
    pub(crate) fn counts(&self) -> Option<(Counts, u64)> {
        let mut totals = self.totals.clone();
        // Of an answer that is one object nobody has said that it has ended, and it need not have.
        if let Some(given) = self.given {
            totals.count(self.place(), given, self.deltas, self.is_delta);
        }
        let (mut counts, mut since) = totals.sum(self.deltas)?;
        // llama.cpp puts several choices into the answer of the first, and says nothing of the others.
        if self.has_timings && self.choices > 1 && self.dialect.takes_stream_options() {
            since = since.saturating_add(counts.completion.unwrap_or(0).saturating_mul(self.choices - 1));
            if self.dialect == Dialect::Completions {
                counts = counts.prompt_alone().times(self.choices).or_else(counts);
            }
        }
        if self.dialect.leaves_out_zeros() && self.terminal && self.deltas == 0 {
            counts = counts.or_else(Counts::of_completion(0));
        }
        Some((counts, since))
    }
}
