//! A ledger that is broken: cut off, overwritten, on a disk that lost some of it.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Row as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{
    Durability, LedgerError,
    store::{Commit, Row, Store, left_open},
};

/// Rows that are copied in one transaction.
const STEP: usize = 512;

/// Puts the file at `path` aside and begins a new one, with everything that can still be read of the old one.
pub(super) async fn salvage(
    path: &Path,
    durability: Durability,
    why: &dyn std::fmt::Display,
) -> Result<Store, LedgerError> {
    let aside = put_aside(path).map_err(|source| LedgerError::Open { path: path.to_owned(), source })?;
    let mut store = Store::open(path, durability).await?;
    let copied = match SqliteConnectOptions::new().filename(&aside).connect().await {
        Ok(mut old) => copy(&mut old, &mut store).await,
        Err(_) => Ok(0),
    };
    let copied = copied.map_err(|source| LedgerError::Database { path: path.to_owned(), source })?;
    tracing::error!(
        path = %path.display(), %why, aside = %aside.display(), copied,
        "the usage ledger was broken; it is put aside and a new one begun with all records that could be read. Compare what \
         receivers have with the access log, and see to the disk"
    );
    Ok(store)
}

/// Whatever can be read: from the front until something can't, then from the back.
async fn copy(old: &mut SqliteConnection, store: &mut Store) -> Result<u64, sqlx::Error> {
    let mut copied = 0;
    let mut upper = i64::MAX;
    let mut lower = i64::MIN;
    for order in ["ASC", "DESC"] {
        loop {
            let (rows, seen, is_over) = read(old, lower, upper, order).await;
            match order {
                "ASC" => lower = seen.unwrap_or(lower),
                _ => upper = seen.unwrap_or(upper),
            }
            copied += rows.len() as u64;
            store.commit(&Commit { rows, ..Commit::default() }).await?;
            if is_over {
                break;
            }
        }
    }
    let opened = left_open(old).await.unwrap_or_default();
    // A reporter whose place is lost is given all of them again, rather than none.
    let places: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, seq FROM reporters").fetch_all(old).await.unwrap_or_default();
    let places = places.into_iter().map(|(name, seq)| (name.into(), seq)).collect();
    store.commit(&Commit { opened, places, ..Commit::default() }).await?;
    Ok(copied)
}

/// Some rows between the two, the number of the last that was looked at, and whether there are no more, or none that can be
/// read.
async fn read(old: &mut SqliteConnection, lower: i64, upper: i64, order: &str) -> (Vec<Row>, Option<i64>, bool) {
    let sql = format!(
        "SELECT seq, written, record, body, crc FROM records WHERE seq > ? AND seq < ? ORDER BY seq {order} LIMIT {STEP}"
    );
    let mut found = sqlx::query(AssertSqlSafe(sql)).bind(lower).bind(upper).fetch(old);
    let (mut rows, mut seen, mut looked) = (Vec::new(), None, 0);
    while let Ok(Some(row)) = found.try_next().await {
        let Ok(seq) = row.try_get(0) else { break };
        (seen, looked) = (Some(seq), looked + 1);
        // One that is damaged is left out; the next may be whole.
        rows.extend(whole(seq, &row).ok().flatten());
    }
    (rows, seen, looked < STEP)
}

fn whole(seq: i64, row: &SqliteRow) -> Result<Option<Row>, sqlx::Error> {
    let (written, record, crc): (i64, String, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(4)?);
    let body: Option<Vec<u8>> = row.try_get(3)?;
    let is_whole = crc == i64::from(crc32fast::hash(record.as_bytes()));
    Ok(is_whole.then(|| Row::new(seq, written, record, body.map(Into::into))))
}

/// Renames the file, and its log with it, which may have more than the file.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".broken-{}", Timestamp::now().as_millisecond()));
    let with = |path: &OsString, suffix: &str| {
        let mut path = path.clone();
        path.push(suffix);
        path
    };
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with(&path.as_os_str().to_owned(), suffix), with(&aside, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    Ok(aside.into())
}
