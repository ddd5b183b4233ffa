//! Which of the backends that are known an entry of the newest configuration is.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use llmproxy_core::Backend;

use super::{Entry, kept::Kept};

/// What a backend is known by from one configuration to the next. Its URL alone is not enough: a server may have several
/// entries, say for several keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    url: String,
    name: Arc<str>,
    /// Which of the entries with that URL it is.
    place: usize,
}

/// What is known of each of `new`: of `old`, those that were in force, and of those that had left, who is one of them is
/// taken out.
///
/// Those of one name are the same. Of the others, which may have got new names, those are that stand in the same place; not
/// where that one has left and another of its URL has not, since then the new name is more likely a new entry.
pub(super) fn recognize(new: &[Identity], old: &mut Vec<(Identity, Entry)>, kept: &mut Kept) -> Vec<Option<Entry>> {
    let urls: HashSet<String> = old.iter().map(|(identity, _)| identity.url.clone()).collect();
    let by_name = new.iter().map(|new| {
        let is_it = |known: &Identity| known.url == new.url && known.name == new.name;
        take(old, is_it).or_else(|| kept.take(is_it).map(Entry::of))
    });
    let mut all: Vec<Option<Entry>> = by_name.collect();
    for (new, known) in new.iter().zip(&mut all).filter(|(_, known)| known.is_none()) {
        let is_it = |known: &Identity| known.url == new.url && known.place == new.place;
        *known = match urls.contains(&new.url) {
            true => take(old, is_it),
            false => kept.take(is_it).map(Entry::of),
        };
    }
    all
}

fn take(old: &mut Vec<(Identity, Entry)>, is_it: impl Fn(&Identity) -> bool) -> Option<Entry> {
    let at = old.iter().position(|(identity, _)| is_it(identity))?;
    Some(old.remove(at).1)
}

// === impl Identity ===

impl Identity {
    /// Of all these, in their order.
    pub(super) fn all<'a>(backends: impl Iterator<Item = &'a Backend>) -> Vec<Self> {
        let mut places: HashMap<String, usize> = HashMap::new();
        let identity = |backend: &Backend| {
            let url = backend.url.to_string();
            let next = places.entry(url.clone()).or_default();
            let place = *next;
            *next += 1;
            Self { url, name: backend.name.clone(), place }
        };
        backends.map(identity).collect()
    }
}
