//! Why a proxy does not start, or keeps its old configuration.

use std::path::PathBuf;

use llmproxy_auth::{AuthConfigError, KeyStoreError};
use llmproxy_config::AccessOutput;
use llmproxy_usage::LedgerError;

use crate::TlsError;

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or not ours.
    #[error("can't listen on {listen}: {source}")]
    Listen {
        /// As the configuration has it.
        listen: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a configuration can't be put in force, although it has no mistake in itself. Each text names the key to look at.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The builtin key store.
    #[error("the key store {} (admin.db_path) can't be opened: {source}{}", path.display(), advice(source))]
    KeyStore {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyStoreError,
    },
    /// The `auth` block.
    #[error(transparent)]
    Auth(#[from] AuthConfigError),
    /// Files that `metering.tokenizers` names: what is wrong with each, a line for each.
    #[error("{0}")]
    Tokenizers(String),
    /// The usage ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The access log's file.
    #[error(
        "the access log {output} (logging.access) can't be opened: {source}; name a file that the user that runs llmproxy may \
         write, or set logging.access.output to stdout"
    )]
    AccessLog {
        /// Where it should go.
        output: AccessOutput,
        /// What is wrong with that.
        source: std::io::Error,
    },
}

fn advice(error: &KeyStoreError) -> String {
    error.advice().map_or_else(String::new, |advice| format!("; {advice}"))
}
