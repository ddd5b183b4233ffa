//! What watches and what changes an answer on its way, knowing every way an answer can end.
//!
//! An exchange ends by the first of: the body's `None`, an error, a trailers frame, `is_end_stream()` after a data
//! frame (hyper stops there without ever polling for `None`), or a drop of the body or of the future before the head.
//! Two wrappers here tell their observer about exactly one end, whichever it is:
//!
//! - [`Observed`] watches. It sees the head, each chunk by reference, and the end. [`Hold`] only keeps something alive
//!   until then.
//! - [`Shaped`] may withhold, replace or insert whole chunks, may fail a body that is silent for too long, and may keep the
//!   end back until something has happened.
//!
//! A third is for the drop alone: around these two, [`Drained`] may have a task read the rest of a body whose reader left, so
//! that they see its true end.
//!
//! Inner wrappers end before outer ones, on completion and on abandonment alike. An end may run inside a drop: it must
//! not await, block or panic.
//!
//! None copies a chunk or keeps more of a body than a [`Shape`] withholds, and none has a task while there is a reader.

mod drained;
mod observed;
mod out;
mod shaped;

pub use drained::{Drain, DrainLimit, Drained};
pub use observed::{Hold, Observe, ObserveFuture, Observed, Observer, observe};
pub use out::Out;
pub use shaped::{Shape, Shaped, Shaper};

use crate::BoxError;

/// How a body, or the wait for it, came to its end.
///
/// ```
/// use llmproxy_core::{BoxError, End, Ended, body::Ending};
///
/// /// What a meter makes of it.
/// fn end(ending: Ending<'_>) -> End {
///     match ending {
///         Ending::Complete => End::Complete,
///         Ending::Failed(error) => Ended::of(&**error),
///         Ending::Dropped => End::ClientGone,
///     }
/// }
/// assert_eq!(end(Ending::Failed(&BoxError::from("connection reset"))), End::BackendFailed);
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Ending<'a> {
    /// All of it passed.
    Complete,
    /// It broke, or there never was an answer.
    Failed(&'a BoxError),
    /// Whoever read it let go of it before its end.
    Dropped,
}
