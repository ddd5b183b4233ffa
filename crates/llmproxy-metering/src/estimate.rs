//! How many tokens a prompt has, guessed from its size.
//!
//! Good enough to reserve by and to bill by where a backend says nothing: about four bytes of text make one token, each
//! number outside of text (a prompt that is tokens already) is one. Images and sound do not count: a string that is a
//! `data:` URL or looks like base64 is skipped. The names of an object's members count as text, which makes up for what
//! a chat template adds.

use memchr::memchr2;

/// Bytes of text that make a token, about.
pub(crate) const BYTES_PER_TOKEN: u64 = 4;
/// A string of at least this length may be base64.
const ENCODED_LEN: usize = 512;
/// So many of its first bytes are looked at.
const ENCODED_PROBE: usize = 256;

/// The bytes of which base64 is made, of either alphabet.
const BASE64: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=');
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// What a byte outside of strings and numbers begins.
#[derive(Clone, Copy)]
enum Kind {
    Other,
    Digit,
    Quote,
    Mark,
}

const KINDS: [Kind; 256] = {
    let mut table = [Kind::Other; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = match byte {
            b'0'..=b'9' => Kind::Digit,
            b'"' => Kind::Quote,
            b'{' | b'}' | b'[' | b']' | b':' | b',' => Kind::Mark,
            _ => Kind::Other,
        };
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// What a scan shows of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A string, as it is written, without its quotes.
    String(&'a [u8]),
    /// A bracket, a brace, a colon or a comma.
    Mark(u8),
}

/// The tokens of a piece of valid JSON.
pub(crate) fn tokens(json: &str) -> u64 {
    scan(json, |_, _| ())
}

/// The same for one whose pieces someone wants to see; each with the place behind it.
pub(crate) fn scan<'a>(json: &'a str, mut see: impl FnMut(Piece<'a>, usize)) -> u64 {
    let (mut text, mut numbers) = (0, 0);
    let json = json.as_bytes();
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        at += 1;
        match KINDS[usize::from(byte)] {
            Kind::Other => {}
            Kind::Mark => see(Piece::Mark(byte), at),
            Kind::Digit => {
                numbers += 1;
                let more = json[at..].iter().position(|byte| !is_of_number(*byte));
                at = more.map_or(json.len(), |more| at + more);
            }
            Kind::Quote => {
                let rest = &json[at..];
                let (size, len) = string(rest);
                text += size;
                at += len;
                see(Piece::String(rest.get(..len.saturating_sub(1)).unwrap_or_default()), at);
            }
        }
    }
    text.div_ceil(BYTES_PER_TOKEN) + numbers
}

/// Whether a number goes on with it.
fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-')
}

/// The size of a string's text and the length of its JSON, from behind its first quote on, its last quote included.
fn string(json: &[u8]) -> (u64, usize) {
    let (mut at, mut saved) = (0, 0);
    while let Some(found) = memchr2(b'"', b'\\', &json[at..]) {
        at += found;
        if json[at] == b'"' {
            let string = &json[..at];
            let size = if is_encoded(string) { 0 } else { (at - saved) as u64 };
            return (size, at + 1);
        }
        // An escape stands for one byte, or for one character of about three (`\uXXXX`).
        let (len, stands_for) = if json.get(at + 1) == Some(&b'u') { (6, 3) } else { (2, 1) };
        saved += len - stands_for;
        at = (at + len).min(json.len());
    }
    (0, json.len())
}

fn is_encoded(string: &[u8]) -> bool {
    string.starts_with(b"data:")
        || (string.len() >= ENCODED_LEN && string[..ENCODED_PROBE].iter().all(|byte| BASE64[usize::from(*byte)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_four_bytes_are_a_token() {
        let check = |json: &str, expected| assert_eq!(tokens(json), expected, "{json}");
        check(r#""""#, 0);
        check(r#""hello""#, 2);
        check(r#"["four","more"]"#, 2);
        check(r#"[{"role":"user","content":"hello there"}]"#, 7);
        check(r#""a\nb\"c""#, 2);
        check("null", 0);
    }

    #[test]
    fn a_prompt_of_tokens_is_counted_by_the_number() {
        assert_eq!(tokens("[1, 22,333]"), 3);
        assert_eq!(tokens("[[1,2],[3.5e-7]]"), 3);
    }

    #[test]
    fn escaped_letters_count_as_what_they_stand_for() {
        assert_eq!(tokens(r#""\u4f60\u597d""#), tokens(r#""你好""#));
    }

    #[test]
    fn images_do_not_count() {
        let image = format!(r#"[{{"url":"data:image/png;base64,{}"}}]"#, "A".repeat(100_000));
        assert_eq!(tokens(&image), 1);
        let sound = format!(r#"[{{"data":"{}"}}]"#, "Qk0x".repeat(1000));
        assert_eq!(tokens(&sound), 1);
    }

    #[test]
    fn text_that_breaks_off_does_no_harm() {
        for json in ["\"", "\"\\", "\"\\u", "\"abc", "[\"", ""] {
            tokens(json);
        }
    }
}
