//! What is deleted, and what is not.

use super::{log::Log, writing::rewrite, *};

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
    ledger.shared.barrier().await;
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
async fn what_is_old_goes_in_steps() {
    let folder = Folder::new();
    let ledger = with(&folder.ledger(), Duration::MAX, 1 << 40).await;
    let written = fill(&ledger, 50).await;
    ledger.close().await;
    drop(ledger);
    rewrite(&folder.ledger(), "UPDATE records SET written = 1000 * seq").await;
    let mut store = Store::open(&folder.ledger(), Durability::Relaxed).await.unwrap();
    let mut check = async |seq, before, limit, deleted, left: &[Uuid]| {
        assert_eq!(store.prune(seq, before, 1 << 40, limit).await.unwrap().0, deleted);
        assert_eq!(ids(&read(&folder.ledger()).await), left);
    };
    check(50, 21_000, 15, 15, &written[15..]).await;
    check(50, 21_000, 15, 5, &written[20..]).await;
    check(50, 21_000, 15, 0, &written[20..]).await;
    check(25, 50_000, 15, 5, &written[25..]).await;
    check(25, i64::MAX, 15, 0, &written[25..]).await;
    store.close(false).await.unwrap();
}
