//! Errors between layers: one box, and how to look into it.

use std::error::Error;

use crate::End;

/// The error type of every service and body of llmproxy, so that the order of layers never changes a type. What is in it
/// is found by [`cause_ref`].
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error of which is known how the exchange ended by it.
///
/// A layer that ends an exchange (a timeout, a backend that died) puts this into its error's source chain; the meter,
/// which knows nothing of that layer, reads it with [`Ended::of`].
///
/// ```
/// use llmproxy_core::{BoxError, End, Ended};
///
/// let error: BoxError = Box::new(Ended::new(End::Timeout, "no byte for 60s"));
/// assert_eq!(Ended::of(&*error), End::Timeout);
/// assert_eq!(error.to_string(), "no byte for 60s");
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Ended {
    end: End,
    source: BoxError,
}

/// Finds an error of type `E` in `error` or in what caused it; the outermost, where there are several.
///
/// ```
/// use llmproxy_core::{BoxError, End, Ended, cause_ref};
///
/// let error: BoxError = Box::new(Ended::new(End::Timeout, "no byte for 60s"));
/// assert!(cause_ref::<Ended>(&*error).is_some());
/// ```
pub fn cause_ref<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

// === impl Ended ===

impl Ended {
    /// Marks `source` as what ended an exchange in the way of `end`.
    pub fn new(end: End, source: impl Into<BoxError>) -> Self {
        Self { end, source: source.into() }
    }

    /// How the exchange ended.
    pub fn end(&self) -> End {
        self.end
    }

    /// What `error` says about the end; an error that says nothing came from the backend's side.
    pub fn of(error: &(dyn Error + 'static)) -> End {
        cause_ref::<Self>(error).map_or(End::BackendFailed, |ended| ended.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] BoxError);

    #[test]
    fn the_end_is_found_behind_other_errors() {
        let error = Outer(Box::new(Ended::new(End::Timeout, "inner")));
        assert_eq!(Ended::of(&error), End::Timeout);
    }

    #[test]
    fn an_error_that_says_nothing_is_the_backends() {
        assert_eq!(Ended::of(&std::io::Error::other("reset")), End::BackendFailed);
    }
}
