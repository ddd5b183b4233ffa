//! A folder of a test's own.

use std::{
    env, fs,
    ops::Deref,
    path::{Path, PathBuf},
};

/// Removed when dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = env::temp_dir().join(format!("llmproxy-usage-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// Where its ledger is to be.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.0.join("usage.db")
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
