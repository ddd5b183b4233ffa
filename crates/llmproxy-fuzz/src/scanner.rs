//! Event streams: what the scanner finds is what a plain reader finds, wherever the pieces end.

use llmproxy_sse::Scanner;

use crate::cut::cuts;

/// What stands between two blank lines, and where in the stream it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// Right behind the blank line, or between its CR and LF where a piece ended there.
    pub(crate) end: usize,
}

/// So little is buffered of an event that hardly one fits.
const SMALL: usize = 12;

/// The scanner finds the events of the stream `data` that a plain reader finds, in any pieces; and with hardly any memory
/// still their ends.
///
/// ```
/// llmproxy_fuzz::scanner(b": a comment\n\ndata: x\r\rdata");
/// ```
///
/// # Panics
///
/// If it does not.
pub fn scanner(data: &[u8]) {
    let (expected, unfinished) = read(data);
    for pieces in cuts(data) {
        let (found, last, _) = scan(Scanner::new(), &pieces);
        // Where CR and LF came apart, the event has ended at the CR.
        let pairs = found.iter().zip(&expected);
        assert_eq!(found.len(), expected.len(), "events: {found:?}, {expected:?}");
        for (found, expected) in pairs {
            assert_eq!((&found.name, &found.data), (&expected.name, &expected.data));
            let early = found.end + 1 == expected.end && data[found.end] == b'\n';
            assert!(found.end == expected.end || early, "{found:?} ends not where {expected:?} does");
        }
        assert_eq!(last, unfinished, "what was not finished");

        let (small, _, truncated) = scan(Scanner::with_max_event(SMALL), &pieces);
        assert_eq!(small.len(), found.len());
        for ((small, found), truncated) in small.iter().zip(&found).zip(truncated) {
            assert_eq!(small.end, found.end);
            assert!(truncated || (&small.name, &small.data) == (&found.name, &found.data), "{small:?} is {found:?}");
        }
    }
}

/// The events that a scanner finds in the pieces, the one that [`Scanner::finish`] hands out, and which are incomplete.
fn scan(mut scanner: Scanner, pieces: &[&[u8]]) -> (Vec<Plain>, Option<Plain>, Vec<bool>) {
    let (mut found, mut truncated, mut before) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        scanner.feed(piece, |event| {
            let name = event.name.unwrap_or_default().to_vec();
            found.push(Plain { name, data: event.data.to_vec(), end: before + event.end });
            truncated.push(event.truncated);
        });
        before += piece.len();
        let begun = before - found.last().map_or(0, |last: &Plain| last.end);
        // An LF that belongs to the event before it is not pending, and nothing else may be forgotten.
        assert!(scanner.pending_len() == begun || scanner.pending_len() + 1 == begun, "{begun} bytes are pending");
        assert_eq!(scanner.is_mid_event(), scanner.pending_len() > 0);
    }
    let mut last = None;
    scanner.finish(|event| {
        let name = event.name.unwrap_or_default().to_vec();
        last = Some(Plain { name, data: event.data.to_vec(), end: 0 });
    });
    assert_eq!(scanner.pending_len(), 0);
    (found, last, truncated)
}

/// Reads a stream that is there as a whole: its events, and one with data whose blank line is missing.
pub(crate) fn read(stream: &[u8]) -> (Vec<Plain>, Option<Plain>) {
    let mut events = Vec::new();
    let (mut name, mut lines): (&[u8], Vec<&[u8]>) = (b"", Vec::new());
    let mut at = if stream.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    loop {
        let rest = &stream[at..];
        let length = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let line = &rest[..length.unwrap_or(rest.len())];
        let line_end = match &rest[line.len()..] {
            [b'\r', b'\n', ..] => 2,
            [] => 0,
            _ => 1,
        };
        at += line.len() + line_end;
        if line.is_empty() && line_end > 0 {
            events.push(Plain { name: name.to_vec(), data: lines.join(&b'\n'), end: at });
            (name, lines) = (b"", Vec::new());
            continue;
        }
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let field = halves.next().unwrap_or_default();
        let value = halves.next().unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => name = value,
            b"data" => lines.push(value),
            _ => {}
        }
        if line_end == 0 {
            let unfinished = Plain { name: name.to_vec(), data: lines.join(&b'\n'), end: 0 };
            let unfinished = (!lines.is_empty()).then_some(unfinished);
            return (events, unfinished);
        }
    }
}
