//! A ledger of a test's own making.

use std::path::Path;

use bytes::Bytes;
use llmproxy_core::UsageRecord;

use super::{
    Durability, LedgerReader,
    commit::{Commit, Row},
    store::Store,
};

/// One at `path`, of a proxy that has stopped: records, each with its number and when it was written, and what reporters
/// have had.
pub(crate) async fn ledger(
    path: &Path,
    records: impl IntoIterator<Item = (i64, i64, UsageRecord)>,
    places: &[(&str, i64)],
) -> LedgerReader {
    let mut store = Store::open(path, Durability::Relaxed).await.unwrap();
    let row = |(seq, written, record)| {
        Row::new(seq, written, serde_json::to_string(&record).unwrap(), Some(Bytes::from("{}")))
    };
    let rows = records.into_iter().map(row).collect();
    let places = places.iter().map(|(name, seq)| ((*name).into(), *seq)).collect();
    store.commit(&Commit { rows, places, ..Commit::default() }).await.unwrap().or_error().unwrap();
    store.close(false).await.unwrap();
    LedgerReader::open(path).await.unwrap()
}
