//! The text in an answer that is one JSON value: the strings in some places, found while it passes in pieces of any size.
//!
//! Nothing is kept but the key that was read last and what of a text can't be handed on yet: half a character, half an escape.

use super::{
    json::end_or_escape,
    places::{Outline, Places, Value},
};

/// Sans-IO: bytes go in, text comes out.
#[derive(Debug)]
pub(crate) struct Strings {
    outline: Outline,
    has_calls: bool,
    // Whether a part of a text was no text.
    is_mended: bool,
    place: Place,
    // What the string is that is being read, and whether any text has come of it.
    value: Value,
    has_text: bool,
    key: [u8; LONGEST_KEY],
    // As far as it fits; one byte more shows that it is longer.
    key_len: u8,
    decoded: Vec<u8>,
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A part of a text.
    Text(&'a str),
    /// The text has ended: what follows is another.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind a string, and nothing but blanks.
    Behind,
    /// Behind a string and a colon: it was a key.
    Colon,
    /// Anywhere else outside of strings.
    Outside,
    String,
    /// In an object or list that is text as it is written, so deep.
    Raw {
        depth: u32,
        in_string: bool,
        is_escaped: bool,
    },
    /// Behind a backslash.
    Escape,
    /// Behind `\u` and so many digits of its number; the first half of a pair before it, if there is one.
    Unicode {
        digits: u8,
        number: u16,
        high: Option<u16>,
    },
    /// Behind the first half of a pair, and perhaps the backslash of the other.
    Half {
        high: u16,
        backslash: bool,
    },
}

const LONGEST_KEY: usize = 18;
/// Text is handed on at the latest when it is so long, in bytes.
const MAX_DECODED: usize = 4096;

// === impl Strings ===

impl Strings {
    /// Finds the texts in these places, and whether there is any call of a tool.
    pub(super) fn new(places: &'static Places) -> Self {
        Self {
            outline: Outline::new(places),
            has_calls: false,
            is_mended: false,
            place: Place::Outside,
            value: Value::default(),
            has_text: false,
            key: [0; LONGEST_KEY],
            key_len: 0,
            decoded: Vec::new(),
        }
    }

    /// Whether there was a call of a tool in it.
    pub(crate) fn has_calls(&self) -> bool {
        self.has_calls
    }

    /// Whether there was anything in it that the model has thought.
    pub(crate) fn has_thoughts(&self) -> bool {
        self.outline.has_thoughts()
    }

    /// Whether what came out is not just what was written: half a character, or half an escape, was not.
    pub(crate) fn is_mended(&self) -> bool {
        self.is_mended
    }

    /// Whether the answer has come to its end, or has no text anyway.
    pub(crate) fn is_over(&self) -> bool {
        self.outline.is_over() || self.outline.is_empty()
    }

    /// Takes the next piece of the answer.
    pub(crate) fn feed(&mut self, mut data: &[u8], mut on: impl FnMut(Piece<'_>)) {
        if self.outline.is_empty() {
            return;
        }
        while let Some(byte) = data.first() {
            let taken = match self.place {
                Place::Outside => self.outside(data),
                Place::Behind | Place::Colon => usize::from(self.between(*byte)),
                Place::String => self.string(data, &mut on),
                Place::Raw { .. } => self.raw(data, &mut on),
                Place::Escape | Place::Unicode { .. } | Place::Half { .. } => usize::from(self.escape(*byte)),
            };
            data = &data[taken..];
            if self.decoded.len() >= MAX_DECODED {
                self.hand_on(&mut on);
            }
        }
        self.hand_on(&mut on);
    }

    /// Up to the next quote or bracket.
    fn outside(&mut self, data: &[u8]) -> usize {
        let Some(at) = data.iter().position(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']')) else {
            return data.len();
        };
        match data[at] {
            b'"' => self.begin(Value::default()),
            bracket => self.outline.bracket(bracket),
        }
        at + 1
    }

    fn begin(&mut self, value: Value) {
        self.has_calls |= value.is_call;
        self.place = Place::String;
        (self.value, self.has_text, self.key_len) = (value, false, 0);
    }

    /// What begins here is the value of the key that was read last.
    fn value(&self) -> Value {
        self.outline.value(&self.key[..usize::from(self.key_len).min(LONGEST_KEY)])
    }

    /// Takes a byte between a string and what follows it; says whether it belonged there.
    fn between(&mut self, byte: u8) -> bool {
        match (byte, self.place) {
            (b' ' | b'\t' | b'\r' | b'\n', _) => {}
            (b':', Place::Behind) => {
                self.outline.key(&self.key[..usize::from(self.key_len).min(LONGEST_KEY)]);
                self.place = Place::Colon;
            }
            (b'"', Place::Colon) => self.begin(self.value()),
            (b'{' | b'[', Place::Colon) if self.value().is_call => {
                self.begin(self.value());
                self.place = Place::Raw { depth: 0, in_string: false, is_escaped: false };
                return false;
            }
            _ => {
                self.place = Place::Outside;
                return false;
            }
        }
        true
    }

    /// Up to the end of an object or a list that is text as it is.
    fn raw(&mut self, data: &[u8], on: &mut impl FnMut(Piece<'_>)) -> usize {
        let Place::Raw { mut depth, mut in_string, mut is_escaped } = self.place else { return 0 };
        // No more at once than what is kept of it.
        let data = &data[..data.len().min(MAX_DECODED)];
        for (at, byte) in data.iter().enumerate() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = in_string,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth = depth.saturating_add(1),
                b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                self.decoded.extend_from_slice(&data[..=at]);
                self.place = Place::Outside;
                self.finish(on);
                return at + 1;
            }
        }
        self.decoded.extend_from_slice(data);
        self.place = Place::Raw { depth, in_string, is_escaped };
        data.len()
    }

    /// Up to the end of the string or the next escape.
    fn string(&mut self, data: &[u8], on: &mut impl FnMut(Piece<'_>)) -> usize {
        let end = end_or_escape(data);
        let plain = &data[..end.unwrap_or(data.len())];
        if self.value.is_text {
            // No more at once than what is kept of it.
            let plain = &plain[..plain.len().min(MAX_DECODED)];
            self.decoded.extend_from_slice(plain);
            if end != Some(plain.len()) {
                return plain.len();
            }
        } else {
            self.keep_key(plain);
        }
        let Some(end) = end else { return data.len() };
        if data[end] == b'\\' {
            self.place = Place::Escape;
        } else {
            self.place = Place::Behind;
            if self.value.is_text {
                self.finish(on);
            }
        }
        end + 1
    }

    fn keep_key(&mut self, plain: &[u8]) {
        let len = usize::from(self.key_len);
        // What is too long matches nothing from then on.
        if len + plain.len() > LONGEST_KEY {
            self.key_len = LONGEST_KEY as u8 + 1;
            self.key[0] = 0;
        } else {
            self.key[len..][..plain.len()].copy_from_slice(plain);
            self.key_len = (len + plain.len()) as u8;
        }
    }

    /// Takes a byte of an escape; says whether it belonged to it.
    fn escape(&mut self, byte: u8) -> bool {
        match self.place {
            Place::Escape => {
                let stands_for = match byte {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    b'b' => 8,
                    b'f' => 12,
                    other => other,
                };
                self.place = match byte {
                    b'u' => Place::Unicode { digits: 0, number: 0, high: None },
                    _ => Place::String,
                };
                if byte != b'u' {
                    self.push(&[stands_for]);
                }
            }
            Place::Unicode { digits, number, high } => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0) as u16;
                let number = number << 4 | digit;
                if digits < 3 {
                    self.place = Place::Unicode { digits: digits + 1, number, high };
                } else {
                    self.unit(number, high);
                }
            }
            // Its other half follows, or it had none.
            Place::Half { high, backslash } => match (backslash, byte) {
                (false, b'\\') => self.place = Place::Half { high, backslash: true },
                (true, b'u') => self.place = Place::Unicode { digits: 0, number: 0, high: Some(high) },
                _ => {
                    self.replacement();
                    self.place = if backslash { Place::Escape } else { Place::String };
                    return false;
                }
            },
            _ => {}
        }
        true
    }

    /// A unit of UTF-16 has been read.
    fn unit(&mut self, number: u16, high: Option<u16>) {
        let units = high.into_iter().chain([number]);
        self.place = Place::String;
        if matches!(number, 0xd800..=0xdbff) {
            if high.is_some() {
                self.replacement();
            }
            self.place = Place::Half { high: number, backslash: false };
            return;
        }
        for char in char::decode_utf16(units) {
            match char {
                Ok(char) => self.push(char.encode_utf8(&mut [0; 4]).as_bytes()),
                Err(_) => self.replacement(),
            }
        }
    }

    /// Half a pair, which stands for nothing.
    fn replacement(&mut self) {
        self.is_mended |= self.value.is_text;
        self.push("\u{fffd}".as_bytes());
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.value.is_text {
            self.decoded.extend_from_slice(bytes);
        } else {
            // No key of interest is written with an escape.
            self.key_len = LONGEST_KEY as u8 + 1;
            self.key[0] = 0;
        }
    }

    /// Hands on what is whole.
    fn hand_on(&mut self, on: &mut impl FnMut(Piece<'_>)) {
        while !self.decoded.is_empty() {
            self.has_text = true;
            match str::from_utf8(&self.decoded) {
                Ok(text) => {
                    on(Piece::Text(text));
                    self.decoded.clear();
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    if let Ok(text) = str::from_utf8(&self.decoded[..valid])
                        && valid > 0
                    {
                        on(Piece::Text(text));
                    }
                    // The rest of a character may follow; what is none is passed over.
                    self.is_mended |= error.error_len().is_some();
                    self.decoded.drain(..valid + error.error_len().unwrap_or(0));
                    if error.error_len().is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn finish(&mut self, on: &mut impl FnMut(Piece<'_>)) {
        self.hand_on(on);
        self.is_mended |= !self.decoded.is_empty();
        self.decoded.clear();
        if self.has_text {
            self.outline.had(self.value);
        }
        on(Piece::End);
        // It was no key.
        self.key_len = LONGEST_KEY as u8 + 1;
        self.key[0] = 0;
    }
}

#[cfg(test)]
mod tests;
