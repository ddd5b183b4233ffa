//! The members at the top of one large JSON object, found while it passes in pieces of any size.
//!
//! Nothing is kept but the few values that are of interest; the rest is skipped at the speed of memory: inside of
//! strings up to the next quote, outside of them up to the next bracket.

use memchr::memchr2;

/// What a member of interest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    /// An object of counts.
    Usage,
    /// The same, of which only what it says of the prompt is true.
    PromptUsage,
    /// An object of counts, of the part of the answer that the object around it is about.
    PartUsage,
    /// Which part of the answer an object is about.
    Index,
    /// An element of a list has ended.
    Item,
    /// A number of tokens.
    Prompt,
    /// A number of tokens.
    Completion,
    /// A list with the prompt's tokens.
    Prefill,
    /// llama.cpp's object of counts and times.
    Timings,
    Model,
    Id,
    /// The type of an event.
    Kind,
    /// Whether nothing follows.
    Done,
    /// Why nothing follows.
    Reason,
    /// How many seconds were listened to.
    Duration,
    /// What went wrong.
    Error,
    /// What went wrong, in the words of a server made with FastAPI.
    Detail,
}

/// What the members of interest are called in a dialect.
#[derive(Debug)]
pub(crate) struct Names {
    /// Those at the top.
    pub(super) top: &'static [(&'static str, Member)],
    /// An object at the top whose members are of interest too, and these.
    pub(super) inside: Option<(&'static str, &'static [(&'static str, Member)])>,
    /// Whether a list of such objects stands there.
    pub(super) in_list: bool,
}

/// Sans-IO: bytes go in, members come out.
#[derive(Debug)]
pub(crate) struct TopLevel {
    names: &'static Names,
    depth: u32,
    string: Quote,
    place: Place,
    // The key that is being read, as far as it can still be one of interest.
    key: [u8; Names::LONGEST_KEY],
    key_len: u8,
    inside: Inside,
    is_in_list: bool,
    capture: Option<Member>,
    value: Vec<u8>,
    list: List,
    done: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Quote {
    #[default]
    Outside,
    Inside,
    /// Behind a backslash.
    Escape,
}

/// Where in the top object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Key,
    Value,
}

/// How the object with more members of interest stands to what is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Inside {
    #[default]
    No,
    /// Its key has been read.
    Next,
    Yes,
}

/// Whether a list of objects is read as one object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Never,
    /// If it is one.
    Perhaps,
    Yes,
}

/// Brackets and quotes are looked for in blocks of this size, which a compiler makes a few vector operations of.
const BLOCK: usize = 32;
/// Most values are no longer than this.
const USUAL: usize = 128;
/// What is looked for is mostly near: so many bytes are looked at one by one before it is worth to begin anything else.
const NEAR: usize = 16;

/// Where the next quote or backslash is.
pub(super) fn end_or_escape(data: &[u8]) -> Option<usize> {
    let near = data.len().min(NEAR);
    match data[..near].iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        None => memchr2(b'"', b'\\', &data[near..]).map(|at| near + at),
        found => found,
    }
}

/// Where the next quote or bracket is.
fn quote_or_bracket(data: &[u8]) -> Option<usize> {
    // `[` and `]` are `{` and `}` but for one bit.
    let special = |byte: u8| (byte == b'"') | (byte | 0x20 == b'{') | (byte | 0x20 == b'}');
    let near = data.len().min(NEAR);
    if let Some(at) = data[..near].iter().position(|byte| special(*byte)) {
        return Some(at);
    }
    let far = &data[near..];
    let plain =
        far.chunks_exact(BLOCK).take_while(|block| !block.iter().fold(false, |any, byte| any | special(*byte))).count();
    let from = plain * BLOCK;
    far[from..].iter().position(|byte| special(*byte)).map(|at| near + from + at)
}

// === impl Names ===

impl Names {
    /// At the top of an answer, or of an event that says its type.
    pub(super) const TYPED: &[(&str, Member)] = &[
        ("type", Member::Kind),
        ("id", Member::Id),
        ("model", Member::Model),
        ("usage", Member::Usage),
        ("error", Member::Error),
        ("detail", Member::Detail),
    ];
    /// A key of interest with its quotes; one byte more would show that a key is longer.
    const LONGEST_KEY: usize = 19 + 1;

    /// What stands under `key`, which has its quotes.
    fn of(&self, key: &[u8], inside: bool) -> Option<Member> {
        let key = unquoted(key)?;
        let names = if inside { self.inside?.1 } else { self.top };
        names.iter().find(|(name, _)| name.as_bytes() == key).map(|(_, member)| *member)
    }

    /// Whether `key` is that of the object with more members.
    fn is_inside(&self, key: &[u8]) -> bool {
        self.inside.is_some_and(|(name, _)| unquoted(key) == Some(name.as_bytes()))
    }
}

fn unquoted(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

// === impl Member ===

impl Member {
    /// A value that is larger is given up: no honest one is.
    fn max_len(self) -> usize {
        match self {
            Self::Usage | Self::PromptUsage | Self::PartUsage | Self::Prefill | Self::Timings => 16 * 1024,
            Self::Error | Self::Detail => 16 * 1024,
            _ => 1024,
        }
    }
}

// === impl TopLevel ===

impl TopLevel {
    /// At the beginning of an object.
    pub(crate) fn new(names: &'static Names) -> Self {
        Self {
            names,
            depth: 0,
            string: Quote::default(),
            place: Place::default(),
            key: [0; Names::LONGEST_KEY],
            key_len: 0,
            inside: Inside::default(),
            is_in_list: false,
            capture: None,
            value: Vec::new(),
            list: List::Never,
            done: false,
        }
    }

    /// At the beginning of an object or of a list of objects: after each of these [`Member::Item`] is found.
    pub(crate) fn of_any(names: &'static Names) -> Self {
        Self { list: List::Perhaps, ..Self::new(names) }
    }

    /// Takes the next piece; `found` is called with each member whose value it completes.
    pub(crate) fn feed(&mut self, mut data: &[u8], mut found: impl FnMut(Member, &[u8])) {
        while !self.done && !data.is_empty() {
            let len = match self.string {
                _ if self.depth > 1 => self.nested(data),
                Quote::Outside => self.top(data, &mut found),
                Quote::Inside | Quote::Escape => self.string(data),
            };
            if self.capture.is_some() || (self.place == Place::Key && self.depth == 1) {
                self.keep(&data[..len]);
            }
            data = &data[len..];
        }
    }

    /// The next byte that matters outside of strings, at the top, or all that do not before it.
    fn top(&mut self, data: &[u8], found: &mut impl FnMut(Member, &[u8])) -> usize {
        let matters = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b':' | b',' | b'}' | b']');
        match data[0] {
            // The end of the list, or a list of something else.
            byte if self.is_between() && !matches!(byte, b'{' | b',' | b' ' | b'\t' | b'\r' | b'\n') => {
                self.done = true
            }
            b'"' => {
                self.string = Quote::Inside;
                if self.place == Place::Key {
                    self.key_len = 0;
                }
            }
            b'{' if self.depth == 0 => {
                // What stands before it was none of its members.
                self.depth = 1;
                self.is_in_list = false;
                self.place = Place::Key;
                self.capture = None;
            }
            b'[' if self.depth == 0 && self.list == List::Perhaps => self.list = List::Yes,
            b'[' if self.inside == Inside::Next && self.names.in_list => self.is_in_list = true,
            b'{' if self.inside == Inside::Next => {
                self.inside = Inside::Yes;
                self.place = Place::Key;
            }
            b'{' | b'[' => self.depth += 1,
            b':' => {
                self.place = Place::Value;
                let key = self.key[..usize::from(self.key_len)].trim_ascii();
                self.capture = self.names.of(key, self.inside == Inside::Yes);
                if self.inside == Inside::No && self.names.is_inside(key) {
                    self.inside = Inside::Next;
                }
                self.value.clear();
                if self.capture.is_some() {
                    self.value.reserve(USUAL);
                }
            }
            byte @ (b',' | b'}' | b']') => {
                if let Some(member) = self.capture.take() {
                    found(member, self.value.strip_prefix(b":").unwrap_or(&self.value).trim_ascii());
                }
                self.place = Place::Key;
                match (byte, self.inside) {
                    (b'}', Inside::Yes) if self.is_in_list => self.inside = Inside::Next,
                    (b'}', Inside::Yes) => self.inside = Inside::No,
                    (b',', Inside::Next) if self.is_in_list => {}
                    (b',', Inside::Next) => self.inside = Inside::No,
                    (b',', _) => {}
                    (b']', _) if self.is_in_list => (self.is_in_list, self.inside) = (false, Inside::No),
                    (b'}', _) if self.depth == 1 && self.list == List::Yes => {
                        self.depth = 0;
                        self.inside = Inside::No;
                        found(Member::Item, b"");
                    }
                    _ => self.done = true,
                }
            }
            _ => return data.iter().position(matters).unwrap_or(data.len()),
        }
        1
    }

    /// Whether it is in a list and in none of its objects.
    fn is_between(&self) -> bool {
        self.depth == 0 && self.list == List::Yes
    }

    /// Up to the end of the string.
    fn string(&mut self, data: &[u8]) -> usize {
        let mut from = usize::from(self.string == Quote::Escape);
        self.string = Quote::Inside;
        while let Some(at) = end_or_escape(&data[from..]) {
            let next = from + at + 1;
            if data[next - 1] == b'"' {
                self.string = Quote::Outside;
                return next;
            }
            if next == data.len() {
                self.string = Quote::Escape;
                return next;
            }
            from = next + 1;
        }
        data.len()
    }

    /// Up to the end of what stands below the top.
    fn nested(&mut self, data: &[u8]) -> usize {
        let mut at = 0;
        while self.depth > 1 && at < data.len() {
            if self.string != Quote::Outside {
                at += self.string(&data[at..]);
                continue;
            }
            let Some(next) = quote_or_bracket(&data[at..]) else { return data.len() };
            at += next + 1;
            match data[at - 1] {
                b'"' => self.string = Quote::Inside,
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                _ => self.depth -= 1,
            }
        }
        at
    }

    /// Keeps what is of interest of what was just taken.
    fn keep(&mut self, data: &[u8]) {
        match (self.place, self.capture) {
            (Place::Key, _) if self.depth == 1 => {
                let key_len = usize::from(self.key_len);
                let len = data.len().min(Names::LONGEST_KEY - key_len);
                self.key[key_len..][..len].copy_from_slice(&data[..len]);
                self.key_len = (key_len + len) as u8;
            }
            (Place::Value, Some(member)) => {
                if self.value.len() + data.len() > member.max_len() {
                    self.capture = None;
                    self.value = Vec::new();
                } else {
                    self.value.extend_from_slice(data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
