//! Opening the file: looking it over, and settling what the last process left.

use std::path::Path;

use super::{
    Durability, LedgerError,
    commit::{Commit, Row},
    salvage,
    store::{self, Store},
};

/// Opens the file, and looks it over where the last process did not close it. Returns also whether it is known of each
/// reporter what it has had.
pub(super) async fn open(path: &Path, durability: Durability) -> Result<(Store, bool), LedgerError> {
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
pub(super) async fn settle(store: &mut Store) -> Result<i64, sqlx::Error> {
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
