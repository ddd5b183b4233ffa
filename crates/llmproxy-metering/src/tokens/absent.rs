//! What stands in the place of a tokenizer in a build without them: there is never one.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
};

use llmproxy_core::Endpoint;

use super::{Counted, TokenizerError};

/// A tokenizer. This build was made without the feature `tokenizers`, so that there is none.
#[derive(Debug)]
pub struct Tokenizer(Infallible);

/// The count of one text that comes piece by piece. This build was made without the feature `tokenizers`, so that there is
/// none.
#[derive(Debug)]
pub struct Run(Infallible);

// === impl Tokenizer ===

impl Tokenizer {
    /// Refuses.
    ///
    /// # Errors
    ///
    /// Always; it says how to build.
    pub fn load(file: &Path, _config: Option<&Path>) -> Result<Self, TokenizerError> {
        Err(TokenizerError::Unsupported { file: file.to_owned() })
    }

    pub(super) fn files(file: &Path, _config: Option<&Path>) -> Vec<PathBuf> {
        vec![file.to_owned()]
    }

    /// Never called.
    pub fn count(&self, _text: &str) -> Counted {
        match self.0 {}
    }

    /// Never called.
    pub fn count_prompt(&self, _endpoint: Endpoint, _body: &[u8]) -> Option<Counted> {
        match self.0 {}
    }
}

// === impl Run ===

impl Run {
    /// Never called.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        match tokenizer.0 {}
    }

    /// Never called.
    pub fn push(&mut self, _text: &str) {
        match self.0 {}
    }

    /// Never called.
    pub fn so_far(&self) -> Counted {
        match self.0 {}
    }

    /// Never called.
    pub fn finish(self) -> Counted {
        match self.0 {}
    }
}
