//! Who counts tokens that no backend tells: the tokenizers that `metering.tokenizers` names, and what outlives them.

use llmproxy_core::HttpClient;
use llmproxy_metering::{
    Counters, MeteringConfig,
    tokens::{Asker, TokenizerError, Tokenizers},
};
use tokio::time::Instant;

use crate::StartError;

/// What counts, over all reloads: threads, what was learned, and what is known of backends.
pub(crate) struct Counting {
    counters: Counters,
    asker: Asker,
}

/// Whether every tokenizer that `config` names can be used. It loads each, and blocks meanwhile.
///
/// # Errors
///
/// What is wrong with each that can't be.
///
/// ```
/// use llmproxy_metering::{MeteringConfig, TokenizerConfig};
///
/// let file = std::env::temp_dir().join("no-tokenizer.json");
/// let tokenizers = vec![TokenizerConfig { models: vec!["qwen*".into()], file, config: None }];
/// let errors = llmproxy_stack::check_tokenizers(&MeteringConfig { tokenizers, ..MeteringConfig::default() }).unwrap_err();
/// assert!(errors[0].starts_with("metering.tokenizers: "));
/// ```
pub fn check_tokenizers(config: &MeteringConfig) -> Result<(), Vec<String>> {
    Tokenizers::load_blocking(&config.tokenizers, &Tokenizers::default()).map(drop).map_err(texts)
}

/// What is wrong, each with the key to look at.
fn texts(errors: Vec<TokenizerError>) -> Vec<String> {
    errors.iter().map(|error| format!("metering.tokenizers: {error}")).collect()
}

// === impl Counting ===

impl Counting {
    /// Backends are asked through `client`, which reads answers of up to [`Asker::MAX_ANSWER`].
    pub(crate) fn new(config: &MeteringConfig, client: HttpClient) -> Self {
        let asker = Asker::new(client);
        Self { counters: Counters::new(config).with_asker(Some(asker.clone())), asker }
    }

    /// Loads what has changed since `before`.
    pub(crate) async fn load(config: &MeteringConfig, before: &Tokenizers) -> Result<Tokenizers, StartError> {
        let loaded = Tokenizers::load(config.tokenizers.clone(), before.clone()).await;
        loaded.map_err(|errors| StartError::Tokenizers(texts(errors).join("\n")))
    }

    /// What the exchanges of one configuration are counted by.
    pub(crate) fn counters(&self, config: &MeteringConfig, tokenizers: Tokenizers) -> Counters {
        self.counters.resize(config);
        let asker = config.ask_backend.then(|| self.asker.clone());
        self.counters.clone().with_tokenizers(tokenizers).with_asker(asker)
    }

    /// Waits for what is to be counted yet, no longer than until `deadline`.
    pub(crate) async fn finish(&self, deadline: Instant) {
        self.counters.finish(deadline).await;
    }
}
