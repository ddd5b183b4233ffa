//! The certificates that backends name as files (`ca_file`): read with each configuration, and not when other backends are
//! found, since a file that is gone at that moment says nothing of a backend that works.

use std::{collections::HashMap, fs, mem, path::PathBuf, sync::Arc};

use crate::config::BackendConfig;

/// What the files had when they were read.
#[derive(Debug, Default)]
pub(super) struct Authorities(HashMap<PathBuf, Arc<[u8]>>);

// === impl Authorities ===

impl Authorities {
    /// Reads the files that these name once more. What can't be read stays as it was.
    pub(super) fn read_again(&mut self, backends: &[BackendConfig]) {
        let mut before = mem::take(&mut self.0);
        for path in backends.iter().filter_map(|backend| backend.ca_file.as_ref()) {
            if let (Err(error), Some(pem)) = (self.of(path), before.remove(path)) {
                tracing::warn!(%error, "what was read of a file of certificates before is used");
                self.0.insert(path.clone(), pem);
            }
        }
    }

    /// What the file has, which is read if it was not yet.
    pub(super) fn of(&mut self, path: &PathBuf) -> Result<Arc<[u8]>, String> {
        if let Some(pem) = self.0.get(path) {
            return Ok(pem.clone());
        }
        let read = fs::read(path).map_err(|error| {
            format!("{} can't be read: {error}; see that it is there and may be read, then reload", path.display())
        });
        let pem: Arc<[u8]> = read?.into();
        self.0.insert(path.clone(), pem.clone());
        Ok(pem)
    }
}
