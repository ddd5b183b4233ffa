//! What is deleted, and what is not.

use std::io::Write;

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use super::{super::prune::Old, log::Log, writing::rewrite, *};

const MIB: u64 = 1 << 20;

/// Records with bodies, six kilobytes each.
async fn fill_large(ledger: &Ledger, count: usize) -> Vec<Uuid> {
    let body = Bytes::from(vec![b'x'; 6000]);
    let mut written = Vec::new();
    for _ in 0..count {
        let record = record();
        written.push(record.request_id);
        ledger.reserve(record.request_id, Some(&body)).await.record(&record);
    }
    ledger.shared.barrier().await;
    written
}

async fn with(path: &Path, max_age: Duration, max_size: u64) -> Arc<Ledger> {
    let config = LedgerConfig { path: path.to_owned(), max_age, max_size };
    open_with(&config).await.unwrap()
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[tokio::test]
async fn the_oldest_go_when_the_file_is_too_large_and_it_shrinks() {
    let folder = Folder::new();
    let ledger = with(&folder.ledger(), Duration::MAX, 1 << 40).await;
    ledger.register(&["a".into()]).await.unwrap();
    let written = fill_large(&ledger, 2500).await;
    ledger.set_place(&"a".into(), 2500);
    ledger.close().await;
    drop(ledger);
    assert!(length(&folder.ledger()) > 12 * MIB);

    let ledger = with(&folder.ledger(), Duration::MAX, 8 * MIB).await;
    ledger.register(&["a".into()]).await.unwrap();
    ledger.set_live(["a".into()]);
    let kept = async || ids(&read(&folder.ledger()).await);
    eventually("they are deleted", async || kept().await.len() < 2500).await;
    // In steps, the last of which gives room back to the file system.
    let mut other = SqliteConnectOptions::new().filename(folder.ledger()).connect().await.unwrap();
    let mut pages = async |what: &'static str| -> u64 {
        let pages: i64 = sqlx::query_scalar(what).fetch_one(&mut other).await.unwrap();
        pages.unsigned_abs()
    };
    eventually("it has shrunk", async || {
        pages("PRAGMA freelist_count").await == 0 && pages("PRAGMA page_count").await * 8192 <= 8 * MIB
    })
    .await;
    other.close().await.unwrap();
    let left = kept().await;
    assert!(!left.is_empty() && written.ends_with(&left), "the newest are left: {}", left.len());
    ledger.close().await;
    assert!(length(&folder.ledger()) <= 9 * MIB, "{}", length(&folder.ledger()));
}

#[tokio::test]
async fn what_a_reporter_has_not_had_is_kept_at_any_size_and_age_from_the_start_on() {
    let folder = Folder::new();
    let ledger = with(&folder.ledger(), Duration::MAX, 1 << 40).await;
    ledger.register(&["slow".into(), "fast".into()]).await.unwrap();
    let written = fill_large(&ledger, 1500).await;
    ledger.set_place(&"slow".into(), 400);
    ledger.set_place(&"fast".into(), 1500);
    ledger.close().await;
    drop(ledger);
    rewrite(&folder.ledger(), "UPDATE records SET written = 0").await;

    let log = Log::new();
    let ledger = with(&folder.ledger(), Duration::from_secs(60), 2 * MIB).await;
    // Who is to have them is said a while after it was opened.
    ledger.shared.barrier().await;
    ledger.shared.barrier().await;
    assert_eq!(read(&folder.ledger()).await.len(), 1500, "nobody knows yet who is to have them");
    ledger.register(&["slow".into(), "fast".into()]).await.unwrap();
    ledger.set_live(["slow".into(), "fast".into()]);
    eventually("others are deleted", async || read(&folder.ledger()).await.len() < 1500).await;
    eventually("it is said", async || !log.with("a reporter has not had its records yet").is_empty()).await;
    assert_eq!(ids(&read(&folder.ledger()).await), written[400..]);
    // One that is not configured any more is not waited for.
    ledger.set_live(["fast".into()]);
    eventually("they are deleted", async || read(&folder.ledger()).await.is_empty()).await;
    // Numbers go on.
    fill_large(&ledger, 1).await;
    assert_eq!(ledger.last(), 1501);
    ledger.close().await;
}

#[tokio::test]
async fn what_is_old_and_delivered_goes() {
    let folder = Folder::new();
    let ledger = with(&folder.ledger(), Duration::MAX, 1 << 40).await;
    let written = fill(&ledger, 50).await;
    ledger.close().await;
    drop(ledger);
    rewrite(&folder.ledger(), "UPDATE records SET written = 1000 * seq").await;
    let mut store = Store::open(&folder.ledger(), Durability::Relaxed).await.unwrap();
    for (seq, before, left) in [(50, 21_000, 20), (25, 50_000, 25), (25, i64::MAX, 25), (40, 31_000, 30)] {
        while store.prune(&Old { seq, before, max_size: 1 << 40 }).await.unwrap().has_more {}
        assert_eq!(ids(&read(&folder.ledger()).await), written[left..]);
    }
    store.close(false).await.unwrap();
}

#[tokio::test]
async fn large_bodies_go_in_short_steps_and_the_file_shrinks_with_them() {
    const BODY: usize = 3 << 20;
    let folder = Folder::new();
    let mut store = Store::open(&folder.ledger(), Durability::Strict).await.unwrap();
    let body = Bytes::from(vec![b'x'; BODY]);
    for seq in 1..=50 {
        let row = Row::new(seq, 0, super::super::writer::text(&record()), Some(body.clone()));
        store.commit(&Commit { rows: vec![row], ..Commit::default() }).await.unwrap().or_error().unwrap();
    }
    let (mut steps, mut longest, mut left) = (0, Duration::ZERO, 50);
    loop {
        let started = Instant::now();
        let pruned = store.prune(&Old { seq: 50, before: i64::MAX, max_size: 1 << 40 }).await.unwrap();
        (steps, longest) = (steps + 1, longest.max(started.elapsed()));
        let now = read(&folder.ledger()).await.len();
        assert!(left - now <= 2, "{} at a stretch", left - now);
        left = now;
        if !pruned.has_more {
            break;
        }
    }
    let _ = writeln!(std::io::stderr(), "150 MiB of records went in {steps} steps, the longest of {longest:?}");
    assert_eq!(left, 0);
    // Some tens of milliseconds, where nobody else uses the disk; the ends of answers wait for five seconds.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    store.close(false).await.unwrap();
    assert!(length(&folder.ledger()) < MIB, "{}", length(&folder.ledger()));
}
