//! One reporter: a bounded queue and the task that empties it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, PoisonError, RwLock, Weak},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use http::Uri;

use crate::{
    Entry, Report,
    config::MAX_BATCH_INTERVAL,
    delivery::{GivenUp, deliver},
    metrics::{DROPPED, WEBHOOK_FAILURE, WEBHOOK_SUCCESS},
    pending::{Counts, Outstanding},
    queue::{Batch, Batching, Queue, Taker},
};

/// Records, or batches of them, that are on their way at a time: one that waits for its next try must not hold up the
/// others.
const PARALLEL: usize = 8;

/// One reporter, as long as somebody may give it records. Its task goes on until it has dealt with all of them.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) identity: Identity,
    pub(crate) queue: Arc<Queue>,
    report: RwLock<Arc<dyn Report>>,
}

/// What makes a reporter of a new configuration the same as one of the old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Origin,
    /// A queue can't change its size, so that another size makes another reporter.
    pub(crate) queue_size: usize,
}

/// Where a reporter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The configuration; it posts there.
    Webhook(Uri),
    /// Whoever embeds us; the one at this place of theirs.
    Own(usize),
}

/// What became of records: the log and the counters.
struct Outcome {
    identity: Identity,
    /// Looked up once, when there is something to count.
    success: OnceLock<metrics::Counter>,
    failure: OnceLock<metrics::Counter>,
}

// === impl Reporter ===

impl Reporter {
    /// Starts a reporter, whose records are counted in `outstanding`.
    pub(crate) fn start(identity: Identity, report: Arc<dyn Report>, outstanding: Arc<Outstanding>) -> Arc<Self> {
        let counts = Counts::new(outstanding, identity.name.clone());
        let queue = Queue::new(identity.queue_size, batching(&*report, identity.queue_size), counts);
        let reporter = Arc::new(Self { identity, queue, report: RwLock::new(report) });
        let (identity, taker) = (reporter.identity.clone(), Taker::new(reporter.queue.clone()));
        tokio::spawn(run(Arc::downgrade(&reporter), identity, reporter.report(), taker));
        reporter
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.identity.name
    }

    /// How records are delivered at present.
    pub(crate) fn report(&self) -> Arc<dyn Report> {
        self.report.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Delivers them so from now on, those in the queue included.
    pub(crate) fn set_report(&self, report: Arc<dyn Report>) {
        let batching = batching(&*report, self.identity.queue_size);
        *self.report.write().unwrap_or_else(PoisonError::into_inner) = report;
        self.queue.set_batching(batching);
    }
}

/// The reporter is gone, and with it all who had a place: they hold it.
impl Drop for Reporter {
    fn drop(&mut self) {
        self.queue.end();
    }
}

/// What `report` wants, as far as the queue has room for it.
fn batching(report: &dyn Report, queue_size: usize) -> Batching {
    // Someone else's code: what panics wants nothing.
    let ask = || report.batches().map(|batches| (batches.size(), batches.interval()));
    let wanted = catch_unwind(AssertUnwindSafe(ask)).unwrap_or_default();
    let (size, interval) = wanted.unwrap_or((1, Duration::ZERO));
    Batching { size: size.clamp(1, queue_size), interval: interval.min(MAX_BATCH_INTERVAL) }
}

/// Ends when nobody can put anything into the queue any more: the reporter is gone, and all places that were reserved.
async fn run(reporter: Weak<Reporter>, identity: Identity, first: Arc<dyn Report>, taker: Taker) {
    let last = RwLock::new(first);
    // A reporter that is gone delivers as it did at last.
    let report = || {
        if let Some(reporter) = reporter.upgrade() {
            *last.write().unwrap_or_else(PoisonError::into_inner) = reporter.report();
        }
        last.read().unwrap_or_else(PoisonError::into_inner).clone()
    };
    let outcome = Outcome { identity, success: OnceLock::new(), failure: OnceLock::new() };
    let batches = stream::unfold(taker, async |mut taker| taker.take().await.map(|batch| (batch, taker)));
    let deliver =
        async |batch: Batch| deliver(report, &batch.entries, |entries, end| outcome.settle(entries, end)).await;
    batches.for_each_concurrent(PARALLEL, deliver).await;
}

// === impl Outcome ===

impl Outcome {
    fn settle(&self, entries: &[Entry], delivered: Result<(), GivenUp>) {
        let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        if let Origin::Webhook(_) = self.identity.origin {
            let counter = match delivered {
                Ok(()) => self.success.get_or_init(|| metrics::counter!(WEBHOOK_SUCCESS)),
                Err(_) => self.failure.get_or_init(|| metrics::counter!(WEBHOOK_FAILURE)),
            };
            counter.increment(count);
        }
        if let Err(GivenUp { reason, why }) = delivered {
            let reporter = &*self.identity.name;
            metrics::counter!(DROPPED, "reporter" => reporter.to_owned(), "reason" => reason).increment(count);
            for Entry { record, .. } in entries {
                tracing::error!(reporter, request_id = %record.request_id, reason, %why, "a usage record was given up");
            }
        }
    }
}
