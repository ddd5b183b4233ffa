//! `cargo xtask tidy`: the rules of the workspace that no compiler knows.
//!
//! Which crate may know which is what the design consists of; a rule that nothing fails on is soon no rule. Each rule
//! is a function from a small model of the workspace to findings. All of them run as a test of this crate, too.

mod crates;
mod docs;
mod model;
mod rust;
mod sources;

use std::{collections::BTreeSet, fmt, path::Path};

use crate::{cargo, step::Step};
use model::Workspace;

/// A rule that is broken: where, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    at: String,
    what: String,
}

/// Everything as a step of `check`.
pub(crate) fn step() -> Step {
    Step::new("tidy", || {
        let workspace = Workspace::load(&cargo::root())?;
        for note in notes(&workspace) {
            eprintln!("    note: {note}");
        }
        let findings = findings(&workspace);
        for finding in &findings {
            eprintln!("    {finding}");
        }
        match findings.len() {
            0 => Ok(()),
            1 => Err("1 rule is broken, see above".to_owned()),
            n => Err(format!("{n} rules are broken, see above")),
        }
    })
}

/// What must be changed.
fn findings(workspace: &Workspace) -> Vec<Finding> {
    let members: BTreeSet<&str> = workspace.crates.iter().map(|krate| &*krate.name).collect();
    let mut findings = top_level(&workspace.top);
    for krate in &workspace.crates {
        findings.extend(crates::arrows(krate, &members));
        findings.extend(crates::absences(krate));
        findings.extend(crates::lints(krate));
    }
    for source in &workspace.sources {
        findings.extend(sources::header(source));
        findings.extend(sources::too_long(source));
        findings.extend(sources::forbidden_words(source));
        findings.extend(docs::front_page(source));
        findings.extend(docs::cancel_safety(source));
    }
    findings
}

/// What is worth a look.
fn notes(workspace: &Workspace) -> Vec<Finding> {
    workspace.sources.iter().filter_map(sources::long).collect()
}

/// What may stand at the top, beside names that begin with a dot.
const TOP: &[&str] = &[
    "bins",
    "crates",
    "config",
    "docs",
    "examples",
    "xtask",
    "Cargo.toml",
    "Cargo.lock",
    "deny.toml",
    "clippy.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
];

fn top_level(names: &[String]) -> Vec<Finding> {
    let strange = names.iter().filter(|name| !name.starts_with('.') && !TOP.contains(&&***name));
    strange
        .map(|name| Finding::new(name, "does not belong at the top; find its folder, or name it in xtask/src/tidy.rs"))
        .collect()
}

// === impl Finding ===

impl Finding {
    fn new(at: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self { at: at.as_ref().display().to_string(), what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let workspace = Workspace::load(&cargo::root()).unwrap();
        let findings: Vec<String> = findings(&workspace).iter().map(Finding::to_string).collect();
        assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
    }

    #[test]
    fn a_strange_name_at_the_top_is_found() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(top_level(&names(&["Cargo.toml", "crates", ".ci", ".gitignore"])), []);
        let found = top_level(&names(&["notes.txt", "crates"]));
        assert!(found.len() == 1 && found[0].at == "notes.txt", "{found:?}");
    }

    #[test]
    fn every_rule_is_asked() {
        let krate = |name: &str, dependencies: &[&str]| model::Crate {
            name: name.to_owned(),
            manifest: format!("crates/{name}/Cargo.toml").into(),
            inherits_lints: dependencies.is_empty(),
            dependencies: dependencies.iter().map(|name| model::Dependency::normal(name)).collect(),
        };
        let source = |text: String| model::Source { path: "crates/x/src/lib.rs".into(), text };
        let workspace = Workspace {
            top: vec!["notes.txt".into()],
            crates: vec![krate("llmproxy-core", &["llmproxy-auth", "figment"]), krate("llmproxy-auth", &[])],
            sources: vec![
                source("fn main() { todo!() }\npub async fn x() {}".into()),
                source("//! Long.\n".repeat(800)),
            ],
        };
        let findings: Vec<String> = findings(&workspace).into_iter().map(|finding| finding.what).collect();
        let has = |what: &str| assert!(findings.iter().any(|finding| finding.contains(what)), "{what}: {findings:#?}");
        has("does not belong at the top");
        has("`llmproxy-core` must not know `llmproxy-auth`");
        has("`llmproxy-core` must not depend on `figment`");
        has("`figment` is for llmproxy-config alone");
        has("lints");
        has("does not begin with `//!`");
        has("`todo!`");
        has("has 800 lines");
        // Both files are a crate's front page, and neither has anything of it.
        has("no heading `# Where it stands`");
        has("no heading `# What it must never know`");
        has("shows no example");
        has("a public async function without `# Cancel safety`");
        assert_eq!(findings.len(), 15, "{findings:#?}");
        assert_eq!(notes(&workspace), [], "what must be changed is no note");
    }
}
