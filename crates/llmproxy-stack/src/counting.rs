//! The tokenizers that `metering.tokenizers` names.

use llmproxy_metering::{MeteringConfig, tokens::Tokenizers};

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
    let errors = Tokenizers::load_blocking(&config.tokenizers, &Tokenizers::default()).err().unwrap_or_default();
    let texts: Vec<_> = errors.iter().map(|error| format!("metering.tokenizers: {error}")).collect();
    if texts.is_empty() { Ok(()) } else { Err(texts) }
}
