//! Records in a SQL database: PostgreSQL, MySQL and MariaDB, SQLite.

mod columns;
mod connect;
#[cfg(feature = "databases")]
mod dsn;
mod failing;
mod insert;
mod storage;
mod table;
mod verdict;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::{sync::Mutex, task::JoinHandle};

pub use self::storage::{DatabaseConfig, StorageConfig};
pub(crate) use self::{
    columns::{COLUMNS, Column, Kind, Row, Value},
    failing::Failing,
    storage::Driver,
    verdict::{Failure, judge, not_ready},
};
use self::{
    connect::{Connections, Target},
    table::{Prepared, Table},
};
use crate::{
    Entry, Report, ReportBatch, Verdict,
    config::{MAX_BATCH_INTERVAL, MAX_BATCH_SIZE},
};

/// The Go program's.
const DEFAULT_TABLE: &str = "usage_records";
pub(crate) const DEFAULT_BATCH_SIZE: usize = 500;
pub(crate) const DEFAULT_BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// For a batch that is long, on a server that is busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A table of a database of `storage.databases`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct DatabaseReporterConfig {
    /// The database's name among `storage.databases`.
    pub storage: String,
    /// The table, which is made where it is missing; `usage_records`. `schema.table` is in a schema, which is not made.
    pub table: String,
    /// Whether the column `request_body` is filled, prompts included; false.
    pub include_request_body: bool,
    /// Records in a transaction at most; 500. From 1 to 1000.
    pub batch_size: usize,
    /// How long a record waits for others to fill its batch; 1s, an hour at most.
    #[serde(with = "llmproxy_core::duration")]
    pub batch_interval: Duration,
}

/// Writes records into a table.
///
/// It connects when the first record comes, and then makes the table, or adds to it what it lacks; a server that is down
/// costs nothing but the wait. Batches are written in one transaction each, and a record that is there already is left
/// as it is. What the server, the account or the table does not allow may be put right, so that it is
/// [`Verdict::Again`]; only what is refused for the row's own content is [`Verdict::Refused`].
///
/// ```
/// use llmproxy_usage::{DatabaseConfig, DatabaseReport, DatabaseReporterConfig, StorageConfig};
///
/// let database = DatabaseConfig {
///     name: "billing".into(), driver: "sqlite".into(), path: "usage.db".into(), ..DatabaseConfig::default()
/// };
/// let storage = StorageConfig { databases: vec![database] };
/// let config = DatabaseReporterConfig { storage: "billing".into(), ..DatabaseReporterConfig::default() };
/// let report = DatabaseReport::new("billing", &config, &storage).unwrap();
/// # let _: &dyn llmproxy_usage::Report = &report;
/// ```
pub struct DatabaseReport {
    name: Arc<str>,
    shared: Arc<Shared>,
    include_request_body: bool,
    batch_size: usize,
    batch_interval: Duration,
    preparing: Mutex<Option<JoinHandle<Result<Prepared, Failure>>>>,
    ready: Mutex<Option<Prepared>>,
    failing: Failing,
}

struct Shared {
    target: Target,
    config: DatabaseConfig,
    /// Made with the first record: a pool wants the runtime.
    connections: std::sync::OnceLock<Connections>,
    table: Table,
}

// === impl DatabaseReporterConfig ===

impl DatabaseReporterConfig {
    /// Everything that is wrong with it by itself: the key, and what is allowed.
    pub(crate) fn validate(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.storage.is_empty() {
            wrong.push(("storage".to_owned(), "must be given: the name of an entry of storage.databases".to_owned()));
        }
        if let Err(what) = Table::parse(&self.table) {
            wrong.push(("table".to_owned(), what));
        }
        if !(1..=MAX_BATCH_SIZE).contains(&self.batch_size) {
            wrong.push(("batch_size".to_owned(), format!("must be from 1 to {MAX_BATCH_SIZE}")));
        }
        if self.batch_interval.is_zero() || self.batch_interval > MAX_BATCH_INTERVAL {
            wrong.push(("batch_interval".to_owned(), "must be longer than 0s and at most 1h".to_owned()));
        }
        wrong
    }
}

impl Default for DatabaseReporterConfig {
    fn default() -> Self {
        Self {
            storage: String::new(),
            table: DEFAULT_TABLE.to_owned(),
            include_request_body: false,
            batch_size: DEFAULT_BATCH_SIZE,
            batch_interval: DEFAULT_BATCH_INTERVAL,
        }
    }
}

// === impl DatabaseReport ===

impl DatabaseReport {
    /// A reporter of that name. It does not connect yet.
    ///
    /// # Errors
    ///
    /// Everything that is wrong: the key below the reporter's `database`, or one of `storage`, and what is wrong with it.
    pub fn new(
        name: impl Into<Arc<str>>,
        config: &DatabaseReporterConfig,
        storage: &StorageConfig,
    ) -> Result<Self, Vec<(String, String)>> {
        let wrong = config.validate();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let one = |key: &str, what: String| vec![(key.to_owned(), what)];
        let (index, database) = storage.find(&config.storage).map_err(|what| one("storage", what))?;
        let wrong = database.validate();
        if !wrong.is_empty() {
            let place = |(key, what)| (format!("storage.databases[{index}].{key}"), what);
            return Err(wrong.into_iter().map(place).collect());
        }
        let driver = database.driver().map_err(|what| one("storage", what))?;
        let target = Target::of(database, driver).map_err(|(key, what)| one(key, what))?;
        let table = Table::parse(&config.table).map_err(|what| one("table", what))?;
        let shared = Shared { target, config: database.clone(), connections: std::sync::OnceLock::new(), table };
        Ok(Self {
            name: name.into(),
            shared: Arc::new(shared),
            include_request_body: config.include_request_body,
            batch_size: config.batch_size,
            batch_interval: config.batch_interval,
            preparing: Mutex::default(),
            ready: Mutex::default(),
            failing: Failing::default(),
        })
    }

    async fn write(&self, entries: &[Entry]) -> Result<(), Failure> {
        let prepared = self.ready().await?;
        let connections = self.shared.connections();
        let driver = connections.driver();
        let mut rows = Vec::with_capacity(entries.len());
        for entry in entries {
            let body = entry.request_body.as_ref().filter(|_| self.include_request_body);
            if body.is_some() {
                // A body takes a while by itself, and other tasks run on this thread.
                tokio::task::yield_now().await;
            }
            let request_body = body.and_then(|body| columns::body_text(body, driver));
            rows.push(Row { record: &entry.record, request_body });
        }
        let written = insert::insert(connections, &self.shared.table, prepared, &rows).await;
        match written.map_err(|error| verdict::judge(driver, &error)) {
            Err(failure) if !failure.refused => {
                // Perhaps the table is not what it was.
                *self.ready.lock().await = None;
                Err(failure)
            }
            other => other,
        }
    }

    /// Waits until the table is what it must be. That goes on if it takes longer than a try may: an index on a table of
    /// millions takes its time.
    async fn ready(&self) -> Result<Prepared, Failure> {
        if let Some(prepared) = *self.ready.lock().await {
            return Ok(prepared);
        }
        let mut preparing = self.preparing.lock().await;
        if let Some(prepared) = *self.ready.lock().await {
            return Ok(prepared);
        }
        let shared = self.shared.clone();
        let task = preparing.get_or_insert_with(|| tokio::spawn(async move { shared.prepare().await }));
        let prepared = task.await;
        *preparing = None;
        let prepared = prepared.unwrap_or_else(|error| Err(Failure { refused: false, why: error.to_string() }))?;
        *self.ready.lock().await = Some(prepared);
        Ok(prepared)
    }

    /// Tells the operator when it begins to fail, when it fails for another reason, and when that is over.
    fn tell(&self, written: &Result<(), Failure>) {
        let (reporter, database) = (&*self.name, &*self.shared.config.name);
        match written {
            Ok(()) if self.failing.is_over() => {
                tracing::info!(reporter, database, "usage records are written to the database again");
            }
            Err(Failure { refused: false, why }) if self.failing.is_news(why) => {
                tracing::error!(
                    reporter, database, %why,
                    "usage records can't be written to the database; they wait and are tried again"
                );
            }
            _ => {}
        }
    }
}

impl Report for DatabaseReport {
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

    fn wants_request_body(&self) -> bool {
        self.include_request_body
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        Some(self)
    }
}

impl ReportBatch for DatabaseReport {
    fn size(&self) -> usize {
        self.batch_size
    }

    fn interval(&self) -> Duration {
        self.batch_interval
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let written = self.write(entries).await;
            self.tell(&written);
            written.map_or_else(Failure::verdict, |()| Verdict::Delivered)
        })
    }
}

impl fmt::Debug for DatabaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseReport")
            .field("name", &self.name)
            .field("database", &self.shared.config.name)
            .field("table", &self.shared.table)
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn connections(&self) -> &Connections {
        self.connections.get_or_init(|| self.target.connect_lazily(&self.config))
    }

    async fn prepare(&self) -> Result<Prepared, Failure> {
        let connections = self.connections();
        connections.make_place().map_err(|error| {
            let why = format!("{}: {error}; see that its folder can be made", self.config.path.display());
            Failure { refused: false, why }
        })?;
        let prepared = table::prepare(connections, &self.table).await;
        prepared.map_err(|error| verdict::not_ready(connections.driver(), &error))
    }
}
