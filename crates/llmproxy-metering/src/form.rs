//! What a form asks for, found while it passes by: a scanner without I/O that takes slices and keeps a few kilobytes at most.
//!
//! It reads RFC 7578 as strictly as the strictest server does, and gives up where two servers could read different things:
//! whoever decides by the model must not be told another one than the backend finds.

mod head;

use std::ops::Range;

use head::{Part, boundary};
use http::{HeaderMap, header::CONTENT_TYPE};
use memchr::memmem::Finder;

use crate::facts::MAX_MODEL;

/// The largest head of a part, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// The longest value that is looked at, in bytes: the name of a model.
const MAX_VALUE: usize = MAX_MODEL;

/// Reads a form as its pieces come.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// A line feed and the delimiter: with or without the carriage return that belongs before it.
    delimiter: Finder<'static>,
    state: State,
    /// Bytes that came and were not understood yet.
    pending: Vec<u8>,
    /// How many bytes were understood, from the form's start.
    done: usize,
    found: Found,
}

/// What a form says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) model: Option<String>,
    /// Where the model's name stands, in bytes from the form's start.
    pub(crate) model_at: Option<Range<usize>>,
    pub(crate) stream: Option<bool>,
    /// Whether `model` is there twice.
    pub(crate) is_duplicate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the form's first byte.
    Start,
    /// Behind a delimiter.
    Delimited,
    /// In the head of a part.
    Head,
    /// In the body of one.
    Body(Part),
    /// Behind the last part that counts.
    End,
    /// In something that servers might read in different ways.
    Lost,
}

// === impl Scanner ===

impl Scanner {
    /// For a body with these headers; `None` where it is no form.
    pub(crate) fn new(headers: &HeaderMap) -> Option<Self> {
        let mut types = headers.get_all(CONTENT_TYPE).iter();
        let boundary = boundary(types.next()?.to_str().ok()?)?;
        if types.next().is_some() {
            return None;
        }
        let delimiter = Finder::new(&[b"\n--", boundary.as_bytes()].concat()).into_owned();
        Some(Self { delimiter, state: State::Start, pending: Vec::new(), done: 0, found: Found::default() })
    }

    /// Takes the next piece.
    pub(crate) fn feed(&mut self, piece: &[u8]) {
        if matches!(self.state, State::End | State::Lost) {
            return;
        }
        // Most pieces are the middle of a file: of them nothing is copied but a few bytes at each end.
        if matches!(self.state, State::Body(Part::Other | Part::File)) {
            let pending = self.pending.len();
            self.pending.extend_from_slice(&piece[..self.keep().min(piece.len())]);
            let crosses = self.delimiter.find(&self.pending).is_some();
            self.pending.truncate(pending);
            if !crosses && self.delimiter.find(piece).is_none() {
                self.skip(piece);
                return;
            }
        }
        self.pending.extend_from_slice(piece);
        while self.step() {}
        // The first piece may have been large, and a scanner lives as long as its upload.
        if self.pending.capacity() > MAX_HEAD {
            self.pending.shrink_to_fit();
        }
    }

    /// What was found so far.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    /// Whether all that is wanted was found, or will not be.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.state, State::End | State::Lost | State::Body(Part::File)) || self.found.is_duplicate
    }

    /// Whether it was given up.
    pub(crate) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// The bytes at the end of what was seen that may belong to a delimiter, the one before it among them.
    fn keep(&self) -> usize {
        self.delimiter.needle().len()
    }

    /// Passes over what has no delimiter in it.
    fn skip(&mut self, piece: &[u8]) {
        let keep = self.keep();
        let all = self.pending.len() + piece.len();
        self.pending.extend_from_slice(&piece[piece.len().saturating_sub(keep)..]);
        self.pending.drain(..self.pending.len().saturating_sub(keep));
        self.done += all - self.pending.len();
    }

    fn consume(&mut self, bytes: usize) {
        self.pending.drain(..bytes);
        self.done += bytes;
    }

    fn lose(&mut self) -> bool {
        self.state = State::Lost;
        self.pending = Vec::new();
        false
    }

    fn end(&mut self) -> bool {
        self.state = State::End;
        self.pending = Vec::new();
        false
    }

    /// Goes on by one state; false where more bytes are needed, or none.
    fn step(&mut self) -> bool {
        match self.state {
            State::Start => {
                // The delimiter without the line feed, since nothing is before it.
                let first = &self.delimiter.needle()[1..];
                let (length, common) = (first.len(), first.len().min(self.pending.len()));
                if self.pending[..common] != first[..common] {
                    return self.lose();
                }
                if common < length {
                    return false;
                }
                self.consume(length);
                self.state = State::Delimited;
                true
            }
            State::Delimited => match self.pending.get(..2) {
                None => false,
                Some(b"\r\n") => {
                    self.consume(2);
                    self.state = State::Head;
                    true
                }
                Some(b"--") => self.end(),
                Some(_) => self.lose(),
            },
            State::Head => match memchr::memmem::find(&self.pending, b"\r\n\r\n") {
                Some(length) if length <= MAX_HEAD => {
                    let Some(part) = Part::of(&self.pending[..length]) else { return self.lose() };
                    if part == Part::File && self.found.model.is_none() {
                        // What is behind a file is not waited for, so it does not count where it happens to be there.
                        return self.end();
                    }
                    self.found.is_duplicate |= part == Part::Model && self.found.model.is_some();
                    // The last line feed stays: some servers take a delimiter right behind it for one.
                    self.consume(length + 3);
                    self.state = State::Body(part);
                    true
                }
                // A line feed alone may have ended this head already, to some.
                None if self.pending.len() <= MAX_HEAD + 3 && !has_bare_line_feed(&self.pending) => false,
                _ => self.lose(),
            },
            State::Body(part) => self.body(part),
            State::End | State::Lost => false,
        }
    }

    fn body(&mut self, part: Part) -> bool {
        let Some(at) = self.delimiter.find(&self.pending) else {
            match part {
                Part::Other | Part::File => self.skip(&[]),
                Part::Model | Part::Stream if self.pending.len() > MAX_VALUE + self.keep() + 1 => return self.lose(),
                Part::Model | Part::Stream => {}
            }
            return false;
        };
        // The first byte is the head's line feed where there is no other: what comes right behind it is no delimiter to us.
        if at == 0 || self.pending[at - 1] != b'\r' || !self.note(part, at - 1) {
            return self.lose();
        }
        self.consume(at + self.keep());
        self.state = State::Delimited;
        true
    }

    /// Notes the value that ends at `end` of what is pending; false where it is none that can be meant.
    fn note(&mut self, part: Part, end: usize) -> bool {
        let value = match part {
            Part::Other | Part::File => return true,
            Part::Model | Part::Stream => &self.pending[1..end],
        };
        let Some(text) = std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_VALUE) else { return false };
        if part == Part::Stream {
            // As pydantic reads it, which is what servers in Python read forms by.
            let yes = ["true", "1", "yes", "y", "on", "t"];
            self.found.stream = Some(yes.iter().any(|word| text.eq_ignore_ascii_case(word)));
            return true;
        }
        let start = self.done + 1;
        self.found.model_at = Some(start..start + text.len());
        self.found.model.get_or_insert_with(|| text.to_owned());
        true
    }
}

fn has_bare_line_feed(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r')
}

#[cfg(test)]
mod tests;
