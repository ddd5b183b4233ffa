//! The usage in the admin database.

mod file;
mod go;
mod query;
mod retention;
mod rows;
mod schema;
mod store;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use self::file::Place;
pub use self::store::{BuiltinError, BuiltinStore};
use crate::{
    Entry, Report, ReportBatch, Verdict,
    database::{self, DEFAULT_BATCH_INTERVAL, DEFAULT_BATCH_SIZE, Driver, Failing, Failure, TIMEOUT},
};

/// How often it is looked for rows that are too old.
const PURGE: Duration = Duration::from_secs(3600);
/// The first time, when a start is over.
const FIRST_PURGE: Duration = Duration::from_secs(60);
/// A century, beyond which nobody means it.
const MAX_DAYS: u32 = 36_500;

/// SQLite in the admin database, `admin.db_path`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct BuiltinConfig {
    /// Days after which rows are removed; 0, never. The sums by hour and day stay.
    pub retention_days: u32,
}

/// Writes records into the [`BuiltinStore`], and removes those that are too old once an hour.
pub struct BuiltinReport {
    name: Arc<str>,
    path: PathBuf,
    config: BuiltinConfig,
    opening: Mutex<Option<JoinHandle<Result<BuiltinStore, BuiltinError>>>>,
    store: Mutex<Option<Arc<BuiltinStore>>>,
    failing: Failing,
}

// === impl BuiltinConfig ===

impl BuiltinConfig {
    /// Everything that is wrong with it: the key, and what is allowed.
    pub(crate) fn validate(&self) -> Vec<(String, String)> {
        if self.retention_days <= MAX_DAYS {
            return Vec::new();
        }
        vec![("retention_days".to_owned(), format!("must be at most {MAX_DAYS}; 0 keeps everything"))]
    }
}

// === impl BuiltinReport ===

impl BuiltinReport {
    /// A reporter of that name to the store for `path`, which is `admin.db_path`. The store is opened by the first record, or
    /// at once where there are rows of the Go program to be taken over.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(name: impl Into<Arc<str>>, config: &BuiltinConfig, path: impl Into<PathBuf>) -> Arc<Self> {
        let report = Arc::new(Self {
            name: name.into(),
            path: path.into(),
            config: config.clone(),
            opening: Mutex::default(),
            store: Mutex::default(),
            failing: Failing::default(),
        });
        tokio::spawn(take_over(Arc::downgrade(&report)));
        if config.retention_days > 0 {
            tokio::spawn(purge_hourly(Arc::downgrade(&report)));
        }
        report
    }

    /// The store, opened. That goes on if it takes longer than a try may: there may be millions of rows to take over.
    async fn store(&self) -> Result<Arc<BuiltinStore>, BuiltinError> {
        let mut current = self.store.lock().await;
        if let Some(store) = &*current {
            if store.is_there()? {
                return Ok(store.clone());
            }
            // What is written into a file without a name is lost.
            tracing::warn!(path = %store.path().display(), "the admin database was removed; its usage begins anew");
            store.close().await;
            *current = None;
        }
        drop(current);
        let mut opening = self.opening.lock().await;
        if let Some(store) = &*self.store.lock().await {
            return Ok(store.clone());
        }
        let path = self.path.clone();
        let task = opening.get_or_insert_with(|| tokio::spawn(async move { BuiltinStore::open(path).await }));
        let opened = task.await;
        *opening = None;
        let store = Arc::new(opened.map_err(std::io::Error::other)??);
        *self.store.lock().await = Some(store.clone());
        Ok(store)
    }

    async fn write(&self, entries: &[Entry]) -> Result<(), Failure> {
        let store = self.store().await.map_err(not_open)?;
        let records: Vec<_> = entries.iter().map(|entry| &*entry.record).collect();
        store.insert(&records).await.map_err(|error| match error {
            BuiltinError::Database(error) => database::judge(Driver::Sqlite, &error),
            error => Failure { refused: false, why: error.to_string() },
        })
    }

    async fn purge(&self) -> Result<u64, BuiltinError> {
        let kept = SignedDuration::from_hours(24 * i64::from(self.config.retention_days));
        self.store().await?.purge(Timestamp::now().saturating_sub(kept)?).await
    }

    fn tell(&self, written: &Result<(), Failure>) {
        let (reporter, path) = (&*self.name, self.path.display());
        match written {
            Ok(()) if self.failing.is_over() => {
                tracing::info!(reporter, "usage records are written to the admin database again");
            }
            Err(Failure { refused: false, why }) if self.failing.is_news(why) => {
                tracing::error!(
                    reporter, %path, %why,
                    "usage records can't be written to the admin database; they wait and are tried again"
                );
            }
            _ => {}
        }
    }
}

fn not_open(error: BuiltinError) -> Failure {
    match error {
        BuiltinError::Database(error) => database::not_ready(Driver::Sqlite, &error),
        error => Failure { refused: false, why: error.to_string() },
    }
}

/// Opens the store where that takes over what the Go program has: whoever looks at it need not wait for the first record.
async fn take_over(report: Weak<BuiltinReport>) {
    let Some(report) = report.upgrade() else { return };
    // What is wrong with the file the first record finds out, too.
    let Ok(Place { go: Some(from), path, .. }) = file::locate(&report.path).await else { return };
    tracing::info!(from = %from.display(), to = %path.display(), "looking for usage records of the Go program");
    if let Err(error) = report.store().await {
        report.tell(&Err(not_open(error)));
    }
}

/// Ends with the reporter.
async fn purge_hourly(report: Weak<BuiltinReport>) {
    let mut ticks = tokio::time::interval_at(Instant::now() + FIRST_PURGE, PURGE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(report) = report.upgrade() else { return };
        match report.purge().await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "removed usage records that are older than retention_days"),
            Err(error) => {
                tracing::warn!(%error, "old usage records can't be removed; it is tried again in an hour");
            }
        }
    }
}

impl Report for BuiltinReport {
    fn name(&self) -> &str {
        &self.name
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move { self.report_batch(&[entry]).await })
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    /// Without end: records wait in the ledger until somebody has put right what is wrong.
    fn max_age(&self) -> Duration {
        Duration::MAX
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        Some(self)
    }
}

impl ReportBatch for BuiltinReport {
    fn size(&self) -> usize {
        DEFAULT_BATCH_SIZE
    }

    fn interval(&self) -> Duration {
        DEFAULT_BATCH_INTERVAL
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let written = self.write(entries).await;
            self.tell(&written);
            written.map_or_else(Failure::verdict, |()| Verdict::Delivered)
        })
    }
}

impl fmt::Debug for BuiltinReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuiltinReport").field("name", &self.name).field("path", &self.path).finish_non_exhaustive()
    }
}
