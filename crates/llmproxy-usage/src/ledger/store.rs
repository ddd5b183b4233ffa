//! The ledger's file: a SQLite database in WAL mode, which one process writes and any number may read.
//!
//! SQLite because a second process can read it meanwhile (`llmproxy usage tail`), because a torn write is undone by the
//! checksums of its log, and because an operator has a tool for it. Each record has a checksum besides: the file's pages have
//! none, and a disk may give back something else than it was given.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use uuid::Uuid;

use super::{
    Durability, LedgerError,
    commit::{CHUNK, Commit, is_written, write, write_rest},
    crc::crc,
    prune::{self, Old, Pruned},
};

/// The version that is written into the file.
pub(super) const VERSION: i64 = 1;
/// "llmp": how `file` and we tell it from other databases.
const APPLICATION_ID: i64 = 0x6c6c_6d70;
/// How long it is waited for somebody who holds a lock, such as a backup.
const BUSY: Duration = Duration::from_secs(5);
/// Statements that are kept ready: as many as there are numbers of rows, for each of three tables.
const STATEMENTS: usize = 4 * CHUNK;
/// In bytes. Larger pages than SQLite's own take a tenth less room, and a checkpoint of as many of them is a shorter stall.
const PAGE_SIZE: u32 = 8192;
/// How much of the log is left when it was copied into the file, in bytes: a reader that was slow once may have made it long.
const LOG_LIMIT: &str = "67108864";

// Sequence numbers are never used twice, hence AUTOINCREMENT: a reporter's place is one of them, and outlives the rows.
const SCHEMA: &str = "
    CREATE TABLE records (
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        written INTEGER NOT NULL, -- milliseconds since 1970
        crc INTEGER NOT NULL,     -- CRC-32 of the body, and in the lower half that of the number and the record
        record TEXT NOT NULL,     -- JSON
        body BLOB                 -- the request's, where a reporter wants it
    );
    CREATE TABLE open (
        id BLOB NOT NULL PRIMARY KEY,
        crc INTEGER NOT NULL,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE reporters (
        name TEXT NOT NULL PRIMARY KEY,
        crc INTEGER NOT NULL,
        seq INTEGER NOT NULL      -- the last record that it has had
    ) WITHOUT ROWID;
    CREATE TABLE state (clean INTEGER NOT NULL);
    INSERT INTO state VALUES (1);
";

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    durability: Durability,
    /// `None` after a failure: whatever state the connection is in, a new one is in none.
    connection: Option<SqliteConnection>,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Written {
    /// It is written.
    All,
    /// Nothing is: somebody else has written records of these numbers.
    Taken,
}

// === impl Store ===

impl Store {
    /// Opens the file at `path`, which nobody else writes; makes it where it is missing.
    pub(super) async fn open(path: &Path, durability: Durability) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::Database { path: path.to_owned(), source };
        let mut connection = connect(path, durability).await.map_err(failed)?;
        match identify(&mut connection, path).await {
            Ok(()) => Ok(Self { path: path.to_owned(), durability, connection: Some(connection) }),
            Err(error) => {
                // Else its thread closes it some time later, and takes the log of whatever file has the name by then.
                let _ = connection.close().await;
                Err(error)
            }
        }
    }

    /// Lets go of the file as it is.
    pub(super) async fn abandon(self) {
        if let Some(connection) = self.connection {
            let _ = connection.close().await;
        }
    }

    /// Whether the last one who wrote it closed it. It counts as open from now on.
    pub(super) async fn was_closed(&mut self) -> Result<bool, sqlx::Error> {
        let connection = self.connection().await?;
        let clean: bool = sqlx::query_scalar("SELECT clean FROM state").fetch_one(&mut *connection).await?;
        sqlx::query("UPDATE state SET clean = 0").execute(connection).await?;
        Ok(clean)
    }

    /// Looks at all of it: whether each page is there and is what it should be.
    pub(super) async fn check(&mut self) -> Result<(), sqlx::Error> {
        let said: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(self.connection().await?).await?;
        if said == "ok" { Ok(()) } else { Err(sqlx::Error::Protocol(said)) }
    }

    /// The number of the last record that there ever was. A broken disk may have lost it, and reporters have had it: then they
    /// would take the next of that number for one that they know.
    pub(super) async fn last(&mut self) -> Result<i64, sqlx::Error> {
        let sql = "SELECT max(COALESCE((SELECT max(seq) FROM sqlite_sequence WHERE name = 'records'), 0),
                              COALESCE((SELECT max(seq) FROM records), 0),
                              COALESCE((SELECT max(seq) FROM reporters), 0))";
        sqlx::query_scalar(sql).fetch_one(self.connection().await?).await
    }

    /// The exchanges that were open when the last process died.
    pub(super) async fn left_open(&mut self) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
        left_open(self.connection().await?).await
    }

    /// What each reporter has had; an error where one of them is damaged.
    pub(super) async fn places(&mut self) -> Result<Vec<(String, i64)>, sqlx::Error> {
        match places(self.connection().await?).await? {
            (places, true) => Ok(places),
            (_, false) => Err(sqlx::Error::Protocol("the place of a reporter is damaged".to_owned())),
        }
    }

    /// Writes all of it, or nothing. What was written before as it is counts as written.
    pub(super) async fn commit(&mut self, commit: &Commit) -> Result<Written, sqlx::Error> {
        let done = match self.try_commit(commit).await {
            Err(error) if is_taken(&error) => self.commit_again(commit).await,
            done => done.map(|()| Written::All),
        };
        self.forget_if_failed(done)
    }

    /// One step of deleting what need not be kept. As long as it takes, others can't write: so it is short.
    pub(super) async fn prune(&mut self, old: &Old) -> Result<Pruned, sqlx::Error> {
        let done = prune::step(self.connection().await?, old).await;
        self.forget_if_failed(done)
    }

    /// Writes from now on as `durability` says.
    pub(super) async fn set_durability(&mut self, durability: Durability) -> Result<(), sqlx::Error> {
        if std::mem::replace(&mut self.durability, durability) == durability {
            return Ok(());
        }
        let sql = match durability {
            Durability::Relaxed => "PRAGMA synchronous = NORMAL",
            Durability::Strict => "PRAGMA synchronous = FULL",
        };
        let done = sqlx::query(sql).execute(self.connection().await?).await.map(drop);
        self.forget_if_failed(done)
    }

    /// Leaves the file as one that was closed, with nothing in its log; as one that is to be looked over where it is suspect.
    pub(super) async fn close(mut self, is_suspect: bool) -> Result<(), sqlx::Error> {
        let connection = self.connection().await?;
        sqlx::query("UPDATE state SET clean = ?").bind(!is_suspect).execute(&mut *connection).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await?;
        match self.connection {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }

    async fn try_commit(&mut self, commit: &Commit) -> Result<(), sqlx::Error> {
        let connection = self.connection().await?;
        // One statement is a transaction by itself.
        if commit.is_one_statement() {
            return write(connection, commit).await;
        }
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        write(&mut transaction, commit).await?;
        transaction.commit().await
    }

    /// The same, where the number of a record is there already.
    async fn commit_again(&mut self, commit: &Commit) -> Result<Written, sqlx::Error> {
        let mut transaction = self.connection().await?.begin_with("BEGIN IMMEDIATE").await?;
        if !is_written(&mut transaction, commit).await? {
            transaction.rollback().await?;
            return Ok(Written::Taken);
        }
        write_rest(&mut transaction, commit).await?;
        transaction.commit().await?;
        Ok(Written::All)
    }

    async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.path, self.durability).await?,
        };
        Ok(self.connection.insert(connection))
    }

    fn forget_if_failed<T>(&mut self, done: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if done.is_err() {
            self.connection = None;
        }
        done
    }
}

// === impl Written ===

impl Written {
    /// For those who were alone with the file a moment ago.
    pub(super) fn or_error(self) -> Result<(), sqlx::Error> {
        match self {
            Self::All => Ok(()),
            Self::Taken => Err(sqlx::Error::Protocol("somebody else writes it".to_owned())),
        }
    }
}

/// Whether it says that the file is not what it should be, rather than that it can't be read or written at present.
pub(super) fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            // ERROR (a table is missing), CORRUPT, CONSTRAINT, MISMATCH, FORMAT, NOTADB, or one of their extended codes.
            let code = error.code().and_then(|code| code.parse::<i32>().ok());
            code.is_some_and(|code| matches!(code & 0xff, 1 | 11 | 19 | 20 | 24 | 26))
        }
        sqlx::Error::Protocol(_)
        | sqlx::Error::RowNotFound
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    }
}

/// Whether it says that another program has locked the file.
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    // BUSY and LOCKED.
    code.is_some_and(|code| matches!(code & 0xff, 5 | 6))
}

/// Whether it says that there is a row of that number.
fn is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// The exchanges that are noted as begun.
pub(super) async fn left_open(connection: &mut SqliteConnection) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
    let open: Vec<(Vec<u8>, i64, String)> =
        sqlx::query_as("SELECT id, crc, record FROM open ORDER BY id").fetch_all(connection).await?;
    let whole = |(id, noted, record): (Vec<u8>, i64, String)| {
        let is_whole = noted == crc(&[&id, record.as_bytes()]);
        if !is_whole {
            tracing::error!(record, "the note of an exchange that was open is damaged and left out; see to the disk");
        }
        Uuid::from_slice(&id).ok().filter(|_| is_whole).map(|id| (id, record))
    };
    Ok(open.into_iter().filter_map(whole).collect())
}

/// What each reporter has had, and whether these are all.
pub(super) async fn places(connection: &mut SqliteConnection) -> Result<(Vec<(String, i64)>, bool), sqlx::Error> {
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT name, crc, seq FROM reporters").fetch_all(connection).await?;
    let count = rows.len();
    let whole = |(name, noted, seq): (String, i64, i64)| {
        (noted == crc(&[name.as_bytes(), &seq.to_le_bytes()])).then_some((name, seq))
    };
    let places: Vec<_> = rows.into_iter().filter_map(whole).collect();
    let are_all = places.len() == count;
    Ok((places, are_all))
}

async fn connect(path: &Path, durability: Durability) -> Result<SqliteConnection, sqlx::Error> {
    let synchronous = match durability {
        // In WAL mode the log alone is synced, and only before it is copied into the file.
        Durability::Relaxed => SqliteSynchronous::Normal,
        Durability::Strict => SqliteSynchronous::Full,
    };
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(PAGE_SIZE)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .pragma("journal_size_limit", LOG_LIMIT)
        .busy_timeout(BUSY)
        .statement_cache_capacity(STATEMENTS)
        .connect()
        .await
}

/// Sees that the file is a ledger; one that is empty becomes one.
async fn identify(connection: &mut SqliteConnection, path: &Path) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Database { path: path.to_owned(), source };
    let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let application: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    match (application, version) {
        (APPLICATION_ID, VERSION) => Ok(()),
        (APPLICATION_ID, found) if found > VERSION => {
            Err(LedgerError::Newer { path: path.to_owned(), found, known: VERSION })
        }
        _ => create(connection, path).await,
    }
}

/// The tables, in a file that has none.
async fn create(connection: &mut SqliteConnection, path: &Path) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Database { path: path.to_owned(), source };
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master").fetch_one(&mut *connection).await.map_err(failed)?;
    if tables > 0 {
        return Err(LedgerError::Foreign { path: path.to_owned() });
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await.map_err(failed)?;
    let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}");
    sqlx::raw_sql(AssertSqlSafe(marks)).execute(&mut *transaction).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}
