//! Room in memory: one place for the record of each exchange that is under way or not written yet.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// How many places there are, and how many are taken. The number may change; what is taken stays so.
#[derive(Debug)]
pub(super) struct Slots {
    limit: AtomicUsize,
    taken: AtomicUsize,
    freed: Notify,
}

/// One of them; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

// === impl Slots ===

impl Slots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), taken: AtomicUsize::new(0), freed: Notify::new() })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
        self.freed.notify_waiters();
    }

    /// One, if there is any.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        let one_more = |taken| (taken < limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Slot(self.clone()))
    }

    /// One, as soon as there is any.
    ///
    /// # Cancel safety
    ///
    /// Dropped before, it has taken none, and whoever waits too is told of what came free.
    pub(super) async fn take(self: &Arc<Self>) -> Slot {
        loop {
            // Before the look, so that none is missed after it.
            let freed = self.freed.notified();
            if let Some(slot) = self.try_take() {
                return slot;
            }
            freed.await;
        }
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_gets_the_next_that_is_free() {
        let slots = Slots::new(1);
        let one = slots.try_take().expect("there is one");
        assert!(slots.try_take().is_none());
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take().await }
        });
        tokio::task::yield_now().await;
        drop(one);
        let two = waiting.await.expect("it does not panic");
        slots.set_limit(2);
        assert!(slots.try_take().is_some());
        drop(two);
    }

    #[test]
    fn fewer_places_take_none_away() {
        let slots = Slots::new(2);
        let (one, two) = (slots.try_take(), slots.try_take());
        slots.set_limit(1);
        drop(one);
        assert!(slots.try_take().is_none());
        drop(two);
        assert!(slots.try_take().is_some());
    }
}
