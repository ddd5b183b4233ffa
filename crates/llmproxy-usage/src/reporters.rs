//! All reporters and the ledger that they read, over all reloads.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use llmproxy_core::HttpClient;
use tokio::sync::watch;

use crate::{
    LedgerError, Report, ReporterConfig, StorageConfig, Stores, UsageConfig,
    config::MAX_QUEUE_SIZE,
    delivery::{Delivery, wants_body},
    destination::{self, Destination},
    ledger::{Durability, Ledger},
    reporter::Reporter,
};

/// All reporters, and the ledger. Long-lived: made once, told of each new configuration, and closed at the end.
///
/// A reporter is known by its name. One that a new configuration has too goes on as it is told now; one that it does not
/// have stops, and goes on from there if it comes back before what it has missed is deleted.
#[derive(Debug)]
pub struct Reporters {
    client: HttpClient,
    own: Vec<Arc<dyn Report>>,
    ledger: Mutex<Option<Arc<Ledger>>>,
    running: Mutex<Vec<Reporter>>,
    active: RwLock<Arc<Active>>,
    /// How many wait for everything to be delivered. As long as someone does, no batch waits to be full.
    hurry: watch::Sender<usize>,
}

/// What the current configuration has.
#[derive(Debug, Default)]
pub(crate) struct Active {
    /// `None` where no records are kept.
    pub(crate) ledger: Option<Arc<Ledger>>,
    pub(crate) durability: Durability,
    pub(crate) admit_timeout: Duration,
    pub(crate) commit_timeout: Duration,
    /// Whether any of the reporters wants the request's body.
    pub(crate) wants_request_body: bool,
}

/// As long as it is there, there is a hurry.
#[derive(Debug)]
struct Hurry<'a>(&'a watch::Sender<usize>);

// === impl Reporters ===

impl Reporters {
    /// No reporters yet; they will send through `client`.
    pub fn new(client: HttpClient) -> Arc<Self> {
        Self::with_own(client, Vec::new())
    }

    /// The same, and besides those of the configuration there are `own`, from the first [`apply`](Self::apply) on. They
    /// are in use whatever the configuration says, `enabled: false` included; the ledger that they read is the
    /// configuration's.
    pub fn with_own(client: HttpClient, own: Vec<Arc<dyn Report>>) -> Arc<Self> {
        Arc::new(Self {
            client,
            own,
            ledger: Mutex::default(),
            running: Mutex::default(),
            active: RwLock::default(),
            hurry: watch::Sender::new(0),
        })
    }

    /// Does what can fail of becoming what `config` says: opens the ledger, if there is to be one, and writes down where new
    /// reporters begin. What exchanges were open when the last process died is recorded.
    ///
    /// # Errors
    ///
    /// Where the ledger can't be used; then nothing has changed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the file may have been made; calling it again goes on from there.
    pub async fn open(&self, config: &UsageConfig) -> Result<(), LedgerError> {
        if !self.keeps(config) {
            return Ok(());
        }
        let open = lock(&self.ledger).clone();
        let ledger = match open {
            Some(open) => open,
            None => {
                let ledger = Ledger::open(&config.ledger, config.durability, queue_size(config)).await?;
                lock(&self.ledger).insert(ledger).clone()
            }
        };
        ledger.register(&self.names(config)).await
    }

    /// Becomes what `config` says, which was given to [`open`](Self::open) before. A reporter that
    /// [`UsageConfig::validate`] has a complaint about is left out, with a line in the log.
    ///
    /// Without a `storage` block, and with the admin database at its usual place: [`apply_with`](Self::apply_with) is told
    /// of them.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn apply(&self, config: &UsageConfig) {
        let (storage, admin_db) = (StorageConfig::default(), Path::new("./data/keys.db"));
        self.apply_with(config, Stores { storage: &storage, admin_db });
    }

    /// The same, for reporters that write into databases.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn apply_with(&self, config: &UsageConfig, stores: Stores<'_>) {
        let open = lock(&self.ledger).clone();
        let ledger = open.clone().filter(|_| self.keeps(config));
        if let (Some(open), None) = (&open, &ledger) {
            // Nobody waits for what they have yet to have.
            open.set_live([]);
        }
        let mut running = lock(&self.running);
        let mut before = std::mem::take(&mut *running);
        let mut wants_request_body = false;
        if let Some(ledger) = &ledger {
            ledger.configure(&config.ledger, config.durability, queue_size(config));
            ledger.set_live(self.names(config));
            for (name, delivery) in self.wanted(config, stores) {
                wants_request_body |= wants_body(&*delivery.report);
                let known = before.iter().position(|known| known.name == name);
                running.push(match known.map(|index| before.swap_remove(index)) {
                    Some(same) => {
                        same.set_delivery(delivery);
                        same
                    }
                    None => Reporter::start(name, delivery, ledger.clone(), self.hurry.subscribe()),
                });
            }
            for gone in &before {
                let left = ledger.last() - ledger.place(&gone.name);
                if left > 0 {
                    tracing::warn!(
                        reporter = &*gone.name,
                        left,
                        "a reporter with usage records yet to deliver is not configured any more; it goes on from there if \
                         one of that name is, as long as the ledger keeps them"
                    );
                }
            }
        }
        before.into_iter().for_each(Reporter::retire);
        let active = Active {
            ledger,
            durability: config.durability,
            admit_timeout: config.admit_timeout,
            commit_timeout: config.commit_timeout,
            wants_request_body,
        };
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(active);
    }

    /// Records that reporters have yet to deliver, each counted for each of them, and those that are not in the ledger yet.
    pub fn pending(&self) -> usize {
        lock(&self.ledger).as_ref().map_or(0, |ledger| ledger.pending())
    }

    /// Waits until every record is delivered, for `deadline` at most. Returns how many are left; they are in the ledger and go
    /// out after the next start. Meanwhile no record waits for others to go with it in a batch.
    ///
    /// # Cancel safety
    ///
    /// It only waits: delivery goes on without it.
    pub async fn flush(&self, deadline: Duration) -> usize {
        let ledger = lock(&self.ledger).clone();
        let Some(ledger) = ledger else { return 0 };
        let _hurry = Hurry::new(&self.hurry);
        // A receiver that was away may be back.
        lock(&self.running).iter().for_each(Reporter::nudge);
        // Over in time or not: there is a number to return.
        let _ = tokio::time::timeout(deadline, ledger.none_pending()).await;
        ledger.pending()
    }

    /// Stops all reporters and closes the ledger, with everything written that was handed over. Nothing is kept from then on.
    /// Returns how many records are in the ledger that reporters have yet to have, each counted for each of them; what could
    /// not be written is in the log, and not among them.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, it is as if the process had ended there: the next start finds what is not delivered.
    pub async fn close(&self) -> usize {
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        lock(&self.running).clear();
        let ledger = lock(&self.ledger).take();
        match ledger {
            Some(ledger) => {
                ledger.close().await;
                ledger.pending()
            }
            None => 0,
        }
    }

    pub(crate) fn active(&self) -> Arc<Active> {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether records are kept.
    fn keeps(&self, config: &UsageConfig) -> bool {
        config.enabled || !self.own.is_empty()
    }

    /// The reporters that are to run.
    fn names(&self, config: &UsageConfig) -> Vec<Arc<str>> {
        let own = self.own.iter().map(|report| report.name().into());
        own.chain(config.active().map(|reporter| destination::name(reporter).into())).collect()
    }

    /// The same, and how they deliver.
    fn wanted(&self, config: &UsageConfig, stores: Stores<'_>) -> Vec<(Arc<str>, Delivery)> {
        let mut wanted: Vec<(Arc<str>, Delivery)> = Vec::new();
        for report in &self.own {
            wanted.push((report.name().into(), Delivery::of(report.clone())));
        }
        for reporter in config.active() {
            let delivery = Destination::compile(reporter).and_then(|mut to| {
                let (name, is_webhook) = (to.name.clone(), to.is_webhook());
                let filter = std::mem::take(&mut to.filter);
                Ok((
                    name,
                    Delivery { report: to.report(&self.client, stores)?, filter, is_webhook, place: place(reporter) },
                ))
            });
            match delivery {
                Ok(delivery) => wanted.push(delivery),
                Err(wrong) => {
                    tracing::error!(reporter = reporter.name, ?wrong, "a usage reporter can't be used and is left out");
                }
            }
        }
        // Two of one name would share a place, and each would miss what the other has had.
        let mut names = BTreeSet::new();
        wanted.retain(|(name, _)| {
            let is_new = names.insert(name.clone());
            if !is_new {
                tracing::error!(reporter = &**name, "a second usage reporter of this name is left out");
            }
            is_new
        });
        wanted
    }
}

/// Nobody has checked it where reports are off, and there may be reporters all the same.
fn queue_size(config: &UsageConfig) -> usize {
    config.queue_size.clamp(1, MAX_QUEUE_SIZE)
}

/// Tells apart where reporters deliver to, as far as their receivers may have asked for something.
fn place(config: &ReporterConfig) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&config.kind, &config.webhook.url).hash(&mut hasher);
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Active ===

impl Active {
    pub(crate) fn is_strict(&self) -> bool {
        self.durability.is_strict()
    }
}

// === impl Hurry ===

impl<'a> Hurry<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
