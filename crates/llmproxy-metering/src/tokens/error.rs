//! Why something was not counted, and why a tokenizer could not be loaded.

use std::{path::PathBuf, sync::Arc};

use thiserror::Error;

/// Why there is no count. What it was for is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Uncounted {
    /// As much is waiting to be counted as may.
    #[error("too much is waiting to be counted")]
    Full,
    /// It can't be counted: the tokenizer failed, the request is none that it understands, the backend has no way to ask.
    #[error("it can't be counted")]
    Failed,
    /// The proxy stopped before it was counted.
    #[error("the proxy stopped before it was counted")]
    Stopped,
}

/// Why a tokenizer can't be used; says the file, what is wrong with it and what to do.
#[derive(Clone, Debug, Error)]
pub enum TokenizerError {
    /// This build can't use any.
    #[error("{}: this build counts with no tokenizers; build with `--features tokenizers`, or remove `metering.tokenizers`", .file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
    },
    /// A file can't be read.
    #[error("{} can't be read: {source}; name the model's tokenizer.json, and let the user that runs llmproxy read it", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// It is no file: a folder, a pipe, a device.
    #[error("{} is no regular file; name the model's tokenizer.json, and what stands beside it", .file.display())]
    NoFile {
        /// What was named.
        file: PathBuf,
    },
    /// A file is larger than any tokenizer.
    #[error("{} has {size} bytes, more than any tokenizer (at most {limit}); name the model's tokenizer.json", .file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        size: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// It is none.
    #[error("{} is no tokenizer that can be used: {problem}; take the tokenizer.json that the model came with", .file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What says how it is used is not usable.
    #[error("{} can't be used: {problem}; take the tokenizer_config.json that the model came with", .file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The chat template is none.
    #[error("the chat template in {} can't be used: {problem}; mend it, or name another with `config`", .file.display())]
    Template {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

// === impl Uncounted ===

impl Uncounted {
    /// One word, fit for a metric's label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}
