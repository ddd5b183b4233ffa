//! Opening the file: looking it over, and settling what the last process left.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Durability, LedgerError,
    commit::{Commit, Row},
    salvage,
    store::{self, Store},
};

/// A ledger that can be written.
pub(super) struct Started {
    pub(super) store: Store,
    /// The number of the newest record.
    pub(super) last: i64,
    /// What each reporter has had.
    pub(super) places: Vec<(String, i64)>,
    /// Whether these are all.
    pub(super) are_places_known: bool,
}

/// How long a start waits for another program that has locked the file, as a proxy that runs does.
const PATIENCE: Duration = Duration::from_secs(30);
/// The wait before it is tried again, besides the one of each statement.
const AGAIN: Duration = Duration::from_millis(100);

/// Opens the file, looks it over, and settles what the last process left. Waits where another program has locked it.
pub(super) async fn start(path: &Path, durability: Durability) -> Result<Started, LedgerError> {
    let since = Instant::now();
    let mut is_said = false;
    loop {
        match try_start(path, durability).await {
            Err(LedgerError::Database { source, .. }) if store::is_locked(&source) => {}
            started => return started,
        }
        if since.elapsed() >= PATIENCE {
            return Err(LedgerError::Locked { path: path.to_owned() });
        }
        if !std::mem::replace(&mut is_said, true) {
            tracing::warn!(
                path = %path.display(), patience = ?PATIENCE,
                "the start waits: another program has locked the usage ledger; `fuser` or `lsof` with its path names it"
            );
        }
        sleep(AGAIN).await;
    }
}

async fn try_start(path: &Path, durability: Durability) -> Result<Started, LedgerError> {
    let failed = |source| LedgerError::Database { path: path.to_owned(), source };
    let (mut store, are_places_known) = open(path, durability).await?;
    let settled = async {
        let last = settle(&mut store).await?;
        Ok((last, store.places().await?))
    };
    match settled.await {
        Ok((last, places)) => Ok(Started { store, last, places, are_places_known }),
        Err(source) => {
            store.abandon().await;
            Err(failed(source))
        }
    }
}

/// Opens the file, and looks it over where the last process did not close it. Returns also whether it is known of each
/// reporter what it has had.
async fn open(path: &Path, durability: Durability) -> Result<(Store, bool), LedgerError> {
    let broken = match try_open(path, durability).await {
        Err(LedgerError::Database { source, .. }) if store::is_broken(&source) => source,
        opened => return Ok((opened?, true)),
    };
    let (mut store, are_places_known) = salvage::salvage(path, durability, &broken).await?;
    let failed = |source| LedgerError::Database { path: path.to_owned(), source };
    store.was_closed().await.map_err(failed)?;
    Ok((store, are_places_known))
}

async fn try_open(path: &Path, durability: Durability) -> Result<Store, LedgerError> {
    let failed = |source| LedgerError::Database { path: path.to_owned(), source };
    if salvage::is_empty(path) && salvage::has_log(path) {
        let what = "there is nothing in it, and something in its log".to_owned();
        return Err(failed(sqlx::Error::Protocol(what)));
    }
    let mut store = Store::open(path, durability).await?;
    let looked = async {
        if !store.was_closed().await? {
            store.check().await?;
        }
        // All that is needed can be read.
        store.last().await?;
        store.left_open().await?;
        store.places().await?;
        Ok(())
    };
    match looked.await {
        Ok(()) => Ok(store),
        Err(error) => {
            store.abandon().await;
            Err(failed(error))
        }
    }
}

/// Records what was open when the last process died. Returns the number of the newest record.
async fn settle(store: &mut Store) -> Result<i64, sqlx::Error> {
    let last = store.last().await?;
    let open = store.left_open().await?;
    if open.is_empty() {
        return Ok(last);
    }
    let written = jiff::Timestamp::now().as_millisecond();
    let mut commit = Commit::default();
    let mut newest = last;
    for (id, record) in open {
        newest += 1;
        commit.rows.push(Row::new(newest, written, record, None));
        commit.closed.push(id);
    }
    store.commit(&commit).await?.or_error()?;
    tracing::warn!(
        exchanges = newest - last,
        "the last process of this proxy died with exchanges open; they are recorded with the end `proxy_died`"
    );
    Ok(newest)
}
