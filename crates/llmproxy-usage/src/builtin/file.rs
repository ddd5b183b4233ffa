//! Which file holds the usage: the key store's, so that there is one to back up.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use llmproxy_core::go_db;
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use super::BuiltinError;

/// How long a write waits for another connection's, the key store's among them.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    /// The Go program's, which is never written.
    Go,
    Foreign,
}

/// Which file a path led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    number: u64,
}

/// Where the store is.
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// The file of the Go program whose records are taken over.
    pub(super) go: Option<PathBuf>,
    pub(super) exists: bool,
}

/// The file to use for `path`: itself, or the one beside it where it is the Go program's. The key store follows the same rule.
pub(super) async fn locate(path: &Path) -> Result<Place, BuiltinError> {
    let beside = go_db::beside(path);
    let (path, go) = match look(path).await? {
        Found::Ours => return Ok(Place { path: path.to_owned(), go: None, exists: true }),
        Found::Foreign => return Err(BuiltinError::Foreign(path.to_owned())),
        Found::Nothing if beside.exists() => (beside, None),
        Found::Nothing => return Ok(Place { path: path.to_owned(), go: None, exists: false }),
        Found::Go => (beside, Some(path.to_owned())),
    };
    match look(&path).await? {
        Found::Go | Found::Foreign => Err(BuiltinError::Foreign(path)),
        found => Ok(Place { path, go, exists: found == Found::Ours }),
    }
}

/// Which file is at `path`; `None` where there is none.
pub(super) fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(Identity { device: found.dev(), number: found.ino() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the store's file; makes it, and its folder, where they are missing. In the journal mode of the key store.
pub(super) async fn open(path: &Path) -> Result<SqliteConnection, BuiltinError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(BUSY)
        .disable_statement_logging();
    Ok(options.connect().await?)
}

/// Opens a file to read it, perhaps while somebody writes it.
pub(super) async fn open_to_read(path: &Path) -> Result<SqliteConnection, BuiltinError> {
    let options =
        SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY).disable_statement_logging();
    Ok(options.connect().await?)
}

async fn look(path: &Path) -> Result<Found, BuiltinError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Ok(Found::Nothing),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error.into()),
    }
    let mut connection = open_to_read(path).await?;
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
            .fetch_all(&mut connection)
            .await?;
    connection.close().await?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    Ok(match () {
        () if tables.is_empty() => Found::Nothing,
        () if has("llmproxy_keys") || has("llmproxy_usage") => Found::Ours,
        () if has("api_keys") => Found::Go,
        () => Found::Foreign,
    })
}
