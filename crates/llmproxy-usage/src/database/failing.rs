//! What is told of a failure that goes on.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Between two reasons that are told, so that reasons which take turns don't fill the log.
const BETWEEN: Duration = Duration::from_secs(60);

/// Whether something fails at present, and why, as it was told last.
#[derive(Debug, Default)]
pub(crate) struct Failing(Mutex<Option<(String, Instant)>>);

// === impl Failing ===

impl Failing {
    /// It has failed. Returns whether that is to be told: the first time, and when the reason is another one.
    pub(crate) fn is_news(&self, why: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = told.as_ref().is_none_or(|(before, at)| before != why && at.elapsed() >= BETWEEN);
        if is_news {
            *told = Some((why.to_owned(), Instant::now()));
        }
        is_news
    }

    /// It has not failed. Returns whether it did before.
    pub(crate) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_told_once_and_another_one_too() {
        let failing = Failing::default();
        assert!(!failing.is_over());
        assert!(failing.is_news("no server"));
        // A minute of tries with reasons that take turns.
        for second in 0..60 {
            assert!(!failing.is_news(["no server", "no password"][second % 2]), "{second}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(!failing.is_news("no server"), "the same one is no news");
        assert!(failing.is_news("no password"));
        assert!(failing.is_over() && !failing.is_over());
        assert!(failing.is_news("no password"), "it is over in between");
    }
}
