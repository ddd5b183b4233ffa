//! The places that are reserved for one request's record.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use llmproxy_core::{UsageRecord, UsageSink};
use tokio::{
    sync::mpsc::{OwnedPermit, error::TrySendError},
    time::{Instant, timeout_at},
};

use crate::{
    UsageError,
    reporter::{Item, Reporter},
    reporters::Active,
};

/// One place in the queue of each reporter. Free again when it is dropped before a record came.
#[derive(Debug)]
pub(crate) struct Slots(Mutex<Vec<Slot>>);

#[derive(Debug)]
struct Slot {
    reporter: Arc<Reporter>,
    permit: OwnedPermit<Item>,
    body: Option<Bytes>,
}

// === impl Slots ===

impl Slots {
    /// Reserves them if all have one at once; `Ok(None)` where one has to be waited for. `body` is the request's, kept for
    /// those who want it.
    pub(crate) fn try_reserve(active: &Active, body: Option<&Bytes>) -> Result<Option<Self>, UsageError> {
        let mut slots = Vec::with_capacity(active.reporters.len());
        for reporter in &active.reporters {
            match reporter.queue.clone().try_reserve_owned() {
                Ok(permit) => slots.push(Slot::new(reporter, permit, body)),
                Err(TrySendError::Full(_)) => return Ok(None),
                Err(TrySendError::Closed(_)) => return Err(UsageError::Stopped),
            }
        }
        Ok(Some(Self(Mutex::new(slots))))
    }

    /// Waits for them as long as the configuration says. Those that it has are free again when it fails or is dropped.
    pub(crate) async fn reserve(active: &Active, body: Option<&Bytes>) -> Result<Self, UsageError> {
        let deadline = Instant::now() + active.admit_timeout;
        let mut slots = Vec::with_capacity(active.reporters.len());
        for reporter in &active.reporters {
            match timeout_at(deadline, reporter.queue.clone().reserve_owned()).await {
                Ok(Ok(permit)) => slots.push(Slot::new(reporter, permit, body)),
                Ok(Err(_)) => return Err(UsageError::Stopped),
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
        for Slot { reporter, permit, body } in slots {
            permit.send(reporter.item(record.clone(), body));
        }
    }
}

// === impl Slot ===

impl Slot {
    fn new(reporter: &Arc<Reporter>, permit: OwnedPermit<Item>, body: Option<&Bytes>) -> Self {
        // Someone else's code in the way of a request: what panics wants nothing.
        let wants =
            |_: &&Bytes| catch_unwind(AssertUnwindSafe(|| reporter.report().wants_request_body())).unwrap_or(false);
        let body = body.filter(wants).cloned();
        Self { reporter: reporter.clone(), permit, body }
    }
}
