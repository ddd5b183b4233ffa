//! Where a stream stands, told from its last few bytes.

/// The last bytes of an event stream. Cheap to keep up: a chunk costs a copy of these few bytes, and is looked at only
/// when the stream falls silent or breaks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    bytes: [u8; Self::SIZE],
    len: usize,
    // Whether bytes have gone before these.
    is_cut: bool,
}

/// Where a reader stands after a line end, and whether a LF that follows would still belong to that line end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    InLine,
    LineEnd { cr: bool },
    BlankLine { cr: bool },
}

// === impl Tail ===

impl Tail {
    /// Room for `LF data: [DONE] CR LF CR LF` and a few blank lines.
    const SIZE: usize = 32;

    /// Takes in the next chunk.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        if chunk.len() >= Self::SIZE {
            self.is_cut |= self.len > 0 || chunk.len() > Self::SIZE;
            self.bytes.copy_from_slice(&chunk[chunk.len() - Self::SIZE..]);
            self.len = Self::SIZE;
            return;
        }
        let excess = (self.len + chunk.len()).saturating_sub(Self::SIZE);
        if excess > 0 {
            self.is_cut = true;
            self.bytes.copy_within(excess..self.len, 0);
            self.len -= excess;
        }
        self.bytes[self.len..self.len + chunk.len()].copy_from_slice(chunk);
        self.len += chunk.len();
    }

    /// Whether the stream is at its start or right behind a blank line, so that an event can be put in.
    pub(crate) fn is_between_events(&self) -> bool {
        let mut bytes = self.as_slice();
        // More line ends than the tail can hold are blank lines, whatever went before; with anything else in it, what
        // went before does not matter. So the start is only right where nothing went before.
        let mut at = if self.is_cut { At::InLine } else { At::BlankLine { cr: false } };
        if !self.is_cut {
            bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        }
        for &byte in bytes {
            at = match (byte, at) {
                (b'\n', At::LineEnd { cr: true }) => At::LineEnd { cr: false },
                (b'\n', At::BlankLine { cr: true }) => At::BlankLine { cr: false },
                (b'\n' | b'\r', At::InLine) => At::LineEnd { cr: byte == b'\r' },
                (b'\n' | b'\r', _) => At::BlankLine { cr: byte == b'\r' },
                _ => At::InLine,
            };
        }
        matches!(at, At::BlankLine { .. })
    }

    /// Whether the last event was `[DONE]`, after which nothing matters.
    pub(crate) fn is_done(&self) -> bool {
        let text = self.as_slice().trim_ascii_end();
        let Some(before) = text.strip_suffix(b"data: [DONE]").or_else(|| text.strip_suffix(b"data:[DONE]")) else {
            return false;
        };
        match before.last() {
            Some(byte) => matches!(byte, b'\n' | b'\r'),
            None => !self.is_cut,
        }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Scanner;

    fn tail(chunks: &[&[u8]]) -> Tail {
        let mut tail = Tail::default();
        chunks.iter().for_each(|chunk| tail.push(chunk));
        tail
    }

    /// At every split: the tail and the scanner agree on where the stream stands.
    fn check(text: &[u8]) {
        for end in 0..=text.len() {
            let text = &text[..end];
            let mut scanner = Scanner::new();
            scanner.feed(text, |_| {});
            let between = !scanner.is_mid_event() || text == b"\xEF\xBB\xBF";
            for at in 0..=end {
                let found = tail(&[&text[..at], &text[at..]]).is_between_events();
                assert_eq!(found, between, "{} | {}", text[..at].escape_ascii(), text[at..].escape_ascii());
            }
            assert_eq!(tail(&text.chunks(1).collect::<Vec<_>>()).is_between_events(), between);
        }
    }

    #[test]
    fn a_blank_line_is_seen_with_every_line_end_at_every_split() {
        for end in ["\n", "\r\n", "\r"] {
            check(
                format!("data: a{end}{end}: a longer comment than the tail is{end}{end}data: b{end}{end}{end}")
                    .as_bytes(),
            );
        }
        check(b"data: a\n\r\ndata: b\r\n\ndata: c\r\r\n");
        check(b"\xEF\xBB\xBFdata: a\n\n");
        check(&[b'\n'; 70]);
        check(&b"\r\n".repeat(40));
    }

    #[test]
    fn done_is_seen_at_every_split() {
        let check_done = |text: &str, expected: bool| {
            for at in 0..=text.len() {
                let (before, after) = text.as_bytes().split_at(at);
                assert_eq!(tail(&[before, after]).is_done(), expected, "{text:?} split at {at}");
            }
        };
        check_done("data: {\"x\": \"some text of an event\"}\n\ndata: [DONE]\n\n", true);
        check_done("data: {\"x\": \"some text of an event\"}\r\n\r\ndata: [DONE]\r\n\r\n", true);
        check_done("data: {\"x\": \"some text of an event\"}\n\ndata:[DONE]\n\n", true);
        check_done("data: [DONE]\n\n", true);
        check_done("data: [DONE]", true);
        check_done("data: {\"content\":\"data: [DONE]\"}\n\n", false);
        check_done("data: it said data: [DONE]\n\n", false);
        check_done("data: [DONE]\n\ndata: more\n\n", false);
        check_done("", false);
    }

    proptest! {
        #[test]
        fn tail_and_scanner_agree_on_any_text(
            pieces in prop::collection::vec(prop::sample::select(vec!["x", "\n", "\r", "\r\n", "\n\n", "data: 12345"]), 0..30),
        ) {
            check(pieces.concat().as_bytes());
        }
    }
}
