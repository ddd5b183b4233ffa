//! One reporter: a bounded queue and the task that empties it.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use llmproxy_core::{HttpClient, UsageRecord};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::{
    delivery::{GivenUp, deliver},
    metrics::{DROPPED, PENDING, WEBHOOK_FAILURE, WEBHOOK_SUCCESS},
    to_json,
    webhook::Webhook,
};

/// Records that are on their way at a time: one that waits for its next try must not hold up the others.
const PARALLEL: usize = 8;

/// One reporter, as long as somebody may give it records. Its task goes on until it has dealt with all of them.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) name: Arc<str>,
    pub(crate) queue_size: usize,
    pub(crate) queue: mpsc::Sender<Item>,
    webhook: RwLock<Arc<Webhook>>,
    pending: Arc<watch::Sender<usize>>,
}

/// A record in the queue.
#[derive(Debug)]
pub(crate) struct Item {
    record: Arc<UsageRecord>,
    /// The request's, where it is wanted.
    body: Option<Bytes>,
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
    pub(crate) fn start(
        name: Arc<str>,
        webhook: Webhook,
        queue_size: usize,
        client: HttpClient,
        pending: Arc<watch::Sender<usize>>,
    ) -> Arc<Self> {
        let (queue, records) = mpsc::channel(queue_size);
        let reporter = Arc::new(Self { name, queue_size, queue, webhook: RwLock::new(Arc::new(webhook)), pending });
        tokio::spawn(run(Arc::downgrade(&reporter), reporter.name.clone(), reporter.webhook(), client, records));
        reporter
    }

    /// How records are sent at present.
    pub(crate) fn webhook(&self) -> Arc<Webhook> {
        self.webhook.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends them so from now on, those in the queue included.
    pub(crate) fn set_webhook(&self, webhook: Webhook) {
        *self.webhook.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(webhook);
    }

    /// The record as it goes into the queue.
    pub(crate) fn item(&self, record: Arc<UsageRecord>, body: Option<Bytes>) -> Item {
        self.pending.send_modify(|count| *count += 1);
        metrics::gauge!(PENDING, "reporter" => self.name.to_string()).increment(1.0);
        Item { record, body, _pending: Pending { reporter: self.name.clone(), count: self.pending.clone() } }
    }
}

/// Ends when nobody can put anything into the queue any more: the reporter is gone, and all places that were reserved.
async fn run(
    reporter: std::sync::Weak<Reporter>,
    name: Arc<str>,
    first: Arc<Webhook>,
    client: HttpClient,
    records: mpsc::Receiver<Item>,
) {
    let last = RwLock::new(first);
    // A reporter that is gone sends as it did at last.
    let webhook = || {
        if let Some(reporter) = reporter.upgrade() {
            *last.write().unwrap_or_else(PoisonError::into_inner) = reporter.webhook();
        }
        last.read().unwrap_or_else(PoisonError::into_inner).clone()
    };
    let records = stream::unfold(records, async |mut records| records.recv().await.map(|item| (item, records)));
    let report = async |item: Item| {
        let delivered = deliver(&client, webhook, item.json()).await;
        settle(&name, &item.record, delivered);
    };
    records.for_each_concurrent(PARALLEL, report).await;
}

fn settle(name: &str, record: &UsageRecord, delivered: Result<(), GivenUp>) {
    match delivered {
        Ok(()) => metrics::counter!(WEBHOOK_SUCCESS).increment(1),
        Err(GivenUp { reason, why }) => {
            metrics::counter!(WEBHOOK_FAILURE).increment(1);
            metrics::counter!(DROPPED, "reporter" => name.to_owned(), "reason" => reason).increment(1);
            tracing::error!(reporter = name, request_id = %record.request_id, reason, %why, "a usage record was given up");
        }
    }
}

// === impl Item ===

impl Item {
    fn json(&self) -> Bytes {
        let mut json = to_json(&self.record);
        let body = self.body.as_deref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
        if let (Value::Object(fields), Some(body)) = (&mut json, body) {
            fields.insert("request_body".to_owned(), body);
        }
        json.to_string().into()
    }
}

// === impl Pending ===

impl Drop for Pending {
    fn drop(&mut self) {
        metrics::gauge!(PENDING, "reporter" => self.reporter.to_string()).decrement(1.0);
        self.count.send_modify(|count| *count -= 1);
    }
}
