//! What became of records: the log, the counters, the dead letters.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::sleep;

use super::Current;
use crate::{
    Entry,
    dead_letter::DeadLetters,
    delivery::{Failed, Failure, Gate, GivenUp, Watch, wants_body},
    metrics::{DROPPED, UP, WEBHOOK_FAILURE, WEBHOOK_SUCCESS},
};

/// The wait after a dead letter could not be written.
const KEEP_RETRY: Duration = Duration::from_secs(5);

/// What one reporter's tries come to.
pub(super) struct Outcome {
    pub(super) name: Arc<str>,
    current: Arc<Current>,
    /// Where what is given up goes, unless the reporter has a file of its own.
    dead_letters: PathBuf,
    /// Looked up once, when there is something to count.
    success: OnceLock<metrics::Counter>,
    failure: OnceLock<metrics::Counter>,
}

// === impl Outcome ===

impl Outcome {
    pub(super) fn new(name: Arc<str>, current: Arc<Current>, dead_letters: PathBuf) -> Self {
        Self { name, current, dead_letters, success: OnceLock::new(), failure: OnceLock::new() }
    }

    /// Keeps them where a person finds them, as the configuration says by then. Until that is done they are not dealt with.
    async fn keep(&self, entries: &[Entry], reason: &str) {
        let mut entries = entries.to_vec();
        loop {
            let nudges = self.current.gate.nudges();
            let report = self.current.delivery().report;
            if !wants_body(&*report) {
                entries.iter_mut().for_each(|entry| entry.request_body = None);
            }
            let own = catch_unwind(AssertUnwindSafe(|| report.dead_letter().map(Path::to_owned))).unwrap_or_default();
            let letters = DeadLetters::new(own.unwrap_or_else(|| self.dead_letters.clone()));
            let Err(error) = letters.append(&self.name, reason, &entries).await else { return };
            tracing::error!(reporter = &*self.name, %error, "usage records that were given up are held until they can be kept");
            tokio::select! {
                () = sleep(KEEP_RETRY) => {}
                () = self.current.gate.nudged(nudges) => {}
            }
        }
    }
}

impl Watch for Outcome {
    fn gate(&self) -> &Gate {
        &self.current.gate
    }

    fn settle<'a>(&'a self, entries: &'a [Entry], end: Result<(), GivenUp>) -> BoxFuture<'a, ()> {
        async move {
            let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
            let is_webhook = self.current.delivery().is_webhook;
            let Err(GivenUp { reason, why, .. }) = end else {
                if is_webhook {
                    self.success.get_or_init(|| metrics::counter!(WEBHOOK_SUCCESS)).increment(count);
                }
                return;
            };
            let reporter = &*self.name;
            for Entry { record, .. } in entries {
                tracing::error!(reporter, request_id = %record.request_id, reason, %why, "a usage record was given up");
            }
            self.keep(entries, &format!("{reason}: {why}")).await;
            if is_webhook {
                self.failure.get_or_init(|| metrics::counter!(WEBHOOK_FAILURE)).increment(count);
            }
            metrics::counter!(DROPPED, "reporter" => reporter.to_owned(), "reason" => reason).increment(count);
        }
        .boxed()
    }

    fn failed(&self, failure: &Failure<'_>, failed: &Failed) {
        if failed.is_news {
            metrics::gauge!(UP, "reporter" => self.name.to_string()).set(0.0);
            tracing::warn!(
                reporter = &*self.name,
                why = failure.why,
                next_try_in = ?failed.wait,
                "the reporter takes no usage records; they wait in the ledger, and it is tried about twice a minute, or when it \
                 has asked to be"
            );
        }
    }

    fn recovered(&self) {
        metrics::gauge!(UP, "reporter" => self.name.to_string()).set(1.0);
        tracing::info!(reporter = &*self.name, "the reporter takes usage records again");
    }
}
