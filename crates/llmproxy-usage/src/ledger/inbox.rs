//! What is to be written, on its way from the ends of exchanges to the writer.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::Method;
use llmproxy_core::{Exchange, UsageRecord};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use uuid::Uuid;

use super::slots::Slot;

/// Requests' bodies that may wait to be written, in bytes. They count as memory of requests until then, so that a file that
/// can't be written must not hold more of it: what comes beyond that is written without.
const MAX_BODIES: usize = 64 << 20;

/// One lock, held for a push. Bounded by the slots: an exchange has at most one that has begun and one that has ended.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    /// Tells the writer that there is something to do.
    pub(super) news: Notify,
}

/// What became of an exchange.
#[derive(Debug)]
pub(super) enum Item {
    /// It goes on to where a backend may be asked.
    Begun { exchange: Arc<Exchange>, method: Method, path: Arc<str>, committed: Option<oneshot::Sender<()>> },
    /// It ended, with a record.
    Ended { record: Arc<UsageRecord>, body: Option<Bytes>, slot: Option<Slot>, committed: Option<oneshot::Sender<()>> },
    /// It ended without one.
    Unrecorded { id: Uuid, slot: Option<Slot> },
    /// Nothing: tells when all before it is written.
    Barrier { committed: oneshot::Sender<()> },
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Whether somebody waits for one of them.
    urgent: bool,
    /// What reporters have had, as far as it is not written, and since when that is so.
    places: BTreeMap<Arc<str>, i64>,
    places_since: Option<Instant>,
    closing: bool,
    /// Whether nobody takes anything out any more.
    has_ended: bool,
    /// Whether it is time to look at what is too old.
    prune: bool,
    /// How many were taken out and are not written.
    taken: usize,
    /// Of the bodies among the items, and whether one was given up since there were none.
    bodies: usize,
    has_given_up: bool,
}

/// What is taken out at once.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) items: Vec<Item>,
    pub(super) places: BTreeMap<Arc<str>, i64>,
}

// === impl Inbox ===

impl Inbox {
    /// Takes `item`, unless there are `limit` already and it has no slot, which would bound it, or nobody writes any more: then
    /// it comes back, and what waits of the same exchange is taken out again. A body for which there is no room is left out.
    pub(super) fn push(&self, mut item: Item, limit: usize) -> Result<(), Item> {
        let mut waiting = self.waiting();
        if waiting.has_ended || (waiting.items.len() >= limit && item.is_unbounded()) {
            if let Some(ended) = item.ended() {
                waiting.items.retain(|item| !matches!(item, Item::Begun { exchange, .. } if exchange.id() == ended));
            }
            return Err(item);
        }
        if waiting.bodies + item.bytes() > MAX_BODIES {
            item.drop_body();
            if !std::mem::replace(&mut waiting.has_given_up, true) {
                tracing::error!(
                    bytes = waiting.bodies,
                    "requests' bodies wait to be written to the usage ledger, as many as may; see to its disk. Records are kept \
                     without request_body meanwhile"
                );
            }
        }
        waiting.bodies += item.bytes();
        let urgent = item.is_urgent();
        waiting.urgent |= urgent;
        waiting.items.push_back(item);
        let first = waiting.items.len() == 1;
        drop(waiting);
        // Past that it was told, and looks again before it waits.
        if first || urgent {
            self.news.notify_one();
        }
        Ok(())
    }

    /// A reporter has had everything up to `seq`.
    pub(super) fn set_place(&self, name: Arc<str>, seq: i64) {
        let mut waiting = self.waiting();
        waiting.places.insert(name, seq);
        if waiting.places_since.is_none() {
            waiting.places_since = Some(Instant::now());
            drop(waiting);
            self.news.notify_one();
        }
    }

    /// Nothing will wait for others any more.
    pub(super) fn close(&self) {
        self.waiting().closing = true;
        self.news.notify_one();
    }

    /// Whether all is written and nothing will come any more: from then on nothing is taken.
    pub(super) fn has_ended(&self) -> bool {
        let mut waiting = self.waiting();
        waiting.has_ended = waiting.closing && waiting.items.is_empty() && waiting.places.is_empty();
        waiting.has_ended
    }

    /// The oldest `limit` items, or so many that `bytes` of bodies are among them; and all places.
    pub(super) fn take(&self, limit: usize, bytes: usize) -> Taken {
        let mut waiting = self.waiting();
        let mut items = Vec::with_capacity(limit.min(waiting.items.len()));
        let mut total = 0;
        while items.len() < limit && total < bytes {
            let Some(item) = waiting.items.pop_front() else { break };
            total += item.bytes();
            items.push(item);
        }
        waiting.bodies -= total;
        waiting.has_given_up &= waiting.bodies > 0;
        // What is left waits no longer than the next round.
        waiting.urgent &= !waiting.items.is_empty();
        waiting.places_since = None;
        waiting.taken = items.len();
        Taken { items, places: std::mem::take(&mut waiting.places) }
    }

    /// What was taken is written.
    pub(super) fn written(&self) {
        self.waiting().taken = 0;
    }

    /// Asks for a look at what is too old.
    pub(super) fn ask_prune(&self) {
        self.waiting().prune = true;
        self.news.notify_one();
    }

    /// Whether somebody has asked since.
    pub(super) fn is_prune(&self) -> bool {
        self.waiting().prune
    }

    /// The same, and it is being done.
    pub(super) fn take_prune(&self) -> bool {
        std::mem::take(&mut self.waiting().prune)
    }

    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.waiting();
        waiting.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting().items.len()
    }

    /// Those that were taken out included, as long as they are not written.
    pub(super) fn unwritten(&self) -> usize {
        let waiting = self.waiting();
        waiting.items.len() + waiting.taken
    }

    pub(super) fn is_urgent(&self) -> bool {
        let waiting = self.waiting();
        waiting.urgent || waiting.closing
    }

    pub(super) fn is_closing(&self) -> bool {
        self.waiting().closing
    }

    pub(super) fn places_since(&self) -> Option<Instant> {
        self.waiting().places_since
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Item ===

impl Item {
    fn is_urgent(&self) -> bool {
        match self {
            Self::Begun { committed, .. } | Self::Ended { committed, .. } => committed.is_some(),
            Self::Unrecorded { .. } => false,
            Self::Barrier { .. } => true,
        }
    }

    fn is_unbounded(&self) -> bool {
        matches!(
            self,
            Self::Begun { committed: None, .. } | Self::Ended { slot: None, .. } | Self::Unrecorded { slot: None, .. }
        )
    }

    /// The exchange whose end it is.
    fn ended(&self) -> Option<Uuid> {
        match self {
            Self::Ended { record, .. } => Some(record.request_id),
            Self::Unrecorded { id, .. } => Some(*id),
            Self::Begun { .. } | Self::Barrier { .. } => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Ended { body: Some(body), .. } => body.len(),
            _ => 0,
        }
    }

    fn drop_body(&mut self) {
        if let Self::Ended { body, .. } = self {
            *body = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use llmproxy_core::Endpoint;

    use super::*;

    #[test]
    fn bodies_that_wait_are_bounded_and_records_are_not_lost_with_them() {
        let inbox = Inbox::default();
        let body = Bytes::from(vec![0; 10 << 20]);
        let push = || {
            let record = Arc::new(UsageRecord::new(Endpoint::of("")));
            let item = Item::Ended { record, body: Some(body.clone()), slot: None, committed: None };
            inbox.push(item, 100).unwrap();
        };
        let bodies = |items: &[Item]| items.iter().filter(|item| item.bytes() > 0).count();
        (0..9).for_each(|_| push());
        let taken = inbox.take(100, usize::MAX);
        assert_eq!((taken.items.len(), bodies(&taken.items)), (9, 6));
        drop(taken);
        assert!(body.is_unique());
        // There is room again.
        push();
        assert_eq!(bodies(&inbox.take(100, usize::MAX).items), 1);
    }
}
