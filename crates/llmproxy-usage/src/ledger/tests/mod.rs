//! The ledger against a real file, and what may happen to one.

mod disk;
mod files;
mod kill;
mod log;
mod places;
mod retention;
mod torn;
mod writing;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Extensions, Method};
use llmproxy_core::{Endpoint, Exchange, UsageRecord};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    commit::{Commit, Row},
    store::Store,
    *,
};
use crate::scratch::Folder;

fn config(path: &Path) -> LedgerConfig {
    LedgerConfig { path: path.to_owned(), ..LedgerConfig::default() }
}

async fn open(path: &Path) -> Arc<Ledger> {
    open_with(&config(path)).await.unwrap()
}

/// Another test may be starting a process at the moment, which has the lock of a ledger that was closed until it is another
/// program.
async fn open_with(config: &LedgerConfig) -> Result<Arc<Ledger>, LedgerError> {
    let started = Instant::now();
    loop {
        match Ledger::open(config, Durability::Relaxed, 10_000).await {
            Err(LedgerError::InUse { .. }) if started.elapsed() < Duration::from_secs(10) => {
                sleep(Duration::from_millis(1)).await;
            }
            opened => return opened,
        }
    }
}

fn record() -> Arc<UsageRecord> {
    let endpoint = Endpoint::of("/v1/chat/completions");
    Arc::new(UsageRecord { request_id: Uuid::now_v7(), ..UsageRecord::new(endpoint) })
}

/// Hands `record` over, without waiting.
fn hand_over(ledger: &Ledger, record: &Arc<UsageRecord>) {
    ledger.try_reserve(record.request_id, None).expect("there is room").record(record);
}

/// So many records, all of them written. Returns which.
async fn fill(ledger: &Ledger, count: usize) -> Vec<Uuid> {
    let records: Vec<_> = (0..count).map(|_| record()).collect();
    for some in records.chunks(1000) {
        some.iter().for_each(|record| hand_over(ledger, record));
        ledger.shared.barrier().await;
    }
    records.iter().map(|record| record.request_id).collect()
}

/// Notes that an exchange begins; it is written when this is over.
async fn begin(ledger: &Ledger) -> Arc<Exchange> {
    let exchange = Exchange::of(&mut Extensions::new());
    ledger.begin(exchange.clone(), Method::POST, "/v1/chat/completions".into(), true).unwrap().await.unwrap();
    exchange
}

/// Everything that a reporter would have, read from the file.
async fn read(path: &Path) -> Vec<Arc<UsageRecord>> {
    let mut reader = LedgerReader::open(path).await.unwrap();
    let (mut records, mut seen) = (Vec::new(), 0);
    loop {
        let page = reader.after(seen, 1000, false).await.unwrap();
        if page.up_to == seen {
            return records;
        }
        seen = page.up_to;
        records.extend(page.entries.into_iter().map(|(_, entry)| entry.record));
    }
}

fn ids(records: &[Arc<UsageRecord>]) -> Vec<Uuid> {
    records.iter().map(|record| record.request_id).collect()
}

/// Waits until `check` holds, ten seconds at most.
async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !check().await {
        assert!(started.elapsed() < Duration::from_secs(10), "not in time: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Copies the ledger's files as they are, as a machine would find them that lost its power.
fn copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if with(from).exists() {
            fs::copy(with(from), with(to)).unwrap();
        }
    }
}
