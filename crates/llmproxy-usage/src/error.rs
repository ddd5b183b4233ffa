//! Why a request is refused.

use std::time::Duration;

/// A request whose record could not be kept; answered with 503.
///
/// ```
/// assert_eq!(llmproxy_usage::UsageError::Full.retry_after().as_secs(), 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// As many records as may be in memory are there and not written yet.
    #[error("too many usage records are waiting to be written; try again later")]
    Full,
    /// In strict durability: the ledger can't be written, or not in time.
    #[error("usage records can't be written to the disk at present; try again later")]
    Unwritable,
}

// === impl UsageError ===

impl UsageError {
    /// How long until it makes sense to try again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Full => Duration::from_secs(1),
            Self::Unwritable => Duration::from_secs(5),
        }
    }
}

/// Why an answer was broken off at its end, in strict durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the usage record of this answer could not be written to the disk in time")]
pub struct Uncommitted;
