//! Reading the ledger: for reporters that are behind, and for a command line beside a running proxy.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::{ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{
    LedgerError,
    crc::{is_body_whole, is_whole},
    store::VERSION,
};
use crate::Entry;

/// How much of requests' bodies is read at a time, in bytes.
const MAX_BODIES: usize = 8 << 20;

/// A connection that reads, from whatever process; the one that writes is not held up.
///
/// ```no_run
/// # async fn example() -> Result<(), llmproxy_usage::LedgerError> {
/// use llmproxy_usage::LedgerReader;
///
/// let mut ledger = LedgerReader::open("./data/usage.db").await?;
/// let mut seen = 0;
/// loop {
///     let page = ledger.after(seen, 500, false).await?;
///     if page.up_to == seen {
///         break;
///     }
///     for (_, entry) in page.entries {
///         println!("{} {:?}", entry.record.request_id, entry.record.usage);
///     }
///     seen = page.up_to;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LedgerReader {
    pub(super) path: PathBuf,
    pub(super) connection: SqliteConnection,
}

/// Records in their order.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Page {
    /// Each with its number.
    pub entries: Vec<(i64, Entry)>,
    /// The number of the last one that was looked at: where to go on. A row that can't be read is passed over, with a line in
    /// the log.
    pub up_to: i64,
}

// === impl LedgerReader ===

impl LedgerReader {
    /// Opens the ledger at `path`, which must be there.
    ///
    /// # Errors
    ///
    /// Where there is none, or one that this version does not know.
    ///
    /// # Cancel safety
    ///
    /// Nothing has happened when it is dropped.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let path = path.as_ref();
        let failed = |source| LedgerError::Database { path: path.to_owned(), source };
        if let Err(source) = std::fs::metadata(path) {
            return Err(LedgerError::Open { path: path.to_owned(), source });
        }
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let mut connection = options.connect().await.map_err(failed)?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.map_err(failed)?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name IN ('records', 'open')")
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        match tables {
            2 if found > VERSION => Err(LedgerError::Newer { path: path.to_owned(), found, known: VERSION }),
            2 => Ok(Self { path: path.to_owned(), connection }),
            _ => Err(LedgerError::Foreign { path: path.to_owned() }),
        }
    }

    /// Up to `limit` records after number `seq`, each with its request's body where that was kept and `with_body` asks for
    /// it; fewer where the bodies are large.
    ///
    /// # Errors
    ///
    /// Where the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn after(&mut self, seq: i64, limit: usize, with_body: bool) -> Result<Page, LedgerError> {
        self.read(seq, limit, with_body)
            .await
            .map_err(|source| LedgerError::Database { path: self.path.clone(), source })
    }

    /// The number of the newest record; 0 where there is none.
    ///
    /// # Errors
    ///
    /// Where the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn last(&mut self) -> Result<i64, LedgerError> {
        let sql = "SELECT COALESCE(max(seq), 0) FROM records";
        let last = sqlx::query_scalar(sql).fetch_one(&mut self.connection).await;
        last.map_err(|source| LedgerError::Database { path: self.path.clone(), source })
    }

    async fn read(&mut self, seq: i64, limit: usize, with_body: bool) -> Result<Page, sqlx::Error> {
        let sql = match with_body {
            true => "SELECT seq, record, body, crc FROM records WHERE seq > ? ORDER BY seq LIMIT ?",
            false => "SELECT seq, record, NULL, crc FROM records WHERE seq > ? ORDER BY seq LIMIT ?",
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = sqlx::query(sql).bind(seq).bind(limit).fetch(&mut self.connection);
        let mut page = Page { entries: Vec::new(), up_to: seq };
        let mut bytes = 0;
        while bytes < MAX_BODIES {
            let Some(row) = rows.try_next().await? else { break };
            let seq = row.try_get(0)?;
            if seq <= page.up_to {
                // Of a broken file some would be read again and again.
                return Err(sqlx::Error::Protocol("its records are out of order".to_owned()));
            }
            page.up_to = seq;
            // What is in a column of a damaged row may be anything.
            let text: &str = row.try_get(1).unwrap_or_default();
            let mut body: Option<Vec<u8>> = row.try_get(2).unwrap_or_default();
            let crc: i64 = row.try_get(3).unwrap_or_default();
            if body.as_ref().is_some_and(|body| !is_body_whole(crc, body)) {
                tracing::error!(seq, "a request's body in the usage ledger is damaged and left out; see to the disk");
                body = None;
            }
            match serde_json::from_str(text) {
                Ok(record) if is_whole(crc, seq, text) => {
                    bytes += body.as_ref().map_or(0, Vec::len);
                    let entry = Entry { record: std::sync::Arc::new(record), request_body: body.map(Bytes::from) };
                    page.entries.push((page.up_to, entry));
                }
                read => {
                    let why =
                        read.err().map_or_else(|| "its checksum is another".to_owned(), |error| error.to_string());
                    tracing::error!(
                        seq = page.up_to,
                        why,
                        record = text,
                        "a usage record in the ledger is damaged and passed over; see to the disk"
                    );
                }
            }
        }
        Ok(page)
    }
}
