//! What every Rust file owes its readers.

use super::{Finding, model::Source, rust};

/// Past this many lines a file probably has a second subject.
const LONG: usize = 400;
/// Past this many it certainly has.
const TOO_LONG: usize = 700;

/// What must not stand in code, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("unsafe", "nothing here needs it"),
    ("todo!", "what is committed works"),
    ("unimplemented!", "what is committed works"),
];

/// The file begins by saying what it is for.
pub(super) fn header(source: &Source) -> Option<Finding> {
    (!source.text.starts_with("//!"))
        .then(|| Finding::new(&source.path, "does not begin with `//!` and what it is for"))
}

/// The file is too long.
pub(super) fn too_long(source: &Source) -> Option<Finding> {
    let lines = source.text.lines().count();
    (lines > TOO_LONG).then(|| {
        Finding::new(&source.path, format!("has {lines} lines, more than {TOO_LONG}; find its second subject"))
    })
}

/// The file is long, and not too long.
pub(super) fn long(source: &Source) -> Option<Finding> {
    let lines = source.text.lines().count();
    (lines > LONG && lines <= TOO_LONG)
        .then(|| Finding::new(&source.path, format!("has {lines} lines; look for its second subject past {LONG}")))
}

/// No word that must not stand in code does; comments and literals may have it.
pub(super) fn forbidden_words(source: &Source) -> Vec<Finding> {
    let code = rust::code_only(&source.text);
    let mut findings = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for (word, why) in FORBIDDEN.iter().filter(|(word, _)| rust::has_word(line, word)) {
            findings.push(Finding::new(&source.path, format!("line {}: `{word}`: {why}", number + 1)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: impl Into<String>) -> Source {
        Source { path: "crates/x/src/lib.rs".into(), text: text.into() }
    }

    #[test]
    fn a_file_without_a_header_is_found() {
        assert_eq!(header(&source("//! What it is for.\n")), None);
        for text in ["", "use std::fmt;\n", "// A plain comment.\n", "\n//! Late.\n"] {
            assert!(header(&source(text)).is_some(), "{text:?}");
        }
    }

    #[test]
    fn a_long_file_is_noted_and_a_longer_one_is_found() {
        let of = |lines: usize| source("x\n".repeat(lines));
        let check = |lines, noted, found| {
            assert_eq!((long(&of(lines)).is_some(), too_long(&of(lines)).is_some()), (noted, found), "{lines}");
        };
        check(LONG, false, false);
        check(LONG + 1, true, false);
        check(TOO_LONG, true, false);
        check(TOO_LONG + 1, false, true);
    }

    #[test]
    fn forbidden_words_are_found_where_they_are_code() {
        let found = forbidden_words(&source("//! X.\nfn f() {\n    unsafe { g() }\n    todo!()\n}\n"));
        let found: Vec<String> = found.iter().map(|finding| finding.what.clone()).collect();
        assert!(found.len() == 2 && found[0].starts_with("line 3") && found[1].starts_with("line 4"), "{found:?}");
    }

    #[test]
    fn forbidden_words_may_be_spoken_of() {
        let text =
            "//! No unsafe.\n/* todo!() */ fn f() -> &'static str { \"unsafe\" } // todo!()\nlet unsafe_code = 1;\n";
        assert_eq!(forbidden_words(&source(text)), []);
    }
}
