//! A stream of JSON objects, one on each line (NDJSON).

use llmproxy_sse::Event;
use memchr::memchr;

/// Sans-IO: chunks go in, lines come out, as events without a name. Only a line that began in an earlier chunk is
/// buffered, up to a bound; of a longer one the beginning comes out.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    held: Vec<u8>,
    is_cut: bool,
}

/// How much of a line is buffered, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// A buffer that is larger is given back after the line that needed it.
const RETAINED: usize = 4 * 1024;

// === impl Lines ===

impl Lines {
    /// Reads the next chunk and hands out the lines that end in it.
    pub(crate) fn feed(&mut self, chunk: &[u8], mut on_line: impl FnMut(Event<'_>)) {
        let mut at = 0;
        while let Some(length) = memchr(b'\n', &chunk[at..]) {
            let line = &chunk[at..at + length];
            at += length + 1;
            if self.held.is_empty() && !self.is_cut {
                on_line(Event { name: None, data: line, end: at, truncated: false });
            } else {
                self.hold(line);
                self.hand_out(at, &mut on_line);
            }
        }
        self.hold(&chunk[at..]);
    }

    /// The body has ended: the last line needs no end.
    pub(crate) fn finish(&mut self, mut on_line: impl FnMut(Event<'_>)) {
        if !self.held.is_empty() {
            self.hand_out(0, &mut on_line);
        }
    }

    fn hand_out(&mut self, end: usize, on_line: &mut impl FnMut(Event<'_>)) {
        on_line(Event { name: None, data: &self.held, end, truncated: self.is_cut });
        self.is_cut = false;
        self.held.clear();
        if self.held.capacity() > RETAINED {
            self.held = Vec::new();
        }
    }

    fn hold(&mut self, part: &[u8]) {
        let len = part.len().min(MAX_LINE - self.held.len());
        self.held.extend_from_slice(&part[..len]);
        self.is_cut |= len < part.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, |line| found.push((line.data.to_vec(), line.truncated)));
        }
        lines.finish(|line| found.push((line.data.to_vec(), line.truncated)));
        found
    }

    #[test]
    fn lines_are_whole_at_every_split() {
        let text = b"{\"a\":1}\n\n{\"b\":\"\\n\"}\r\n{\"c\":3}";
        let expected = ["{\"a\":1}", "", "{\"b\":\"\\n\"}\r", "{\"c\":3}"];
        for at in 0..=text.len() {
            let found = lines(&[&text[..at], b"", &text[at..]]);
            assert_eq!(found, expected.map(|line| (line.as_bytes().to_vec(), false)), "{at}");
        }
    }

    #[test]
    fn what_is_held_is_bounded() {
        let long = vec![b'x'; MAX_LINE];
        let found = lines(&[&long, b"yy", b"\nz\n"]);
        assert_eq!(found, [(long, true), (b"z".to_vec(), false)]);
    }
}
