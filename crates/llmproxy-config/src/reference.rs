//! The table of keys as a reference for people.

use crate::table::{self, Kind, State, Words};

/// One key, as the reference describes it.
#[derive(Clone, Debug)]
pub struct KeyDoc {
    /// Where it stands, with `[]` for each entry of a list and `*` for any name.
    pub path: &'static str,
    /// What may stand there.
    pub kind: String,
    /// What it is when it is left out, where there is such a value.
    pub default: Option<&'static str>,
    /// What a bare number counts.
    pub unit: Option<&'static str>,
    /// What it is for.
    pub doc: &'static str,
    /// What this version does with it.
    pub state: KeyState,
}

/// What this version does with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// What it says.
    Supported,
    /// Nothing; a file that has it is loaded with a warning.
    NoEffect,
    /// A file in which it says anything is refused, for this reason.
    Refused(&'static str),
    /// It is taken for this key, with a warning.
    Renamed(&'static str),
}

/// Every key that a file may have, in the order of the reference.
///
/// ```
/// let key = llmproxy_config::reference().find(|key| key.path == "server.max_body_size").unwrap();
/// assert_eq!((key.default, key.unit), (Some("10MiB"), Some("bytes")));
/// ```
pub fn reference() -> impl Iterator<Item = KeyDoc> {
    table::keys().map(|key| KeyDoc {
        path: key.path,
        kind: kind(key.kind),
        default: (!key.default.is_empty()).then_some(key.default),
        unit: unit(key.kind),
        doc: key.doc,
        state: match key.state {
            State::Supported => KeyState::Supported,
            State::NoEffect => KeyState::NoEffect,
            State::Refused(why) => KeyState::Refused(why),
            State::Renamed(new) => KeyState::Renamed(new),
        },
    })
}

/// The reference as Markdown: one table for each block.
pub fn reference_markdown() -> String {
    let mut out = String::new();
    let mut block = "";
    // Single keys at the top stand beside blocks; what belongs together is shown together.
    let is_block = |top: &str| reference().any(|key| top_of(key.path) == top && key.path != top);
    let (single, in_blocks): (Vec<KeyDoc>, Vec<KeyDoc>) = reference().partition(|key| !is_block(top_of(key.path)));
    for key in in_blocks.iter().chain(&single) {
        let top = if is_block(top_of(key.path)) { top_of(key.path) } else { "Older names, and what stands alone" };
        if top != block {
            block = top;
            let heading = if top.contains(' ') { top.to_owned() } else { format!("`{top}`") };
            out.push_str(&format!("\n### {heading}\n\n| key | value | default | |\n|---|---|---|---|\n"));
        }
        let default = key.default.map(|default| format!("`{default}`")).unwrap_or_default();
        let mut doc = key.doc.to_owned();
        match &key.state {
            KeyState::Supported => {}
            KeyState::NoEffect => doc.push_str(". *No effect yet*"),
            KeyState::Refused(why) => doc.push_str(&format!(". *Refused*: {why}")),
            KeyState::Renamed(new) => doc.push_str(&format!(". *Renamed*: write `{new}`")),
        }
        out.push_str(&format!("| `{}` | {} | {default} | {} |\n", key.path, key.kind, doc.replace('|', "\\|")));
    }
    out
}

fn top_of(path: &str) -> &str {
    let end = path.find(['.', '[']).unwrap_or(path.len());
    &path[..end]
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::Block => "map".into(),
        Kind::Blocks => "list of maps".into(),
        Kind::Like(path) if path.ends_with("[]") => format!("map as `{path}`"),
        Kind::Like(path) => format!("list as `{path}`"),
        Kind::Map => "map of names".into(),
        Kind::Text | Kind::File => "string".into(),
        Kind::Secret => "secret".into(),
        Kind::Url => "URL".into(),
        Kind::Texts => "list of strings".into(),
        Kind::Networks => "list of networks".into(),
        Kind::Switch => "true or false".into(),
        Kind::Integer => "whole number".into(),
        Kind::Bytes => "size".into(),
        Kind::Number => "number".into(),
        Kind::Numbers => "list of numbers".into(),
        Kind::Duration => "duration".into(),
        Kind::Word(words) => word(words),
        Kind::Scalar => "string or number".into(),
        Kind::Script => "script".into(),
        Kind::LogFile => "log file".into(),
        Kind::Any => "anything".into(),
    }
}

fn word(words: &Words) -> String {
    let quoted = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    match words.later {
        [] => quoted(words.allowed),
        later => format!("{} (*refused*: {})", quoted(words.allowed), quoted(later)),
    }
}

fn unit(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Bytes => Some("bytes"),
        Kind::Duration => Some("seconds"),
        _ => None,
    }
}
