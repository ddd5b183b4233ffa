//! An event that may be larger than what is buffered of one.
//!
//! Where an event comes in several chunks, its members are found while they pass. What they say counts when the event
//! has ended, and only where it could not be read whole: the pieces that an event comes in must not decide what it says.

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
        Self { scanner: dialect.members(), found: Tally::new(dialect), is_begun: false }
    }

    /// A part of an event that does not end with it.
    pub(crate) fn feed(&mut self, part: &[u8]) {
        self.is_begun = true;
        self.scanner.feed(part, |member, value| self.found.member(member, value));
    }

    /// The event ends with `rest`. Adds what was found to `tally`, if it was `truncated`.
    pub(crate) fn end(&mut self, rest: &[u8], truncated: bool, tally: &mut Tally) {
        if !std::mem::take(&mut self.is_begun) {
            return;
        }
        if truncated {
            self.feed(rest);
            tally.add(std::mem::take(&mut self.found));
        }
        *self = Self::new(tally.dialect);
    }
}
