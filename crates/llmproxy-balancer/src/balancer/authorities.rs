//! The certificates that backends name as files (`ca_file`): read with each configuration, and not when other backends are
//! found, since a file that is gone, or half written, at that moment says nothing of a backend that works.

use std::{
    collections::HashMap,
    fs, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use llmproxy_core::BoxError;

use super::Balancer;
use crate::config::BackendConfig;

/// What the files had when they were read.
#[derive(Debug, Default)]
pub(super) struct Authorities {
    read: HashMap<PathBuf, Arc<[u8]>>,
    check: Option<Check>,
}

/// Says what is wrong with the contents of a file.
type Check = fn(&[u8]) -> Result<(), BoxError>;

// === impl Balancer ===

impl Balancer {
    /// Lets `check` say what is wrong with a file of certificates (`ca_file`): one that makes no sense is like one that can't
    /// be read. Without it each is taken as it is.
    pub fn check_authorities(&self, check: fn(&[u8]) -> Result<(), BoxError>) {
        self.state().authorities.check = Some(check);
    }
}

// === impl Authorities ===

impl Authorities {
    /// Reads the files that these name once more. What can't be read, or makes no sense, stays as it was.
    pub(super) fn read_again(&mut self, backends: &[BackendConfig]) {
        let mut before = mem::take(&mut self.read);
        for path in backends.iter().filter_map(|backend| backend.ca_file.as_ref()) {
            if let (Err(error), Some(pem)) = (self.of(path), before.remove(path)) {
                tracing::warn!(%error, "what was read of a file of certificates before is used");
                self.read.insert(path.clone(), pem);
            }
        }
    }

    /// What the file has, which is read if it was not yet.
    pub(super) fn of(&mut self, path: &Path) -> Result<Arc<[u8]>, String> {
        if let Some(pem) = self.read.get(path) {
            return Ok(pem.clone());
        }
        let pem = fs::read(path).map_err(|error| {
            format!("{} can't be read: {error}; see that it is there and may be read, then reload", path.display())
        })?;
        if let Some(Err(error)) = self.check.map(|check| check(&pem)) {
            return Err(format!("{} {error}; see that all of it was written, then reload", path.display()));
        }
        let pem: Arc<[u8]> = pem.into();
        self.read.insert(path.to_owned(), pem.clone());
        Ok(pem)
    }
}
