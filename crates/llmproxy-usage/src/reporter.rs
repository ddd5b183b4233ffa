//! One reporter: reads the ledger from its place on, and delivers.

use std::{
    collections::VecDeque,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
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

use crate::{
    Entry, Report,
    config::MAX_BATCH_INTERVAL,
    dead_letter::DeadLetters,
    delivery::{GivenUp, Watch, deliver},
    filter::Filter,
    ledger::Ledger,
    metrics::{DROPPED, PENDING, UP, WEBHOOK_FAILURE, WEBHOOK_SUCCESS},
};

/// Records that are read at a time; more where a batch has more.
const PAGE: usize = 256;
/// The wait after the ledger could not be read.
const READ_RETRY: Duration = Duration::from_secs(1);
/// The wait after a dead letter could not be written.
const KEEP_RETRY: Duration = Duration::from_secs(5);
/// The file of those, beside the ledger.
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
    /// Changes when what waits to be tried again had better be tried at once.
    nudges: watch::Sender<u64>,
}

/// How a reporter delivers, and what.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) report: Arc<dyn Report>,
    pub(crate) filter: Filter,
    /// Whether it counts as webhooks do.
    pub(crate) is_webhook: bool,
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
    /// Each ends with the number that all up to it are dealt with.
    flight: FuturesOrdered<BoxFuture<'static, i64>>,
}

/// What became of records: the log and the counters.
struct Outcome {
    name: Arc<str>,
    current: Arc<Current>,
    /// Where what is given up goes, unless the reporter has a file of its own.
    dead_letters: PathBuf,
    is_down: AtomicBool,
    /// Since when no try has been answered.
    failing_since: Mutex<Option<Instant>>,
    /// Looked up once, when there is something to count.
    success: OnceLock<metrics::Counter>,
    failure: OnceLock<metrics::Counter>,
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
        let current = Arc::new(Current {
            delivery: RwLock::new(delivery),
            changed: Notify::new(),
            nudges: watch::Sender::new(0),
        });
        let outcome = Outcome {
            name: name.clone(),
            current: current.clone(),
            dead_letters: ledger.beside(DEAD_LETTERS),
            is_down: AtomicBool::new(false),
            failing_since: Mutex::default(),
            success: OnceLock::new(),
            failure: OnceLock::new(),
        };
        let feed = Feed {
            read: ledger.place(&name),
            ledger,
            current: current.clone(),
            outcome: Arc::new(outcome),
            waiting: VecDeque::new(),
            since: Instant::now(),
            flight: FuturesOrdered::new(),
        };
        Self { name, current, task: tokio::spawn(feed.run(hurry)) }
    }

    /// Delivers so from now on, what waits included.
    pub(crate) fn set_delivery(&self, delivery: Delivery) {
        *self.current.delivery.write().unwrap_or_else(PoisonError::into_inner) = delivery;
        self.current.changed.notify_one();
        self.nudge();
    }

    /// Tries what waits to be tried again at once, unless the receiver has asked for patience.
    pub(crate) fn nudge(&self) {
        self.current.nudges.send_modify(|nudges| *nudges += 1);
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

// === impl Delivery ===

impl Delivery {
    fn batching(&self) -> Batching {
        let report = &self.report;
        // Someone else's code: what panics wants nothing.
        let ask = || {
            let batches = report.batches().map(|batches| (batches.size(), batches.interval()));
            let (size, interval) = batches.unwrap_or((1, Duration::ZERO));
            Batching {
                size: size.max(1),
                interval: interval.min(MAX_BATCH_INTERVAL),
                in_flight: report.max_in_flight().max(1),
                with_body: report.wants_request_body(),
            }
        };
        let nothing = Batching { size: 1, interval: Duration::ZERO, in_flight: 1, with_body: false };
        catch_unwind(AssertUnwindSafe(ask)).unwrap_or(nothing)
    }
}

// === impl Feed ===

impl Feed {
    async fn run(mut self, mut hurry: watch::Receiver<usize>) {
        let mut news = self.ledger.news();
        loop {
            let delivery = self.current.delivery();
            let batching = delivery.batching();
            news.borrow_and_update();
            self.fill(batching, &delivery.filter).await;
            let is_hurry = *hurry.borrow_and_update() > 0;
            let deadline = self.start(batching, is_hurry);
            if self.flight.is_empty() && self.waiting.is_empty() {
                self.reached(self.read);
            }
            self.tell_pending();
            let is_free = self.flight.len() < batching.in_flight;
            tokio::select! {
                Some(seq) = self.flight.next(), if !self.flight.is_empty() => self.reached(seq),
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
        while self.waiting.len() < batching.size {
            let limit = batching.size.max(PAGE);
            match self.ledger.after(self.read, limit, batching.with_body).await {
                Ok(page) if page.up_to == self.read => return,
                Ok(page) => {
                    if self.waiting.is_empty() {
                        self.since = Instant::now();
                    }
                    self.read = page.up_to;
                    let wanted = page.entries.into_iter().filter(|(_, entry)| filter.wants(&entry.record));
                    self.waiting.extend(wanted.map(|(seq, mut entry)| {
                        // Another reporter may want it.
                        entry.request_body = entry.request_body.filter(|_| batching.with_body);
                        (seq, entry)
                    }));
                }
                Err(error) => {
                    tracing::error!(reporter = &*self.outcome.name, %error, "usage records wait: they can't be read");
                    sleep(READ_RETRY).await;
                }
            }
        }
    }

    /// Sends what is full or has waited long enough. Returns when the next is due.
    fn start(&mut self, batching: Batching, is_hurry: bool) -> Option<Instant> {
        while self.flight.len() < batching.in_flight && !self.waiting.is_empty() {
            let deadline = self.since + batching.interval;
            let is_due = self.waiting.len() >= batching.size || is_hurry || deadline <= Instant::now();
            if !is_due {
                return Some(deadline);
            }
            let count = batching.size.min(self.waiting.len());
            let (seqs, entries): (Vec<i64>, Vec<Entry>) = self.waiting.drain(..count).unzip();
            self.since = Instant::now();
            let seq = seqs.last().copied().unwrap_or(self.read);
            let (current, outcome) = (self.current.clone(), self.outcome.clone());
            self.flight.push_back(
                async move {
                    deliver(|| current.delivery().report, &entries, &*outcome).await;
                    seq
                }
                .boxed(),
            );
        }
        None
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

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

// === impl Outcome ===

impl Outcome {
    /// Keeps them where a person finds them. Until that is done they are not dealt with.
    async fn keep(&self, entries: &[Entry], reason: &str) {
        let own = || self.current.delivery().report.dead_letter().map(Path::to_owned);
        let own = catch_unwind(AssertUnwindSafe(own)).unwrap_or_default();
        let letters = DeadLetters::new(own.unwrap_or_else(|| self.dead_letters.clone()));
        while let Err(error) = letters.append(&self.name, reason, entries).await {
            tracing::error!(reporter = &*self.name, %error, "usage records that were given up are held until they can be kept");
            sleep(KEEP_RETRY).await;
        }
    }
}

impl Watch for Outcome {
    fn settle<'a>(&'a self, entries: &'a [Entry], end: Result<(), GivenUp>) -> BoxFuture<'a, ()> {
        async move {
            let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
            let is_webhook = self.current.delivery().is_webhook;
            let Err(GivenUp { reason, why, .. }) = end else {
                if is_webhook {
                    self.success.get_or_init(|| metrics::counter!(WEBHOOK_SUCCESS)).increment(count);
                }
                return;
            };
            let reporter = &*self.name;
            for Entry { record, .. } in entries {
                tracing::error!(reporter, request_id = %record.request_id, reason, %why, "a usage record was given up");
            }
            self.keep(entries, &format!("{reason}: {why}")).await;
            if is_webhook {
                self.failure.get_or_init(|| metrics::counter!(WEBHOOK_FAILURE)).increment(count);
            }
            metrics::counter!(DROPPED, "reporter" => reporter.to_owned(), "reason" => reason).increment(count);
        }
        .boxed()
    }

    fn failed(&self, why: &str, tries: u32, retries: u32) -> Duration {
        if tries > retries && !self.is_down.swap(true, Ordering::AcqRel) {
            metrics::gauge!(UP, "reporter" => self.name.to_string()).set(0.0);
            tracing::warn!(
                reporter = &*self.name,
                why,
                "the reporter takes no usage records; they wait in the ledger, and it is tried about twice a minute"
            );
        }
        let mut since = self.failing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(Instant::now).elapsed()
    }

    fn answered(&self) {
        *self.failing_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if self.is_down.swap(false, Ordering::AcqRel) {
            metrics::gauge!(UP, "reporter" => self.name.to_string()).set(1.0);
            tracing::info!(reporter = &*self.name, "the reporter takes usage records again");
        }
    }

    fn nudges(&self) -> watch::Receiver<u64> {
        self.current.nudges.subscribe()
    }
}
