//! How far each reporter is.

use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

use super::{writing::rewrite, *};

/// What reporter `name` would be given next.
async fn next(ledger: &Ledger, name: &str) -> Vec<Uuid> {
    let (mut found, mut seen) = (Vec::new(), ledger.place(name));
    loop {
        let page = ledger.after(seen, 100, false).await.unwrap();
        if page.up_to == seen {
            return found;
        }
        seen = page.up_to;
        found.extend(page.entries.iter().map(|(_, entry)| entry.record.request_id));
    }
}

#[tokio::test]
async fn a_new_reporter_begins_at_the_end_and_one_that_comes_back_goes_on() {
    let folder = Folder::new();
    let (slow, fast, late): (Arc<str>, Arc<str>, Arc<str>) = ("slow".into(), "fast".into(), "late".into());
    let ledger = open(&folder.ledger()).await;
    ledger.register(&[slow.clone(), fast.clone()]).await.unwrap();
    let mut all = fill(&ledger, 10).await;
    ledger.set_place(&fast, 10);
    ledger.set_place(&slow, 3);
    ledger.register(&[slow.clone(), late.clone()]).await.unwrap();
    all.extend(fill(&ledger, 5).await);
    assert_eq!(next(&ledger, "slow").await, all[3..]);
    ledger.close().await;
    drop(ledger);

    // Not configured for a while.
    let ledger = open(&folder.ledger()).await;
    ledger.register(std::slice::from_ref(&fast)).await.unwrap();
    all.extend(fill(&ledger, 1).await);
    ledger.close().await;
    drop(ledger);

    let ledger = open(&folder.ledger()).await;
    ledger.register(&[slow, fast, late]).await.unwrap();
    assert_eq!(next(&ledger, "slow").await, all[3..]);
    assert_eq!(next(&ledger, "fast").await, all[10..]);
    assert_eq!(next(&ledger, "late").await, all[10..]);
    ledger.close().await;
}

#[tokio::test]
async fn a_place_is_in_the_file_before_a_new_reporter_can_miss_anything() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    fill(&ledger, 7).await;
    ledger.register(&["new".into()]).await.unwrap();
    let copied = folder.0.join("copy.db");
    copy(&folder.ledger(), &copied);
    let written = fill(&ledger, 2).await;
    let dead = folder.0.join("dead.db");
    copy(&folder.ledger(), &dead);
    for (path, expected) in [(&copied, &written[..0]), (&dead, &written[..])] {
        let again = open(path).await;
        again.register(&["new".into()]).await.unwrap();
        assert_eq!(next(&again, "new").await, expected);
        again.close().await;
    }
    ledger.close().await;
}

#[tokio::test]
async fn after_a_crash_a_reporter_is_where_it_was_a_second_ago_and_never_further() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["a".into()]).await.unwrap();
    fill(&ledger, 10).await;
    let copied = folder.0.join("copy.db");
    let in_file = async || {
        copy(&folder.ledger(), &copied);
        let mut store = Store::open(&copied, Durability::Relaxed).await.unwrap();
        let place = store.places().await.unwrap()[0].1;
        store.close(false).await.unwrap();
        place
    };
    ledger.set_place(&"a".into(), 6);
    assert!(in_file().await <= 6);
    eventually("it is written by itself", async || in_file().await == 6).await;
    ledger.close().await;
}

#[tokio::test]
async fn a_number_that_a_reporter_has_had_is_not_used_again() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["a".into()]).await.unwrap();
    fill(&ledger, 10).await;
    ledger.set_place(&"a".into(), 10);
    ledger.close().await;
    drop(ledger);
    // What a broken disk may leave: the newest records are gone, and the reporter has had them.
    rewrite(&folder.ledger(), "DELETE FROM records WHERE seq > 5; UPDATE sqlite_sequence SET seq = 5").await;
    let ledger = open(&folder.ledger()).await;
    assert_eq!(ledger.pending(), 0);
    let written = fill(&ledger, 2).await;
    assert_eq!(next(&ledger, "a").await, written);
    ledger.close().await;
}

#[tokio::test]
async fn what_is_pending_is_what_live_reporters_have_yet_to_have() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["a".into(), "b".into()]).await.unwrap();
    fill(&ledger, 10).await;
    assert_eq!(ledger.pending(), 0);
    ledger.set_live(["a".into(), "b".into()]);
    assert_eq!(ledger.pending(), 20);
    ledger.set_place(&"a".into(), 4);
    assert_eq!(ledger.pending(), 16);
    ledger.set_live(["a".into()]);
    assert_eq!(ledger.pending(), 6);
    let waiting = ledger.none_pending();
    ledger.set_place(&"a".into(), 10);
    waiting.await;
    ledger.close().await;
}

#[tokio::test]
async fn nobody_waits_for_what_has_no_record() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    drop(ledger.try_reserve(Uuid::now_v7(), None).unwrap());
    tokio::time::timeout(Duration::from_secs(5), ledger.none_pending()).await.expect("there is nothing to wait for");
    // A record that is just being written is waited for, whenever that is asked.
    ledger.set_live(["a".into()]);
    ledger.register(&["a".into()]).await.unwrap();
    let record = record();
    hand_over(&ledger, &record);
    while ledger.last() == 0 {
        assert_ne!(ledger.pending(), 0);
        tokio::task::yield_now().await;
    }
    assert_eq!(ledger.pending(), 1);
    ledger.close().await;
}

#[tokio::test]
async fn a_place_that_comes_with_the_end_is_written() {
    let folder = Folder::new();
    // The last record may be written before anybody looks.
    for seq in 1..=100 {
        let ledger = open(&folder.ledger()).await;
        ledger.register(&["a".into()]).await.unwrap();
        hand_over(&ledger, &record());
        let meanwhile = async {
            let inbox = &ledger.shared.inbox;
            while !inbox.is_empty() {
                tokio::task::yield_now().await;
            }
            let is_being_written = inbox.unwritten() == 1;
            if is_being_written {
                ledger.set_place(&"a".into(), seq);
            }
            is_being_written
        };
        let ((), is_set) = tokio::join!(ledger.close(), meanwhile);
        drop(ledger);
        if is_set {
            let ledger = open(&folder.ledger()).await;
            assert_eq!(ledger.place("a"), seq);
            ledger.close().await;
            return;
        }
    }
    panic!("the last record was never seen being written");
}

#[tokio::test]
async fn a_new_reporter_does_not_wait_for_ever_to_be_written_down() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    // Another program has the file for itself.
    let other = SqliteConnectOptions::new().filename(folder.ledger()).connect().await;
    let mut other = other.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = ledger.register(&["new".into()]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unwritable { .. }), "{error:?}");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    fill(&ledger, 3).await;
    ledger.register(&["new".into()]).await.unwrap();
    assert_eq!(ledger.place("new"), 3, "it is as new as before");
    ledger.close().await;
}
