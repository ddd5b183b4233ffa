//! Which tokenizer counts for which model.

use std::{fs, path::PathBuf, sync::Arc, time::SystemTime};

use super::{Tokenizer, TokenizerError};
use crate::{Pattern, TokenizerConfig};

/// The tokenizers of a configuration, each for the models that fit its patterns. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Tokenizers(Arc<[Entry]>);

#[derive(Debug)]
struct Entry {
    models: Vec<Pattern>,
    stamps: Vec<Stamp>,
    tokenizer: Arc<Tokenizer>,
}

/// What tells whether a file is still the one that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// When it was changed and how large it is; `None` where it is not there.
    state: Option<(SystemTime, u64)>,
}

// === impl Tokenizers ===

impl Tokenizers {
    /// Loads what `config` names, on a thread where that may take its time. What `before` has loaded of files that have not
    /// changed since is taken over.
    ///
    /// # Errors
    ///
    /// Every file that can't be used.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost but the work.
    pub async fn load(config: Vec<TokenizerConfig>, before: Self) -> Result<Self, Vec<TokenizerError>> {
        if config.is_empty() {
            return Ok(Self::default());
        }
        match tokio::task::spawn_blocking(move || Self::load_blocking(&config, &before)).await {
            Ok(loaded) => loaded,
            // Panics of the library are errors by then, so the runtime is stopping, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        }
    }

    /// [`load`](Self::load) on this thread, which takes a second or so for each large file.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn load_blocking(config: &[TokenizerConfig], before: &Self) -> Result<Self, Vec<TokenizerError>> {
        let mut entries: Vec<Entry> = Vec::with_capacity(config.len());
        let mut errors = Vec::new();
        for said in config {
            let stamps = stamps(said);
            let known = before.0.iter().chain(&entries).find(|entry| entry.stamps == stamps);
            let tokenizer = match known.map(|entry| entry.tokenizer.clone()) {
                Some(tokenizer) => tokenizer,
                None => match Tokenizer::load(&said.file, said.config.as_deref()) {
                    Ok(tokenizer) => Arc::new(tokenizer),
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                },
            };
            entries.push(Entry { models: said.models.clone(), stamps, tokenizer });
        }
        if errors.is_empty() { Ok(Self(entries.into())) } else { Err(errors) }
    }

    /// The tokenizer of `model`: that of the first entry with a pattern that fits.
    pub fn find(&self, model: &str) -> Option<Arc<Tokenizer>> {
        let fits = |entry: &&Entry| entry.models.iter().any(|pattern| pattern.matches(model));
        self.0.iter().find(fits).map(|entry| entry.tokenizer.clone())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The files that a tokenizer is made of, as they are now.
fn stamps(said: &TokenizerConfig) -> Vec<Stamp> {
    Tokenizer::files(&said.file, said.config.as_deref()).into_iter().map(Stamp::of).collect()
}

// === impl Stamp ===

impl Stamp {
    fn of(path: PathBuf) -> Self {
        let state = fs::metadata(&path).ok().and_then(|found| Some((found.modified().ok()?, found.len())));
        Self { path, state }
    }
}
