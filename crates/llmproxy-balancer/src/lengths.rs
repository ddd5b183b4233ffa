//! How long answers are: for each model a mean that forgets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::policy::COMMON_OUTPUT;

/// What one answer counts in the mean.
const SHARE: f64 = 0.05;
/// Models of which a mean is kept. Where backends take every name, clients make up as many as they like.
const MAX_MODELS: usize = 1000;

/// What answers of each model came to, in pieces of a stream: servers send a token at a time, so that it is about their
/// tokens, and nothing has to read them.
#[derive(Debug, Default)]
pub(crate) struct Lengths(Mutex<HashMap<Arc<str>, f64>>);

// === impl Lengths ===

impl Lengths {
    /// A stream of `model` ended after so many pieces.
    pub(crate) fn came_to(&self, model: &Arc<str>, pieces: u64) {
        let mut means = self.means();
        if means.len() >= MAX_MODELS && !means.contains_key(model) {
            return;
        }
        let mean = means.entry(model.clone()).or_insert(COMMON_OUTPUT as f64);
        *mean += (pieces as f64 - *mean) * SHARE;
    }

    /// What the next answer of `model` will come to, if nothing bounds it.
    pub(crate) fn expected(&self, model: &str) -> u64 {
        self.means().get(model).map_or(COMMON_OUTPUT, |mean| mean.round() as u64)
    }

    fn means(&self) -> MutexGuard<'_, HashMap<Arc<str>, f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lengths: &Lengths, pieces: &[u64]) -> u64 {
        pieces.iter().for_each(|pieces| lengths.came_to(&"m".into(), *pieces));
        lengths.expected("m")
    }

    #[test]
    fn what_answers_came_to_is_expected_of_the_next() {
        let lengths = Lengths::default();
        assert_eq!(after(&lengths, &[]), COMMON_OUTPUT);
        assert_eq!(after(&lengths, &[40; 200]), 40);
        assert_eq!(after(&lengths, &[1040]), 90, "one of them is not all");
        assert!(after(&lengths, &[2000; 100]) > 1900, "what was is forgotten");
        assert_eq!(lengths.expected("other"), COMMON_OUTPUT, "each model has its own");
    }

    #[test]
    fn names_that_clients_make_up_do_not_fill_the_memory() {
        let lengths = Lengths::default();
        lengths.came_to(&"m".into(), 100);
        (0..2 * MAX_MODELS).for_each(|name| lengths.came_to(&name.to_string().into(), 5));
        assert_eq!(lengths.means().len(), MAX_MODELS);
        let before = lengths.expected("m");
        assert!(after(&lengths, &[10]) < before, "those that are known still learn");
    }
}
