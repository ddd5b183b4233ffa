//! The fenced blocks of README.md and docs/, and what their first line says of them.
//!
//! | first line | what is done |
//! |---|---|
//! | `sh` | run, beside a proxy with a model behind it; see [`crate::shell`] |
//! | `sh norun: REASON` | not run, for one of [`REASONS`] |
//! | `yaml` | a file of llmproxy or a part of one: loads, strictly, without a warning |
//! | `yaml warns` | the same, with at least one warning |
//! | `yaml refused` | does not load |
//! | `yaml other: WHOSE` | YAML of another program |
//! | `json` | parses |
//! | `python`, `js` | compiles, where there is a compiler |
//! | `ini` | sections, keys and values |
//! | `rust` | is a part of an example; their own tests look for it there |
//! | `toml` | a part of somebody's manifest |
//! | nothing, `text` | for people; no commands in it |

use std::path::{Path, PathBuf};

/// Why a command may be left alone.
const REASONS: &[&str] = &[
    "builds the program",
    "needs Docker",
    "needs another proxy",
    "needs root",
    "needs the client",
    "needs the network",
    "runs an example",
    "runs every test",
    "starts a model server",
    "takes a quarter of an hour",
    "takes half an hour",
];

/// One block.
pub(crate) struct Block {
    /// From the root of the repository.
    pub(crate) file: PathBuf,
    /// Where its text begins.
    pub(crate) line: usize,
    pub(crate) expect: Expect,
    pub(crate) text: String,
}

/// What is to be done with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Run,
    NotRun,
    Loads,
    Warns,
    Refused,
    OtherYaml,
    Json,
    Python,
    JavaScript,
    Ini,
    Elsewhere,
    ForPeople,
}

// === impl Block ===

impl Block {
    /// Where it is, as editors understand it.
    pub(crate) fn at(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }
}

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders up is the root")
}

/// All blocks, or what is wrong with how one is marked.
pub(crate) fn all() -> Vec<Result<Block, String>> {
    let mut files = vec![root().join("README.md")];
    find(&root().join("docs"), &mut files);
    files.sort();
    assert!(files.len() > 4, "the documentation is not where it was: {files:?}");
    files.iter().flat_map(|file| of(file)).collect()
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
}

fn of(file: &Path) -> Vec<Result<Block, String>> {
    let text = std::fs::read_to_string(file).expect("readable");
    let file = file.strip_prefix(root()).expect("inside");
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let mut body = String::new();
        let mut closed = false;
        for (_, line) in lines.by_ref() {
            if line.trim() == "```" {
                closed = true;
                break;
            }
            body.push_str(line.get(indent..).unwrap_or_default());
            body.push('\n');
        }
        let at = format!("{}:{}", file.display(), number + 1);
        blocks.push(match classify(info.trim(), &body) {
            _ if !closed => Err(format!("{at}: this block is never closed; end it with ```")),
            Ok(expect) => Ok(Block { file: file.to_owned(), line: number + 2, expect, text: body }),
            Err(what) => Err(format!("{at}: {what}")),
        });
    }
    blocks
}

fn classify(info: &str, body: &str) -> Result<Expect, String> {
    let (language, mark) = info.split_once(' ').unwrap_or((info, ""));
    match (language, mark) {
        ("sh", "") => Ok(Expect::Run),
        ("sh", mark) => match mark.strip_prefix("norun: ") {
            Some(reason) if REASONS.contains(&reason) => Ok(Expect::NotRun),
            _ => {
                Err(format!("`{mark}` is no reason not to run it; write `norun: ` and one of {REASONS:?}, or nothing"))
            }
        },
        ("yaml", "") => Ok(Expect::Loads),
        ("yaml", "warns") => Ok(Expect::Warns),
        ("yaml", "refused") => Ok(Expect::Refused),
        ("yaml", mark) if mark.starts_with("other: ") => Ok(Expect::OtherYaml),
        ("json", "") => Ok(Expect::Json),
        ("python", "") => Ok(Expect::Python),
        ("js", "") => Ok(Expect::JavaScript),
        ("ini", "") => Ok(Expect::Ini),
        ("rust" | "toml", "") => Ok(Expect::Elsewhere),
        ("" | "text", "") => {
            let command = ["$ ", "llmproxy ", "curl ", "cargo ", "docker "];
            match body.lines().find(|line| command.iter().any(|command| line.starts_with(command))) {
                Some(line) => Err(format!("`{line}` looks like a command; mark the block with `sh`")),
                None => Ok(Expect::ForPeople),
            }
        }
        _ => Err(format!("`{info}` is not known here; tests/docs/blocks.rs says what may stand there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused() {
        for (info, body) in [
            ("sh norun", ""),
            ("sh norun: I don't like it", ""),
            ("bash", ""),
            ("yaml  warns", ""),
            ("", "llmproxy demo\n"),
            ("json5", ""),
        ] {
            assert!(classify(info, body).is_err(), "{info}");
        }
        assert_eq!(classify("sh norun: needs Docker", ""), Ok(Expect::NotRun));
        assert_eq!(classify("", "a picture\n"), Ok(Expect::ForPeople));
    }
}
