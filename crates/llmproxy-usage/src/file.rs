//! Records as lines of a file.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::{
    backups::Backups,
    fields::Fields,
    line_report::{LineReport, WriteLines},
    lines::LineFile,
};

const DEFAULT_MAX_SIZE: u64 = 100 << 20;
/// A file of less would be full after some records; whoever writes `100` means megabytes.
const LEAST_MAX_SIZE: u64 = 64 << 10;
/// What is written at a time.
const BATCH_SIZE: usize = 500;

/// A file of JSON lines: one object for each record, as a webhook would get it. A full one is put aside as
/// `NAME-TIME.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FileConfig {
    /// Its path; missing folders are made.
    pub path: PathBuf,
    /// The size in bytes at which it is full; 100 MiB. 0, never.
    pub max_size: u64,
    /// The age at which it is full, too, and at which full ones are removed; 0, none is.
    #[serde(with = "llmproxy_core::duration")]
    pub max_age: Duration,
    /// How many full ones are kept; 0, all.
    pub max_backups: usize,
    /// Whether full ones are packed with gzip; false.
    pub compress: bool,
    /// Whether records count as delivered only when they are safe against a loss of power; false.
    pub sync: bool,
}

/// What of it runs.
#[derive(Clone, Debug)]
pub(crate) struct FileTarget {
    pub(crate) path: PathBuf,
    max_size: u64,
    sync: bool,
    backups: Backups,
}

/// A file as a reporter.
pub(crate) type FileReport = LineReport<Writer>;

/// Writes lines to a file, and begins the next when it is full.
#[derive(Debug)]
pub(crate) struct Writer {
    target: FileTarget,
    file: Option<LineFile>,
    /// Whether it was said already that a full file can't be put aside.
    is_stuck: bool,
}

// === impl FileConfig ===

impl Default for FileConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            max_size: DEFAULT_MAX_SIZE,
            max_age: Duration::ZERO,
            max_backups: 0,
            compress: false,
            sync: false,
        }
    }
}

// === impl FileTarget ===

impl FileTarget {
    /// Takes what the operator wrote, or says what is wrong with which key.
    pub(crate) fn compile(config: &FileConfig) -> Result<Self, Vec<(String, String)>> {
        let mut wrong = Vec::new();
        if config.path.file_name().is_none() || config.path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            wrong.push(("path".to_owned(), "must be the path of a file, such as data/usage.jsonl".to_owned()));
        }
        if config.max_size != 0 && config.max_size < LEAST_MAX_SIZE {
            let what = "must be at least 64KiB, with a unit such as 100MiB, or 0 for a file that is never full";
            wrong.push(("max_size".to_owned(), what.to_owned()));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let mut backups = Backups::of(&config.path);
        (backups.most, backups.max_age, backups.compress) = (config.max_backups, config.max_age, config.compress);
        Ok(Self { path: config.path.clone(), max_size: config.max_size, sync: config.sync, backups })
    }

    /// Whether `more` bytes belong into another file. An empty one is never full.
    fn is_full(&self, file: &LineFile, more: usize, now: Timestamp) -> io::Result<bool> {
        let found = file.metadata()?;
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        if found.len() == 0 {
            return Ok(false);
        }
        let is_large = self.max_size != 0 && found.len().saturating_add(more) > self.max_size;
        // Not every file system knows when a file was made; there only the size counts.
        let born = found.created().ok().and_then(|born| Timestamp::try_from(born).ok());
        let age = born.and_then(|born| Duration::try_from(now.duration_since(born)).ok());
        let max_age = self.backups.max_age;
        Ok(is_large || (!max_age.is_zero() && age.is_some_and(|age| age > max_age)))
    }

    /// Sees to the full ones, on a thread of its own: packing may take longer than records should wait.
    fn tidy(&self) {
        let (backups, path) = (self.backups.clone(), self.path.clone());
        if backups.most == 0 && backups.max_age.is_zero() && !backups.compress {
            return;
        }
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = backups.tidy(Timestamp::now()) {
                tracing::warn!(
                    path = %path.display(), %error,
                    "full files of usage records could not be packed or removed; the next full one is another try"
                );
            }
        }));
    }
}

// === impl FileReport ===

impl FileReport {
    pub(crate) fn new(name: Arc<str>, target: FileTarget, fields: Fields) -> Self {
        let to = target.path.display().to_string();
        let writer = Arc::new(Mutex::new(Writer { target, file: None, is_stuck: false }));
        Self { name, fields, to, batch_size: BATCH_SIZE, writer }
    }
}

// === impl Writer ===

impl WriteLines for Writer {
    fn write(&mut self, lines: Vec<u8>) -> io::Result<()> {
        let now = Timestamp::now();
        let mut file = self.open()?;
        if self.target.is_full(&file, lines.len(), now)? {
            file = self.turn_over(file, now)?;
        }
        let written = file.append(&lines, self.target.sync);
        if written.is_ok() {
            self.file = Some(file);
        }
        written
    }
}

impl Writer {
    /// The file that the path leads to: another one after logrotate, or somebody else, has moved or removed it.
    fn open(&mut self) -> io::Result<LineFile> {
        match self.file.take() {
            Some(file) if file.is_at(&self.target.path)? => Ok(file),
            before => {
                let file = LineFile::open(&self.target.path)?;
                if before.is_none() {
                    self.target.tidy();
                }
                Ok(file)
            }
        }
    }

    /// Puts a full file aside and begins the next, with the same permissions. Where it can't be put aside, records go on
    /// into it: they are worth more than its size.
    fn turn_over(&mut self, full: LineFile, now: Timestamp) -> io::Result<LineFile> {
        let target = &self.target;
        if let Err(error) = target.backups.put_aside(&target.path, now) {
            if !self.is_stuck {
                tracing::warn!(
                    path = %target.path.display(), %error,
                    "a full file of usage records could not be put aside and grows on; is its folder writable?"
                );
            }
            self.is_stuck = true;
            return Ok(full);
        }
        self.is_stuck = false;
        let next = LineFile::open(&target.path)?;
        next.set_permissions(full.metadata()?.permissions())?;
        target.tidy();
        Ok(next)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
