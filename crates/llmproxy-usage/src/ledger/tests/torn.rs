//! Files that a disk has cut off or changed.

use std::{
    collections::HashMap,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{log::Log, *};

/// What was written, and the files as they were in the middle of it.
struct Original {
    folder: Folder,
    records: Vec<Arc<UsageRecord>>,
    cases: AtomicUsize,
}

/// What was found.
struct Found {
    records: Vec<Uuid>,
    log: Vec<String>,
    /// Whether the file was put aside.
    aside: bool,
}

impl Original {
    /// So many records in the file, the rest in its log.
    async fn new(in_file: usize, in_log: usize) -> Self {
        let folder = Folder::new();
        let ledger = open(&folder.ledger()).await;
        ledger.register(&["reporter".into()]).await.unwrap();
        let body = Bytes::from(vec![b'b'; 700]);
        let mut records = Vec::new();
        let mut write = async |ledger: &Ledger, count: usize| {
            for index in 0..count {
                let record = record();
                ledger.reserve(record.request_id, Some(&body)).await.record(&record);
                records.push(record);
                if index % 3 == 0 {
                    ledger.shared.barrier().await;
                }
            }
            ledger.shared.barrier().await;
        };
        write(&ledger, in_file).await;
        ledger.close().await;
        drop(ledger);
        if in_log > 0 {
            let ledger = open(&folder.ledger()).await;
            write(&ledger, in_log).await;
            begin(&ledger).await;
            copy(&folder.ledger(), &folder.0.join("torn.db"));
            ledger.close().await;
        } else {
            copy(&folder.ledger(), &folder.0.join("torn.db"));
        }
        Self { folder, records, cases: AtomicUsize::new(0) }
    }

    fn length(&self, suffix: &str) -> usize {
        fs::read(self.folder.0.join(format!("torn.db{suffix}"))).unwrap().len()
    }

    /// Opens a copy of which `suffix` was changed: it must open, with nothing but what was written, and work.
    async fn check(&self, what: &str, suffix: &str, change: impl FnOnce(&mut Vec<u8>)) -> Found {
        let folder = self.folder.0.join(format!("case-{}", self.cases.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("usage.db");
        copy(&self.folder.0.join("torn.db"), &path);
        let changed = folder.join(format!("usage.db{suffix}"));
        let mut bytes = fs::read(&changed).unwrap();
        change(&mut bytes);
        fs::write(&changed, bytes).unwrap();

        let log = Log::new();
        let ledger = open_with(&config(&path)).await;
        let ledger = ledger.unwrap_or_else(|error| panic!("{what}: {error} ({error:?})"));
        ledger.register(&["reporter".into()]).await.unwrap();
        ledger.set_live(["reporter".into()]);
        let found = self.known(what, &ledger).await;
        // It works.
        let new = record();
        hand_over(&ledger, &new);
        ledger.shared.barrier().await;
        let before = ledger.last() - 1;
        assert!(ledger.place("reporter") <= before, "{what}: the reporter would miss the new one");
        let page = ledger.after(before, 10, true).await.unwrap();
        assert_eq!(page.entries[0].1.record, new, "{what}");
        ledger.close().await;
        drop(ledger);
        // After it was closed it is whole, or will be the next time.
        let again = open(&path).await;
        let records = self.known(what, &again).await;
        assert!(again.last() > before, "{what}");
        again.close().await;
        drop(again);
        let aside = fs::read_dir(&folder).unwrap().any(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            name.contains(".broken-")
        });
        assert_eq!(aside, !log.with("the usage ledger was broken").is_empty(), "{what}: the log says what was done");
        let log = log.with("");
        fs::remove_dir_all(folder).unwrap();
        assert!(found.iter().all(|id| records.contains(id)), "{what}: what was found the first time is there later");
        Found { records: found, log, aside }
    }

    /// What a reporter would be given of what was written; each as it was, in its order.
    async fn known(&self, what: &str, ledger: &Ledger) -> Vec<Uuid> {
        let originals: HashMap<Uuid, (usize, &Arc<UsageRecord>)> =
            self.records.iter().enumerate().map(|(index, record)| (record.request_id, (index, record))).collect();
        let (mut found, mut seen, mut last) = (Vec::new(), 0, None);
        loop {
            let page = match ledger.after(seen, 50, true).await {
                Ok(page) => page,
                // What can't be read now will be put aside at the next start.
                Err(error) => {
                    assert!(error.to_string().contains("can't be used"), "{what}: {error}");
                    return found;
                }
            };
            if page.up_to == seen {
                return found;
            }
            seen = page.up_to;
            for (_, entry) in page.entries {
                let Some((index, original)) = originals.get(&entry.record.request_id) else { continue };
                assert_eq!(entry.record, **original, "{what}: a record is not what it was");
                if let Some(body) = entry.request_body {
                    assert!(body.iter().all(|byte| *byte == b'b'), "{what}: a body is not what it was");
                }
                assert!(last < Some(*index), "{what}: the order is kept, and none is there twice");
                last = Some(*index);
                found.push(entry.record.request_id);
            }
        }
    }
}

/// Offsets over all of it, and each side of the places where something ends.
fn offsets(length: usize, count: usize) -> Vec<usize> {
    let mut offsets: Vec<usize> = (0..count).map(|index| index * length / count + index % 13).collect();
    offsets.extend([0, 1, 31, 32, 33, 55, 56, length - 1, length - 2].map(|offset| offset.min(length - 1)));
    offsets.sort_unstable();
    offsets.dedup();
    offsets.retain(|offset| *offset < length);
    offsets
}

/// Where the file says what and whose it is, of which version, and that it may be written: then it counts as somebody
/// else's, and is left alone.
fn is_mark(offset: usize) -> bool {
    offset < 16 || offset == 18 || (60..64).contains(&offset) || (68..72).contains(&offset)
}

#[tokio::test]
async fn a_log_that_is_cut_off_costs_no_more_than_what_was_cut_off() {
    let original = Original::new(40, 60).await;
    let length = original.length("-wal");
    let (mut kept, mut most) = (0, 0);
    for offset in offsets(length, 40) {
        let found = original.check(&format!("cut at {offset}"), "-wal", |bytes| bytes.truncate(offset)).await;
        let expected: Vec<Uuid> =
            original.records[..found.records.len()].iter().map(|record| record.request_id).collect();
        assert_eq!(found.records, expected, "all up to some record, at {offset}");
        assert!(found.records.len() >= 40 && found.records.len() >= kept, "at {offset}");
        assert!(!found.aside, "at {offset}: {:?}", found.log);
        kept = found.records.len();
        most = most.max(kept);
    }
    assert!(most >= 57, "the last bytes cost the last transaction: {most}");
    let whole = original.check("nothing", "-wal", |_| {}).await;
    assert_eq!(whole.records.len(), 100);
    assert_eq!(whole.log.iter().filter(|line| line.contains("proxy_died")).count(), 1, "{:?}", whole.log);
}

#[tokio::test]
async fn a_log_that_was_changed_costs_no_more_than_what_follows() {
    let original = Original::new(40, 60).await;
    for offset in offsets(original.length("-wal"), 60) {
        for mask in [0x01, 0x80, 0xff] {
            let what = format!("{mask:#x} at {offset}");
            let found = original.check(&what, "-wal", |bytes| bytes[offset] ^= mask).await;
            assert!(found.records.len() >= 40, "{what}: {}", found.records.len());
            assert!(!found.aside, "{what}: {:?}", found.log);
        }
    }
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_put_aside_with_what_could_be_read_taken_over() {
    for in_log in [0, 30] {
        let original = Original::new(150, in_log).await;
        let length = original.length("");
        let mut most = 0;
        for offset in offsets(length, 30) {
            let what = format!("cut at {offset} of {length}, {in_log} in its log");
            let found = original.check(&what, "", |bytes| bytes.truncate(offset)).await;
            most = most.max(found.records.len());
        }
        assert!(most > 50, "what is before the cut is kept: {most}, {in_log}");
    }
}

#[tokio::test]
async fn a_file_that_was_changed_never_gives_out_what_was_not_written() {
    for (in_log, count) in [(0, 60), (30, 40)] {
        let original = Original::new(150, in_log).await;
        let length = original.length("");
        let (mut cases, mut kept) = (0, 0);
        let mut offsets = offsets(length, count);
        if in_log == 0 {
            // The file's header.
            offsets.extend(16..110);
        }
        for offset in offsets.into_iter().filter(|offset| !is_mark(*offset)) {
            let what = format!("at {offset} of {length}, {in_log} in its log");
            let mask = [0x01, 0x80, 0xff, 0x10][offset % 4];
            let found = original.check(&what, "", |bytes| bytes[offset] ^= mask).await;
            (cases, kept) = (cases + 1, kept + found.records.len());
        }
        let (kept, all) = (kept / cases, 150 + in_log);
        assert!(kept * 10 >= all * 8, "one byte costs few records: {kept} of {all} on average");
    }
}

#[tokio::test]
async fn whole_pages_of_nothing_or_garbage_cost_what_was_in_them() {
    let original = Original::new(300, 20).await;
    let pages = original.length("") / 8192;
    for page in 0..pages {
        for fill in [0x00, 0x5a] {
            let what = format!("page {page} of {pages} full of {fill:#x}");
            original.check(&what, "", |bytes| bytes[page * 8192..][..8192].fill(fill)).await;
        }
    }
}

#[tokio::test]
async fn what_is_a_database_by_its_first_bytes_alone_is_put_aside() {
    let original = Original::new(20, 0).await;
    let garbage = |bytes: &mut Vec<u8>| bytes[16..].fill(0xa5);
    let found = original.check("garbage", "", garbage).await;
    assert!(found.aside && found.records.is_empty());
    assert!(found.log.iter().any(|line| line.contains("put aside") && line.contains("access log")), "{:?}", found.log);
    // An empty file is one that is yet to be made.
    assert!(!original.check("empty", "", Vec::clear).await.aside);
    let original = Original::new(20, 10).await;
    assert!(original.check("empty, with a log", "", Vec::clear).await.aside, "the log may have what was in it");
    let text = original.check("text, with a log", "", |bytes| *bytes = b"not a database".to_vec()).await;
    assert!(text.aside, "the same");
}

#[tokio::test]
async fn a_log_that_is_gone_costs_what_was_in_it() {
    let original = Original::new(20, 30).await;
    let found = original.check("no log", "-wal", Vec::clear).await;
    assert_eq!((found.records.len(), found.aside), (20, false));
}

#[tokio::test]
async fn reporters_whose_places_are_lost_are_given_all_again() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["a".into()]).await.unwrap();
    let written = fill(&ledger, 10).await;
    ledger.set_place(&"a".into(), 10);
    ledger.close().await;
    drop(ledger);
    super::writing::rewrite(&folder.ledger(), "DROP TABLE reporters; UPDATE state SET clean = 0").await;
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["a".into()]).await.unwrap();
    assert_eq!(ledger.place("a"), 0, "rather twice than never");
    assert_eq!(ids(&read(&folder.ledger()).await), written);
    // One that is new then begins at the end all the same.
    ledger.close().await;
    drop(ledger);
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["a".into(), "b".into()]).await.unwrap();
    assert_eq!((ledger.place("a"), ledger.place("b")), (0, 10));
    ledger.close().await;
}
