//! What a form asks for, found while it passes by: a scanner without I/O that takes slices and keeps a few kilobytes at most.
//!
//! It reads RFC 7578 as strictly as the strictest server does, and gives up where two servers could read different things:
//! whoever decides by the model must not be told another one than the backend finds.

mod head;

use std::ops::Range;

use head::{Part, boundary, is_form};
use http::{HeaderMap, header::CONTENT_TYPE};
use memchr::memmem::Finder;

use crate::{InspectError, facts::MAX_MODEL};

/// The largest head of a part, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// The longest value that is looked at, in bytes: the name of a model.
const MAX_VALUE: usize = MAX_MODEL;

/// Reads a form as its pieces come.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// Two hyphens and the boundary. It delimits at the beginning of a line.
    delimiter: Finder<'static>,
    state: State,
    /// Bytes that came and were not understood yet.
    pending: Vec<u8>,
    /// How many bytes were understood, from the form's start.
    done: usize,
    /// Whether a file was there.
    is_behind_file: bool,
    found: Found,
}

/// What a form says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) model: Option<String>,
    /// Where the model's name stands, in bytes from the form's start.
    pub(crate) model_at: Option<Range<usize>>,
    pub(crate) stream: Option<bool>,
    /// How many are to be made, if `n` says so before the file.
    pub(crate) number: Option<u64>,
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
    /// Behind the last part.
    End,
    /// Before what does not count: a file or an end that came before the model, or no form at all.
    Unread,
    /// In something that servers might read in different ways.
    Lost,
}

// === impl Scanner ===

impl Scanner {
    /// For a body with these headers; `None` where it is no form.
    ///
    /// # Errors
    ///
    /// If it is one, to some servers, but they might not find the same in it.
    pub(crate) fn new(headers: &HeaderMap) -> Result<Option<Self>, InspectError> {
        let types = headers.get_all(CONTENT_TYPE);
        let Some(form) = types.iter().find(|value| is_form(value.as_bytes())) else { return Ok(None) };
        if types.iter().nth(1).is_some() {
            return Err(InspectError::BadForm);
        }
        let boundary = boundary(form.as_bytes()).map_err(|_| InspectError::BadForm)?;
        Ok(boundary.map(|boundary| Self {
            delimiter: Finder::new(&[b"--", boundary.as_bytes()].concat()).into_owned(),
            state: State::Start,
            pending: Vec::new(),
            done: 0,
            is_behind_file: false,
            found: Found::default(),
        }))
    }

    /// Takes the next piece.
    pub(crate) fn feed(&mut self, piece: &[u8]) {
        if matches!(self.state, State::Unread | State::Lost) {
            return;
        }
        // Most pieces are the middle of a file: of them nothing is copied but a few bytes at each end.
        if matches!(self.state, State::Body(Part::Other | Part::File)) {
            let pending = self.pending.len();
            self.pending.extend_from_slice(&piece[..self.keep().min(piece.len())]);
            let crosses = self.delimiter_in(&self.pending).is_some();
            self.pending.truncate(pending);
            if !crosses && self.delimiter_in(piece).is_none() {
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
        matches!(self.state, State::End | State::Unread | State::Lost | State::Body(Part::File))
            || self.found.is_duplicate
    }

    /// Whether it was given up: servers might not find the same in it.
    pub(crate) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// The bytes at the end of what was seen that may belong to a delimiter, with the line's end before it.
    fn keep(&self) -> usize {
        self.delimiter.needle().len() + 1
    }

    /// Where in `bytes` a delimiter begins that has something before it which ends a line to anybody.
    fn delimiter_in(&self, bytes: &[u8]) -> Option<usize> {
        self.delimiter.find_iter(bytes).find(|at| *at > 0 && matches!(bytes[at - 1], b'\r' | b'\n'))
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
        self.stop(State::Lost)
    }

    fn stop(&mut self, state: State) -> bool {
        self.state = state;
        self.pending = Vec::new();
        false
    }

    /// Goes on by one state; false where more bytes are needed, or none.
    fn step(&mut self) -> bool {
        match self.state {
            State::Start => {
                // Nothing is before it, no line's end either.
                let first = self.delimiter.needle();
                let (length, common) = (first.len(), first.len().min(self.pending.len()));
                if self.pending[..common] != first[..common] {
                    // Some servers pass over a preamble, but no client sends one: of this nothing is known.
                    return self.stop(State::Unread);
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
                // There was no model, and what is behind the end is not waited for.
                Some(b"--") if self.found.model.is_none() => self.stop(State::Unread),
                Some(b"--") => {
                    self.consume(2);
                    self.state = State::End;
                    true
                }
                Some(_) => self.lose(),
            },
            State::Head => match memchr::memmem::find(&self.pending, b"\r\n\r\n") {
                Some(length) if length <= MAX_HEAD => {
                    let Some(part) = Part::of(&self.pending[..length]) else { return self.lose() };
                    if part == Part::File && self.found.model.is_none() {
                        // What is behind a file is not waited for, so it does not count where it happens to be there.
                        return self.stop(State::Unread);
                    }
                    self.is_behind_file |= part == Part::File;
                    self.found.is_duplicate |= part == Part::Model && self.found.model.is_some();
                    // The last line feed stays: some servers take a delimiter right behind it for one.
                    self.consume(length + 3);
                    self.state = State::Body(part);
                    true
                }
                // A carriage return or a line feed alone may have ended this head already, to some.
                None if self.pending.len() <= MAX_HEAD + 3 && !has_bare_line_end(&self.pending) => false,
                _ => self.lose(),
            },
            State::Body(part) => self.body(part),
            State::End => {
                // To a server that did not take this for the end, more might come behind it.
                if self.pending.iter().any(|byte| !byte.is_ascii_whitespace()) {
                    return self.lose();
                }
                self.consume(self.pending.len());
                false
            }
            State::Unread | State::Lost => false,
        }
    }

    fn body(&mut self, part: Part) -> bool {
        let Some(at) = self.delimiter_in(&self.pending) else {
            match part {
                Part::Other | Part::File => self.skip(&[]),
                Part::Model | Part::Stream if self.pending.len() > MAX_VALUE + self.keep() + 1 => return self.lose(),
                Part::Number if self.pending.len() > MAX_VALUE + self.keep() + 1 => {
                    // That is no number, and does not matter further.
                    self.state = State::Body(Part::Other);
                    self.skip(&[]);
                }
                Part::Model | Part::Stream | Part::Number => {}
            }
            return false;
        };
        // The first byte is the head's line feed where there is no other: what comes right behind it is no delimiter to us.
        // Behind a carriage return or a line feed alone it is one to some servers.
        if !self.pending[..at].ends_with(b"\r\n") || !self.note(part, at - 2) {
            return self.lose();
        }
        self.consume(at + self.delimiter.needle().len());
        self.state = State::Delimited;
        true
    }

    /// Notes the value that ends at `end` of what is pending; false where it is none that can be meant.
    fn note(&mut self, part: Part, end: usize) -> bool {
        let value = match part {
            Part::Other | Part::File => return true,
            Part::Model | Part::Stream | Part::Number => &self.pending[1..end],
        };
        if part == Part::Number {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            // Where it is there twice, servers differ in which counts.
            self.found.number = self.found.number.max(number.filter(|_| !self.is_behind_file));
            return true;
        }
        let Some(text) = std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_VALUE) else { return false };
        if part == Part::Stream {
            // What stands behind a file comes too late, and does not count where it came with what is before.
            if self.is_behind_file {
                return true;
            }
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

/// Whether a carriage return or a line feed is there without the other; one at the very end may still get it.
fn has_bare_line_end(bytes: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', bytes).any(|at| match bytes[at] {
        b'\r' => bytes.get(at + 1).is_some_and(|next| *next != b'\n'),
        _ => at == 0 || bytes[at - 1] != b'\r',
    })
}

#[cfg(test)]
mod tests;
