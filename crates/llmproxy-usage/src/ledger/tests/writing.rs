//! From the end of an exchange into the file.

use llmproxy_core::End;
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use super::{
    super::{prune::Old, store::Written},
    log::Log,
    *,
};

#[tokio::test]
async fn a_record_is_in_the_file_a_moment_later_and_outlives_the_process() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    // The first statement of a connection is slow.
    fill(&ledger, 1).await;
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let mut reader = LedgerReader::open(folder.ledger()).await.unwrap();
        let before = ledger.last();
        let (record, started) = (record(), Instant::now());
        hand_over(&ledger, &record);
        eventually("it is written", async || reader.last().await.unwrap() > before).await;
        fastest = fastest.min(started.elapsed());
        // Nothing is closed: what is there is what a process that died would have left.
        let copied = folder.0.join("copy.db");
        copy(&folder.ledger(), &copied);
        let again = open(&copied).await;
        assert_eq!(read(&copied).await.last(), Some(&record), "it is the same, all of it");
        again.close().await;
    }
    // On a machine with nothing else to do it is ten milliseconds; tests share one.
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    ledger.close().await;
}

#[tokio::test]
async fn who_waits_for_its_record_is_told_when_others_see_it() {
    let folder = Folder::new();
    let ledger = Ledger::open(&config(&folder.ledger()), Durability::Strict, 10).await.unwrap();
    let mut other = LedgerReader::open(folder.ledger()).await.unwrap();
    for number in 1..=20 {
        let record = record();
        let mut reserved = ledger.try_reserve(record.request_id, None).unwrap();
        let mut committed = reserved.committed();
        reserved.record(&record);
        assert!(committed.try_recv().is_err(), "it can't be yet");
        committed.await.unwrap();
        assert_eq!(other.last().await.unwrap(), number);
    }
    // Where there is none, there is nothing to wait for.
    let mut unused = ledger.try_reserve(Uuid::now_v7(), None).unwrap();
    let committed = unused.committed();
    drop(unused);
    committed.await.unwrap();
    ledger.close().await;
}

#[tokio::test]
async fn what_comes_together_is_written_together() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    fill(&ledger, 1).await;
    let mut news = ledger.news();
    news.borrow_and_update();
    let records: Vec<_> = (0..1000).map(|_| record()).collect();
    records.iter().for_each(|record| hand_over(&ledger, record));
    let mut commits = 0;
    while ledger.last() < 1001 {
        news.changed().await.unwrap();
        commits += 1;
    }
    assert!(commits <= 2, "{commits} transactions");
    assert_eq!(ids(&read(&folder.ledger()).await)[1..], ids(&records), "in their order");
    ledger.close().await;
}

#[tokio::test]
async fn an_exchange_that_was_open_is_found_once_and_one_that_ended_is_not() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    let (open_one, ended, refused) = (begin(&ledger).await, begin(&ledger).await, begin(&ledger).await);
    let record = Arc::new(UsageRecord { request_id: ended.id(), ..Arc::unwrap_or_clone(record()) });
    hand_over(&ledger, &record);
    drop(ledger.try_reserve(refused.id(), None).unwrap());
    // One whose beginning and end come together leaves no note.
    let short = Exchange::of(&mut Extensions::new());
    ledger.begin(short.clone(), Method::GET, "/".into(), false);
    let short = Arc::new(UsageRecord { request_id: short.id(), ..Arc::unwrap_or_clone(super::record()) });
    hand_over(&ledger, &short);
    ledger.shared.barrier().await;

    let dead = folder.0.join("dead.db");
    copy(&folder.ledger(), &dead);
    for _ in 0..3 {
        let ledger = open(&dead).await;
        let found = read(&dead).await;
        assert_eq!(ids(&found), [record.request_id, short.request_id, open_one.id()]);
        let died = &found[2];
        assert_eq!((died.end, died.status, &*died.path), (End::ProxyDied, 0, "/v1/chat/completions"));
        assert_eq!((&*died.method, died.timestamp), ("POST", open_one.timestamp()));
        // Neither a good end nor another death brings it back.
        let again = folder.0.join("again.db");
        copy(&dead, &again);
        let ledger_again = open(&again).await;
        assert_eq!(read(&again).await.len(), 3);
        ledger_again.close().await;
        ledger.close().await;
    }
    ledger.close().await;
}

#[tokio::test]
async fn a_request_without_a_record_gives_its_place_back() {
    let folder = Folder::new();
    let ledger = Ledger::open(&config(&folder.ledger()), Durability::Relaxed, 2).await.unwrap();
    for _ in 0..10 {
        let (one, two) = (ledger.reserve(Uuid::now_v7(), None).await, ledger.reserve(Uuid::now_v7(), None).await);
        assert!(ledger.try_reserve(Uuid::now_v7(), None).is_none(), "memory has an end");
        drop(one);
        two.record(&record());
    }
    ledger.shared.barrier().await;
    assert_eq!(read(&folder.ledger()).await.len(), 10);
    ledger.close().await;
}

#[tokio::test]
async fn a_clock_that_jumps_neither_loses_nor_reorders() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    ledger.register(&["slow".into()]).await.unwrap();
    ledger.set_live(["slow".into()]);
    let hours = [0, 9000, -9000, 1, 0, -1];
    let records: Vec<_> = hours
        .iter()
        .map(|hours| {
            let timestamp = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(*hours);
            Arc::new(UsageRecord { timestamp, ..Arc::unwrap_or_clone(record()) })
        })
        .collect();
    records.iter().for_each(|record| hand_over(&ledger, record));
    ledger.shared.barrier().await;
    assert_eq!(read(&folder.ledger()).await, records);
    // The machine's clock was far behind when they were written, and is right again: they are old, and not delivered.
    rewrite(&folder.ledger(), "UPDATE records SET written = 0").await;
    prune_now(&ledger).await;
    assert_eq!(read(&folder.ledger()).await, records);
    ledger.close().await;
    drop(ledger);
    let ledger = open(&folder.ledger()).await;
    ledger.set_live(["slow".into()]);
    prune_now(&ledger).await;
    assert_eq!(read(&folder.ledger()).await, records);
    let page = ledger.after(0, 10, false).await.unwrap();
    assert_eq!(page.entries.len(), 6);
    ledger.close().await;
}

/// Looks at what is too old, as the writer does once in a while.
async fn prune_now(ledger: &Ledger) {
    let (max_age, max_size) = ledger.shared.retention();
    let before = jiff::Timestamp::now().as_millisecond() - i64::try_from(max_age.as_millis()).unwrap();
    let mut store = Store::open(&ledger.shared.path, Durability::Relaxed).await.unwrap();
    let old = Old { seq: ledger.shared.floor(ledger.last()), before, max_size };
    while store.prune(&old).await.unwrap().has_more {}
}

pub(super) async fn rewrite(path: &Path, sql: &'static str) {
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn what_was_written_although_it_seemed_not_to_be_is_written_once() {
    let folder = Folder::new();
    let mut store = Store::open(&folder.ledger(), Durability::Relaxed).await.unwrap();
    let record = record();
    let row = || Row::new(1, 0, super::super::writer::text(&record), None);
    let commit = Commit { rows: vec![row()], opened: vec![(Uuid::nil(), "{}".to_owned())], ..Commit::default() };
    // A sync may fail when the log has all of it already.
    assert_eq!(store.commit(&commit).await.unwrap(), Written::All);
    assert_eq!(store.commit(&commit).await.unwrap(), Written::All);
    assert_eq!(read(&folder.ledger()).await, std::slice::from_ref(&record));
    // What is another's is neither replaced nor taken for it.
    let other = Row::new(1, 0, super::super::writer::text(&super::record()), None);
    let id = Uuid::now_v7();
    let commit = Commit { rows: vec![other], opened: vec![(id, "{}".to_owned())], ..Commit::default() };
    assert_eq!(store.commit(&commit).await.unwrap(), Written::Taken);
    assert_eq!(read(&folder.ledger()).await, [record]);
    assert!(store.left_open().await.unwrap().iter().all(|(open, _)| *open != id), "all or nothing");
    store.close(false).await.unwrap();
}

#[tokio::test]
async fn where_another_process_writes_too_both_keep_all() {
    let folder = Folder::new();
    let log = Log::new();
    let one = open(&folder.ledger()).await;
    one.register(&["a".into()]).await.unwrap();
    let mut all = fill(&one, 3).await;
    // Another name of the same file has another lock.
    let second = folder.0.join("second.db");
    fs::hard_link(folder.ledger(), &second).unwrap();
    for suffix in ["-wal", "-shm"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        fs::hard_link(with(&folder.ledger()), with(&second)).unwrap();
    }
    let two = open(&second).await;
    assert_eq!(log.with("has another name (a hard link)").len(), 1);
    for round in 0..5 {
        all.extend(fill(&two, 1 + round % 2).await);
        all.extend(fill(&one, 1 + round / 2).await);
    }
    let kept = ids(&read(&folder.ledger()).await);
    assert_eq!(kept, all, "in the order in which they were written");
    assert_eq!(log.with("another process writes the usage ledger too").len(), 2, "each says so, once");
    // Each gives its reporters all, those of the other included.
    let (mut seen, mut given) = (0, Vec::new());
    while seen < one.last() {
        let page = one.after(seen, 2, false).await.unwrap();
        given.extend(page.entries.iter().map(|(_, entry)| entry.record.request_id));
        seen = page.up_to;
    }
    assert_eq!(given, all);
    two.close().await;
    one.close().await;
}

#[tokio::test]
async fn prompts_can_be_taken_out_by_hand_as_the_documentation_says() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    let prompt = Bytes::from("TOP SECRET".repeat(2000));
    let mut written = Vec::new();
    for _ in 0..20 {
        let record = record();
        ledger.reserve(record.request_id, Some(&prompt)).await.record(&record);
        written.push(record.request_id);
    }
    ledger.close().await;
    drop(ledger);
    let is_there = || {
        let bytes = fs::read(folder.ledger()).unwrap();
        bytes.windows(10).any(|bytes| bytes == b"TOP SECRET")
    };
    assert!(is_there());
    rewrite(&folder.ledger(), "UPDATE records SET body = NULL; VACUUM").await;
    assert!(!is_there());
    let log = Log::new();
    let ledger = open(&folder.ledger()).await;
    let page = ledger.after(0, 100, true).await.unwrap();
    assert_eq!(page.entries.iter().map(|(_, entry)| entry.record.request_id).collect::<Vec<_>>(), written);
    assert!(page.entries.iter().all(|(_, entry)| entry.request_body.is_none()));
    fill(&ledger, 1).await;
    assert_eq!(ledger.last(), 21);
    ledger.close().await;
    assert_eq!(log.with("").len(), 0, "nothing is damaged: {:?}", log.with(""));
}
