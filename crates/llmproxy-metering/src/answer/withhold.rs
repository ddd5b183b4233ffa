//! Takes the usage event that the proxy has asked for out of a stream, and nothing else.
//!
//! What has begun and is not complete is held back only while it could still be that event. A single event's bytes are
//! held, never more than [`MAX_HELD`] of them.

use bytes::{Bytes, BytesMut};
use llmproxy_core::body::Out;
use llmproxy_sse::{Event, Scanner};

/// An event that is larger is not the one.
const MAX_HELD: usize = 64 * 1024;

/// The bytes between the scanner and the client.
#[derive(Debug, Default)]
pub(crate) struct Withhold {
    held: BytesMut,
    probe: Probe,
    /// The event that is on its way has begun to pass; it can't be taken back.
    let_go: bool,
    /// The last event ended with a CR at the end of a piece: an LF that follows belongs to it. Says whether that event
    /// was removed.
    after_cr: Option<bool>,
    /// So many events were removed.
    removed: u64,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Remove,
    /// Wait, and all that follows with it, until the end or until another passes.
    Hold,
}

/// Watches an event that comes in pieces for the first byte behind `"choices":[`.
#[derive(Clone, Copy, Debug, Default)]
struct Probe {
    // How much of the key has matched; with all of it, what is expected next.
    matched: usize,
    next: Next,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Key,
    Colon,
    Bracket,
    Choice,
    /// There is a choice.
    Found,
}

// === impl Withhold ===

impl Withhold {
    /// Takes the next piece through the scanner. What may go on is pushed to `out`; `judge` is asked about each event.
    pub(crate) fn chunk(
        &mut self,
        scanner: &mut Scanner,
        data: &Bytes,
        out: &mut Out,
        mut judge: impl FnMut(&Event<'_>) -> Verdict,
    ) {
        // An empty piece must not be taken for what follows a CR.
        if data.is_empty() {
            return;
        }
        // Before `passed` all has been pushed or removed; at `begun` the current event begins.
        let (mut passed, mut begun) = match self.after_cr.take() {
            Some(true) if data.starts_with(b"\n") => (1, 1),
            Some(false) if data.starts_with(b"\n") => (0, 1),
            _ => (0, 0),
        };
        scanner.feed(data, |event: Event<'_>| {
            let verdict = judge(&event);
            let remove = verdict == Verdict::Remove && !self.let_go;
            match verdict {
                Verdict::Pass => out.release(),
                // What has come of it before has not been pushed.
                Verdict::Hold => {
                    push(out, data, passed, begun);
                    passed = begun;
                    out.hold();
                }
                Verdict::Remove => {}
            }
            if remove {
                self.held.clear();
                push(out, data, passed, begun);
                passed = event.end;
                self.removed += 1;
            } else {
                self.release(out);
            }
            begun = event.end;
            self.after_cr = (begun == data.len() && data.ends_with(b"\r")).then_some(remove);
            self.probe = Probe::default();
            self.let_go = false;
        });
        let tail = &data[begun..];
        // Empty lines between events begin none.
        let is_blank = self.held.is_empty() && tail.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
        self.let_go = self.let_go || (!is_blank && self.is_settled(tail));
        if is_blank || self.let_go {
            self.release(out);
            push(out, data, passed, data.len());
        } else {
            push(out, data, passed, begun);
            self.held.extend_from_slice(tail);
        }
    }

    /// The stream has ended; `usage_event` says that what is held is the event to remove.
    pub(crate) fn end(&mut self, usage_event: bool, out: &mut Out) {
        if usage_event && !self.let_go {
            self.held.clear();
            self.removed += 1;
        }
        self.release(out);
    }

    /// How many events were removed.
    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    /// Whether the event that `tail` continues can't be the one to remove.
    fn is_settled(&mut self, tail: &[u8]) -> bool {
        self.held.len() + tail.len() > MAX_HELD || self.probe.has_choice(tail)
    }

    fn release(&mut self, out: &mut Out) {
        if !self.held.is_empty() {
            out.push(self.held.split().freeze());
        }
    }
}

fn push(out: &mut Out, data: &Bytes, from: usize, to: usize) {
    if from == 0 && to == data.len() {
        out.push(data.clone());
    } else if from < to {
        out.push(data.slice(from..to));
    }
}

// === impl Probe ===

impl Probe {
    const KEY: &'static [u8] = b"\"choices\"";

    /// Takes the next piece; true as soon as the event is known to have choices, or something else in their place.
    fn has_choice(&mut self, data: &[u8]) -> bool {
        for byte in data {
            self.next = match (self.next, byte) {
                (Next::Found, _) => return true,
                (Next::Key, _) => {
                    // No part of the key but its quotes equals its beginning, and they can only begin it anew.
                    self.matched = match *byte == Self::KEY[self.matched] {
                        true => self.matched + 1,
                        false => usize::from(*byte == b'"'),
                    };
                    if self.matched == Self::KEY.len() { Next::Colon } else { Next::Key }
                }
                (next, b' ' | b'\t' | b'\r' | b'\n') => next,
                (Next::Colon, b':') => Next::Bracket,
                (Next::Bracket, b'[') => Next::Choice,
                // No choices: only the whole event can tell.
                (Next::Choice, b']') | (Next::Colon, _) => {
                    self.matched = 0;
                    Next::Key
                }
                (Next::Choice | Next::Bracket, _) => Next::Found,
            };
        }
        self.next == Next::Found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_noticed_at_any_split() {
        let check = |text: &str, expected: bool| {
            for at in 0..=text.len() {
                let (head, tail) = text.as_bytes().split_at(at);
                let mut probe = Probe::default();
                let found = probe.has_choice(head) | probe.has_choice(tail);
                assert_eq!(found, expected, "{text} at {at}");
            }
        };
        check(r#"data: {"id":"x","choices":[{"#, true);
        check(r#"data: {"id":"x","choices" : [ {"#, true);
        check(r#"data: {"id":"x","choices":null"#, true);
        check(r#"data: {"id":"x","choices":["#, false);
        check(r#"data: {"id":"x","choices":[],"usage":{"#, false);
        check(r#"data: {"id":"choices","x":""choices":[]"#, false);
        check(r#"data: {"id":"\"choices\":[{"#, false);
        check("data: ", false);
    }
}
