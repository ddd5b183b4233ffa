//! What the documentation of a crate owes its readers, as far as neither rustc nor clippy asks for it.
//!
//! That every public item has words, and `# Errors` and `# Panics` where they belong, is asked by the lints
//! `missing_docs`, `missing_errors_doc` and `missing_panics_doc` of the workspace.

use std::path::{Component, Path};

use super::{Finding, model::Source};

/// Headings of every crate's front page: what is outside and inside of it, and what must stay out.
const HEADINGS: &[&str] = &["# Where it stands", "# What it must never know"];

/// What an awaited function says about being dropped before it is done.
const CANCEL_SAFETY: &str = "# Cancel safety";

/// A library's front page says where the crate stands and what it must never know, and shows it in use.
pub(super) fn front_page(source: &Source) -> Vec<Finding> {
    if in_crate(&source.path).is_none_or(|rest| rest != Path::new("lib.rs")) {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let missing = HEADINGS.iter().filter(|heading| !lines.contains(heading));
    let mut findings: Vec<Finding> = missing
        .map(|heading| Finding::new(&source.path, format!("the front page has no heading `{heading}`")))
        .collect();
    if !lines.iter().any(|line| line.starts_with("```")) {
        findings.push(Finding::new(&source.path, "the front page shows no example"));
    }
    findings
}

/// A public function that is awaited says what it means to drop it half way.
pub(super) fn cancel_safety(source: &Source) -> Vec<Finding> {
    if in_crate(&source.path).is_none() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut said = false;
    for (number, line) in source.text.lines().map(str::trim).enumerate() {
        if let Some(doc) = line.strip_prefix("///") {
            said |= doc.trim() == CANCEL_SAFETY;
        } else if !line.starts_with("#[") {
            if line.starts_with("pub async fn ") && !said {
                let what = format!("line {}: a public async function without `{CANCEL_SAFETY}`", number + 1);
                findings.push(Finding::new(&source.path, what));
            }
            said = false;
        }
    }
    findings
}

/// The rest of `path` below `crates/*/src`, if it is there.
fn in_crate(path: &Path) -> Option<&Path> {
    let mut parts = path.components();
    let is = |part: Option<Component<'_>>, name: &str| part.is_some_and(|part| part.as_os_str() == name);
    (is(parts.next(), "crates") && parts.next().is_some() && is(parts.next(), "src")).then_some(parts.as_path())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "//! X.\n//!\n//! ```\n//! x();\n//! ```\n//!\n//! # Where it stands\n//!\n//! Here.\n//!\n\
                        //! # What it must never know\n//!\n//! Y.\n\npub fn x() {}\n";

    fn found(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> usize {
        rule(&Source { path: path.into(), text: text.into() }).len()
    }

    #[test]
    fn a_front_page_without_its_headings_or_an_example_is_found() {
        let check =
            |text: &str, expected| assert_eq!(found(front_page, "crates/x/src/lib.rs", text), expected, "{text}");
        check(GOOD, 0);
        check(&GOOD.replace("# Where it stands", "# Where"), 1);
        check(&GOOD.replace("//! # What it must never know\n", ""), 1);
        check(&GOOD.replace("```", "~"), 1);
        check("//! X.\n\n//! # Where it stands\n/// ```\n", 3);
    }

    #[test]
    fn only_a_library_of_the_workspace_has_a_front_page() {
        for path in ["crates/x/src/other.rs", "crates/x/src/y/lib.rs", "crates/x/tests/lib.rs", "xtask/src/lib.rs"] {
            assert_eq!(found(front_page, path, "//! X.\n"), 0, "{path}");
        }
    }

    #[test]
    fn an_awaited_function_that_does_not_speak_of_a_drop_is_found() {
        let check =
            |text: &str, expected| assert_eq!(found(cancel_safety, "crates/x/src/y.rs", text), expected, "{text}");
        check("/// X.\npub async fn x() {}\n", 1);
        check("/// X.\n///\n/// # Cancel safety\n///\n/// Y.\n#[must_use]\n    pub async fn x() {}\n", 0);
        check("/// # Cancel safety\npub fn x() {}\npub async fn y() {}\n", 1);
        check("async fn x() {}\npub(crate) async fn y() {}\n/// pub async fn z()\n", 0);
    }

    #[test]
    fn programs_and_tests_may_await_without_a_word() {
        for path in ["bins/x/src/y.rs", "xtask/src/y.rs", "crates/x/tests/y.rs"] {
            assert_eq!(found(cancel_safety, path, "pub async fn x() {}\n"), 0, "{path}");
        }
    }
}
