//! The places that are reserved for one request's record.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use llmproxy_core::{UsageRecord, UsageSink};
use tokio::time::{Instant, timeout_at};

use crate::{UsageError, queue::Place, reporter::Reporter, reporters::Active};

/// One place in the queue of each reporter. Free again when it is dropped before a record came.
#[derive(Debug)]
pub(crate) struct Slots(Mutex<Vec<Slot>>);

#[derive(Debug)]
struct Slot {
    reporter: Arc<Reporter>,
    place: Place,
    body: Option<Bytes>,
}

// === impl Slots ===

impl Slots {
    /// Reserves them if all have one at once; `Ok(None)` where one has to be waited for. `body` is the request's, kept for
    /// those who want it.
    pub(crate) fn try_reserve(active: &Active, body: Option<&Bytes>) -> Result<Option<Self>, UsageError> {
        let mut slots = Vec::with_capacity(active.reporters.len());
        for reporter in &active.reporters {
            match reporter.queue.try_reserve()? {
                Some(place) => slots.push(Slot::new(reporter, place, body)),
                None => return Ok(None),
            }
        }
        Ok(Some(Self(Mutex::new(slots))))
    }

    /// Waits for them as long as the configuration says. Those that it has are free again when it fails or is dropped.
    pub(crate) async fn reserve(active: &Active, body: Option<&Bytes>) -> Result<Self, UsageError> {
        let deadline = Instant::now() + active.admit_timeout;
        let mut slots = Vec::with_capacity(active.reporters.len());
        for reporter in &active.reporters {
            match timeout_at(deadline, reporter.queue.reserve()).await {
                Ok(place) => slots.push(Slot::new(reporter, place?, body)),
                Err(_) => {
                    tracing::warn!(
                        reporter = &**reporter.name(),
                        "a request is refused: the queue of usage records is full"
                    );
                    return Err(UsageError::Full);
                }
            }
        }
        Ok(Self(Mutex::new(slots)))
    }
}

impl UsageSink for Slots {
    fn record(&self, record: &Arc<UsageRecord>) {
        let slots = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for Slot { reporter, place, body } in slots {
            reporter.queue.add(place, record.clone(), body);
        }
    }
}

// === impl Slot ===

impl Slot {
    fn new(reporter: &Arc<Reporter>, place: Place, body: Option<&Bytes>) -> Self {
        // Someone else's code in the way of a request: what panics wants nothing.
        let wants =
            |_: &&Bytes| catch_unwind(AssertUnwindSafe(|| reporter.report().wants_request_body())).unwrap_or(false);
        let body = body.filter(wants).cloned();
        Self { reporter: reporter.clone(), place, body }
    }
}
