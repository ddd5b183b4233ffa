//! Names that come from outside and stand in the labels of series: so many of each kind, and no more.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

/// What stands for all names that have no label of their own.
static OTHER: LazyLock<Arc<str>> = LazyLock::new(|| "other".into());

/// So many backends have series of their own, over all that come and go while the process runs: series can't be taken back.
pub const MAX_BACKENDS: usize = 500;
/// One for the process, as its recorder of series is.
static BACKENDS: LazyLock<Names> = LazyLock::new(|| Names::new(MAX_BACKENDS));

/// The label of the backend of this name: itself for the first [`MAX_BACKENDS`] that ask, `other` for those after them.
///
/// ```
/// assert_eq!(&*llmproxy_core::labels::backend(&"gpu-1".into()), "gpu-1");
/// ```
pub fn backend(name: &Arc<str>) -> Arc<str> {
    BACKENDS.label(name, || true)
}

/// The same, and `None` in the place of `other`: for what can't be said of several at once.
pub fn backend_of_its_own(name: &Arc<str>) -> Option<Arc<str>> {
    Some(backend(name)).filter(|label| label == name)
}

/// Names that have a label of their own: the first so many that are asked for.
///
/// ```
/// use llmproxy_core::labels::Names;
///
/// let models = Names::new(1);
/// assert_eq!(&*models.label(&"qwen".into(), || true), "qwen");
/// assert_eq!(&*models.label(&"made-up".into(), || true), "other");
/// ```
#[derive(Debug)]
pub struct Names {
    known: RwLock<HashSet<Arc<str>>>,
    max: usize,
}

// === impl Names ===

impl Names {
    /// At most `max` of them.
    pub fn new(max: usize) -> Self {
        Self { known: RwLock::default(), max }
    }

    /// The label for `name`: itself, if it has one already or there is room for it and it `is_fit`; else `other`.
    pub fn label(&self, name: &Arc<str>, is_fit: impl FnOnce() -> bool) -> Arc<str> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(name) {
            return known.clone();
        }
        let is_full = known.len() >= self.max;
        drop(known);
        if is_full || !is_fit() {
            return OTHER.clone();
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Others may have come in the meantime.
        if known.len() >= self.max && !known.contains(name) {
            return OTHER.clone();
        }
        known.insert(name.clone());
        name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_no_more() {
        let names = Names::new(2);
        let label = |name: &str, is_fit| names.label(&name.into(), || is_fit).to_string();
        assert_eq!(label("a", true), "a");
        assert_eq!(label("x", false), "other");
        assert_eq!(label("b", true), "b");
        assert_eq!(label("c", true), "other");
        assert_eq!(label("a", false), "a", "what has a label keeps it");
    }
}
