//! Just enough of Rust's grammar to tell code from comments and literals.

/// `text` with a space for each comment and literal; its line breaks stay.
pub(super) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let (skipped, after) = rest.split_at(no_code(rest));
        if skipped.is_empty() {
            code.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(skipped.chars().filter(|c| *c == '\n'));
            rest = after;
        }
    }
    code
}

/// Whether `word` stands in `line` by itself and not as a part of a longer name.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && (word.ends_with('!') || !after.is_some_and(is_name))
    })
}

/// How many bytes at the start of `text` are one comment or literal.
fn no_code(text: &str) -> usize {
    match text.as_bytes() {
        [b'/', b'/', ..] => text.find('\n').unwrap_or(text.len()),
        [b'/', b'*', ..] => block_comment(text),
        [b'"', ..] => quoted(text, '"'),
        [b'\'', ..] => character(text),
        [b'r', b'"' | b'#', ..] => raw_string(text),
        _ => 0,
    }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    text.len()
}

/// A literal from its first quote to its last, past the escaped ones.
fn quoted(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// A character, unless the quote begins a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(text, '\''),
        _ => 0,
    }
}

/// A raw string; the same start can also be that of a raw name, `r#type`.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let Some(inside) = text[1 + hashes..].strip_prefix('"') else { return 0 };
    let end = format!("\"{}", "#".repeat(hashes));
    inside.find(&end).map_or(text.len(), |at| 2 + hashes + at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(code_only(text), expected, "{text}");
    }

    #[test]
    fn comments_are_no_code() {
        check("a // b\nc", "a  \nc");
        check("a /* b /* c */ d */ e", "a   e");
        check("a /* b\n */ c", "a  \n c");
        check("a / b", "a / b");
    }

    #[test]
    fn literals_are_no_code() {
        check(r#"a("b \" c", d)"#, "a( , d)");
        check(r##"a(r#"b " c"#, d)"##, "a( , d)");
        check(r#"a(br"b\", d)"#, "a(b , d)");
        check(r"a('b', '\'', '\u{e9}', 'é', '\\', c)", "a( ,  ,  ,  ,  , c)");
        check("\"http://x\" a", "  a");
    }

    #[test]
    fn lifetimes_and_raw_names_are_code() {
        check("&'a str, &'static T", "&'a str, &'static T");
        check("r#type: error", "r#type: error");
    }

    #[test]
    fn what_does_not_end_is_no_reason_to_panic() {
        for text in ["\"a", "'\\", "'", "r#\"a\"", "/* a", "// a", "r", "r#"] {
            code_only(text);
        }
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(has_word("x = todo!(\"later\")", "todo!"));
        assert!(!has_word("unsafe_code", "unsafe"));
        assert!(!has_word("my_todo!()", "todo!"));
    }
}
