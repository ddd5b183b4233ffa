//! Where a stream stands: between two events or in one, and whether its last event has come.

use memchr::memchr2;

/// The names of events after which nothing follows: Anthropic's, and those of OpenAI's responses. Other streams end by
/// `data: [DONE]`.
const LAST: [&[u8]; 4] = [b"message_stop", b"response.completed", b"response.incomplete", b"response.failed"];

/// Where a stream stands. Cheap to keep up: a chunk costs a search for line ends, and of a line that goes on in the next
/// chunk the beginning is kept, which is enough for the few that matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    line: [u8; Self::LINE],
    len: usize,
    // The line is longer than what is kept of it.
    is_cut: bool,
    // The last chunk ended with a CR; a LF at the start of the next one belongs to it.
    after_cr: bool,
    // The first line has ended, so that there is no more place for a byte order mark.
    has_begun: bool,
    event: Fields,
    is_done: bool,
}

/// The fields of the event that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    has_line: bool,
    data: Data,
    is_last: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Data {
    #[default]
    None,
    Done,
    Other,
}

// === impl Place ===

impl Place {
    /// Room for a byte order mark and `event: response.incomplete`.
    const LINE: usize = 32;
    const BOM: &'static [u8] = b"\xEF\xBB\xBF";

    /// Takes in the next chunk.
    pub(crate) fn push(&mut self, mut chunk: &[u8]) {
        let Some(&first) = chunk.first() else { return };
        if std::mem::take(&mut self.after_cr) && first == b'\n' {
            chunk = &chunk[1..];
        }
        while let Some(length) = line_length(chunk) {
            self.end_line(&chunk[..length]);
            let is_cr = chunk[length] == b'\r';
            chunk = &chunk[length + 1..];
            if is_cr {
                match chunk.first() {
                    Some(b'\n') => chunk = &chunk[1..],
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
        }
        self.keep(chunk);
    }

    /// Whether the stream is at its start or right behind a blank line, so that an event can be put in.
    pub(crate) fn is_between_events(&self) -> bool {
        !self.event.has_line && self.strip_bom(&self.line[..self.len]).is_empty()
    }

    /// Whether the event has come after which nothing matters. Comments may follow it.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    fn end_line(&mut self, rest: &[u8]) {
        if self.len == 0 {
            return self.take_line(rest, false);
        }
        self.keep(rest);
        let (line, len) = (self.line, std::mem::take(&mut self.len));
        let is_cut = std::mem::take(&mut self.is_cut);
        self.take_line(&line[..len], is_cut);
    }

    fn take_line(&mut self, line: &[u8], is_cut: bool) {
        let line = self.strip_bom(line);
        self.has_begun = true;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            // An event without data is none (WHATWG HTML, section 9.2.6).
            if event.data != Data::None {
                self.is_done = event.is_last || event.data == Data::Done;
            }
            return;
        }
        self.event.has_line = true;
        if let Some(data) = field(line, b"data") {
            let is_done = self.event.data == Data::None && !is_cut && data.trim_ascii() == b"[DONE]";
            self.event.data = if is_done { Data::Done } else { Data::Other };
        } else if let Some(name) = field(line, b"event") {
            self.event.is_last = !is_cut && LAST.contains(&name);
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let kept = part.len().min(Self::LINE - self.len);
        self.line[self.len..self.len + kept].copy_from_slice(&part[..kept]);
        self.len += kept;
        self.is_cut |= part.len() > kept;
    }

    fn strip_bom<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        if self.has_begun { line } else { line.strip_prefix(Self::BOM).unwrap_or(line) }
    }
}

/// How long the line is that ends in `chunk`. Half of all lines are blank: nothing is searched for those.
fn line_length(chunk: &[u8]) -> Option<usize> {
    match chunk.first()? {
        b'\n' | b'\r' => Some(0),
        _ => memchr2(b'\n', b'\r', chunk),
    }
}

/// The value of the field `name`, if `line` is one. A search for the colon would cost more than all else that is done.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        [] => Some(&[]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Scanner;

    fn place(chunks: &[&[u8]]) -> Place {
        let mut place = Place::default();
        chunks.iter().for_each(|chunk| place.push(chunk));
        place
    }

    /// The place and the scanner agree on where the stream stands: after each byte, and at each split.
    fn check(text: &[u8]) {
        let found = |place: &Place| (place.is_between_events(), place.is_done());
        let mut bytewise = Place::default();
        for end in 0..=text.len() {
            assert_eq!(found(&bytewise), expected(&text[..end]), "{}", text[..end].escape_ascii());
            bytewise.push(text.get(end..=end).unwrap_or_default());
        }
        for at in 0..=text.len() {
            let (before, after) = text.split_at(at);
            let found = found(&place(&[before, after]));
            assert_eq!(found, expected(text), "{} | {}", before.escape_ascii(), after.escape_ascii());
        }
    }

    fn expected(text: &[u8]) -> (bool, bool) {
        let (mut scanner, mut done, mut begun) = (Scanner::new(), false, 0);
        scanner.feed(text, |event| {
            // Empty data is data; an event of comments has none.
            if is_data(&text[begun..event.end]) {
                done = event.data.trim_ascii() == b"[DONE]" || event.name.is_some_and(|name| LAST.contains(&name));
            }
            begun = event.end;
        });
        (!scanner.is_mid_event() || text == b"\xEF\xBB\xBF", done)
    }

    fn is_data(event: &[u8]) -> bool {
        let mut lines = event.split(|byte| matches!(byte, b'\n' | b'\r'));
        lines.any(|line| {
            let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
            line == b"data" || line.starts_with(b"data:")
        })
    }

    #[test]
    fn a_blank_line_is_seen_with_every_line_end_at_every_split() {
        for end in ["\n", "\r\n", "\r"] {
            check(
                format!("data: a{end}{end}: a longer comment than what is kept{end}{end}data: b{end}{end}{end}")
                    .as_bytes(),
            );
        }
        check(b"data: a\n\r\ndata: b\r\n\ndata: c\r\r\n");
        check(b"\xEF\xBB\xBFdata: a\n\n");
        check(b"\xEF\xBB\xBF\n\xEF\xBB\xBF\n\n");
        check(&[b'\n'; 70]);
        check(&b"\r\n".repeat(40));
    }

    #[test]
    fn the_last_event_is_seen_at_every_split() {
        let check_done = |text: &str, expected: bool| {
            check(text.as_bytes());
            assert_eq!(place(&[text.as_bytes()]).is_done(), expected, "{text:?}");
        };
        check_done("data: {\"x\": \"some text of an event\"}\n\ndata: [DONE]\n\n", true);
        check_done("data: {\"x\": \"some text of an event\"}\r\n\r\ndata: [DONE]\r\n\r\n", true);
        check_done("data: {\"x\": \"some text of an event\"}\n\ndata:[DONE] \n\n", true);
        check_done("\u{feff}data: [DONE]\n\n", true);
        check_done("data: [DONE]\n\n: a comment\n\n", true);
        check_done("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true);
        check_done("event:message_stop\rdata: {}\r\r", true);
        check_done("data: {\"a long line\": \"of some event, before its name\"}\nevent: response.failed\n\n", true);
        check_done("\u{feff}event: response.incomplete\r\ndata: {\"response\":{}}\r\n\r\n", true);
        check_done("event: response.completed\nid: 7\ndata: {\"response\":\ndata: {}}\n\nevent: ping\n\n", true);
        check_done("data: [DONE]", false);
        check_done("data: [DONE]\n", false);
        check_done("data: {\"content\":\"data: [DONE]\"}\n\n", false);
        check_done("data: it said data: [DONE]\n\n", false);
        check_done("data: it said\ndata: [DONE]\n\n", false);
        check_done("data: [DONE]\n\ndata: more\n\n", false);
        check_done("event: response.completed\n\n", false);
        check_done("event: response.completed, or whatever else this is\ndata: {}\n\n", false);
        check_done("event: message_stop\nevent: message_delta\ndata: {}\n\n", false);
        check_done("event: response.output_text.delta\ndata: {\"delta\":\"event: message_stop\"}\n\n", false);
        check_done("", false);
    }

    proptest! {
        #[test]
        fn place_and_scanner_agree_on_any_text(
            pieces in prop::collection::vec(
                prop::sample::select(
                    vec!["x", "\n", "\r", "\r\n", "\n\n", "data: 12345", "data:[DONE]", "event: message_stop", ": "],
                ),
                0..30,
            ),
        ) {
            check(pieces.concat().as_bytes());
        }
    }
}
