//! What an operator may write about the ledger.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

const DEFAULT_PATH: &str = "./data/usage.db";
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const DEFAULT_MAX_SIZE: u64 = 1 << 30;
/// Below that there is no room for what is written until the next look at the size.
const MIN_MAX_SIZE: u64 = 1 << 20;

/// What a record is safe against from when on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Written within ten milliseconds of its exchange's end; safe against the process's death from then on.
    #[default]
    Relaxed,
    /// On the disk before the client has the end of its answer, and noted there before a backend is asked: safe against
    /// the loss of power.
    Strict,
}

/// The file that every record goes into first.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct LedgerConfig {
    /// Where it is; `./data/usage.db`. Its folder is made where it is missing.
    pub path: PathBuf,
    /// How long records are kept that every reporter has had; 168h.
    #[serde(with = "llmproxy_core::duration")]
    pub max_age: Duration,
    /// How large it may grow before such records go earlier, in bytes; 1 GiB. What a reporter has not had yet is kept
    /// whatever its size.
    pub max_size: u64,
}

// === impl LedgerConfig ===

impl LedgerConfig {
    pub(crate) fn validate(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.path.as_os_str().is_empty() {
            wrong.push(("path".to_owned(), "must name a file".to_owned()));
        }
        if self.max_size < MIN_MAX_SIZE {
            wrong.push(("max_size".to_owned(), format!("must be at least {MIN_MAX_SIZE}, in bytes")));
        }
        wrong
    }
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self { path: DEFAULT_PATH.into(), max_age: DEFAULT_MAX_AGE, max_size: DEFAULT_MAX_SIZE }
    }
}
