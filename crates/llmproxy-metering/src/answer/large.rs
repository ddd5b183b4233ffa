//! An event that may be larger than what is buffered of one.
//!
//! Where an event comes in several chunks, its members are found while they pass. What they say counts when the event
//! has ended, and only where it could not be read whole: the pieces that an event comes in must not decide what it says.
//!
//! Any may be: the last event of a response repeats all of it, instructions and tools included; Ollama's last line lists the
//! tokens of the context; llama.cpp's last event has the prompt, and TGI's all of the text; and a chunk of chat may have a
//! whole answer, or the log probabilities of one, beside its usage.

use super::{Dialect, Tally, TopLevel};

/// Made when the first event comes in pieces, and kept for those after it.
#[derive(Debug)]
pub(crate) struct Large {
    scanner: TopLevel,
    found: Tally,
    is_begun: bool,
}

// === impl Large ===

impl Large {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { scanner: dialect.members_of_event(), found: Tally::new(dialect), is_begun: false }
    }

    /// A part of an event that does not end with it.
    pub(crate) fn feed(&mut self, part: &[u8]) {
        self.is_begun = true;
        self.scanner.feed(part, |member, value| self.found.member(member, value));
    }

    /// The event, which was not read whole, ends with `rest`. Adds what was found to `tally`.
    pub(crate) fn end(&mut self, rest: &[u8], tally: &mut Tally) {
        self.feed(rest);
        tally.add(std::mem::take(&mut self.found));
        *self = Self::new(tally.dialect);
    }

    /// The event was read whole.
    pub(crate) fn forget(&mut self) {
        if self.is_begun {
            *self = Self::new(self.found.dialect);
        }
    }
}
