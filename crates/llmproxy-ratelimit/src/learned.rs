//! How long a model's answers are, learned from those that it gave.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// The mean length of each model's answers, in tokens, of which recent ones count more.
///
/// Names of models may come from clients, so their number is bounded; those beyond the bound share one mean.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    models: RwLock<HashMap<Arc<str>, Mean>>,
    others: Mean,
}

/// A mean as the bits of a float; [`UNKNOWN`] before the first answer.
#[derive(Debug)]
struct Mean(AtomicU64);

const UNKNOWN: u64 = u64::MAX;

/// Models with a mean of their own.
const MAX_MODELS: usize = 1000;

/// How much the newest answer counts.
const WEIGHT: f64 = 0.1;

// === impl Learned ===

impl Learned {
    /// The mean length of the answers of `model`, if it is known.
    pub(crate) fn mean(&self, model: &str) -> Option<u64> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        match models.get(model) {
            Some(mean) => mean.get(),
            None if models.len() >= MAX_MODELS => self.others.get(),
            None => None,
        }
    }

    /// Learns from an answer.
    pub(crate) fn learn(&self, model: &Arc<str>, tokens: u64) {
        {
            let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
            match models.get(model) {
                Some(mean) => return mean.add(tokens),
                None if models.len() >= MAX_MODELS => return self.others.add(tokens),
                None => {}
            }
        }
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.len() < MAX_MODELS || models.contains_key(model) {
            models.entry(model.clone()).or_default().add(tokens);
        } else {
            self.others.add(tokens);
        }
    }
}

// === impl Mean ===

impl Mean {
    fn get(&self) -> Option<u64> {
        let bits = self.0.load(Ordering::Relaxed);
        (bits != UNKNOWN).then(|| f64::from_bits(bits).ceil() as u64)
    }

    fn add(&self, tokens: u64) {
        let tokens = tokens as f64;
        let newer = |bits| match bits {
            UNKNOWN => tokens,
            bits => f64::from_bits(bits) * (1.0 - WEIGHT) + tokens * WEIGHT,
        };
        // The closure always returns a new mean, so that there is no failure to handle.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| Some(newer(bits).to_bits()));
    }
}

impl Default for Mean {
    fn default() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_answers_count_more() {
        let learned = Learned::default();
        let model: Arc<str> = "m".into();
        assert_eq!(learned.mean("m"), None);
        learned.learn(&model, 100);
        assert_eq!(learned.mean("m"), Some(100));
        learned.learn(&model, 200);
        assert_eq!(learned.mean("m"), Some(110));
        for _ in 0..200 {
            learned.learn(&model, 50);
        }
        assert!((50..=51).contains(&learned.mean("m").unwrap()));
    }

    #[test]
    fn models_beyond_the_bound_share_one_mean() {
        let learned = Learned::default();
        for model in 0..2 * MAX_MODELS {
            learned.learn(&model.to_string().into(), 10);
        }
        assert_eq!(learned.models.read().unwrap().len(), MAX_MODELS);
        assert_eq!(learned.mean("never seen"), Some(10));
    }
}
