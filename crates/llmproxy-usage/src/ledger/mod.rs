//! The ledger: the file that every record goes into first.
//!
//! Exchanges hand over what becomes of them without waiting (`inbox`); one task writes whatever has come together (`writer`,
//! `store`), and each reporter reads on from where it is (`recent`, `reader`).

mod commit;
mod config;
mod crc;
mod error;
mod inbox;
mod lock;
mod prune;
mod reader;
mod recent;
mod reserved;
mod salvage;
#[cfg(test)]
pub(crate) mod scratch;
mod seek;
mod slots;
mod start;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Method;
use llmproxy_core::Exchange;
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use uuid::Uuid;

pub(crate) use self::reserved::Reserved;
pub use self::{
    config::{Durability, LedgerConfig},
    error::LedgerError,
    reader::{LedgerReader, Page},
    seek::ReporterPlace,
};
use self::{
    inbox::{Inbox, Item},
    lock::Lock,
    recent::Recent,
    slots::{Slot, Slots},
    start::Started,
    writer::Writer,
};
use crate::Entry;

/// How long it may take to write down where a new reporter begins.
const REGISTER: Duration = Duration::from_secs(10);

/// The ledger of this process.
#[derive(Debug)]
pub(crate) struct Ledger {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// For those who are further behind than what is in memory.
    reader: tokio::sync::Mutex<Option<LedgerReader>>,
    /// As the configuration names it.
    path: PathBuf,
    /// The writer looks at it once in a while.
    _lock: Arc<Lock>,
}

/// What the ledger and its writer both have.
#[derive(Debug)]
pub(crate) struct Shared {
    path: PathBuf,
    inbox: Inbox,
    slots: Arc<Slots>,
    recent: Mutex<Recent>,
    /// The number of the newest record.
    last: watch::Sender<i64>,
    failing: AtomicBool,
    /// Whether something of the file could not be read: it is looked over at the next start.
    suspect: AtomicBool,
    settings: Mutex<Settings>,
    places: Mutex<Places>,
    /// Told whenever a reporter has had more.
    pub(crate) progress: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    durability: Durability,
    max_age: Duration,
    max_size: u64,
}

/// What reporters have had.
#[derive(Debug, Default)]
struct Places {
    all: BTreeMap<Arc<str>, i64>,
    /// Where one begins that is not among them; `None`, at the end.
    begin: Option<i64>,
    /// Those that are configured; `None` before that was said, and then nothing is deleted.
    live: Option<HashSet<Arc<str>>>,
}

// === impl Ledger ===

impl Ledger {
    /// Opens the file, or makes it, and starts to write. What was open when the last process died is recorded.
    pub(crate) async fn open(
        config: &LedgerConfig,
        durability: Durability,
        queue_size: usize,
    ) -> Result<Arc<Self>, LedgerError> {
        let lock = Arc::new(Lock::new(&config.path)?);
        let path = lock.path();
        let Started { store, last, places, are_places_known } = start::start(path, durability).await?;
        let places = Places {
            all: places.into_iter().map(|(name, seq)| (name.into(), seq)).collect(),
            // Rather twice than never.
            begin: (!are_places_known).then_some(0),
            live: None,
        };
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            inbox: Inbox::default(),
            slots: Slots::new(queue_size),
            recent: Mutex::default(),
            last: watch::Sender::new(last),
            failing: AtomicBool::new(false),
            settings: Mutex::new(Settings { durability, max_age: config.max_age, max_size: config.max_size }),
            places: Mutex::new(places),
            suspect: AtomicBool::new(false),
            progress: Notify::new(),
        });
        let writer = Writer::new(shared.clone(), store, last, Arc::downgrade(&lock));
        let writer = Mutex::new(Some(tokio::spawn(writer.run())));
        let reader = tokio::sync::Mutex::default();
        Ok(Arc::new(Self { shared, writer, reader, path: config.path.clone(), _lock: lock }))
    }

    /// The file `name` in the same folder.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// Takes what a new configuration says; not the path, which needs a restart.
    pub(crate) fn configure(&self, config: &LedgerConfig, durability: Durability, queue_size: usize) {
        *lock_of(&self.shared.settings) = Settings { durability, max_age: config.max_age, max_size: config.max_size };
        self.shared.slots.set_limit(queue_size);
    }

    /// Whether what was tried last could not be written.
    pub(crate) fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Acquire)
    }

    /// A place, if there is one. Where the file can't be written, those who may go on without.
    pub(crate) fn try_reserve(&self, id: Uuid, body: Option<&Bytes>) -> Option<Reserved> {
        let slot = self.shared.slots.try_take();
        let is_loose = slot.is_none() && self.is_failing() && !self.shared.durability().is_strict();
        (slot.is_some() || is_loose).then(|| self.reserved(slot, id, body))
    }

    /// A place, as soon as there is one.
    pub(crate) async fn reserve(&self, id: Uuid, body: Option<&Bytes>) -> Reserved {
        let slot = self.shared.slots.take().await;
        self.reserved(Some(slot), id, body)
    }

    /// Writes down that an exchange has begun; who asks is told when that is done.
    pub(crate) fn begin(
        &self,
        exchange: Arc<Exchange>,
        method: Method,
        path: Arc<str>,
        tell: bool,
    ) -> Option<Committed> {
        let (committed, told) = oneshot::channel();
        let committed = tell.then_some(committed);
        // Its exchange bounds it, unless it goes on without a place: then it may be left out.
        let is_bounded = tell || !self.is_failing();
        let limit = if is_bounded { usize::MAX } else { self.shared.slots.limit() };
        let _ = self.shared.inbox.push(Item::Begun { exchange, method, path, committed }, limit);
        tell.then_some(told)
    }

    /// Records after `seq`, with their numbers, and how far that is; nothing where there are none yet.
    pub(crate) async fn after(&self, seq: i64, limit: usize, with_body: bool) -> Result<Page, LedgerError> {
        if self.last() <= seq {
            return Ok(Page { entries: Vec::new(), up_to: seq });
        }
        if let Some(entries) = lock_of(&self.shared.recent).after(seq, limit, with_body) {
            let up_to = entries.last().map_or(seq, |(last, _)| *last);
            return Ok(Page { entries, up_to });
        }
        let mut reader = self.reader.lock().await;
        let open = match reader.take() {
            Some(open) => open,
            None => LedgerReader::open(&self.shared.path).await?,
        };
        // After a failure a new one is opened.
        let mut read = reader.insert(open).after(seq, limit, with_body).await;
        match &mut read {
            // A number that is damaged must not hide those that are yet to come.
            Ok(page) => page.up_to = page.up_to.min(self.last()),
            Err(error) => {
                *reader = None;
                let is_broken = matches!(error, LedgerError::Database { source, .. } if store::is_broken(source));
                if is_broken && !self.shared.suspect.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        path = %self.shared.path.display(),
                        "the usage ledger is broken; restart the proxy, which saves what can be read of it, and see to the disk"
                    );
                }
            }
        }
        read
    }

    /// The number of the newest record.
    pub(crate) fn last(&self) -> i64 {
        *self.shared.last.borrow()
    }

    /// A change of that.
    pub(crate) fn news(&self) -> watch::Receiver<i64> {
        self.shared.last.subscribe()
    }

    /// Writes down that these reporters begin here, as far as they are new. Until that is on the disk, none of them may miss
    /// anything: so it is waited for.
    ///
    /// # Errors
    ///
    /// Where it can't be written in time; then they are as new as before.
    pub(crate) async fn register(&self, names: &[Arc<str>]) -> Result<(), LedgerError> {
        let last = self.last();
        let mut new = Vec::new();
        for name in names {
            let mut places = lock_of(&self.shared.places);
            if !places.all.contains_key(name) {
                let begin = places.begin.unwrap_or(last);
                places.all.insert(name.clone(), begin);
                self.shared.inbox.set_place(name.clone(), begin);
                new.push(name);
            }
        }
        if new.is_empty() || timeout(REGISTER, self.shared.barrier()).await.is_ok() {
            return Ok(());
        }
        let mut places = lock_of(&self.shared.places);
        places.all.retain(|name, _| !new.contains(&name));
        Err(LedgerError::Unwritable { path: self.shared.path.clone() })
    }

    /// Of these alone records are kept until they have had them. What need not be kept any more goes soon.
    pub(crate) fn set_live(&self, names: impl IntoIterator<Item = Arc<str>>) {
        lock_of(&self.shared.places).live = Some(names.into_iter().collect());
        self.shared.inbox.ask_prune();
        self.shared.progress.notify_waiters();
    }

    /// What the reporter `name` has had.
    pub(crate) fn place(&self, name: &str) -> i64 {
        lock_of(&self.shared.places).all.get(name).copied().unwrap_or_else(|| self.last())
    }

    /// It has had everything up to `seq`.
    pub(crate) fn set_place(&self, name: &Arc<str>, seq: i64) {
        let before = lock_of(&self.shared.places).all.insert(name.clone(), seq);
        if before != Some(seq) {
            self.shared.inbox.set_place(name.clone(), seq);
            self.shared.progress.notify_waiters();
        }
    }

    /// Records that live reporters have yet to have, each counted for each of them.
    pub(crate) fn pending(&self) -> usize {
        let last = self.last();
        let places = lock_of(&self.shared.places);
        let pending = places.live().map(|seq| last - seq);
        usize::try_from(pending.sum::<i64>()).unwrap_or_default() + self.shared.inbox.unwritten()
    }

    /// Waits until there are none.
    ///
    /// # Cancel safety
    ///
    /// It only waits.
    pub(crate) async fn none_pending(&self) {
        loop {
            let progress = self.shared.progress.notified();
            if self.pending() == 0 {
                return;
            }
            progress.await;
        }
    }

    /// Writes what there is and closes the file.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the writer goes on by itself.
    pub(crate) async fn close(&self) {
        self.shared.inbox.close();
        let writer = lock_of(&self.writer).take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "what writes the usage ledger has failed");
        }
    }

    fn reserved(&self, slot: Option<Slot>, id: Uuid, body: Option<&Bytes>) -> Reserved {
        Reserved::new(self.shared.clone(), slot, id, body.cloned())
    }
}

/// Tells when something is on the disk, or there is nothing to be there; an error where it will not be.
pub(crate) type Committed = oneshot::Receiver<()>;

// === impl Shared ===

impl Shared {
    fn durability(&self) -> Durability {
        lock_of(&self.settings).durability
    }

    fn retention(&self) -> (Duration, u64) {
        let settings = lock_of(&self.settings);
        (settings.max_age, settings.max_size)
    }

    /// What every live reporter has had; nothing, as long as it is not known who they are.
    fn floor(&self, last: i64) -> i64 {
        let places = lock_of(&self.places);
        if places.live.is_none() {
            return 0;
        }
        places.live().min().unwrap_or(last)
    }

    /// `entries` are written, after number `last`. Returns the number of the newest.
    fn publish(&self, last: i64, entries: Vec<Entry>) -> i64 {
        let mut recent = lock_of(&self.recent);
        if *self.last.borrow() != last {
            // Somebody else has written some between: those are in the file alone.
            *recent = Recent::default();
        }
        let mut newest = last;
        for entry in entries {
            newest += 1;
            recent.push(newest, entry);
        }
        drop(recent);
        self.last.send_replace(newest);
        newest
    }

    /// Waits until all that was handed over before is written.
    async fn barrier(&self) {
        let (committed, told) = oneshot::channel();
        let _ = self.inbox.push(Item::Barrier { committed }, usize::MAX);
        // An error says that the writer has ended, with everything written or in the log.
        let _ = told.await;
    }
}

// === impl Places ===

impl Places {
    /// What each of those that are configured has had.
    fn live(&self) -> impl Iterator<Item = i64> {
        self.live.iter().flatten().filter_map(|name| self.all.get(name)).copied()
    }
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
