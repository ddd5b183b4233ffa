//! Room for a record.

use std::sync::Arc;

use bytes::Bytes;
use llmproxy_core::UsageRecord;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Committed, Shared, inbox::Item, slots::Slot};

/// Room for the record of one exchange, which goes into the ledger when it comes. Dropped before, there will be none.
#[derive(Debug)]
pub(crate) struct Reserved {
    shared: Arc<Shared>,
    slot: Option<Slot>,
    id: Uuid,
    body: Option<Bytes>,
    /// Told when the record is written.
    committed: Option<oneshot::Sender<()>>,
    is_used: bool,
}

// === impl Reserved ===

impl Reserved {
    pub(super) fn new(shared: Arc<Shared>, slot: Option<Slot>, id: Uuid, body: Option<Bytes>) -> Self {
        Self { shared, slot, id, body, committed: None, is_used: false }
    }

    /// Tells when the record is written, or that there is none; an error where it will not be.
    pub(crate) fn committed(&mut self) -> Committed {
        let (committed, told) = oneshot::channel();
        self.committed = Some(committed);
        told
    }

    /// Hands the record over.
    pub(crate) fn record(mut self, record: &Arc<UsageRecord>) {
        self.is_used = true;
        let (record, body, slot) = (record.clone(), self.body.take(), self.slot.take());
        let item = Item::Ended { record, body, slot, committed: self.committed.take() };
        if let Err(Item::Ended { record, .. }) = self.shared.inbox.push(item, self.shared.slots.limit()) {
            let reason = if self.shared.inbox.is_closing() { "unwritable" } else { "full" };
            self.shared.lose([&record], reason);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_used {
            if let Some(committed) = self.committed.take() {
                // Nothing to wait for. Whoever did may have gone.
                let _ = committed.send(());
            }
            let item = Item::Unrecorded { id: self.id, slot: self.slot.take() };
            // Without a place it may be left out: at worst a note of a beginning stays until the next start.
            let _ = self.shared.inbox.push(item, self.shared.slots.limit());
        }
    }
}
