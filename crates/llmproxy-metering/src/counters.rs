//! Who counts where a backend does not say what an answer came to.

use crate::tokens::{Asker, CountPool, Learned, Tokenizers};

/// What the records of a layer are counted by where the backend does not say it, from the best to the least: a model's own
/// tokenizer, the backend's, and what was learned of answers before. Clones are the same; what is learned outlives reloads.
///
/// ```
/// use llmproxy_metering::{Counters, MeteringConfig, MeterLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let counters = Counters::new(&MeteringConfig::default());
/// let layer = MeterLayer::new().with_counters(counters.clone());
/// // ... when all exchanges have ended:
/// counters.finish(tokio::time::Instant::now() + std::time::Duration::from_secs(5)).await;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Counters {
    pub(crate) tokenizers: Tokenizers,
    pub(crate) pool: CountPool,
    pub(crate) asker: Option<Asker>,
    pub(crate) learned: Learned,
}

// === impl Counters ===

impl Counters {
    /// Without a tokenizer, and without anybody to ask.
    pub fn new(config: &crate::MeteringConfig) -> Self {
        Self {
            tokenizers: Tokenizers::default(),
            pool: CountPool::new(config.limits()),
            asker: None,
            learned: Learned::default(),
        }
    }

    /// With these tokenizers in the place of those before.
    #[must_use]
    pub fn with_tokenizers(mut self, tokenizers: Tokenizers) -> Self {
        self.tokenizers = tokenizers;
        self
    }

    /// With `asker` to ask backends by, or without any.
    #[must_use]
    pub fn with_asker(mut self, asker: Option<Asker>) -> Self {
        self.asker = asker;
        self
    }

    /// The tokenizers, for whoever loads them anew.
    pub fn tokenizers(&self) -> &Tokenizers {
        &self.tokenizers
    }

    /// Sets how much may be counted at once, for all clones.
    pub fn resize(&self, config: &crate::MeteringConfig) {
        self.pool.resize(config.limits());
    }

    /// Waits until all that is to be counted is, but no longer than until `deadline`. What is left is estimated, and so is
    /// all that comes later; each has been told when this is through. Whoever is being asked must have answered by then, too.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is through, the counting goes on as before.
    pub async fn finish(&self, deadline: tokio::time::Instant) {
        if let Some(asker) = &self.asker {
            let cut = asker.drain(deadline).await;
            if cut > 0 {
                tracing::warn!(
                    cut,
                    "backends were still to be asked for tokens when the time was over; their records are estimates"
                );
            }
        }
        let left = self.pool.drain(deadline).await;
        if left > 0 {
            tracing::warn!(left, "tokens were still to be counted when the time was over; their records are estimates");
        }
    }
}
