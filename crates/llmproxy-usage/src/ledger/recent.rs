//! The newest records, in memory: a reporter that keeps up never reads the file.

use std::collections::VecDeque;

use crate::Entry;

/// How many are kept.
const RECORDS: usize = 4096;
/// How much their requests' bodies may take, in bytes; beyond that the oldest go.
const BODIES: usize = 8 << 20;

/// Records in order, without a gap.
#[derive(Debug, Default)]
pub(super) struct Recent {
    first: i64,
    entries: VecDeque<Entry>,
    bytes: usize,
}

// === impl Recent ===

impl Recent {
    /// The record `seq`, which follows the last one.
    pub(super) fn push(&mut self, seq: i64, entry: Entry) {
        if self.entries.is_empty() {
            self.first = seq;
        }
        self.bytes += size(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > RECORDS || (self.bytes > BODIES && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= size(&oldest);
            self.first += 1;
        }
    }

    /// Up to `limit` records after `seq`; `None` where the next one is in the file alone, or nowhere yet.
    pub(super) fn after(&self, seq: i64, limit: usize) -> Option<Vec<(i64, Entry)>> {
        let skip = usize::try_from(seq + 1 - self.first).ok().filter(|skip| *skip < self.entries.len())?;
        let entries = self.entries.range(skip..).take(limit).cloned();
        Some((seq + 1..).zip(entries).collect())
    }
}

fn size(entry: &Entry) -> usize {
    entry.request_body.as_ref().map_or(0, bytes::Bytes::len)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use llmproxy_core::{Endpoint, UsageRecord};

    use super::*;

    fn entry(body: usize) -> Entry {
        let record = Arc::new(UsageRecord::new(Endpoint::of("")));
        Entry { record, request_body: (body > 0).then(|| Bytes::from(vec![0; body])) }
    }

    fn seqs(recent: &Recent, after: i64, limit: usize) -> Option<Vec<i64>> {
        recent.after(after, limit).map(|found| found.into_iter().map(|(seq, _)| seq).collect())
    }

    #[test]
    fn what_is_there_is_found_by_its_number() {
        let mut recent = Recent::default();
        assert_eq!(seqs(&recent, 0, 10), None);
        for seq in 7..=9 {
            recent.push(seq, entry(0));
        }
        assert_eq!(seqs(&recent, 6, 10), Some(vec![7, 8, 9]));
        assert_eq!(seqs(&recent, 6, 2), Some(vec![7, 8]));
        assert_eq!(seqs(&recent, 8, 10), Some(vec![9]));
        assert_eq!(seqs(&recent, 9, 10), None);
        assert_eq!(seqs(&recent, 5, 10), None, "6 is in the file alone");
    }

    #[test]
    fn it_is_bounded_by_number_and_size() {
        let mut recent = Recent::default();
        for seq in 1..=5000 {
            recent.push(seq, entry(0));
        }
        assert_eq!((recent.first, recent.entries.len()), (905, RECORDS));
        recent.push(5001, entry(BODIES));
        recent.push(5002, entry(1));
        assert_eq!(seqs(&recent, 5001, 9), Some(vec![5002]));
        assert_eq!(recent.bytes, 1);
    }
}
