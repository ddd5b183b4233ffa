//! One reporter: a bounded queue and the task that empties it.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Uri;
use llmproxy_core::UsageRecord;
use tokio::sync::{mpsc, watch};

use crate::{
    Entry, Report,
    delivery::{GivenUp, deliver},
    metrics::{DROPPED, PENDING, WEBHOOK_FAILURE, WEBHOOK_SUCCESS},
};

/// Records that are on their way at a time: one that waits for its next try must not hold up the others.
const PARALLEL: usize = 8;

/// One reporter, as long as somebody may give it records. Its task goes on until it has dealt with all of them.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) identity: Identity,
    pub(crate) queue: mpsc::Sender<Item>,
    report: RwLock<Arc<dyn Report>>,
    pending: Arc<watch::Sender<usize>>,
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

/// A record in the queue.
#[derive(Debug)]
pub(crate) struct Item {
    entry: Entry,
    _pending: Pending,
}

/// Counts as long as it is there: whatever becomes of a record, it is pending no longer.
#[derive(Debug)]
struct Pending {
    reporter: Arc<str>,
    count: Arc<watch::Sender<usize>>,
}

// === impl Reporter ===

impl Reporter {
    /// Starts a reporter, whose records are counted in `pending`.
    pub(crate) fn start(identity: Identity, report: Arc<dyn Report>, pending: Arc<watch::Sender<usize>>) -> Arc<Self> {
        let (queue, records) = mpsc::channel(identity.queue_size);
        let reporter = Arc::new(Self { identity, queue, report: RwLock::new(report), pending });
        tokio::spawn(run(Arc::downgrade(&reporter), reporter.identity.clone(), reporter.report(), records));
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
        *self.report.write().unwrap_or_else(PoisonError::into_inner) = report;
    }

    /// The record as it goes into the queue.
    pub(crate) fn item(&self, record: Arc<UsageRecord>, request_body: Option<Bytes>) -> Item {
        self.pending.send_modify(|count| *count += 1);
        metrics::gauge!(PENDING, "reporter" => self.name().to_string()).increment(1.0);
        let pending = Pending { reporter: self.name().clone(), count: self.pending.clone() };
        Item { entry: Entry { record, request_body }, _pending: pending }
    }
}

/// Ends when nobody can put anything into the queue any more: the reporter is gone, and all places that were reserved.
async fn run(reporter: Weak<Reporter>, identity: Identity, first: Arc<dyn Report>, records: mpsc::Receiver<Item>) {
    let last = RwLock::new(first);
    // A reporter that is gone delivers as it did at last.
    let report = || {
        if let Some(reporter) = reporter.upgrade() {
            *last.write().unwrap_or_else(PoisonError::into_inner) = reporter.report();
        }
        last.read().unwrap_or_else(PoisonError::into_inner).clone()
    };
    let records = stream::unfold(records, async |mut records| records.recv().await.map(|item| (item, records)));
    let deliver = async |item: Item| {
        let delivered = deliver(report, &item.entry).await;
        settle(&identity, &item.entry.record, delivered);
    };
    records.for_each_concurrent(PARALLEL, deliver).await;
}

fn settle(identity: &Identity, record: &UsageRecord, delivered: Result<(), GivenUp>) {
    if let Origin::Webhook(_) = identity.origin {
        metrics::counter!(if delivered.is_ok() { WEBHOOK_SUCCESS } else { WEBHOOK_FAILURE }).increment(1);
    }
    if let Err(GivenUp { reason, why }) = delivered {
        let reporter = &*identity.name;
        metrics::counter!(DROPPED, "reporter" => reporter.to_owned(), "reason" => reason).increment(1);
        tracing::error!(reporter, request_id = %record.request_id, reason, %why, "a usage record was given up");
    }
}

// === impl Pending ===

impl Drop for Pending {
    fn drop(&mut self) {
        metrics::gauge!(PENDING, "reporter" => self.reporter.to_string()).decrement(1.0);
        self.count.send_modify(|count| *count -= 1);
    }
}
