//! What this layer ends an answer with.

use std::time::Duration;

use llmproxy_core::{BoxError, End, Ended, duration};

/// A limit of time that a backend passed. Always found inside a [`llmproxy_core::Ended`] that says
/// [`End::Timeout`]; an answer made of it has the status 504.
///
/// ```
/// use std::time::Duration;
/// use llmproxy_sse::SseError;
///
/// let error = SseError::Gap { after: Duration::from_secs(120) };
/// assert_eq!((error.kind(), &*error.to_string()), ("gap", "the backend sent nothing more for 2m"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// Nothing of an answer's body came in time. Raise the backend's `timeout` if its prompts take longer.
    #[error("the backend sent no byte of an answer within {}", duration::format(*after))]
    FirstByte {
        /// The backend's timeout.
        after: Duration,
    },
    /// A JSON answer was not complete in time.
    #[error("the backend did not complete its answer within {}", duration::format(*after))]
    Whole {
        /// The backend's timeout.
        after: Duration,
    },
    /// Nothing passed through a tunnel, in either direction.
    #[error("nothing was sent in either direction for {}", duration::format(*after))]
    Idle {
        /// The gap timeout.
        after: Duration,
    },
    /// An answer had begun, then nothing came any more.
    #[error("the backend sent nothing more for {}", duration::format(*after))]
    Gap {
        /// The gap timeout.
        after: Duration,
    },
}

// === impl SseError ===

impl SseError {
    /// The name that metrics use.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::FirstByte { .. } => "first_byte",
            Self::Whole { .. } => "whole",
            Self::Idle { .. } => "idle",
            Self::Gap { .. } => "gap",
        }
    }

    pub(crate) fn ended(self) -> BoxError {
        Box::new(Ended::new(End::Timeout, self))
    }
}
