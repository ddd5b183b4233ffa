//! What is written in one transaction, and how.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::crc::{crc, crc_of};

/// Rows in a statement at most; with more, a row costs no less. There is a statement for each number up to that: going to the
/// thread that SQLite runs on is what costs most, so a transaction has as few as possible.
pub(super) const CHUNK: usize = 64;

/// A record as it is stored.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) seq: i64,
    pub(super) written: i64,
    pub(super) record: String,
    pub(super) body: Option<bytes::Bytes>,
}

/// What is written in one transaction.
#[derive(Debug, Default)]
pub(super) struct Commit {
    pub(super) rows: Vec<Row>,
    /// Exchanges that have begun, and what is known of them.
    pub(super) opened: Vec<(Uuid, String)>,
    /// Those of them that have ended.
    pub(super) closed: Vec<Uuid>,
    /// What reporters have had.
    pub(super) places: BTreeMap<Arc<str>, i64>,
}

// === impl Commit ===

impl Commit {
    pub(super) fn is_empty(&self) -> bool {
        self.statements() == 0
    }

    pub(super) fn is_one_statement(&self) -> bool {
        self.statements() == 1
    }

    fn statements(&self) -> usize {
        let chunks = [self.rows.len(), self.opened.len(), self.closed.len()].map(|rows| rows.div_ceil(CHUNK));
        chunks.iter().sum::<usize>() + self.places.len()
    }
}

// === impl Row ===

impl Row {
    pub(super) fn new(seq: i64, written: i64, record: String, body: Option<Bytes>) -> Self {
        Self { seq, written, record, body }
    }

    fn crc(&self) -> i64 {
        crc_of(self.seq, &self.record, self.body.as_deref())
    }
}

/// Whether its records are there already, each as it is: a transaction may have been done although it seemed to fail.
pub(super) async fn is_written(connection: &mut SqliteConnection, commit: &Commit) -> Result<bool, sqlx::Error> {
    let sql = "SELECT count(*) FROM records WHERE seq = ? AND crc = ? AND record = ?";
    for row in &commit.rows {
        let query = sqlx::query_scalar(sql).bind(row.seq).bind(row.crc()).bind(&*row.record);
        let found: i64 = query.fetch_one(&mut *connection).await?;
        if found == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes it, as part of whatever transaction there is. It is an error where the number of a record is taken.
pub(super) async fn write(connection: &mut SqliteConnection, commit: &Commit) -> Result<(), sqlx::Error> {
    write_records(connection, commit).await?;
    write_rest(connection, commit).await
}

async fn write_records(connection: &mut SqliteConnection, commit: &Commit) -> Result<(), sqlx::Error> {
    for rows in commit.rows.chunks(CHUNK) {
        let mut query = sqlx::query(AssertSqlSafe(SQL.insert[rows.len() - 1].clone()));
        for row in rows {
            query = query.bind(row.seq).bind(row.written).bind(row.crc()).bind(&*row.record).bind(row.body.as_deref());
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// All but the records. To write it twice does no harm.
pub(super) async fn write_rest(connection: &mut SqliteConnection, commit: &Commit) -> Result<(), sqlx::Error> {
    for rows in commit.opened.chunks(CHUNK) {
        let mut query = sqlx::query(AssertSqlSafe(SQL.open[rows.len() - 1].clone()));
        for (id, record) in rows {
            query = query.bind(&id.as_bytes()[..]).bind(crc(&[id.as_bytes(), record.as_bytes()])).bind(&**record);
        }
        query.execute(&mut *connection).await?;
    }
    for ids in commit.closed.chunks(CHUNK) {
        let mut query = sqlx::query(AssertSqlSafe(SQL.close[ids.len() - 1].clone()));
        for id in ids {
            query = query.bind(&id.as_bytes()[..]);
        }
        query.execute(&mut *connection).await?;
    }
    for (name, seq) in &commit.places {
        let sql = "INSERT OR REPLACE INTO reporters (name, crc, seq) VALUES (?, ?, ?)";
        let crc = crc(&[name.as_bytes(), &seq.to_le_bytes()]);
        sqlx::query(sql).bind(&**name).bind(crc).bind(seq).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Statements, by the number of rows that they are for, less one.
struct Statements {
    insert: Vec<Arc<str>>,
    open: Vec<Arc<str>>,
    close: Vec<Arc<str>>,
}

static SQL: LazyLock<Statements> = LazyLock::new(|| Statements {
    // Never in the place of another: somebody else may have written it.
    insert: statements("INSERT INTO records (seq, written, crc, record, body) VALUES ", "(?,?,?,?,?)", ""),
    open: statements("INSERT OR REPLACE INTO open (id, crc, record) VALUES ", "(?,?,?)", ""),
    close: statements("DELETE FROM open WHERE id IN (", "?", ")"),
});

fn statements(begin: &str, row: &str, end: &str) -> Vec<Arc<str>> {
    let statement = |rows| format!("{begin}{}{end}", vec![row; rows].join(",")).into();
    (1..=CHUNK).map(statement).collect()
}
