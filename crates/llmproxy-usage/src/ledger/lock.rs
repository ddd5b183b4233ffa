//! Which process writes the file.
//!
//! A lock on the database file itself would be of no use: SQLite locks it too, and where these locks meet (over NFS, on BSD)
//! it could not write any more. So there is a file beside it, found by the real name of the ledger.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{LedgerError, salvage};

/// What a database of SQLite begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Held as long as the process lives: two writers would take each other's open exchanges for dead. The file stays; the lock
/// goes with the process.
#[derive(Debug)]
pub(super) struct Lock {
    /// The ledger, by its real name: a link to it has the same lock, and its log is beside the file.
    path: PathBuf,
    name: PathBuf,
    file: Mutex<File>,
}

// === impl Lock ===

impl Lock {
    /// Keeps all other processes from writing the ledger at `path`. The file is there from then on, perhaps empty.
    pub(super) fn new(path: &Path) -> Result<Self, LedgerError> {
        let open = |source| LedgerError::Open { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(open)?;
        }
        // SQLite would make it for everybody to read, and there may be prompts in it. Its log is made as the file is. It is
        // closed again before SQLite opens it, whose own locks would go with it.
        let ledger = private().open(path).map_err(open)?;
        let is_link = fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink());
        let real = if is_link { fs::canonicalize(path).map_err(open)? } else { path.to_owned() };
        let mut name = real.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let file = private().open(&name).map_err(open)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LedgerError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(open(source)),
        }
        // What is in its log may be a ledger whose first page is lost; anything else is somebody else's.
        if !is_database(&ledger).map_err(open)? && !salvage::has_log(&real) {
            return Err(LedgerError::NoDatabase { path: path.to_owned() });
        }
        if links(&ledger).map_err(open)? > 1 {
            tracing::warn!(
                path = %real.display(),
                "the usage ledger has another name (a hard link); what opens it by that name has not all of it, and breaks it \
                 when it writes. Remove that name"
            );
        }
        Ok(Self { path: real, name, file: Mutex::new(file) })
    }

    /// The real name of the ledger.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sees that its file is there, so that others see the lock. Where it was removed it is made again, and this returns `true`.
    pub(super) fn check(&self) -> Result<bool, LedgerError> {
        let open = |source| LedgerError::Open { path: self.name.clone(), source };
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match fs::metadata(&self.name) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(open(error)),
        };
        if found.is_some_and(|found| held.metadata().is_ok_and(|held| is_same(&found, &held))) {
            return Ok(false);
        }
        let file = private().open(&self.name).map_err(open)?;
        match file.try_lock() {
            Ok(()) => {
                *held = file;
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Err(LedgerError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(open(source)),
        }
    }
}

/// How a file is made that is nobody else's business.
fn private() -> OpenOptions {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Whether it begins as one, as far as it goes.
fn is_database(file: &File) -> io::Result<bool> {
    let mut begin = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut begin)?;
    Ok(MAGIC.starts_with(&begin))
}

#[cfg(unix)]
fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// A file that is open can't be removed there.
#[cfg(not(unix))]
fn is_same(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

#[cfg(unix)]
fn links(file: &File) -> io::Result<u64> {
    file.metadata().map(|file| std::os::unix::fs::MetadataExt::nlink(&file))
}

#[cfg(not(unix))]
fn links(_: &File) -> io::Result<u64> {
    Ok(1)
}
