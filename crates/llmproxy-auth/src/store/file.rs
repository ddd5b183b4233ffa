//! Which file is ours, and how files are opened.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use llmproxy_core::go_db;
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use super::go;
use crate::{KeyEntry, KeyStoreError};

/// How long a write waits for another process's.
const BUSY: Duration = Duration::from_secs(5);

/// A file of the Go program.
pub(super) struct Old {
    pub(super) path: PathBuf,
    pub(super) keys: Vec<KeyEntry>,
}

enum Found {
    /// Nothing yet.
    Nothing,
    /// Our own.
    Ours,
    /// The Go program's, with what is in it.
    Go(Vec<KeyEntry>),
    /// Somebody else's.
    Foreign,
}

/// The file to use for `path`, and the one of the Go program whose keys are to be taken over.
pub(super) async fn locate(path: &Path) -> Result<(PathBuf, Option<Old>), KeyStoreError> {
    let beside = go_db::beside(path);
    let (path, old) = match look(path).await? {
        Found::Ours => return Ok((path.to_owned(), None)),
        Found::Foreign => return Err(KeyStoreError::Foreign),
        // Whoever deletes the old file once its keys are taken over must not lose them by it.
        Found::Nothing if beside.exists() => (beside, None),
        Found::Nothing => return Ok((path.to_owned(), None)),
        Found::Go(keys) => (beside, Some(Old { path: path.to_owned(), keys })),
    };
    match look(&path).await? {
        Found::Nothing | Found::Ours => Ok((path, old)),
        Found::Go(_) | Found::Foreign => Err(KeyStoreError::Foreign),
    }
}

/// Opens our file; makes it, and its folder, where they are missing.
pub(super) async fn open(path: &Path) -> Result<SqliteConnection, KeyStoreError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        make_folder(folder)?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(BUSY);
    Ok(options.connect().await?)
}

/// Finds out whose file it is without changing a byte of it or leaving one beside it.
async fn look(path: &Path) -> Result<Found, KeyStoreError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Ok(Found::Nothing),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error.into()),
    }
    // Reading a file in WAL mode makes a -wal beside it, unless SQLite is told that nobody writes. Nobody does where
    // there is none yet. In the rollback-journal mode of the Go program reading makes nothing, and takes the locks that
    // keep a running writer away.
    let immutable = is_wal(path)? && !suffixed(path, "-wal").exists();
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(immutable).busy_timeout(BUSY);
    let mut connection = options.connect().await?;
    let found = ask(&mut connection).await;
    connection.close().await?;
    found
}

async fn ask(connection: &mut SqliteConnection) -> Result<Found, KeyStoreError> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
            .fetch_all(&mut *connection)
            .await?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    match () {
        () if tables.is_empty() => Ok(Found::Nothing),
        // Usage records may have been there first: they share the file.
        () if has("llmproxy_keys") || has("llmproxy_usage") => Ok(Found::Ours),
        () if has("api_keys") && go::has_clear_keys(connection).await? => Ok(Found::Go(go::read(connection).await?)),
        () => Ok(Found::Foreign),
    }
}

/// Whether the header says that the file is in WAL mode (bytes 18 and 19 of the file format).
fn is_wal(path: &Path) -> io::Result<bool> {
    let mut header = [0; 20];
    match io::Read::read_exact(&mut fs::File::open(path)?, &mut header) {
        Ok(()) => Ok(header[18] == 2 || header[19] == 2),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder.create(folder)
}
