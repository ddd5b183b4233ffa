//! Splits an event stream into its events without reading what they say.

use memchr::{memchr, memchr2};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod whatwg;

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

/// What stands between two blank lines of an event stream (WHATWG HTML, section 9.2.5). Comments alone, or nothing, make
/// an event without data, so that all boundaries are known.
///
/// ```
/// llmproxy_sse::Scanner::new().feed(b"event: error\ndata: {\ndata: }\n\n", |event| {
///     assert_eq!((event.name, event.data), (Some(&b"error"[..]), &b"{\n}"[..]));
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field; `None` where it is absent or empty, which is a `message`.
    pub name: Option<&'a [u8]>,
    /// The `data` fields, joined by LF. Borrowed from the chunk if it is one line that lies in it.
    pub data: &'a [u8],
    /// The offset in the current chunk, in bytes, right behind the event's blank line.
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
    /// How much of an event is buffered, in bytes: 64 KiB.
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

    /// Reads the next chunk and hands out the events that end in it, in order. It neither waits nor fails: whatever the
    /// bytes are, they are some stream.
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
