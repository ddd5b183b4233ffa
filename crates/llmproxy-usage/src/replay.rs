//! Sending records once more, beside a proxy that runs or without one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, pending};
use jiff::Timestamp;
use llmproxy_core::HttpClient;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    Entry, LedgerError, LedgerReader, Report, Stores, UsageConfig,
    dead_letter::Letters,
    delivery::{Delivery, Failed, Failure, Gate, GivenUp, Watch, deliver},
    destination::{self, Destination},
    filter::Filter,
    reporter::DEAD_LETTERS,
};

/// Records that are read at a time; more where a batch has more.
const PAGE: usize = 256;
/// Why it has ended where it was told to.
const TOLD: &str = "it was told to stop";

/// A reporter of the configuration that sends what it is told to, and has no place in the ledger.
///
/// It sends in order, with the reporter's filter, fields, batches, timeout and retries. Records keep their ids, so that a
/// receiver knows those that it has. What is refused goes to no file: it stays where it was read.
///
/// ```no_run
/// # async fn example(config: llmproxy_usage::UsageConfig, storage: llmproxy_usage::StorageConfig,
/// #     client: llmproxy_core::HttpClient) -> Result<(), llmproxy_usage::ReplayError> {
/// use llmproxy_usage::{LedgerReader, Replay, ReplayRange, Stores};
///
/// let stores = Stores { storage: &storage, admin_db: "./data/keys.db".as_ref() };
/// let replay = Replay::new("billing", &config, stores, &client)?;
/// let mut ledger = LedgerReader::open(&config.ledger.path).await?;
/// let tally = replay.from_ledger(&mut ledger, &ReplayRange::default()).await?;
/// println!("{} sent", tally.sent);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Replay {
    name: Arc<str>,
    report: Arc<dyn Report>,
    filter: Filter,
    dead_letters: PathBuf,
    is_stopped: AtomicBool,
    stop: Notify,
}

/// Which records, and whether they are sent at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayRange {
    /// Requests that arrived at this moment or later.
    pub from: Option<Timestamp>,
    /// And before this one.
    pub to: Option<Timestamp>,
    /// Whether they are only counted.
    pub dry_run: bool,
}

/// What became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayTally {
    /// Those that were delivered; in a dry run, those that would be sent.
    pub sent: u64,
    /// Those that were refused one by one; the log says which, and why.
    pub refused: u64,
    /// Those that the reporter's filter leaves out.
    pub filtered: u64,
    /// Lines of a file that are no dead letters.
    pub unreadable: u64,
    /// Where it ended before the end, if it did.
    pub stopped: Option<Stopped>,
}

/// Why and where it ended: the other side is down, or refuses everything, or it was told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// What is wrong.
    pub why: String,
    /// The first record that was not sent.
    pub request_id: Uuid,
    /// When its request arrived.
    pub timestamp: Timestamp,
    /// How many were not sent.
    pub left: u64,
    /// The earliest moment among those: from there on everything that was left is sent, and a few again.
    pub from: Timestamp,
}

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The configuration has no reporter of that name.
    #[error("there is no reporter `{name}` in usage.reporters; {}", known_names(known))]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// It can't be used as it is configured.
    #[error("the reporter `{name}` can't be used: {}", mistakes(wrong))]
    Config {
        /// Its name.
        name: String,
        /// The key below the reporter, and what is wrong with it.
        wrong: Vec<(String, String)>,
    },
    /// The ledger can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file of dead letters can't be read.
    #[error("the dead letters in {} can't be read: {source}", path.display())]
    DeadLetters {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

// === impl Replay ===

impl Replay {
    /// The reporter called `name` in `config`, which may be one that is switched off. A webhook is sent through `client`.
    ///
    /// # Errors
    ///
    /// Where there is none, or it can't be used.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(name: &str, config: &UsageConfig, stores: Stores<'_>, client: &HttpClient) -> Result<Self, ReplayError> {
        let named = || config.reporters.iter().filter(|reporter| destination::name(reporter) == name);
        let Some(reporter) = named().find(|reporter| reporter.enabled).or_else(|| named().next()) else {
            let known = config.reporters.iter().map(|reporter| destination::name(reporter).into_owned()).collect();
            return Err(ReplayError::Unknown { name: name.to_owned(), known });
        };
        let made = Destination::compile(reporter).and_then(|mut to| {
            let (name, filter) = (to.name.clone(), std::mem::take(&mut to.filter));
            Ok((name, filter, to.report(client, stores)?))
        });
        let (name, filter, report) = made.map_err(|wrong| ReplayError::Config { name: name.to_owned(), wrong })?;
        let shared = || config.ledger.path.with_file_name(DEAD_LETTERS);
        let dead_letters = report.dead_letter().map_or_else(shared, Path::to_owned);
        Ok(Self { name, report, filter, dead_letters, is_stopped: AtomicBool::new(false), stop: Notify::new() })
    }

    /// The file that its dead letters are in.
    pub fn dead_letters(&self) -> &Path {
        &self.dead_letters
    }

    /// Ends what it is at, and whatever it is told later, with a tally that says where. A request that is on its way is broken
    /// off; its records count as not sent.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.stop.notify_one();
    }

    /// Sends the records of `range` that `ledger` has, up to the newest that it has now.
    ///
    /// # Errors
    ///
    /// Where the file can't be read; what was sent by then is sent.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, some are sent.
    pub async fn from_ledger(
        &self,
        ledger: &mut LedgerReader,
        range: &ReplayRange,
    ) -> Result<ReplayTally, ReplayError> {
        let with_body = self.report.wants_request_body() && !range.dry_run;
        let mut run = Run::new(self, *range);
        let last = ledger.last().await?;
        let mut seen = match range.from {
            Some(from) => ledger.before(from).await?,
            None => 0,
        };
        while seen < last {
            let page = ledger.after(seen, run.size.max(PAGE), with_body).await?;
            if page.up_to == seen {
                break;
            }
            seen = page.up_to;
            run.take(page.entries.into_iter().filter(|(seq, _)| *seq <= last).map(|(_, entry)| entry)).await;
        }
        Ok(run.finish().await)
    }

    /// Sends the dead letters of `range` in the file at `path`, those of this reporter. The file stays as it is.
    ///
    /// # Errors
    ///
    /// Where the file can't be read; what was sent by then is sent.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, some are sent.
    pub async fn from_dead_letters(&self, path: &Path, range: &ReplayRange) -> Result<ReplayTally, ReplayError> {
        let failed = |source| ReplayError::DeadLetters { path: path.to_owned(), source };
        let mut run = Run::new(self, *range);
        let mut letters = Letters::open(path, self.name.clone()).map_err(failed)?;
        loop {
            let limit = run.size.max(PAGE);
            let read = tokio::task::spawn_blocking(move || letters.read(limit).map(|page| (letters, page)));
            let (rest, page) = read.await.unwrap_or_else(|ended| Err(io::Error::other(ended))).map_err(failed)?;
            letters = rest;
            let Some(entries) = page else { break };
            run.take(entries).await;
        }
        run.tally.unreadable = letters.unreadable;
        Ok(run.finish().await)
    }
}

// === impl ReplayRange ===

impl ReplayRange {
    fn has(&self, entry: &Entry) -> bool {
        let timestamp = entry.record.timestamp;
        self.from.is_none_or(|from| from <= timestamp) && self.to.is_none_or(|to| timestamp < to)
    }
}

/// One of them, under way.
struct Run<'a> {
    replay: &'a Replay,
    range: ReplayRange,
    /// Of a batch.
    size: usize,
    waiting: Vec<Entry>,
    tally: ReplayTally,
}

// === impl Run ===

impl<'a> Run<'a> {
    fn new(replay: &'a Replay, range: ReplayRange) -> Self {
        let size = replay.report.batches().map_or(1, |batches| batches.size().max(1));
        Self { replay, range, size, waiting: Vec::new(), tally: ReplayTally::default() }
    }

    /// Sends those that are meant, but for those that wait for more to fill their batch.
    async fn take(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries.into_iter().filter(|entry| self.range.has(entry)) {
            if !self.replay.filter.wants(&entry.record) {
                self.tally.filtered += 1;
            } else if self.range.dry_run {
                self.tally.sent += 1;
            } else if let Some(stopped) = &mut self.tally.stopped {
                stopped.left += 1;
                stopped.from = stopped.from.min(entry.record.timestamp);
            } else {
                self.waiting.push(entry);
            }
        }
        let rest = self.waiting.split_off(self.waiting.len() - self.waiting.len() % self.size);
        let full = std::mem::replace(&mut self.waiting, rest);
        self.send(full).await;
    }

    async fn finish(mut self) -> ReplayTally {
        let last = std::mem::take(&mut self.waiting);
        self.send(last).await;
        self.tally
    }

    async fn send(&mut self, mut entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        if self.tally.stopped.is_none() {
            let outcome = Outcome::default();
            if self.replay.is_stopped.load(Ordering::Acquire) {
                outcome.stop(TOLD);
            } else {
                tokio::select! {
                    // What the filter leaves out was counted before.
                    () = deliver(|| Delivery::of(self.replay.report.clone()), entries.clone(), &outcome) => {}
                    () = outcome.stop.notified() => {}
                    () = self.replay.stop.notified() => outcome.stop(TOLD),
                }
            }
            let Done { settled, refused, stopped } = std::mem::take(&mut *outcome.done());
            self.tally.sent += (settled - refused) as u64;
            self.tally.refused += refused as u64;
            let Some(why) = stopped else { return };
            entries.drain(..settled);
            // What waits for its batch comes after these.
            entries.append(&mut self.waiting);
            self.tally.stopped = entries.first().map(|Entry { record, .. }| Stopped {
                why,
                request_id: record.request_id,
                timestamp: record.timestamp,
                left: 0,
                from: record.timestamp,
            });
        }
        if let Some(stopped) = &mut self.tally.stopped {
            stopped.left += entries.len() as u64;
            let earliest = entries.iter().map(|entry| entry.record.timestamp).min();
            stopped.from = earliest.map_or(stopped.from, |earliest| stopped.from.min(earliest));
        }
    }
}

/// What becomes of the records of one call.
#[derive(Default)]
struct Outcome {
    done: Mutex<Done>,
    stop: Notify,
    gate: Gate,
}

#[derive(Default)]
struct Done {
    /// From the first on.
    settled: usize,
    /// Of those.
    refused: usize,
    stopped: Option<String>,
}

// === impl Outcome ===

impl Outcome {
    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, why: &str) {
        self.done().stopped = Some(why.to_owned());
        self.stop.notify_one();
    }
}

impl Watch for Outcome {
    fn settle<'a>(&'a self, entries: &'a [Entry], end: Result<(), GivenUp>) -> BoxFuture<'a, ()> {
        if let Err(GivenUp { why, is_all: true, .. }) = end {
            self.stop(&why);
            // Nothing more is tried.
            return Box::pin(pending());
        }
        let mut done = self.done();
        done.settled += entries.len();
        if let Err(GivenUp { why, reason, .. }) = end {
            done.refused += entries.len();
            for Entry { record, .. } in entries {
                tracing::error!(request_id = %record.request_id, reason, %why, "a usage record was not taken");
            }
        }
        Box::pin(std::future::ready(()))
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn failed(&self, failure: &Failure<'_>, _failed: &Failed) {
        if failure.tries > failure.retries {
            self.stop(failure.why);
        } else {
            tracing::warn!(why = failure.why, "usage records were not taken and will be sent again");
        }
    }

    fn recovered(&self) {}

    /// A person waits for it, and it ends long before anything is too old.
    fn failing(&self) -> Option<(Duration, String)> {
        None
    }
}

fn known_names(known: &[String]) -> String {
    match known {
        [] => "there is none at all".to_owned(),
        known => format!("there are {}", known.join(", ")),
    }
}

fn mistakes(wrong: &[(String, String)]) -> String {
    wrong.iter().map(|(key, what)| format!("{key} {what}")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
