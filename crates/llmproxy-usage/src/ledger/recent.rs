//! The newest records, in memory: a reporter that keeps up never reads the file, unless it wants requests' bodies. Those are
//! in the file alone: what is left of a request must not take the memory that requests to come are given.

use std::{collections::VecDeque, sync::Arc};

use llmproxy_core::UsageRecord;

use crate::Entry;

/// How many are kept.
const RECORDS: usize = 4096;

/// Records in order, without a gap.
#[derive(Debug, Default)]
pub(super) struct Recent {
    first: i64,
    entries: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    record: Arc<UsageRecord>,
    /// Whether there is a body in the file.
    has_body: bool,
}

// === impl Recent ===

impl Recent {
    /// The record `seq`, which follows the last one.
    pub(super) fn push(&mut self, seq: i64, entry: Entry) {
        if self.entries.is_empty() {
            self.first = seq;
        }
        self.entries.push_back(Kept { record: entry.record, has_body: entry.request_body.is_some() });
        if self.entries.len() > RECORDS {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// Up to `limit` records after `seq`, without bodies; `None` where the next one is in the file alone, or nowhere yet, or
    /// `with_body` asks for one that has a body.
    pub(super) fn after(&self, seq: i64, limit: usize, with_body: bool) -> Option<Vec<(i64, Entry)>> {
        let skip = usize::try_from(seq + 1 - self.first).ok().filter(|skip| *skip < self.entries.len())?;
        let kept = self.entries.range(skip..).take(limit).take_while(|kept| !(with_body && kept.has_body));
        let entries: Vec<_> = (seq + 1..).zip(kept.map(|kept| Entry::new(kept.record.clone()))).collect();
        (!entries.is_empty()).then_some(entries)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use llmproxy_core::Endpoint;

    use super::*;

    fn entry(body: usize) -> Entry {
        let record = Arc::new(UsageRecord::new(Endpoint::of("")));
        Entry { record, request_body: (body > 0).then(|| Bytes::from(vec![0; body])) }
    }

    fn seqs(recent: &Recent, after: i64, limit: usize) -> Option<Vec<i64>> {
        recent.after(after, limit, false).map(|found| found.into_iter().map(|(seq, _)| seq).collect())
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
    fn it_is_bounded() {
        let mut recent = Recent::default();
        for seq in 1..=5000 {
            recent.push(seq, entry(0));
        }
        assert_eq!((recent.first, recent.entries.len()), (905, RECORDS));
    }

    #[test]
    fn bodies_are_let_go_and_known_to_be_in_the_file() {
        let mut recent = Recent::default();
        let kept = Bytes::from(vec![0; 10]);
        let with_body = || Entry { request_body: Some(kept.clone()), ..entry(0) };
        [entry(0), with_body(), entry(0)].into_iter().zip(1..).for_each(|(entry, seq)| recent.push(seq, entry));
        assert!(kept.is_unique(), "nobody else holds it");
        let check = |after: i64, with_body: bool, expected: Option<Vec<i64>>| {
            let found = recent.after(after, 9, with_body);
            let seqs = found.map(|found| found.into_iter().map(|(seq, _)| seq).collect::<Vec<_>>());
            assert_eq!(seqs, expected, "{after} {with_body}");
        };
        check(0, false, Some(vec![1, 2, 3]));
        check(0, true, Some(vec![1]));
        check(1, true, None);
        check(2, true, Some(vec![3]));
    }
}
