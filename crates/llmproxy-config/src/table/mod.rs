//! Every key that a file may have: the one table that files are checked against and the reference is made of.
//!
//! A path names a key with `[]` for each entry of a list and `*` for any name in a map.

mod access;
mod metering;
mod operation;
mod routing;
mod server;
mod usage;

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Where it stands.
    pub path: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What it is when it is left out, as it would be written; empty where there is no such value.
    pub default: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// What this version does with it.
    pub state: State,
}

/// What may stand at a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A map of the keys below it.
    Block,
    /// A list of such maps.
    Blocks,
    /// A list of maps as at another key of the table, which documents them; or one such map, where the path ends with `[]`.
    Like(&'static str),
    /// A map from names to values of another key of the table, `path.*`.
    Map,
    /// A string.
    Text,
    /// The name of a file that protects something, or what else must not be lost: empty is a mistake, not absent.
    File,
    /// A string that no message quotes.
    Secret,
    /// A string in which user and password, if it has them, are not quoted.
    Url,
    /// A list of strings.
    Texts,
    /// A list of networks or addresses.
    Networks,
    /// true or false.
    Switch,
    /// A whole number, not negative.
    Integer,
    /// A size: a whole number, or one with a unit like `10MiB`.
    Bytes,
    /// A number.
    Number,
    /// A list of numbers.
    Numbers,
    /// A duration.
    Duration,
    /// One of some words.
    Word(&'static Words),
    /// A string or a number.
    Scalar,
    /// A script of the Go program: `script.*`.
    Script,
    /// A log file: `logfile.*`.
    LogFile,
    /// Anything; the doc says what the Go program took.
    Any,
}

/// The words that a key takes.
#[derive(Debug)]
pub(crate) struct Words {
    /// What may be said.
    pub allowed: &'static [&'static str],
    /// What the Go program knew and this version does not offer yet.
    pub later: &'static [&'static str],
    /// Why that is refused rather than ignored.
    pub why: &'static str,
    /// Other words for allowed ones.
    pub meant: &'static [(&'static str, &'static str)],
}

/// What this version does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// What it says.
    Supported,
    /// Nothing, and says so.
    NoEffect,
    /// Refuses the file where the key says anything, for this reason.
    Refused(&'static str),
    /// Takes it for this key.
    Renamed(&'static str),
}

/// The table, in the order of the reference.
pub(crate) fn keys() -> impl Iterator<Item = &'static Key> {
    [server::KEYS, routing::KEYS, access::KEYS, metering::KEYS, usage::KEYS, operation::KEYS].into_iter().flatten()
}

/// The key at `path`.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    keys().find(|key| key.path == path)
}

/// The names that are known directly below `parent` (the empty path is the whole file).
pub(crate) fn names_below(parent: &str) -> impl Iterator<Item = &'static str> {
    keys().filter_map(move |key| {
        let name = match parent {
            "" => key.path,
            parent => key.path.strip_prefix(parent)?.strip_prefix('.')?,
        };
        (!name.contains('.') && !name.is_empty() && !is_fragment(key.path)).then_some(name)
    })
}

/// Whether `path` belongs to a block that stands at several places, and is documented once.
pub(crate) fn is_fragment(path: &str) -> bool {
    path == "script" || path == "logfile" || path.starts_with("script.") || path.starts_with("logfile.")
}

const fn key(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default, doc, state: State::Supported }
}

const fn block(path: &'static str, doc: &'static str) -> Key {
    key(path, Kind::Block, "", doc)
}

// === impl Key ===

impl Key {
    const fn no_effect(self) -> Self {
        Self { state: State::NoEffect, ..self }
    }

    const fn refused(self, why: &'static str) -> Self {
        Self { state: State::Refused(why), ..self }
    }

    const fn renamed(self, new: &'static str) -> Self {
        Self { state: State::Renamed(new), ..self }
    }
}

// === impl Words ===

impl Words {
    const fn of(allowed: &'static [&'static str]) -> Self {
        Self { allowed, later: &[], why: "", meant: &[] }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_stands_once_and_below_a_key_that_holds_it() {
        let mut seen = BTreeSet::new();
        for key in keys() {
            assert!(seen.insert(key.path), "{} stands twice", key.path);
            assert!(!key.doc.is_empty() && !key.doc.ends_with('.'), "{}", key.path);
            let Some((parent, name)) = key.path.rsplit_once('.') else { continue };
            let holder = find(parent.strip_suffix("[]").unwrap_or(parent)).unwrap_or_else(|| panic!("{}", key.path));
            let fits = match holder.kind {
                Kind::Block => !parent.ends_with("[]"),
                Kind::Blocks => parent.ends_with("[]"),
                Kind::Map => name == "*",
                Kind::Script | Kind::LogFile => is_fragment(parent),
                _ => false,
            };
            assert!(fits, "{} below {:?}", key.path, holder.kind);
        }
    }

    #[test]
    fn a_renamed_key_has_a_place_to_go() {
        for key in keys() {
            if let State::Renamed(new) = key.state {
                assert!(find(new).is_some_and(|new| new.state == State::Supported), "{}", key.path);
            }
        }
    }
}
