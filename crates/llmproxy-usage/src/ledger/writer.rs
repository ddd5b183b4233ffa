//! The task that writes: whatever has come together goes into one transaction.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::Timestamp;
use llmproxy_core::{End, UsageRecord};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use super::{
    Durability, LedgerError, Shared,
    commit::{Commit, Row},
    inbox::{Item, Taken},
    lock::Lock,
    prune::{Old, Pruned},
    slots::Slot,
    store::{Store, Written},
};
use crate::{
    Entry,
    metrics::{DROPPED, LEDGER_BYTES, LEDGER_FAILING},
};

/// How long what nobody waits for is waited for, so that more goes with it. With the time that it takes to write, the
/// promise is ten milliseconds.
const WINDOW: Duration = Duration::from_millis(5);
/// Items in a transaction at most, and bytes of bodies.
const MAX_ITEMS: usize = 1024;
const MAX_BYTES: usize = 16 << 20;
/// Records are made into text at a stretch, in some microseconds each; then others have the thread.
const BETWEEN_YIELDS: usize = 64;
/// How long places of reporters may wait to be written: after a crash what came since then is delivered once more.
const PLACES: Duration = Duration::from_secs(1);
const PRUNE: Duration = Duration::from_secs(60);
/// How long others may write between two steps of it, at least: as long as the last one took, and
const BETWEEN_STEPS: Duration = Duration::from_millis(10);
/// A step that takes longer is told of.
const LONG_STEP: Duration = Duration::from_secs(1);
/// How often it is looked whether others see that the file is in use, while it is written.
const LOCK: Duration = Duration::from_secs(1);
/// Waits between tries to write, and between lines in the log about them.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
const BETWEEN_LINES: Duration = Duration::from_secs(60);
/// How long the last records are tried to be written at the end.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// What writes, and what it must remember.
pub(super) struct Writer {
    shared: Arc<Shared>,
    store: Store,
    /// The number of the last record.
    last: i64,
    /// The exchanges that the file has as begun.
    open: HashSet<Uuid>,
    prune_at: Instant,
    lock: Weak<Lock>,
    /// When it was looked at.
    locked_at: Instant,
    /// When it was said that there is another one.
    told_of_another: Option<Instant>,
}

/// A transaction, and who is told when it is done.
#[derive(Default)]
struct Work {
    commit: Commit,
    entries: Vec<Entry>,
    committed: Vec<oneshot::Sender<()>>,
    /// Free again when it is done.
    slots: Vec<Slot>,
}

// === impl Writer ===

impl Writer {
    /// Writes after record `last`, as long as there is the lock.
    pub(super) fn new(shared: Arc<Shared>, store: Store, last: i64, lock: Weak<Lock>) -> Self {
        let now = Instant::now();
        Self { shared, store, last, open: HashSet::new(), prune_at: now, lock, locked_at: now, told_of_another: None }
    }

    /// Writes until the inbox is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            self.wait().await;
            let taken = self.shared.inbox.take(MAX_ITEMS, MAX_BYTES);
            let mut work = self.prepare(taken).await;
            if !work.commit.is_empty() && !self.write(&mut work.commit).await {
                self.give_up(&work);
                return;
            }
            self.publish(work);
            self.check_lock().await;
            if self.shared.inbox.take_prune() || self.prune_at <= Instant::now() {
                self.prune().await;
            }
            if self.shared.inbox.has_ended() {
                break;
            }
        }
        let is_suspect = self.shared.suspect.load(std::sync::atomic::Ordering::Acquire);
        if let Err(error) = self.store.close(is_suspect).await {
            tracing::warn!(%error, "the usage ledger was not closed in good order; it is looked over at the next start");
        }
    }

    /// Waits for something to do, and then for more of it, unless somebody waits for it.
    async fn wait(&self) {
        let inbox = &self.shared.inbox;
        loop {
            if !inbox.is_empty() || inbox.is_closing() {
                break;
            }
            if inbox.is_prune() {
                return;
            }
            let places = inbox.places_since().map(|since| since + PLACES);
            let next = places.map_or(self.prune_at, |places| places.min(self.prune_at));
            if next <= Instant::now() {
                return;
            }
            tokio::select! {
                () = inbox.news.notified() => {}
                () = sleep_until(next) => return,
            }
        }
        let until = Instant::now() + WINDOW;
        while !inbox.is_urgent() && inbox.len() < MAX_ITEMS {
            tokio::select! {
                () = inbox.news.notified() => {}
                () = sleep_until(until) => return,
            }
        }
    }

    async fn prepare(&mut self, taken: Taken) -> Work {
        let mut work = Work::default();
        work.commit.places = taken.places;
        let mut begun: HashMap<Uuid, Item> = HashMap::new();
        let written = Timestamp::now().as_millisecond();
        let mut seq = self.last;
        for (index, item) in taken.items.into_iter().enumerate() {
            match item {
                Item::Begun { ref exchange, .. } => {
                    begun.insert(exchange.id(), item);
                }
                Item::Unrecorded { id, slot } => {
                    self.close(id, &mut begun, &mut work);
                    work.slots.extend(slot);
                }
                Item::Barrier { committed } => work.committed.push(committed),
                Item::Ended { record, body, slot, committed } => {
                    self.close(record.request_id, &mut begun, &mut work);
                    seq += 1;
                    work.commit.rows.push(Row::new(seq, written, text(&record), body.clone()));
                    work.entries.push(Entry { record, request_body: body });
                    work.committed.extend(committed);
                    work.slots.extend(slot);
                }
            }
            if index % BETWEEN_YIELDS == BETWEEN_YIELDS - 1 {
                tokio::task::yield_now().await;
            }
        }
        for (id, item) in begun {
            let Item::Begun { exchange, method, path, committed } = item else { continue };
            let record = UsageRecord {
                end: End::ProxyDied,
                // Not known.
                status: 0,
                error: Some("the proxy's process died before the exchange had ended".into()),
                ..UsageRecord::of(&exchange, &method, &path)
            };
            work.commit.opened.push((id, text(&record)));
            work.committed.extend(committed);
        }
        work
    }

    /// An exchange has ended: what is written of its beginning goes, or is not written.
    fn close(&self, id: Uuid, begun: &mut HashMap<Uuid, Item>, work: &mut Work) {
        if let Some(Item::Begun { committed, .. }) = begun.remove(&id) {
            work.committed.extend(committed);
        }
        if self.open.contains(&id) {
            work.commit.closed.push(id);
        }
    }

    /// Tries until it is done; `false` where the end of the process came first.
    async fn write(&mut self, commit: &mut Commit) -> bool {
        let (mut wait, mut said, mut closing_since) = (FIRST_RETRY, None::<Instant>, None::<Instant>);
        loop {
            let error = match self.try_write(commit).await {
                Ok(()) if said.is_some() => {
                    self.shared.set_failing(false);
                    tracing::info!("the usage ledger is written again");
                    return true;
                }
                Ok(()) => return true,
                Err(error) => error,
            };
            self.shared.set_failing(true);
            if said.is_none_or(|said| said.elapsed() >= BETWEEN_LINES) {
                said = Some(Instant::now());
                tracing::error!(
                    path = %self.shared.path.display(), %error, records = commit.rows.len(),
                    "the usage ledger can't be written; see to its disk. Records are kept in memory meanwhile, as many as \
                     usage.queue_size"
                );
            }
            if self.shared.inbox.is_closing() {
                let since = *closing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= LAST_TRIES {
                    return false;
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(LAST_RETRY);
        }
    }

    async fn try_write(&mut self, commit: &mut Commit) -> Result<(), sqlx::Error> {
        self.store.set_durability(self.shared.durability()).await?;
        while self.store.commit(commit).await? == Written::Taken {
            // Right after whatever that one has written: what it writes next must not be before what reporters have had. And
            // forward also where a broken file says less than it has.
            let tried = commit.rows.first().map_or(self.last, |row| row.seq);
            let last = self.store.last().await?.max(tried);
            self.tell_of_another(last);
            self.last = last;
            for (row, seq) in commit.rows.iter_mut().zip(last + 1..) {
                row.seq = seq;
            }
        }
        Ok(())
    }

    /// Whether other processes see it.
    async fn check_lock(&mut self) {
        let Some(lock) = self.lock.upgrade().filter(|_| self.locked_at.elapsed() >= LOCK) else { return };
        self.locked_at = Instant::now();
        // A file system that hangs must not take a thread of the runtime with it.
        match tokio::task::spawn_blocking(move || lock.check()).await {
            Ok(Ok(false)) | Err(_) => {}
            Ok(Ok(true)) => tracing::error!(
                path = %self.shared.path.display(),
                "the lock file of the usage ledger, its name and `.lock`, was removed while the proxy runs; it is made again. \
                 Leave it there: without it a second proxy may write the ledger"
            ),
            Ok(Err(LedgerError::InUse { .. })) => self.tell_of_another(self.last),
            Ok(Err(error)) => tracing::warn!(%error, "the lock of the usage ledger can't be looked at"),
        }
    }

    fn tell_of_another(&mut self, last: i64) {
        if self.told_of_another.is_none_or(|told| told.elapsed() >= BETWEEN_LINES) {
            self.told_of_another = Some(Instant::now());
            tracing::error!(
                path = %self.shared.path.display(), expected = self.last, last,
                "another process writes the usage ledger too; nothing is overwritten, but each takes the other's open \
                 requests for dead when it starts. Find it (`fuser` or `lsof` with the ledger's path) and stop it, or give \
                 it a file of its own by usage.ledger.path"
            );
        }
    }

    /// What was written is there for everybody.
    fn publish(&mut self, work: Work) {
        for id in &work.commit.closed {
            self.open.remove(id);
        }
        self.open.extend(work.commit.opened.iter().map(|(id, _)| *id));
        if !work.entries.is_empty() {
            self.last = self.shared.publish(self.last, work.entries);
        }
        self.shared.inbox.written();
        self.shared.progress.notify_waiters();
        for committed in work.committed {
            // Whoever waited may have gone.
            let _ = committed.send(());
        }
    }

    /// The process ends and they can't be written: the log is all that is left.
    fn give_up(&self, work: &Work) {
        self.shared.lose(work.entries.iter().map(|entry| &entry.record), "unwritable");
        loop {
            let taken = self.shared.inbox.take(MAX_ITEMS, usize::MAX);
            if taken.items.is_empty() && self.shared.inbox.has_ended() {
                // Nothing waits for them.
                self.shared.inbox.written();
                self.shared.progress.notify_waiters();
                return;
            }
            for item in &taken.items {
                if let Item::Ended { record, .. } = item {
                    self.shared.lose([record], "unwritable");
                }
            }
        }
    }

    /// One step of it, and when the next is due.
    async fn prune(&mut self) {
        let (max_age, max_size) = self.shared.retention();
        let age = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::now().as_millisecond().saturating_sub(age);
        let floor = self.shared.floor(self.last);
        let started = Instant::now();
        let pruned = self.store.prune(&Old { seq: floor, before, max_size }).await;
        let took = started.elapsed();
        let has_more = matches!(pruned, Ok(Pruned { has_more: true, .. }));
        self.prune_at = Instant::now() + if has_more { took.max(BETWEEN_STEPS) } else { PRUNE };
        if took >= LONG_STEP && pruned.is_ok() {
            tracing::warn!(
                ?took,
                "deleting old usage records is slow, and no record was written meanwhile; see to the disk"
            );
        }
        match pruned {
            Ok(Pruned { size, .. }) => {
                metrics::gauge!(LEDGER_BYTES).set(size as f64);
                if !has_more && size > max_size {
                    tracing::warn!(
                        size,
                        max_size,
                        undelivered = self.last - floor,
                        "the usage ledger is larger than usage.ledger.max_size: a reporter has not had its records yet, and \
                         they are kept until it has"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "old records of the usage ledger can't be deleted"),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn set_failing(&self, failing: bool) {
        self.failing.store(failing, std::sync::atomic::Ordering::Release);
        metrics::gauge!(LEDGER_FAILING).set(if failing { 1.0 } else { 0.0 });
    }

    /// They are written nowhere but here.
    pub(super) fn lose<'a>(&self, records: impl IntoIterator<Item = &'a Arc<UsageRecord>>, reason: &'static str) {
        for record in records {
            metrics::counter!(DROPPED, "reporter" => "ledger", "reason" => reason).increment(1);
            tracing::error!(
                reason,
                record = text(record),
                "a usage record can't be kept: the ledger is closed, or can't be written and there is no room for it in memory"
            );
        }
    }
}

/// As it is stored.
pub(super) fn text(record: &UsageRecord) -> String {
    serde_json::to_string(record).expect("its keys are text")
}

impl Durability {
    /// Whether an answer's end waits for its record.
    pub(crate) fn is_strict(self) -> bool {
        self == Self::Strict
    }
}
