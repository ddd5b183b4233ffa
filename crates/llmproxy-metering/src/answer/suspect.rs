//! Whether an event that comes in pieces may be the one that nothing follows.

use super::Dialect;

/// Watches the event that is on its way.
///
/// Of an event stream: its lines, for a name after which nothing follows and for `data: [DONE]`. A line that breaks off is
/// suspect while it may still become one of these. Of lines of JSON: each, from its first byte on, since the end of what it
/// says may be anywhere in it.
#[derive(Debug, Default)]
pub(crate) struct Suspect {
    dialect: Dialect,
    is_lines: bool,
    line: [u8; Self::LINE],
    len: usize,
    /// The line is longer than what is kept of it.
    is_cut: bool,
    /// Whether a line has said that the event is the last.
    is_named: bool,
    is_done: bool,
    has_data: bool,
    /// So many bytes have come of the event.
    size: usize,
}

/// What is larger is let go, up to its last piece: so much is held of one event, in bytes.
const MAX_HELD: usize = 256 * 1024;
const DONE: &[u8] = b"[DONE]";

// === impl Suspect ===

impl Suspect {
    /// Room for the name of an event after which nothing follows, and some blanks.
    const LINE: usize = 32;

    /// Between two events.
    pub(crate) fn new(dialect: Dialect, is_lines: bool) -> Self {
        Self { dialect, is_lines, ..Self::default() }
    }

    /// The event has ended.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.dialect, self.is_lines);
    }

    /// Takes the next piece of an event that does not end in it. Says whether all that has come of it may be the last.
    pub(crate) fn may_be_last(&mut self, part: &[u8]) -> bool {
        self.size = self.size.saturating_add(part.len());
        if self.size > MAX_HELD {
            return false;
        }
        if self.is_lines {
            // Blanks between two lines are none.
            self.has_data |= !part.trim_ascii().is_empty();
            return self.has_data;
        }
        let mut lines = part.split(|byte| matches!(byte, b'\n' | b'\r'));
        self.keep(lines.next().unwrap_or_default());
        for line in lines {
            self.end_line();
            self.keep(line);
        }
        self.is_named || self.is_done || self.is_suspect_line()
    }

    fn keep(&mut self, part: &[u8]) {
        let kept = part.len().min(Self::LINE - self.len);
        self.line[self.len..self.len + kept].copy_from_slice(&part[..kept]);
        self.len += kept;
        self.is_cut |= part.len() > kept;
    }

    fn end_line(&mut self) {
        let line = &self.line[..self.len];
        if let Some(name) = value(line, b"event:") {
            self.is_named = !self.is_cut && self.dialect.is_terminal(name);
        } else if let Some(data) = value(line, b"data:") {
            self.is_done = !self.has_data && !self.is_cut && data.trim_ascii() == DONE;
            self.has_data = true;
        }
        (self.len, self.is_cut) = (0, false);
    }

    /// Whether the line that has begun may come to say that the event is the last.
    fn is_suspect_line(&self) -> bool {
        if self.len == 0 || self.is_cut {
            return false;
        }
        let line = &self.line[..self.len];
        if let Some(data) = value(line, b"data:") {
            let data = data.trim_ascii();
            return !self.has_data && DONE.starts_with(data);
        }
        let is_name = line.starts_with(b"event:");
        is_name || b"event:".starts_with(line) || (!self.has_data && b"data:".starts_with(line))
    }
}

/// The value of a field, without the blank before it.
fn value<'a>(line: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(field)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is suspect at the end of each piece.
    fn check(dialect: Dialect, pieces: &[&str], expected: &[bool]) {
        let mut suspect = Suspect::new(dialect, dialect == Dialect::Ollama);
        let found: Vec<bool> = pieces.iter().map(|piece| suspect.may_be_last(piece.as_bytes())).collect();
        assert_eq!(found, expected, "{pieces:?}");
    }

    #[test]
    fn what_may_become_the_last_is_suspect() {
        let chat = |pieces: &[&str], expected: &[bool]| check(Dialect::Chat, pieces, expected);
        chat(
            &["", "d", "ata", ":", " ", "[DO", "NE]", " ", "\n"],
            &[false, true, true, true, true, true, true, true, true],
        );
        chat(&["data:[DONE]\r", "\n"], &[true, true]);
        chat(&["da", "ta: {\"choices\""], &[true, false]);
        chat(&["data: [1", "2]"], &[false, false]);
        chat(&["data: [DONE]", "x"], &[true, false]);
        chat(&["data: a\n", "data: [DONE]"], &[false, false]);
        chat(&["data: [DONE]\n", "data: x"], &[true, true]);
        chat(&["data: [DONE]\n", "data: x\n"], &[true, false]);
        chat(&[": ping", "\n", "data: [DONE]"], &[false, false, true]);
        chat(&["id: 7\ndata: [DONE]"], &[true]);
        chat(&["event: message\n", "data: {"], &[false, false]);
        chat(&["d: 1"], &[false]);
        chat(&["\n\r\n"], &[false]);
    }

    #[test]
    fn names_after_which_nothing_follows_are_suspect() {
        let check = |dialect, pieces: &[&str], expected: &[bool]| check(dialect, pieces, expected);
        let anthropic = Dialect::Anthropic;
        check(anthropic, &["event", ": message", "_stop", "\n", "data: {\"x\"", ":1}\n"], &[true; 6]);
        check(anthropic, &["event: message_delta\n", "data: {"], &[false, false]);
        check(anthropic, &["event: message_st"], &[true]);
        check(Dialect::Responses, &["event: response.completed\ndata: {\"a", "\":1"], &[true, true]);
        check(Dialect::Responses, &["event: response.completed\nevent: x\n"], &[false]);
        check(Dialect::Responses, &["event: a name that is longer than all that there could be here\n"], &[false]);
        check(Dialect::Chat, &["event: message_stop\n"], &[false]);
    }

    #[test]
    fn lines_are_suspect_from_their_first_byte() {
        check(Dialect::Ollama, &["\r\n", "{", "\"a\":1", "}"], &[false, true, true, true]);
    }

    #[test]
    fn what_is_held_of_one_event_is_bounded() {
        let large = "x".repeat(MAX_HELD);
        check(Dialect::Ollama, &["{", &large, "}"], &[true, false, false]);
        check(Dialect::Anthropic, &["event: message_stop\n", &large, "\n"], &[true, false, false]);
    }
}
