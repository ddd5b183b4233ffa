//! What a token of a model is in bytes, learned from answers whose usage is known.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use ::metrics::Histogram;

use crate::{estimate::BYTES_PER_TOKEN, metrics};

/// So many models are told apart; those beyond are learned of together.
const MAX_MODELS: usize = 256;
/// What text is like in any language. Beyond that, something was counted that is no text, or text that was not: pictures, what
/// a client writes into a member that its server ignores. One client's requests must not spoil the estimates of others.
const RANGE: (f64, f64) = (1.5, 8.0);
/// How much of what is known the next answer replaces, at the most.
const WEIGHT: f64 = 0.05;
/// An answer of so many tokens does; a shorter one, of which more is its template's, as much less.
const FULL_WEIGHT: f64 = 256.0;
/// Below so many tokens an answer says more about its template than about the text.
const MIN_TOKENS: u64 = 8;

/// Bytes for each token, by model, and apart for prompts and for completions. Clones are the same; it outlives reloads.
///
/// Each observation first shows how far the estimate would have been off, in the histogram
/// `llmproxy_usage_estimate_error_ratio`, and is learned from then.
///
/// ```
/// use llmproxy_metering::tokens::Learned;
///
/// let learned = Learned::default();
/// assert_eq!(learned.completion_tokens("qwen3", 400), None);
/// for _ in 0..200 {
///     learned.observe_completion("qwen3", 400, 200);
/// }
/// assert_eq!(learned.completion_tokens("qwen3", 400), Some(200));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Learned(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    models: RwLock<HashMap<Box<str>, Arc<Model>>>,
    others: Arc<Model>,
}

#[derive(Debug, Default)]
struct Model {
    prompt: Ratio,
    completion: Ratio,
}

#[derive(Debug, Default)]
struct Ratio {
    /// Bytes for each token, as the bits of a float; 0 where nothing is known yet.
    known: AtomicU64,
    /// Where its error is shown; found once, since a look-up takes longer than all else here.
    error: OnceLock<Histogram>,
}

// === impl Learned ===

impl Learned {
    /// The tokens that a prompt will be for `model`, about, where `estimate` is what it would be at four bytes each, as
    /// [`Call::prompt_estimate`](llmproxy_core::Call::prompt_estimate) says; `None` as long as nothing is known of it.
    pub fn prompt_tokens(&self, model: &str, estimate: u64) -> Option<u64> {
        self.of(model).prompt.tokens(estimate.saturating_mul(BYTES_PER_TOKEN))
    }

    /// The tokens that `bytes` of an answer's text will be for `model`, about; `None` as long as nothing is known of it.
    pub fn completion_tokens(&self, model: &str, bytes: u64) -> Option<u64> {
        self.of(model).completion.tokens(bytes)
    }

    /// A prompt for which `estimate` was said was `tokens`.
    pub fn observe_prompt(&self, model: &str, estimate: u64, tokens: u64) {
        self.of_new(model).prompt.observe("prompt", estimate.saturating_mul(BYTES_PER_TOKEN), tokens);
    }

    /// An answer of `bytes` of text was `tokens`.
    pub fn observe_completion(&self, model: &str, bytes: u64, tokens: u64) {
        self.of_new(model).completion.observe("completion", bytes, tokens);
    }

    fn of(&self, model: &str) -> Arc<Model> {
        let models = self.0.models.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        models.get(model).unwrap_or(&self.0.others).clone()
    }

    /// As `of`, with a place of its own from now on as long as there are any.
    fn of_new(&self, model: &str) -> Arc<Model> {
        let known = self.of(model);
        if !Arc::ptr_eq(&known, &self.0.others) {
            return known;
        }
        let mut models = self.0.models.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if models.len() >= MAX_MODELS && !models.contains_key(model) {
            return known;
        }
        models.entry(model.into()).or_default().clone()
    }
}

// === impl Ratio ===

impl Ratio {
    fn tokens(&self, bytes: u64) -> Option<u64> {
        let bits = self.known.load(Ordering::Relaxed);
        (bits != 0).then(|| (bytes as f64 / f64::from_bits(bits)).ceil() as u64)
    }

    fn observe(&self, kind: &'static str, bytes: u64, tokens: u64) {
        if tokens == 0 || bytes == 0 {
            return;
        }
        if let Some(estimate) = self.tokens(bytes) {
            let error = self.error.get_or_init(|| metrics::estimate_error(kind));
            error.record(estimate as f64 / tokens as f64);
        }
        if tokens < MIN_TOKENS {
            return;
        }
        let seen = (bytes as f64 / tokens as f64).clamp(RANGE.0, RANGE.1);
        let weight = WEIGHT * (tokens as f64 / FULL_WEIGHT).min(1.0);
        // Two at once may both have been known to neither; each has its weight all the same.
        let _ = self.known.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            let known = if bits == 0 { seen } else { f64::from_bits(bits) };
            Some((known + (seen - known) * weight).to_bits())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_kinds_are_learned_of_apart() {
        let learned = Learned::default();
        learned.observe_prompt("a", 50, 100);
        assert_eq!(learned.prompt_tokens("a", 50), Some(100));
        assert_eq!(learned.completion_tokens("a", 200), None);
        assert_eq!(learned.prompt_tokens("b", 50), None);
    }

    #[test]
    fn one_answer_does_not_turn_what_hundreds_have_said() {
        let learned = Learned::default();
        (0..200).for_each(|_| learned.observe_completion("a", 300, 100));
        learned.observe_completion("a", 1600, 100);
        let tokens = learned.completion_tokens("a", 3000).unwrap();
        assert!((800..1000).contains(&tokens), "{tokens}");
    }

    #[test]
    fn nonsense_does_no_harm() {
        let learned = Learned::default();
        for (bytes, tokens) in [(0, 0), (0, 100), (100, 0), (7, 7), (u64::MAX, 8), (8, u64::MAX)] {
            learned.observe_completion("a", bytes, tokens);
        }
        let tokens = learned.completion_tokens("a", 1600).unwrap();
        assert!((100..=3200).contains(&tokens), "{tokens}");
        assert_eq!(learned.completion_tokens("a", 0), Some(0));
    }

    #[test]
    fn what_is_no_text_spoils_little_and_what_is_short_less() {
        let learned = Learned::default();
        (0..200).for_each(|_| learned.observe_completion("a", 4000, 1000));
        // Mostly the template's.
        (0..100).for_each(|_| learned.observe_completion("a", 12, 8));
        let tokens = learned.completion_tokens("a", 4000).unwrap();
        assert!((1000..1200).contains(&tokens), "{tokens}");
        // Pictures, and a member that the server ignores.
        (0..1000).for_each(|_| learned.observe_completion("a", 8, 5000));
        assert!(learned.completion_tokens("a", 4000).unwrap() <= 2667);
        (0..1000).for_each(|_| learned.observe_completion("a", 1_000_000, 500));
        assert!(learned.completion_tokens("a", 4000).unwrap() >= 500);
    }

    #[test]
    fn names_of_models_are_bounded_and_those_beyond_learn_together() {
        let learned = Learned::default();
        for index in 0..MAX_MODELS * 2 {
            learned.observe_prompt(&format!("model-{index}"), 50, 100);
        }
        assert_eq!(learned.0.models.read().unwrap().len(), MAX_MODELS);
        assert_eq!(learned.prompt_tokens("never-seen", 50), Some(100));
    }
}
