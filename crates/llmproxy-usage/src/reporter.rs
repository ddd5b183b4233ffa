//! One reporter: reads the ledger from its place on, and delivers.

mod outcome;

use std::{
    collections::VecDeque,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use self::outcome::Outcome;
use crate::{
    Entry,
    config::MAX_BATCH_INTERVAL,
    delivery::{Delivery, Gate, Watch, deliver, expired, max_age, settle_old, wants_body},
    filter::Filter,
    ledger::Ledger,
    metrics::{PENDING, UP},
};

/// Records that are read at a time; more where a batch has more.
const PAGE: usize = 256;
/// The wait after the ledger could not be read.
const READ_RETRY: Duration = Duration::from_secs(1);
/// Requests' bodies that a batch may have, in bytes, unless it is one record's; and those of all batches on their way.
const BATCH_BODIES: usize = 8 << 20;
const FLIGHT_BODIES: usize = 32 << 20;
/// The file of dead letters, beside the ledger.
pub(crate) const DEAD_LETTERS: &str = "dead-letters.jsonl";

/// A reporter that is configured. Its task ends with it; what it has had is written down, and it goes on from there when it
/// is configured again.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) name: Arc<str>,
    current: Arc<Current>,
    task: JoinHandle<()>,
}

/// How records are delivered at present.
#[derive(Debug)]
struct Current {
    delivery: RwLock<Delivery>,
    /// Told when that is another.
    changed: Notify,
    gate: Gate,
    /// Whether the configuration has it no more.
    is_gone: AtomicBool,
}

/// How many go together.
#[derive(Clone, Copy, Debug)]
struct Batching {
    size: usize,
    /// The longest that one waits for others.
    interval: Duration,
    /// Batches that are on their way at a time.
    in_flight: usize,
    with_body: bool,
}

/// What reads and delivers.
struct Feed {
    ledger: Arc<Ledger>,
    current: Arc<Current>,
    outcome: Arc<Outcome>,
    /// How far the ledger was read.
    read: i64,
    /// What was read and is not on its way, and since when the first of it waits.
    waiting: VecDeque<(i64, Entry)>,
    since: Instant,
    /// Of the bodies of what waits, and of what is on its way.
    waiting_bodies: usize,
    flight_bodies: usize,
    flight: FuturesOrdered<BoxFuture<'static, Landed>>,
}

/// A batch that is dealt with.
struct Landed {
    /// So is all up to this number.
    seq: i64,
    bodies: usize,
}

// === impl Reporter ===

impl Reporter {
    /// Starts to deliver what `ledger` has for it. As long as `hurry` is not zero, no batch waits to be full.
    pub(crate) fn start(
        name: Arc<str>,
        delivery: Delivery,
        ledger: Arc<Ledger>,
        hurry: watch::Receiver<usize>,
    ) -> Self {
        let gate = Gate::default();
        gate.set_place(delivery.place);
        let current = Arc::new(Current {
            delivery: RwLock::new(delivery),
            changed: Notify::new(),
            gate,
            is_gone: AtomicBool::new(false),
        });
        metrics::gauge!(UP, "reporter" => name.to_string()).set(1.0);
        let outcome = Outcome::new(name.clone(), current.clone(), ledger.beside(DEAD_LETTERS));
        let feed = Feed {
            read: ledger.place(&name),
            ledger,
            current: current.clone(),
            outcome: Arc::new(outcome),
            waiting: VecDeque::new(),
            since: Instant::now(),
            waiting_bodies: 0,
            flight_bodies: 0,
            flight: FuturesOrdered::new(),
        };
        Self { name, current, task: tokio::spawn(feed.run(hurry)) }
    }

    /// Delivers so from now on, what waits included. What is asked for by a receiver that was another does not hold any more.
    pub(crate) fn set_delivery(&self, delivery: Delivery) {
        let place = delivery.place;
        *self.current.delivery.write().unwrap_or_else(PoisonError::into_inner) = delivery;
        self.current.gate.set_place(place);
        self.current.changed.notify_one();
        self.nudge();
    }

    /// Tries what waits to be tried again at once, unless the receiver has asked for patience.
    pub(crate) fn nudge(&self) {
        self.current.gate.nudge();
    }

    /// Ends it because the configuration has it no more: nobody is to be alarmed by what it has not had.
    pub(crate) fn retire(self) {
        self.current.is_gone.store(true, Ordering::Release);
    }
}

/// What is on its way may be delivered once more when it is configured again.
impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Current ===

impl Current {
    fn delivery(&self) -> Delivery {
        self.delivery.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Batching ===

impl Batching {
    fn of(delivery: &Delivery) -> Self {
        let report = &delivery.report;
        // Someone else's code: what panics wants nothing.
        let ask = || {
            let batches = report.batches().map(|batches| (batches.size(), batches.interval()));
            let (size, interval) = batches.unwrap_or((1, Duration::ZERO));
            Self {
                size: size.max(1),
                interval: interval.min(MAX_BATCH_INTERVAL),
                in_flight: report.max_in_flight().max(1),
                with_body: wants_body(&**report),
            }
        };
        let nothing = Self { size: 1, interval: Duration::ZERO, in_flight: 1, with_body: false };
        catch_unwind(AssertUnwindSafe(ask)).unwrap_or(nothing)
    }
}

// === impl Feed ===

impl Feed {
    async fn run(mut self, mut hurry: watch::Receiver<usize>) {
        let mut news = self.ledger.news();
        loop {
            let delivery = self.current.delivery();
            let batching = Batching::of(&delivery);
            news.borrow_and_update();
            self.fill(batching, &delivery.filter).await;
            let is_hurry = *hurry.borrow_and_update() > 0;
            self.give_up_old(&delivery);
            let deadline = self.start(batching, is_hurry);
            if self.flight.is_empty() && self.waiting.is_empty() {
                self.reached(self.read);
            }
            self.tell_pending();
            let is_free = self.is_free(batching);
            tokio::select! {
                Some(landed) = self.flight.next(), if !self.flight.is_empty() => {
                    self.flight_bodies -= landed.bodies;
                    self.reached(landed.seq);
                }
                // Of those that can't go yet, too: how many wait is what an operator looks at in an outage.
                changed = news.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = until(deadline), if is_free => {}
                () = self.current.changed.notified() => {}
                _ = hurry.changed(), if !is_hurry => {}
            }
        }
    }

    /// Reads as much as a batch has, or as there is.
    async fn fill(&mut self, batching: Batching, filter: &Filter) {
        while self.waiting.len() < batching.size && self.waiting_bodies < BATCH_BODIES {
            let limit = batching.size.max(PAGE);
            match self.ledger.after(self.read, limit, batching.with_body).await {
                Ok(page) if page.up_to == self.read => return,
                Ok(page) => {
                    if self.waiting.is_empty() {
                        self.since = Instant::now();
                    }
                    self.read = page.up_to;
                    let wanted = page.entries.into_iter().filter(|(_, entry)| filter.wants(&entry.record));
                    let from = self.waiting.len();
                    self.waiting.extend(wanted);
                    self.waiting_bodies += self.waiting.range(from..).map(|(_, entry)| body_size(entry)).sum::<usize>();
                }
                Err(error) => {
                    tracing::error!(reporter = &*self.outcome.name, %error, "usage records wait: they can't be read");
                    sleep(READ_RETRY).await;
                }
            }
        }
    }

    /// Gives up what waits and is too old, from the first on, where the reporter has failed for long: without a try of each.
    fn give_up_old(&mut self, delivery: &Delivery) {
        let Some((failing, why)) = self.outcome.failing() else { return };
        let waiting = self.waiting.iter().map(|(_, entry)| entry);
        let old = expired(waiting, max_age(&*delivery.report), failing);
        if old > 0 {
            let (delivery, outcome) = (delivery.clone(), self.outcome.clone());
            let settle = |old: Vec<Entry>| async move { settle_old(&delivery, old, why, &*outcome).await }.boxed();
            self.take(old, settle);
        }
    }

    /// Sends what is full or has waited long enough. Returns when the next is due.
    fn start(&mut self, batching: Batching, is_hurry: bool) -> Option<Instant> {
        while self.is_free(batching) && !self.waiting.is_empty() {
            let deadline = self.since + batching.interval;
            let is_full = self.waiting.len() >= batching.size || self.waiting_bodies >= BATCH_BODIES;
            if !is_full && !is_hurry && deadline > Instant::now() {
                return Some(deadline);
            }
            let mut bodies = 0;
            let sizes = self.waiting.iter().take(batching.size).map(|(_, entry)| body_size(entry));
            let fits = sizes.take_while(|size| {
                bodies += size;
                bodies <= BATCH_BODIES
            });
            let count = fits.count().max(1);
            let (current, outcome) = (self.current.clone(), self.outcome.clone());
            self.take(count, |entries| async move { deliver(|| current.delivery(), entries, &*outcome).await }.boxed());
        }
        None
    }

    /// Has the first `count` that wait dealt with.
    fn take(&mut self, count: usize, deal: impl FnOnce(Vec<Entry>) -> BoxFuture<'static, ()>) {
        let (seqs, entries): (Vec<i64>, Vec<Entry>) = self.waiting.drain(..count).unzip();
        let bodies = entries.iter().map(body_size).sum();
        self.waiting_bodies -= bodies;
        self.flight_bodies += bodies;
        self.since = Instant::now();
        let seq = seqs.last().copied().unwrap_or(self.read);
        self.flight.push_back(deal(entries).map(move |()| Landed { seq, bodies }).boxed());
    }

    /// Whether another batch may be on its way.
    fn is_free(&self, batching: Batching) -> bool {
        self.flight.len() < batching.in_flight && self.flight_bodies < FLIGHT_BODIES
    }

    /// All up to `seq` are dealt with.
    fn reached(&self, seq: i64) {
        self.ledger.set_place(&self.outcome.name, seq);
    }

    /// Those on their way included.
    fn tell_pending(&self) {
        let pending = self.ledger.last() - self.ledger.place(&self.outcome.name);
        metrics::gauge!(PENDING, "reporter" => self.outcome.name.to_string()).set(pending as f64);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if self.current.is_gone.load(Ordering::Acquire) {
            let name = &self.outcome.name;
            metrics::gauge!(PENDING, "reporter" => name.to_string()).set(0.0);
            metrics::gauge!(UP, "reporter" => name.to_string()).set(1.0);
        }
    }
}

fn body_size(entry: &Entry) -> usize {
    entry.request_body.as_ref().map_or(0, bytes::Bytes::len)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
