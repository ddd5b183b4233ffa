//! Records that wait for one reporter: a bounded queue that is emptied in batches.
//!
//! Whoever adds is a request at its end and has better things to do. So the task that takes is woken only when it has
//! something to do: when a batch begins, and when it is full.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use llmproxy_core::UsageRecord;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, watch},
    time::{Instant, sleep_until},
};

use crate::{
    Entry, UsageError,
    pending::{Counts, Pending},
};

/// Bounded by its places: one is taken before a backend is asked, and given back with the record.
#[derive(Debug)]
pub(crate) struct Queue {
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// Told whoever takes, who looks again.
    news: Notify,
    counts: Arc<Counts>,
}

/// Room for one record.
pub(crate) type Place = OwnedSemaphorePermit;

/// How records are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batching {
    pub(crate) size: usize,
    /// The longest that one waits for others.
    pub(crate) interval: Duration,
}

/// What is sent together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) entries: Vec<Entry>,
    _pending: Pending,
    _kept: Option<Kept>,
}

/// The places of a batch that is on its way.
#[derive(Debug)]
struct Kept {
    places: Option<Place>,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Waiting {
    /// Each with the time that it came.
    items: VecDeque<(Entry, Instant)>,
    /// These two are for all of the items, and are parted with them: one for each would be shared with the threads of
    /// requests, and cost them more than the rest of this.
    pending: Pending,
    places: Option<Place>,
    /// Batches that are on their way and keep places.
    keeping: usize,
    batching: Batching,
    /// Nobody adds any more.
    ended: bool,
    /// Nobody takes any more.
    abandoned: bool,
}

/// Takes what is in a queue; when it is dropped, the queue takes nothing more.
#[derive(Debug)]
pub(crate) struct Taker {
    queue: Arc<Queue>,
    hurry: watch::Receiver<usize>,
}

enum Next {
    Batch(Batch),
    /// Nothing yet; at that time, if not before.
    Wait(Option<Instant>),
    Over,
}

// === impl Queue ===

impl Queue {
    pub(crate) fn new(size: usize, batching: Batching, counts: Arc<Counts>) -> Arc<Self> {
        let (items, pending) = (VecDeque::new(), counts.none());
        let waiting = Waiting { items, pending, places: None, keeping: 0, batching, ended: false, abandoned: false };
        let places = Arc::new(Semaphore::new(size));
        Arc::new(Self { places, waiting: Mutex::new(waiting), news: Notify::new(), counts })
    }

    /// A place; `None` where one has to be waited for.
    pub(crate) fn try_reserve(&self) -> Result<Option<Place>, UsageError> {
        match self.places.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(place)),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(UsageError::Stopped),
        }
    }

    /// A place, as soon as there is one.
    pub(crate) async fn reserve(&self) -> Result<Place, UsageError> {
        // A batch that still waits for more has places that are wanted.
        self.news.notify_one();
        self.places.clone().acquire_owned().await.map_err(|_| UsageError::Stopped)
    }

    /// Puts a record into its place.
    pub(crate) fn add(&self, place: Place, record: Arc<UsageRecord>, request_body: Option<Bytes>) {
        let item = (Entry { record, request_body }, Instant::now());
        let mut waiting = self.waiting();
        if waiting.abandoned {
            return;
        }
        waiting.items.push_back(item);
        waiting.pending.count();
        match &mut waiting.places {
            Some(places) => places.merge(place),
            none => *none = Some(place),
        }
        let (count, size) = (waiting.items.len(), waiting.batching.size);
        drop(waiting);
        // Past that it was told and is busy; it looks again before it waits.
        if count == 1 || count == size {
            self.news.notify_one();
        }
    }

    pub(crate) fn set_batching(&self, batching: Batching) {
        self.waiting().batching = batching;
        self.news.notify_one();
    }

    /// Nothing will be added any more; what is left need not wait for it.
    pub(crate) fn end(&self) {
        self.waiting().ended = true;
        self.news.notify_one();
    }

    fn next(self: &Arc<Self>, hurry: bool) -> Next {
        let mut waiting = self.waiting();
        let Batching { size, interval } = waiting.batching;
        let Some((_, since)) = waiting.items.front() else {
            return if waiting.ended { Next::Over } else { Next::Wait(None) };
        };
        let deadline = *since + interval;
        let now = waiting.items.len() >= size
            || hurry
            || waiting.ended
            || deadline <= Instant::now()
            // Someone may wait for a place, and no other will come free. While one will, records go on gathering.
            || (waiting.keeping == 0 && self.places.available_permits() == 0);
        if !now {
            return Next::Wait(Some(deadline));
        }
        let count = size.min(waiting.items.len());
        let entries = waiting.items.drain(..count).map(|(entry, _)| entry).collect();
        let pending = waiting.pending.split(count);
        let places = waiting.places.as_mut().and_then(|places| places.split(count));
        // One that is alone leaves its place when it is on its way. Of those in batches many are on their way at a time, so
        // that they keep theirs, or the queue would not be bounded by its size.
        let keep = size > 1;
        waiting.keeping += usize::from(keep);
        drop(waiting);
        let kept = keep.then(|| Kept { places, queue: self.clone() });
        Next::Batch(Batch { entries, _pending: pending, _kept: kept })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Kept ===

impl Drop for Kept {
    fn drop(&mut self) {
        self.places = None;
        self.queue.waiting().keeping -= 1;
        self.queue.news.notify_one();
    }
}

// === impl Taker ===

impl Taker {
    /// There is to be only one for each queue.
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        let hurry = queue.counts.outstanding().hurry();
        Self { queue, hurry }
    }

    /// The next batch, when it is full or one in it has waited long enough; `None` when there will be no more.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub(crate) async fn take(&mut self) -> Option<Batch> {
        loop {
            let hurry = *self.hurry.borrow_and_update() > 0;
            let deadline = match self.queue.next(hurry) {
                Next::Batch(batch) => return Some(batch),
                Next::Wait(deadline) => deadline,
                Next::Over => return None,
            };
            let enough = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.queue.news.notified() => {}
                () = enough => {}
                // It can't fail: the queue has the other end.
                _ = self.hurry.changed() => {}
            }
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.queue.places.close();
        let mut waiting = self.queue.waiting();
        waiting.abandoned = true;
        let count = waiting.items.len();
        let lost = (std::mem::take(&mut waiting.items), waiting.pending.split(count), waiting.places.take());
        drop(waiting);
        drop(lost);
    }
}
