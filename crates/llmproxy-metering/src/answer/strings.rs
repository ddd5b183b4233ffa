//! The text in an answer that is one JSON value: the strings under some keys, found while it passes in pieces of any size.
//!
//! Nothing is kept but the key that was read last and what of a text can't be handed on yet: half a character, half an escape.

use memchr::memchr;

use super::json::end_or_escape;

/// Sans-IO: bytes go in, text comes out.
#[derive(Debug)]
pub(crate) struct Strings {
    keys: &'static [&'static str],
    calls: &'static [&'static str],
    has_calls: bool,
    place: Place,
    // Whether the string that is being read is one of interest.
    is_text: bool,
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
    /// Finds the texts under `keys`, and whether there is anything under one of `calls`.
    pub(crate) fn new(keys: &'static [&'static str], calls: &'static [&'static str]) -> Self {
        let decoded = Vec::new();
        let (place, key) = (Place::Outside, [0; LONGEST_KEY]);
        Self { keys, calls, has_calls: false, place, is_text: false, key, key_len: 0, decoded }
    }

    /// Whether there was a call of a tool in it.
    pub(crate) fn has_calls(&self) -> bool {
        self.has_calls
    }

    /// Takes the next piece of the answer.
    pub(crate) fn feed(&mut self, mut data: &[u8], mut on: impl FnMut(Piece<'_>)) {
        while let Some(byte) = data.first() {
            let taken = match self.place {
                Place::Outside => match memchr(b'"', data) {
                    Some(at) => {
                        self.begin();
                        at + 1
                    }
                    None => data.len(),
                },
                Place::Behind | Place::Colon => {
                    self.between(*byte);
                    1
                }
                Place::String => self.string(data, &mut on),
                Place::Escape | Place::Unicode { .. } | Place::Half { .. } => usize::from(self.escape(*byte)),
            };
            data = &data[taken..];
            if self.decoded.len() >= MAX_DECODED {
                self.hand_on(&mut on);
            }
        }
        self.hand_on(&mut on);
    }

    fn begin(&mut self) {
        self.is_text = self.is_behind(self.keys);
        self.has_calls |= self.is_behind(self.calls);
        self.place = Place::String;
        self.key_len = 0;
    }

    /// Whether what begins here is the value of one of `keys`.
    fn is_behind(&self, keys: &[&str]) -> bool {
        let key = &self.key[..usize::from(self.key_len).min(LONGEST_KEY)];
        self.place == Place::Colon && keys.iter().any(|name| name.as_bytes() == key)
    }

    fn between(&mut self, byte: u8) {
        match (byte, self.place) {
            (b' ' | b'\t' | b'\r' | b'\n', _) => {}
            (b':', Place::Behind) => self.place = Place::Colon,
            (b'"', _) => self.begin(),
            _ => {
                self.has_calls |= byte == b'{' && self.is_behind(self.calls);
                self.place = Place::Outside;
            }
        }
    }

    /// Up to the end of the string or the next escape.
    fn string(&mut self, data: &[u8], on: &mut impl FnMut(Piece<'_>)) -> usize {
        let end = end_or_escape(data);
        let plain = &data[..end.unwrap_or(data.len())];
        if self.is_text {
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
            if self.is_text {
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
                    self.char(char::REPLACEMENT_CHARACTER);
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
                self.char(char::REPLACEMENT_CHARACTER);
            }
            self.place = Place::Half { high: number, backslash: false };
            return;
        }
        for char in char::decode_utf16(units) {
            self.char(char.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    fn char(&mut self, char: char) {
        self.push(char.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.is_text {
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
        self.decoded.clear();
        on(Piece::End);
        // It was no key.
        self.key_len = LONGEST_KEY as u8 + 1;
        self.key[0] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: &[&[u8]]) -> Vec<String> {
        let mut strings = Strings::new(&["content", "text", "reasoning_content"], &[]);
        let (mut all, mut current) = (Vec::new(), String::new());
        for piece in pieces {
            strings.feed(piece, |piece| match piece {
                Piece::Text(text) => current.push_str(text),
                Piece::End => all.push(std::mem::take(&mut current)),
            });
        }
        if !current.is_empty() {
            all.push(current);
        }
        all
    }

    fn check(json: &str, expected: &[&str]) {
        for at in 0..=json.len() {
            let (head, tail) = json.as_bytes().split_at(at);
            assert_eq!(texts(&[head, tail]), expected, "{json} at {at}");
        }
        let bytes: Vec<&[u8]> = json.as_bytes().chunks(1).collect();
        assert_eq!(texts(&bytes), expected, "{json}");
    }

    #[test]
    fn texts_are_found_at_any_split_and_nothing_else_is() {
        check(r#"{"id":"content","choices":[{"message":{"role":"a","content" : "Hi \"you\""}}]}"#, &["Hi \"you\""]);
        check(r#"{"content":null,"text":"b","x":"text","content":["text","n"],"text":7}"#, &["b"]);
        check(r#"{"reasoning_content":"hm","content":"","contents":"no","a_content":"no"}"#, &["hm", ""]);
        check(r#"{"a_key_longer_than_all_others":"x","text":"y"}"#, &["y"]);
        check(r#"{"content":[{"type":"text","text":"part"},{"type":"text","text":"two"}]}"#, &["part", "two"]);
    }

    #[test]
    fn calls_of_tools_are_noticed_at_any_split() {
        let check = |json: &str, expected| {
            for at in 0..=json.len() {
                let mut strings = Strings::new(&["content", "arguments"], &["arguments"]);
                let (head, tail) = json.as_bytes().split_at(at);
                strings.feed(head, |_| {});
                strings.feed(tail, |_| {});
                assert_eq!(strings.has_calls(), expected, "{json} at {at}");
            }
        };
        check(r#"{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}"#, true);
        check(r#"{"content":"a","tool_calls":[{"function":{"name":"f","arguments" : {"city":"b"}}}]}"#, true);
        check(r#"{"content":"\"arguments\":\"","tool_calls":[]}"#, false);
        check(r#"{"content":"a","arguments":null,"x":"arguments"}"#, false);
    }

    #[test]
    fn escapes_stand_for_what_they_mean() {
        check(r#"{"text":"a\n\t\\\/\u00e9\ud83d\ude00z"}"#, &["a\n\t\\/é😀z"]);
        check(r#"{"text":"Grüße, 世界 😀"}"#, &["Grüße, 世界 😀"]);
        // Halves of pairs.
        check(r#"{"text":"\ud83dx"}"#, &["\u{fffd}x"]);
        check(r#"{"text":"\ud83d\n"}"#, &["\u{fffd}\n"]);
        check(r#"{"text":"\ude00\ud83d\ud83d\ude00"}"#, &["\u{fffd}\u{fffd}😀"]);
        check(r#"{"te\u0078t":"no","text":"yes"}"#, &["yes"]);
    }

    #[test]
    fn a_text_that_breaks_off_is_what_came_of_it() {
        assert_eq!(texts(&[br#"{"text":"abc"#]), ["abc"]);
        assert_eq!(texts(&[br#"{"text":"abc\u00"#]), ["abc"]);
        assert_eq!(texts(&[b"{\"text\":\"abc\xe4\xb8"]), ["abc"]);
        assert_eq!(texts(&[b"{\"text\":\"a\xffb\"}"]), ["ab"]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut strings = Strings::new(&["text"], &[]);
        let (long, mut length) = (format!(r#"{{"text":"{}"}}"#, "é".repeat(1 << 20)), 0);
        strings.feed(long.as_bytes(), |piece| {
            if let Piece::Text(text) = piece {
                assert!(text.len() <= MAX_DECODED + 4);
                length += text.len();
            }
        });
        assert_eq!(length, 2 << 20);
        assert!(strings.decoded.capacity() <= 4 * MAX_DECODED);
    }
}
