//! A disk that is full, on a small file system of its own.

use std::{fs, io::Write, process::Command};

use super::{log::Log, *};

/// A file system of two megabytes, until it is dropped.
struct Disk(Folder);

impl Disk {
    /// `None`, with a line that says so, where nothing may be mounted.
    fn new(test: &str) -> Option<Self> {
        let folder = Folder::new();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&folder.0).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(folder)),
            other => {
                let _ = writeln!(std::io::stderr(), "SKIPPED {test}: a file system can't be mounted here: {other:?}");
                None
            }
        }
    }

    fn ledger(&self) -> PathBuf {
        self.0.ledger()
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.0.join("ballast")).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

/// Hands over records, without a pause in which they could be written, until that fails.
async fn until_failing(ledger: &Ledger) -> Vec<Uuid> {
    let mut handed = Vec::new();
    eventually("the disk is full", async || {
        if ledger.is_failing() {
            return true;
        }
        let record = record();
        if let Some(reserved) = ledger.try_reserve(record.request_id, None) {
            reserved.record(&record);
            handed.push(record.request_id);
        }
        false
    })
    .await;
    handed
}

#[tokio::test]
async fn on_a_full_disk_relaxed_goes_on_and_writes_it_all_when_there_is_room() {
    let Some(disk) = Disk::new("on_a_full_disk_relaxed_goes_on_and_writes_it_all_when_there_is_room") else { return };
    let log = Log::new();
    let ledger = Ledger::open(&config(&disk.ledger()), Durability::Relaxed, 50).await.unwrap();
    let mut kept = fill_slowly(&ledger, 20).await;
    disk.fill();
    kept.extend(until_failing(&ledger).await);
    assert_eq!(log.with("the usage ledger can't be written").len(), 1);
    // As many as there are places wait in memory.
    while let Some(slot) = ledger.shared.slots.try_take() {
        drop(slot);
        let record = record();
        hand_over(&ledger, &record);
        kept.push(record.request_id);
    }
    // Beyond that requests pass all the same; those records that find no room are in the log.
    let mut lost = Vec::new();
    for _ in 0..200 {
        let record = record();
        hand_over(&ledger, &record);
        let id = record.request_id;
        let is_logged = !log.with(&id.to_string()).is_empty();
        if is_logged { lost.push(id) } else { kept.push(id) }
    }
    assert!(lost.len() >= 100, "{}", lost.len());
    assert!(ledger.shared.inbox.len() <= 50);
    disk.free();
    eventually("it is written again", async || !ledger.is_failing()).await;
    ledger.shared.barrier().await;
    assert_eq!(ids(&read(&disk.ledger()).await), kept, "in their order");
    assert_eq!(log.with("the usage ledger is written again").len(), 1);
    ledger.close().await;
    drop(ledger);
    let ledger = open(&disk.ledger()).await;
    assert_eq!(ids(&read(&disk.ledger()).await), kept);
    ledger.close().await;
}

/// Like `fill`, with no more at a time than there are places.
async fn fill_slowly(ledger: &Ledger, count: usize) -> Vec<Uuid> {
    let mut written = Vec::new();
    for _ in 0..count {
        written.extend(fill(ledger, 1).await);
    }
    written
}

#[tokio::test]
async fn on_a_full_disk_beginnings_take_no_more_memory_than_there_are_places() {
    let Some(disk) = Disk::new("on_a_full_disk_beginnings_take_no_more_memory_than_there_are_places") else { return };
    let ledger = Ledger::open(&config(&disk.ledger()), Durability::Relaxed, 50).await.unwrap();
    disk.fill();
    until_failing(&ledger).await;
    for _ in 0..1000 {
        let exchange = Exchange::of(&mut Extensions::new());
        let reserved = ledger.try_reserve(exchange.id(), None).expect("relaxed goes on");
        ledger.begin(exchange, Method::POST, "/".into(), false);
        drop(reserved);
    }
    let waiting = ledger.shared.inbox.len();
    assert!(waiting <= 3 * 50, "{waiting}");
    disk.free();
    eventually("it is written again", async || !ledger.is_failing()).await;
    ledger.close().await;
    // None of those counts as dead.
    let found = read(&disk.ledger()).await.len();
    drop(ledger);
    let ledger = open(&disk.ledger()).await;
    assert_eq!(read(&disk.ledger()).await.len(), found);
    ledger.close().await;
}

#[tokio::test]
async fn on_a_full_disk_strict_takes_no_more_than_there_are_places_and_recovers() {
    let Some(disk) = Disk::new("on_a_full_disk_strict_takes_no_more_than_there_are_places_and_recovers") else {
        return;
    };
    let ledger = Ledger::open(&config(&disk.ledger()), Durability::Strict, 20).await.unwrap();
    disk.fill();
    let handed = until_failing(&ledger).await;
    let mut reserved = Vec::new();
    while let Some(one) = ledger.try_reserve(Uuid::now_v7(), None) {
        reserved.push(one);
    }
    assert!(reserved.len() <= 20, "nobody goes on without a place");
    let exchange = Exchange::of(&mut Extensions::new());
    let mut noted = ledger.begin(exchange.clone(), Method::POST, "/".into(), true).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut noted).await.is_err(), "it is not on the disk");
    disk.free();
    noted.await.expect("it is now");
    drop(reserved);
    eventually("it is written again", async || !ledger.is_failing()).await;
    ledger.shared.barrier().await;
    assert_eq!(ids(&read(&disk.ledger()).await), handed);
    ledger.close().await;
}

#[tokio::test]
async fn at_the_end_what_can_not_be_written_is_in_the_log() {
    let Some(disk) = Disk::new("at_the_end_what_can_not_be_written_is_in_the_log") else { return };
    let log = Log::new();
    let ledger = Ledger::open(&config(&disk.ledger()), Durability::Relaxed, 20).await.unwrap();
    disk.fill();
    let handed = until_failing(&ledger).await;
    let mut late = ledger.try_reserve(Uuid::now_v7(), None).unwrap();
    let committed = late.committed();
    assert_ne!(ledger.pending(), 0);
    ledger.close().await;
    let written = ids(&read(&disk.ledger()).await);
    assert!(written.len() < handed.len());
    assert_eq!(ledger.pending(), 0, "what is lost is not left");
    for id in handed.iter().filter(|id| !written.contains(id)) {
        assert_eq!(log.with(&id.to_string()).len(), 1, "{id}");
    }
    // And so is what comes after the end.
    let record = record();
    late.record(&record);
    assert_eq!(log.with(&record.request_id.to_string()).len(), 1);
    assert!(committed.await.is_err(), "who waits for it is not told that it is there");
}

#[tokio::test]
async fn a_disk_that_may_only_be_read_is_told_at_the_start() {
    let Some(disk) = Disk::new("a_disk_that_may_only_be_read_is_told_at_the_start") else { return };
    let ledger = open(&disk.ledger()).await;
    fill(&ledger, 3).await;
    ledger.close().await;
    drop(ledger);
    let remount = |how: &str| {
        let mut command = Command::new("mount");
        let done = command.args(["-o", &format!("remount,{how},size=2m")]).arg(&disk.0.0).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    remount("ro");
    let error = open_with(&config(&disk.ledger())).await.unwrap_err();
    assert!(matches!(error, LedgerError::Open { .. }), "{error:?}");
    assert!(error.to_string().contains("see that its folder exists and can be written"), "{error}");
    remount("rw");
    let ledger = open(&disk.ledger()).await;
    assert_eq!(read(&disk.ledger()).await.len(), 3);
    ledger.close().await;
}

#[tokio::test]
async fn a_file_that_is_broken_while_it_is_used_is_mended_at_the_next_start() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["slow".into()]).await.unwrap();
    let written = fill(&ledger, 500).await;
    ledger.close().await;
    drop(ledger);
    // A page in the middle, of a file that was closed in good order.
    let mut bytes = fs::read(folder.ledger()).unwrap();
    let middle = bytes.len() / 2 / 8192 * 8192;
    bytes[middle..][..8192].fill(0x5a);
    fs::write(folder.ledger(), bytes).unwrap();

    let log = Log::new();
    let ledger = open(&folder.ledger()).await;
    let mut failed = false;
    let mut seen = 0;
    while seen < ledger.last() && !failed {
        match ledger.after(seen, 10, false).await {
            Ok(page) => seen = page.up_to,
            Err(_) => failed = true,
        }
    }
    assert!(failed && seen > 0, "{seen}");
    assert!(ledger.after(seen, 10, false).await.is_err());
    assert_eq!(log.with("restart the proxy").len(), 1, "once");
    // What comes is kept meanwhile.
    let new = fill(&ledger, 2).await;
    ledger.close().await;
    drop(ledger);
    let ledger = open(&folder.ledger()).await;
    assert_eq!(log.with("the usage ledger was broken").len(), 1);
    let left = ids(&read(&folder.ledger()).await);
    assert!(left.ends_with(&new) && left.len() > 450 && left.starts_with(&written[..50]), "{}", left.len());
    assert_eq!(ledger.place("slow"), 0);
    ledger.close().await;
}
