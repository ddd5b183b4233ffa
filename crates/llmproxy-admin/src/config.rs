//! What an operator may write about administration.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

/// The `admin` block.
///
/// ```
/// use llmproxy_admin::AdminConfig;
///
/// let config = AdminConfig { enabled: true, ..AdminConfig::default() };
/// assert!(!config.is_served(), "nobody could have the token");
/// assert!(!AdminConfig { token: "\n".into(), ..config }.is_served(), "what is around a token is no part of it");
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AdminConfig {
    /// Whether the proxy is administered over HTTP.
    pub enabled: bool,
    /// Who has it may; without one nobody is let in.
    pub token: String,
    /// Where, if not beside the API: an address and port of its own.
    pub listen: String,
    /// Whether everything may be looked at and nothing changed.
    pub read_only: bool,
    /// The builtin key store's database, and that of a usage reporter of type builtin.
    pub db_path: PathBuf,
}

// === impl AdminConfig ===

impl AdminConfig {
    /// Beside the working directory's configuration, where the Go program has its own.
    pub const DEFAULT_DB_PATH: &str = "./data/keys.db";

    /// Whether there is anything to be asked: it is enabled and has a token.
    pub fn is_served(&self) -> bool {
        self.enabled && !self.token.trim_ascii().is_empty()
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            token: String::new(),
            listen: String::new(),
            read_only: false,
            db_path: Self::DEFAULT_DB_PATH.into(),
        }
    }
}

impl fmt::Debug for AdminConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, token, listen, read_only, db_path } = self;
        f.debug_struct("AdminConfig")
            .field("enabled", enabled)
            .field("has_token", &!token.is_empty())
            .field("listen", listen)
            .field("read_only", read_only)
            .field("db_path", db_path)
            .finish()
    }
}
