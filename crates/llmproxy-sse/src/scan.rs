//! Splits an event stream into its events without reading what they say.

use memchr::{memchr, memchr2};

/// Sans-IO splitter of an event stream (WHATWG HTML, section 9.2.6).
///
/// Fed the chunks of a body in order, it hands out every event as its blank line arrives. A chunk is never copied: only
/// the part of an event that began in an earlier chunk is buffered, up to a bound. Lines end with LF, CRLF or CR, also
/// where a chunk ends between CR and LF.
///
/// ```
/// use llmproxy_sse::Scanner;
///
/// let mut scanner = Scanner::new();
/// let mut seen = Vec::new();
/// for chunk in ["data: hel", "lo\n\ndata: [DONE]\n\n"] {
///     scanner.feed(chunk.as_bytes(), |event| seen.push(event.data.to_vec()));
/// }
/// assert_eq!(seen, [b"hello".to_vec(), b"[DONE]".to_vec()]);
/// assert!(!scanner.is_mid_event());
/// ```
#[derive(Debug)]
pub struct Scanner {
    max: usize,
    // What earlier chunks held of the event that is being read: its name, its data lines, and the line that the chunk
    // broke off in.
    name: Vec<u8>,
    data: Vec<u8>,
    line: Vec<u8>,
    has_data: bool,
    truncated: bool,
    // The line is longer than what is buffered of it.
    line_is_cut: bool,
    at_first_line: bool,
    // The last chunk ended with a CR; a LF at the start of the next one belongs to it.
    after_cr: bool,
    pending: usize,
}

/// What stands between two blank lines of an event stream. Comments alone, or nothing, make an event without data, so
/// that all boundaries are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field; `None` where it is absent or empty, which is a `message`.
    pub name: Option<&'a [u8]>,
    /// The `data` fields, joined by LF. Borrowed from the chunk if it is one line that lies in it.
    pub data: &'a [u8],
    /// The offset in the current chunk right behind the event's blank line.
    ///
    /// Where the chunk ends between the CR and the LF of that blank line, the event ends at the CR, as it does for a
    /// reader, and the LF at the start of the next chunk means nothing: whole events can be taken out or put in at
    /// either place.
    pub end: usize,
    /// Whether the event was larger than what is buffered, so that the data is incomplete.
    pub truncated: bool,
}

/// Fields of the event that is being read that lie in the current chunk.
#[derive(Default)]
struct InChunk<'c> {
    name: Option<&'c [u8]>,
    data: Option<&'c [u8]>,
}

/// What a line says.
enum Field<'a> {
    Name(&'a [u8]),
    Data(&'a [u8]),
    /// A comment, or a field that does not matter here (`id`, `retry`, unknown ones).
    Other,
}

// === impl Scanner ===

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// How much of an event is buffered: 64 KiB.
    pub const DEFAULT_MAX_EVENT: usize = 64 * 1024;
    /// Buffers larger than this are given back after the event that needed them.
    const RETAINED: usize = 4 * 1024;
    const BOM: &'static [u8] = b"\xEF\xBB\xBF";

    /// A scanner at the start of a stream.
    pub fn new() -> Self {
        Self::with_max_event(Self::DEFAULT_MAX_EVENT)
    }

    /// A scanner that buffers at most `max` bytes of an event. A single data line that lies in one chunk is handed out
    /// whole, whatever its size: nothing of it is buffered.
    pub fn with_max_event(max: usize) -> Self {
        Self {
            max,
            name: Vec::new(),
            data: Vec::new(),
            line: Vec::new(),
            has_data: false,
            truncated: false,
            line_is_cut: false,
            at_first_line: true,
            after_cr: false,
            pending: 0,
        }
    }

    /// Reads the next chunk and hands out the events that end in it.
    pub fn feed<F: FnMut(Event<'_>)>(&mut self, chunk: &[u8], mut on_event: F) {
        let Some(&first) = chunk.first() else { return };
        let mut at = 0;
        let mut begin = 0;
        if std::mem::take(&mut self.after_cr) && first == b'\n' {
            at = 1;
            if self.pending == 0 {
                begin = 1;
            }
        }
        let mut in_chunk = InChunk::default();
        while let Some(length) = memchr2(b'\n', b'\r', &chunk[at..]) {
            let line = &chunk[at..at + length];
            at += length + 1;
            if chunk[at - 1] == b'\r' {
                match chunk.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.end_line(line, &mut in_chunk) {
                on_event(self.event(&in_chunk, at));
                self.clear();
                in_chunk = InChunk::default();
                begin = at;
            }
        }
        self.keep(in_chunk);
        self.extend_line(&chunk[at..]);
        self.pending += chunk.len() - begin;
    }

    /// Whether bytes have come after the last blank line.
    pub fn is_mid_event(&self) -> bool {
        self.pending > 0
    }

    /// How many bytes have come after the last blank line.
    pub fn pending_len(&self) -> usize {
        self.pending
    }

    /// The body has ended: an event with data is handed out even without the blank line that some servers forget. Its
    /// `end` is 0.
    pub fn finish<F: FnMut(Event<'_>)>(&mut self, mut on_event: F) {
        let mut in_chunk = InChunk::default();
        self.end_line(b"", &mut in_chunk);
        if self.has_data {
            on_event(self.event(&in_chunk, 0));
        }
        self.clear();
        self.pending = 0;
        self.after_cr = false;
    }

    /// Takes in the line that ends with `rest`; says whether it is blank.
    fn end_line<'c>(&mut self, rest: &'c [u8], in_chunk: &mut InChunk<'c>) -> bool {
        if self.line.is_empty() && !self.line_is_cut {
            let line = self.strip_bom(rest);
            if line.is_empty() {
                return true;
            }
            match Field::of(line) {
                Field::Name(name) => in_chunk.name = Some(name),
                Field::Data(data) if self.has_data || in_chunk.data.is_some() => {
                    self.keep(InChunk { name: None, data: in_chunk.data.take() });
                    self.append_data(data);
                }
                Field::Data(data) => in_chunk.data = Some(data),
                Field::Other => {}
            }
            return false;
        }
        self.extend_line(rest);
        let buffered = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.line_is_cut);
        let line = self.strip_bom(&buffered);
        let is_blank = line.is_empty() && !cut;
        match Field::of(line) {
            Field::Name(name) => {
                in_chunk.name = None;
                self.name.clear();
                self.name.extend_from_slice(name);
                self.truncated |= cut;
            }
            Field::Data(data) => {
                self.keep(InChunk { name: None, data: in_chunk.data.take() });
                // The buffered line gives its room to the data that it becomes.
                self.append_data(data);
                self.truncated |= cut;
            }
            // Cut before its name was complete, it may have been data.
            Field::Other => self.truncated |= cut && memchr(b':', line).is_none(),
        }
        self.line = buffered;
        clear(&mut self.line);
        is_blank
    }

    fn strip_bom<'a>(&mut self, line: &'a [u8]) -> &'a [u8] {
        if std::mem::take(&mut self.at_first_line) { line.strip_prefix(Self::BOM).unwrap_or(line) } else { line }
    }

    /// Buffers what the chunk holds of an event that goes on in the next one.
    fn keep(&mut self, in_chunk: InChunk<'_>) {
        if let Some(name) = in_chunk.name {
            let room = self.room();
            self.truncated |= name.len() > room;
            self.name.clear();
            self.name.extend_from_slice(&name[..name.len().min(room)]);
        }
        if let Some(data) = in_chunk.data {
            self.append_data(data);
        }
    }

    fn append_data(&mut self, data: &[u8]) {
        if self.has_data {
            if self.room() == 0 {
                self.truncated = true;
                return;
            }
            self.data.push(b'\n');
        }
        let room = self.room();
        self.truncated |= data.len() > room;
        self.data.extend_from_slice(&data[..data.len().min(room)]);
        self.has_data = true;
    }

    fn extend_line(&mut self, part: &[u8]) {
        let room = self.room().saturating_sub(self.line.len());
        self.line_is_cut |= part.len() > room;
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn room(&self) -> usize {
        self.max.saturating_sub(self.name.len() + self.data.len())
    }

    fn event<'a>(&'a self, in_chunk: &InChunk<'a>, end: usize) -> Event<'a> {
        Event {
            name: Some(in_chunk.name.unwrap_or(&self.name)).filter(|name| !name.is_empty()),
            data: in_chunk.data.unwrap_or(&self.data),
            end,
            truncated: self.truncated,
        }
    }

    fn clear(&mut self) {
        clear(&mut self.name);
        clear(&mut self.data);
        self.has_data = false;
        self.truncated = false;
        self.pending = 0;
    }
}

fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(Scanner::RETAINED);
}

// === impl Field ===

impl<'a> Field<'a> {
    fn of(line: &'a [u8]) -> Self {
        let (name, value) = match memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => Self::Data(value),
            b"event" => Self::Name(value),
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Plain = (Option<Vec<u8>>, Vec<u8>);

    /// A reader as simple as can be, over the whole text: the events, and whether something follows the last one.
    fn reference(text: &[u8]) -> (Vec<Plain>, Option<Plain>, bool) {
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        let mut lines: Vec<Vec<u8>> = vec![vec![]];
        for (i, &byte) in text.iter().enumerate() {
            match byte {
                b'\n' if i > 0 && text[i - 1] == b'\r' => {}
                b'\n' | b'\r' => lines.push(vec![]),
                _ => lines.last_mut().unwrap().push(byte),
            }
        }
        let unfinished = lines.pop().unwrap();
        let mut events = Vec::new();
        let (mut name, mut data, mut any): (Vec<u8>, Option<Vec<u8>>, bool) = (vec![], None, false);
        for (line, terminated) in lines.iter().map(|line| (line, true)).chain([(&unfinished, false)]) {
            if line.is_empty() && terminated {
                let name = std::mem::take(&mut name);
                events.push(((!name.is_empty()).then_some(name), data.take().unwrap_or_default()));
                any = false;
                continue;
            }
            any |= terminated || !line.is_empty();
            let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
            let mut value = line.get(colon + 1..).unwrap_or_default();
            if value.first() == Some(&b' ') {
                value = &value[1..];
            }
            match &line[..colon] {
                b"event" => name = value.to_vec(),
                b"data" => match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend(value);
                    }
                    None => data = Some(value.to_vec()),
                },
                _ => {}
            }
        }
        (events, data.map(|data| ((!name.is_empty()).then_some(name), data)), any)
    }

    fn scan(chunks: &[&[u8]]) -> (Vec<Plain>, Scanner) {
        let (mut scanner, mut events, mut text) = (Scanner::new(), Vec::new(), Vec::new());
        for chunk in chunks {
            let before = text.len();
            text.extend_from_slice(chunk);
            scanner.feed(chunk, |event| {
                assert!(!event.truncated);
                events.push((event.name.map(<[u8]>::to_vec), event.data.to_vec()));
                // What was fed up to the event's end is, for a reader, these events and nothing else.
                let (read, _, mid) = reference(&text[..before + event.end]);
                assert_eq!((read, mid), (events.clone(), false));
            });
            let (_, _, mid) = reference(&text);
            assert_eq!(scanner.is_mid_event(), mid || text == b"\xEF" || text == b"\xEF\xBB" || text == Scanner::BOM);
        }
        (events, scanner)
    }

    fn check_chunks(text: &[u8], chunks: &[&[u8]]) {
        let (expected, unterminated, _) = reference(text);
        let (events, mut scanner) = scan(chunks);
        assert_eq!(events, expected);
        let mut last = None;
        scanner.finish(|event| last = Some((event.name.map(<[u8]>::to_vec), event.data.to_vec())));
        assert_eq!(last, unterminated);
        assert_eq!(scanner.pending_len(), 0);
    }

    /// Whole, split in two at every byte, and byte by byte.
    fn check(text: &[u8], expected: &[(Option<&str>, &str)]) {
        let plain: Vec<Plain> =
            expected.iter().map(|(name, data)| (name.map(|name| name.into()), data.as_bytes().into())).collect();
        assert_eq!(scan(&[text]).0, plain, "{}", text.escape_ascii());
        for at in 0..=text.len() {
            check_chunks(text, &[&text[..at], &text[at..]]);
        }
        check_chunks(text, &text.chunks(1).collect::<Vec<_>>());
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        check(b"", &[]);
        check(b"data: a\n\n", &[(None, "a")]);
        check(b"data:a\n\n", &[(None, "a")]);
        check(b"data:  a\n\n", &[(None, " a")]);
        check(b"data: YHOO\ndata: +2\ndata: 10\n\n", &[(None, "YHOO\n+2\n10")]);
        check(
            b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
            &[(None, ""), (None, "first"), (None, "second"), (None, " third")],
        );
        check(b"data\n\ndata\ndata\n\ndata:", &[(None, ""), (None, "\n")]);
        check(b"event: add\ndata: 73857293\n\n", &[(Some("add"), "73857293")]);
        check(
            b"event: a\nevent: b\ndata: x\n\nevent: c\nevent\n\ndata: y\n\n",
            &[(Some("b"), "x"), (None, ""), (None, "y")],
        );
        check(b"id: a\0b\nretry: 10\ndata: x\n\n", &[(None, "x")]);
        check(b" data: x\ndata : y\nDATA: z\n\n", &[(None, "")]);
        check(b"data: a:b: c\n\n", &[(None, "a:b: c")]);
        check(b"data: {\"a\":\"\\n\\n data: [DONE]\"}\n\n", &[(None, "{\"a\":\"\\n\\n data: [DONE]\"}")]);
    }

    #[test]
    fn all_line_ends_are_known() {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("event: e{end}data: a{end}: c{end}data: b{end}{end}{end}data: c{end}{end}");
            check(text.as_bytes(), &[(Some("e"), "a\nb"), (None, ""), (None, "c")]);
        }
        check(b"data: a\r\n\rdata: b\n\r\ndata: c\r\n\n", &[(None, "a"), (None, "b"), (None, "c")]);
        check(b"data: a\n\r\n\r\n\n\r", &[(None, "a"), (None, ""), (None, ""), (None, "")]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_start_only() {
        check(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n", &[(None, "a"), (None, "")]);
        check(b"\xEF\xBB\xBF\n\xEF\xBB\xBF\n\n", &[(None, ""), (None, "")]);
    }

    #[test]
    fn a_last_event_without_its_blank_line_is_handed_out() {
        check(b"data: a\n\ndata: b\n", &[(None, "a")]);
        check(b"data: a\n\nevent: e\ndata: b\r", &[(None, "a")]);
        check(b"data: a\n\ndata: b", &[(None, "a")]);
        check(b"data: a\n\nevent: b", &[(None, "a")]);
    }

    #[test]
    fn a_single_data_line_is_not_copied() {
        let chunk = b"event: e\ndata: hello\n\n";
        Scanner::new().feed(chunk, |event| assert!(chunk.as_ptr_range().contains(&event.data.as_ptr())));
    }

    #[test]
    fn what_is_pending_is_known_across_a_split_line_end() {
        let mut scanner = Scanner::new();
        let mut ends = Vec::new();
        scanner.feed(b"data: a\r\n\r", |event| ends.push(event.end));
        assert_eq!((scanner.pending_len(), &*ends), (0, &[10][..]));
        scanner.feed(b"\n", |event| ends.push(event.end));
        assert_eq!((scanner.pending_len(), ends.len()), (0, 1));
        scanner.feed(b"data: b\r", |event| ends.push(event.end));
        scanner.feed(b"\n", |event| ends.push(event.end));
        assert_eq!((scanner.pending_len(), ends.len()), (9, 1));
        scanner.feed(b"\r\n", |event| ends.push(event.end));
        assert_eq!((scanner.pending_len(), &*ends), (0, &[10, 2][..]));
    }

    #[test]
    fn a_line_of_a_mebibyte_takes_bounded_memory() {
        let mut text = b"data: ".to_vec();
        text.resize(1 << 20, b'x');
        text.extend_from_slice(b"\n\ndata: next\n\n");
        // In one chunk nothing is buffered, so nothing is lost.
        let mut sizes = Vec::new();
        Scanner::new().feed(&text, |event| sizes.push((event.data.len(), event.truncated)));
        assert_eq!(sizes, [((1 << 20) - 6, false), (4, false)]);
        for size in [1, 1000, 16 * 1024, 100_000] {
            let (mut scanner, mut sizes) = (Scanner::new(), Vec::new());
            for chunk in text.chunks(size) {
                scanner.feed(chunk, |event| sizes.push((event.data.len(), event.truncated)));
                let held = scanner.line.capacity() + scanner.data.capacity() + scanner.name.capacity();
                assert!(held <= 4 * Scanner::DEFAULT_MAX_EVENT, "{held} bytes are held");
            }
            assert_eq!(sizes, [(Scanner::DEFAULT_MAX_EVENT - 6, true), (4, false)], "chunks of {size}");
            assert!(scanner.line.capacity() + scanner.data.capacity() <= 2 * Scanner::RETAINED);
        }
    }

    #[test]
    fn a_long_comment_costs_no_data() {
        let mut text = b": ".to_vec();
        text.resize(200, b'x');
        text.extend_from_slice(b"\ndata: short\n\n");
        let (mut scanner, mut events) = (Scanner::with_max_event(50), Vec::new());
        for chunk in text.chunks(7) {
            scanner.feed(chunk, |event| events.push((event.data.to_vec(), event.truncated)));
        }
        assert_eq!(events, [(b"short".to_vec(), false)]);
    }

    #[test]
    fn many_data_lines_are_bounded_together() {
        let (mut scanner, mut events) = (Scanner::with_max_event(10), Vec::new());
        scanner.feed(b"data: 123456\ndata: 123456\n: c\ndata: more\n\ndata: ok\n\n", |event| {
            events.push((event.data.to_vec(), event.truncated));
        });
        assert_eq!(events, [(b"123456\n123".to_vec(), true), (b"ok".to_vec(), false)]);
    }

    proptest! {
        #[test]
        fn any_text_in_any_chunks_is_read_as_by_a_plain_reader(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "data", "event", "id", ":", ": ", " ", "x", "\u{e4}\u{1f600}", "\n", "\r", "\r\n", "\n\n", "\u{feff}", "[DONE]",
                ]),
                0..40,
            ),
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let text = pieces.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            check_chunks(&text, &chunks);
        }
    }
}
