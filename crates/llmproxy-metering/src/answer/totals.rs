//! What a backend has counted, of an answer that may have several parts.
//!
//! Several prompts, or several answers to one, come in one stream, mixed, and most servers count each for itself: what is
//! true of the whole is the sum of the last totals of each. Other counts are of the whole already. Which is which, the
//! dialects know.

use crate::counts::Counts;

/// What is counted so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Of the whole, or of the part that was counted first.
    first: Option<Part>,
    /// There are rarely any: an answer has one part.
    others: Option<Box<Others>>,
    /// So many pieces of the answer are among what was counted.
    covered: u64,
}

/// What counts are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// All of the answer.
    Whole,
    /// One choice, by its index; in chat all of them answer the same prompt.
    Choice { index: u64, is_chat: bool },
    /// One prompt with its answer, where each event says which one it is of.
    Part(u64),
}

/// What one event, or one object, counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) counts: Counts,
    /// They are all from llama.cpp's `timings`, of which usage knows better.
    pub(super) by_timings: bool,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    index: u64,
    given: Given,
    /// How many pieces had passed when it was counted.
    pieces: u64,
}

#[derive(Clone, Debug, Default)]
struct Others {
    parts: Vec<Part>,
    /// The parts are choices: their prompt is one and the same.
    is_one_prompt: bool,
    folded: Option<Folded>,
    closed: Option<Counts>,
}

/// Parts that are too many to tell apart.
#[derive(Clone, Copy, Debug)]
struct Folded {
    /// The largest counts of any of them.
    most: Counts,
    /// How often one was counted.
    times: u64,
    last_index: u64,
}

/// How many parts are told apart. Beyond that each is taken to be as long as the longest of them: too much is counted,
/// never too little.
const MAX_PARTS: usize = 128;

// === impl Totals ===

impl Totals {
    /// Takes note of counts that came when so many `pieces` of the answer had, the last of them with the counts if `own`.
    pub(super) fn count(&mut self, place: Place, given: Given, pieces: u64, own: bool) {
        let (index, is_choice, is_one_prompt) = match place {
            Place::Whole => {
                let known = self.open();
                let given = Part::updated(known, given, pieces);
                let grown = grown(known.map(|part| part.given.counts), given.counts);
                self.first = Some(Part { index: 0, given, pieces });
                let has_others = match &mut self.others {
                    None => false,
                    Some(others) => {
                        (others.parts, others.folded) = (Vec::new(), None);
                        others.closed.is_some()
                    }
                };
                return self.cover(pieces, own, has_others.then_some(grown));
            }
            Place::Choice { index, is_chat } => (index, true, is_chat),
            Place::Part(index) => (index, false, false),
        };
        let known = self.first;
        if known.is_none_or(|first| first.index == index) {
            let given = Part::updated(known, given, pieces);
            let grown = grown(known.map(|part| part.given.counts), given.counts);
            self.first = Some(Part { index, given, pieces });
            let is_only = is_choice && self.others.is_none();
            return self.cover(pieces, own, (!is_only).then_some(grown));
        }
        let others = self.others.get_or_insert_default();
        others.is_one_prompt = is_one_prompt;
        let grown = others.count(index, given, pieces);
        self.cover(pieces, own, Some(grown));
    }

    /// What was counted is complete, and what follows is another part.
    pub(super) fn close(&mut self) {
        let Some(open) = self.open() else { return };
        let others = self.others.get_or_insert_default();
        let closed = others.closed.take();
        **others = Others { closed: plus(closed, open.given.counts), ..Others::default() };
        self.first = None;
    }

    /// Whether usage was counted, rather than llama.cpp's `timings`.
    pub(super) fn has_usage(&self) -> bool {
        let is_closed = self.others.as_ref().is_some_and(|others| others.closed.is_some());
        is_closed || self.open().is_some_and(|part| !part.given.by_timings)
    }

    /// Whether there are parts.
    pub(super) fn has_parts(&self) -> bool {
        self.others.is_some() || self.first.is_some_and(|part| part.index != 0)
    }

    /// The sum over all parts, and how many of `pieces` are not among what was counted.
    pub(super) fn sum(&self, pieces: u64) -> Option<(Counts, u64)> {
        let since = pieces.saturating_sub(self.covered);
        let Some(others) = &self.others else { return Some((self.first?.given.counts, since)) };
        let open = self.open().map(|part| part.given.counts);
        let counts = open.map_or(others.closed, |open| plus(others.closed, open))?;
        Some((counts, since.saturating_add(self.folded())))
    }

    /// The sum over the parts that are not complete; of those that can't be told apart the prompts alone.
    fn open(&self) -> Option<Part> {
        let first = self.first?;
        let Some(others) = &self.others else { return Some(first) };
        let mut sum = first;
        for part in &others.parts {
            let of_prompt = sum.given.counts;
            sum.given.counts = sum.given.counts.plus(part.given.counts);
            if others.is_one_prompt {
                sum.given.counts = sum.given.counts.with_prompt_of(of_prompt);
            }
            sum.given.by_timings &= part.given.by_timings;
            sum.pieces = sum.pieces.max(part.pieces);
        }
        if let Some(folded) = others.folded.filter(|_| !others.is_one_prompt) {
            sum.given.counts = sum.given.counts.plus(folded.most.prompt_alone().times(self.many(folded)));
        }
        Some(sum)
    }

    /// At most so many tokens are in the answers of the parts that can't be told apart.
    fn folded(&self) -> u64 {
        let folded = self.others.as_ref().and_then(|others| others.folded);
        folded.map_or(0, |folded| folded.most.completion.unwrap_or(0).saturating_mul(self.many(folded)))
    }

    /// At most so many parts are those that can't be told apart: they are numbered, and each was counted at least once.
    fn many(&self, folded: Folded) -> u64 {
        let others = self.others.iter().flat_map(|others| &others.parts);
        let known = self.first.iter().chain(others).filter(|part| part.index < folded.last_index).count();
        folded.times.min(folded.last_index.saturating_add(1).saturating_sub(known as u64))
    }

    /// Pieces that were counted one by one until now are among what was counted: all of them, or where there are other
    /// parts that they may belong to, as many as the part has `grown` by tokens.
    fn cover(&mut self, pieces: u64, own: bool, grown: Option<u64>) {
        let open = pieces.saturating_sub(self.covered);
        self.covered += grown.map_or(open, |grown| grown.max(u64::from(own)).min(open));
    }
}

fn plus(sum: Option<Counts>, counts: Counts) -> Option<Counts> {
    Some(sum.map_or(counts, |sum| sum.plus(counts)))
}

/// How many tokens have come to the answer.
fn grown(before: Option<Counts>, now: Counts) -> u64 {
    let before = before.and_then(|before| before.completion).unwrap_or(0);
    now.completion.unwrap_or(0).saturating_sub(before)
}

// === impl Part ===

impl Part {
    /// What is known of a part now: the last totals, and what they leave out of those before.
    fn updated(known: Option<Self>, given: Given, pieces: u64) -> Given {
        match known {
            // What came beside usage adds to it what it leaves out.
            Some(known) if given.by_timings && !known.given.by_timings && known.pieces == pieces => {
                Given { counts: known.given.counts.or_else(given.counts), by_timings: false }
            }
            Some(known) if !given.by_timings => Given { counts: given.counts.or_else(known.given.counts), ..given },
            _ => given,
        }
    }
}

// === impl Others ===

impl Others {
    /// Says by how many tokens the part has grown.
    fn count(&mut self, index: u64, given: Given, pieces: u64) -> u64 {
        if let Some(part) = self.parts.iter_mut().find(|part| part.index == index) {
            let before = part.given.counts;
            *part = Part { index, given: Part::updated(Some(*part), given, pieces), pieces };
            return grown(Some(before), part.given.counts);
        }
        if self.parts.len() + 1 < MAX_PARTS {
            self.parts.push(Part { index, given, pieces });
        } else {
            let known = self.folded;
            self.folded = Some(Folded {
                most: known.map_or(given.counts, |known| known.most.max(given.counts)),
                times: known.map_or(0, |known| known.times) + 1,
                last_index: known.map_or(0, |known| known.last_index).max(index),
            });
        }
        grown(None, given.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(prompt: u64, completion: u64) -> Given {
        Given { counts: Counts::new(prompt, completion), by_timings: false }
    }

    fn check(totals: &Totals, pieces: u64, expected: (u64, u64, u64)) {
        let (counts, since) = totals.sum(pieces).expect("counted");
        assert_eq!((counts.prompt, counts.completion, since), (Some(expected.0), Some(expected.1), expected.2));
    }

    #[test]
    fn the_last_totals_of_each_part_are_summed() {
        let mut totals = Totals::default();
        totals.count(Place::Part(1), given(3, 1), 1, true);
        totals.count(Place::Part(0), given(5, 1), 2, true);
        totals.count(Place::Part(1), given(3, 2), 3, true);
        check(&totals, 3, (8, 3, 0));
        // Two pieces of which nothing was said, then one that was.
        totals.count(Place::Part(0), given(5, 3), 6, true);
        check(&totals, 6, (8, 5, 1));
        totals.count(Place::Part(1), given(3, 9), 6, false);
        check(&totals, 6, (8, 12, 0));
    }

    #[test]
    fn choices_share_their_prompt() {
        let mut totals = Totals::default();
        let choice = |index| Place::Choice { index, is_chat: true };
        totals.count(choice(0), given(5, 2), 1, true);
        totals.count(choice(1), given(5, 3), 2, true);
        check(&totals, 2, (5, 5, 0));
        totals.count(Place::Whole, given(5, 6), 2, false);
        check(&totals, 2, (5, 6, 0));
        totals.count(Place::Whole, given(5, 7), 2, false);
        check(&totals, 2, (5, 7, 0));
    }

    #[test]
    fn what_is_closed_is_added_to() {
        let mut totals = Totals::default();
        for _ in 0..1000 {
            totals.count(Place::Whole, given(5, 7), 0, false);
            totals.close();
        }
        check(&totals, 0, (5000, 7000, 0));
        totals.close();
        totals.count(Place::Part(3), given(1, 1), 0, false);
        check(&totals, 0, (5001, 7001, 0));
    }

    #[test]
    fn parts_that_are_too_many_to_tell_apart_count_too_much_and_not_too_little() {
        let mut totals = Totals::default();
        for round in 1..=3 {
            for index in 0..1000 {
                totals.count(Place::Part(index), given(5, round), round * 1000, true);
            }
        }
        let (counts, since) = totals.sum(3000).expect("counted");
        assert_eq!(counts.prompt, Some(5000));
        assert_eq!(counts.completion.map(|completion| completion + since), Some(3000 + 3000 - totals.covered));
        assert!(totals.others.is_some_and(|others| others.parts.len() < MAX_PARTS));
    }

    #[test]
    fn an_index_beyond_reason_costs_no_more_than_what_was_counted() {
        let mut totals = Totals::default();
        for index in 0..200 {
            totals.count(Place::Part(u64::MAX - index), given(5, 1), 0, false);
        }
        check(&totals, 0, (1000, 128, 72));
    }
}
