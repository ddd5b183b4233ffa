//! What can be wrong with the ledger's file.

use std::{io, path::PathBuf};

/// Why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// Another process has it.
    #[error(
        "the usage ledger {} is in use by another llmproxy; stop that one, or give this one a file of its own by \
         usage.ledger.path",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Another program has locked it, and goes on to have.
    #[error(
        "the usage ledger {0} is locked by another program, such as a `sqlite3` with a transaction that is open, or a backup; \
         `fuser {0}` or `lsof {0}` names it: end it, then start again",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is a file, but no database.
    #[error(
        "{} is not a database, so that it can't be the usage ledger, and is left as it is; name another file by \
         usage.ledger.path. If it was the ledger once, its beginning is overwritten: move it away, and see to the disk",
        path.display()
    )]
    NoDatabase {
        /// The file.
        path: PathBuf,
    },
    /// A version that this one does not know has made it.
    #[error(
        "the usage ledger {} was made by a newer llmproxy (its version is {found}, this one knows {known}); use that \
         program, or another file by usage.ledger.path",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// It is the database of something else.
    #[error(
        "{} is a database, but not a usage ledger; name another file by usage.ledger.path",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It can't be made or opened.
    #[error("the usage ledger {} can't be opened: {source}; see that its folder exists and can be written", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It can be read, but not written at present.
    #[error(
        "the usage ledger {} can't be written at present, so that it can't be noted where a new reporter begins; see to its \
         disk, then reload",
        path.display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
    },
    /// SQLite failed at it.
    #[error("the usage ledger {} can't be used: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
}
