//! A ledger that is broken: cut off, overwritten, on a disk that lost some of it.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{
    Durability, LedgerError,
    commit::{Commit, Row},
    crc::{is_body_whole, is_whole},
    store::{Store, left_open, places},
};

/// Rows that are copied in one transaction.
const STEP: usize = 512;

/// Puts the file at `path` aside and begins a new one, with everything that can still be read of the old one. Returns also
/// whether it is known of each reporter what it has had.
pub(super) async fn salvage(
    path: &Path,
    durability: Durability,
    why: &dyn std::fmt::Display,
) -> Result<(Store, bool), LedgerError> {
    let aside = put_aside(path).map_err(|source| LedgerError::Open { path: path.to_owned(), source })?;
    let mut store = Store::open(path, durability).await?;
    let old = match is_empty(&aside) {
        // SQLite would delete its log, which is all that there is.
        true => None,
        false => SqliteConnectOptions::new().filename(&aside).connect().await.ok(),
    };
    let copied = match old {
        Some(mut old) => {
            let copied = copy(&mut old, &mut store).await;
            let _ = old.close().await;
            copied
        }
        None => Ok((0, false)),
    };
    let (copied, are_places_known) =
        copied.map_err(|source| LedgerError::Database { path: path.to_owned(), source })?;
    tracing::error!(
        path = %path.display(), %why, aside = %aside.display(), copied,
        "the usage ledger was broken; it is put aside and a new one begun with all records that could be read. Compare what \
         receivers have with the access log, and see to the disk"
    );
    Ok((store, are_places_known))
}

/// Whether there is nothing in the file, but perhaps in its log.
pub(super) fn is_empty(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |file| file.len() == 0)
}

/// Whether there is anything in the log of the file.
pub(super) fn has_log(path: &Path) -> bool {
    !is_empty(&with(path.as_os_str(), "-wal"))
}

/// Whatever can be read: from the front until something can't, then from the back.
async fn copy(old: &mut SqliteConnection, store: &mut Store) -> Result<(u64, bool), sqlx::Error> {
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
            store.commit(&Commit { rows, ..Commit::default() }).await?.or_error()?;
            if is_over {
                break;
            }
        }
    }
    let opened = left_open(old).await.unwrap_or_default();
    // A reporter whose place is lost is given all of them again, rather than none.
    let (places, are_places_known) = places(old).await.unwrap_or_default();
    let places = places.into_iter().map(|(name, seq)| (name.into(), seq)).collect();
    store.commit(&Commit { opened, places, ..Commit::default() }).await?.or_error()?;
    Ok((copied, are_places_known))
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
        // Between the bounds is no more than a promise in a file that is broken.
        let (after, before) = match order {
            "ASC" => (seen.unwrap_or(lower), upper),
            _ => (lower, seen.unwrap_or(upper)),
        };
        if seq <= after || seq >= before {
            return (rows, seen, true);
        }
        (seen, looked) = (Some(seq), looked + 1);
        // One that is damaged is left out; the next may be whole.
        rows.extend(whole(seq, &row).ok().flatten());
    }
    (rows, seen, looked < STEP)
}

fn whole(seq: i64, row: &SqliteRow) -> Result<Option<Row>, sqlx::Error> {
    let (written, record, crc): (i64, String, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(4)?);
    let body: Option<Vec<u8>> = row.try_get(3)?;
    let body = body.filter(|body| is_body_whole(crc, body));
    Ok(is_whole(crc, seq, &record).then(|| Row::new(seq, written, record, body.map(Into::into))))
}

/// Renames the file, and its log with it, which may have more than the file.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".broken-{}", Timestamp::now().as_millisecond()));
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with(path.as_os_str(), suffix), with(&aside, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    Ok(aside.into())
}

fn with(path: &OsStr, suffix: &str) -> PathBuf {
    let mut path = path.to_owned();
    path.push(suffix);
    path.into()
}
