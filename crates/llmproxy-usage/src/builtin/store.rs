//! The store: one SQLite file, written by one connection.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use llmproxy_core::UsageRecord;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Mutex;

use super::{file, go, query, retention, rows, schema};
use crate::totals::{Query, Total};

/// Why the builtin store can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuiltinError {
    /// There is nothing to be read yet.
    #[error("no usage is stored at {} yet; it begins with the first record of a reporter of type builtin", .0.display())]
    Missing(PathBuf),
    /// The file is something else.
    #[error("{} is the database of something else; name another file in admin.db_path", .0.display())]
    Foreign(PathBuf),
    /// There is nothing yet but what the Go program has.
    #[error(
        "no usage is stored at {} yet: what the Go program has in {} is taken over when a proxy starts that has a reporter \
         of type builtin", .path.display(), .from.display()
    )]
    NotTakenOver {
        /// Where it will be.
        path: PathBuf,
        /// The Go program's file.
        from: PathBuf,
    },
    /// Another file was put in the place of the one that is open.
    #[error("{} is another file than the one that was opened; restart the proxy to write into it", .0.display())]
    Replaced(PathBuf),
    /// The file was written by a later version.
    #[error("the usage there is of version {found}, and this program knows up to {known}; use a newer llmproxy")]
    Newer {
        /// The file's version.
        found: i64,
        /// The latest that is known.
        known: i64,
    },
    /// The file can't be made or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A moment beyond those that there are.
    #[error(transparent)]
    Time(#[from] jiff::Error),
    /// SQLite's.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The usage in the admin database: the records of late, and sums by hour and day that outlive them.
///
/// The file is the key store's (`admin.db_path`), and so is the rule where it is: a file of the Go program there is only
/// read, and what is ours stands beside it. Each time that the store is opened to be written, rows that the Go program has
/// added since are taken over.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir().join(format!("llmproxy-usage-doc-{}", std::process::id()));
/// use llmproxy_core::{Endpoint, UsageRecord};
/// use llmproxy_usage::{BuiltinStore, Group, Query};
///
/// let store = BuiltinStore::open(folder.join("keys.db")).await?;
/// store.insert(&[&UsageRecord::new(Endpoint::of("/v1/completions"))]).await?;
///
/// // Somebody else asks, while the proxy writes.
/// let reader = BuiltinStore::open_to_read(folder.join("keys.db")).await?;
/// let totals = reader.totals(&Query { by: Group::Day, ..Query::default() }).await?;
/// assert_eq!(totals[0].requests, 1);
/// # reader.close().await;
/// # store.close().await;
/// # std::fs::remove_dir_all(folder)?;
/// # Ok(())
/// # }
/// ```
pub struct BuiltinStore {
    connection: Mutex<Option<SqliteConnection>>,
    path: PathBuf,
    identity: Option<file::Identity>,
    /// The file of the Go program whose records are taken over.
    go: Option<PathBuf>,
}

// === impl BuiltinStore ===

impl BuiltinStore {
    /// Opens the store for `path`, `admin.db_path`, to write it. Its folder and the file are made where they are missing.
    ///
    /// # Errors
    ///
    /// If the file can't be made or read, or is the database of something else.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, it may have made the file, and taken over a part of the Go program's rows; opening it again goes
    /// on from there.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, BuiltinError> {
        let place = file::locate(path.as_ref()).await?;
        let mut connection = file::open(&place.path).await?;
        schema::prepare(&mut connection).await?;
        if let Some(from) = &place.go {
            let imported = go::import(&mut connection, from).await?;
            if imported != go::Imported::default() {
                tracing::info!(
                    from = %from.display(), to = %place.path.display(), rows = imported.rows, skipped = imported.skipped,
                    "took over usage records of the Go program; its file stays as it is"
                );
            }
        }
        let identity = file::identity(&place.path)?;
        Ok(Self { connection: Mutex::new(Some(connection)), identity, path: place.path, go: place.go })
    }

    /// Opens the store for `path`, `admin.db_path`, to read it only; a proxy may write it meanwhile.
    ///
    /// # Errors
    ///
    /// If there is none, the file can't be read, or is the database of something else.
    ///
    /// # Cancel safety
    ///
    /// It changes nothing.
    pub async fn open_to_read(path: impl AsRef<Path>) -> Result<Self, BuiltinError> {
        let place = file::locate(path.as_ref()).await?;
        let missing = |path, go| match go {
            Some(from) => BuiltinError::NotTakenOver { path, from },
            None => BuiltinError::Missing(path),
        };
        if !place.exists {
            return Err(missing(place.path, place.go));
        }
        let mut connection = file::open_to_read(&place.path).await?;
        if !schema::is_prepared(&mut connection).await? {
            return Err(missing(place.path, place.go));
        }
        let identity = file::identity(&place.path)?;
        Ok(Self { connection: Mutex::new(Some(connection)), identity, path: place.path, go: place.go })
    }

    /// Whether the file that is open is still where it was; an error where there is another one in its place. To close ours
    /// would remove the log of that one, which SQLite finds by its name.
    pub(super) fn is_there(&self) -> Result<bool, BuiltinError> {
        match file::identity(&self.path)? {
            None => Ok(false),
            found if found == self.identity => Ok(true),
            Some(_) => Err(BuiltinError::Replaced(self.path.clone())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes records and adds them to the sums, all or none. Those that were written before, by their `request_id`, are
    /// left as they are, even where their rows have been removed since.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing is written, or all if it was being committed.
    pub async fn insert(&self, records: &[&UsageRecord]) -> Result<(), BuiltinError> {
        rows::insert(open(&mut *self.connection.lock().await)?, records).await
    }

    /// What `query` asks for, in the order of the groups' names. Whole hours and days are complete however old they are;
    /// an hour that the query cuts in two is counted as a whole once its rows have been removed: [`covered`](Self::covered).
    ///
    /// # Errors
    ///
    /// If the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn totals(&self, query: &Query) -> Result<Vec<Total>, BuiltinError> {
        query::totals(open(&mut *self.connection.lock().await)?, query).await
    }

    /// `query` about the time that [`totals`](Self::totals) answers it for: to whole hours where single records are gone.
    ///
    /// # Errors
    ///
    /// If the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn covered(&self, query: &Query) -> Result<Query, BuiltinError> {
        query::covered(open(&mut *self.connection.lock().await)?, query).await
    }

    /// How many rows of the Go program have not been taken over yet, and the file that they are in; `None` where there are
    /// none.
    ///
    /// # Errors
    ///
    /// If one of the files can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn not_taken_over(&self) -> Result<Option<(u64, &Path)>, BuiltinError> {
        let Some(from) = self.go.as_deref() else { return Ok(None) };
        let left = go::left(open(&mut *self.connection.lock().await)?, from).await?;
        Ok((left > 0).then_some((left, from)))
    }

    /// The hour that the sums begin with; `None` where nothing is stored.
    ///
    /// # Errors
    ///
    /// If the file can't be read.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn since(&self) -> Result<Option<Timestamp>, BuiltinError> {
        query::since(open(&mut *self.connection.lock().await)?).await
    }

    /// Removes the rows of requests from before `before`, in small pieces, between which others may write. The sums stay.
    /// Returns how many were removed.
    ///
    /// # Errors
    ///
    /// If the file can't be written; what was removed by then stays removed.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, some are removed.
    pub async fn purge(&self, before: Timestamp) -> Result<u64, BuiltinError> {
        let mut sum = 0;
        loop {
            let removed = retention::purge(open(&mut *self.connection.lock().await)?, before).await?;
            sum += removed;
            if retention::is_all(removed) {
                return Ok(sum);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Closes the file in good order; what needs it fails from now on.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the file is closed all the same, a little later.
    pub async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the usage store did not close in good order; nothing is lost");
        }
    }
}

fn open(connection: &mut Option<SqliteConnection>) -> Result<&mut SqliteConnection, BuiltinError> {
    connection.as_mut().ok_or(BuiltinError::Database(sqlx::Error::PoolClosed))
}

impl fmt::Debug for BuiltinStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuiltinStore").field("path", &self.path).finish_non_exhaustive()
    }
}
