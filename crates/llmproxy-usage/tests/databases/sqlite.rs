//! SQLite, which needs nothing.

use std::{path::PathBuf, task::Poll, time::Duration};

use llmproxy_usage::{
    BuiltinConfig, BuiltinReport, BuiltinStore, DatabaseConfig, Group, Query, Report, ReportBatch, Verdict,
};

use crate::database::{Db, Peek, again, changed, entries, send, suite};

/// A folder that goes with its test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("llmproxy-usage-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Sqlite {
    db: Db,
    folder: Folder,
}

impl std::ops::Deref for Sqlite {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

async fn open(name: &str) -> Sqlite {
    let folder = Folder::new(name);
    let path = folder.0.join("usage.db");
    let peek = Peek::Sqlite(format!("sqlite://{}", path.display()));
    let config = DatabaseConfig { name: "test".into(), driver: "sqlite".into(), path, ..DatabaseConfig::default() };
    Sqlite { db: Db { config, peek, id: "INTEGER PRIMARY KEY AUTOINCREMENT", json: "TEXT" }, folder }
}

suite!([] open);

#[tokio::test]
async fn a_folder_is_made_and_what_is_in_its_way_is_told() {
    let mut sqlite = open("in_the_way").await;
    let blocked = sqlite.folder.0.join("blocked");
    std::fs::write(&blocked, "a file").unwrap();
    sqlite.db.config.path = blocked.join("deep/usage.db");
    let report = sqlite.report("usage_records");
    let why = again(send(&report, &entries(1)).await);
    assert!(why.contains("blocked"), "{why}");
    std::fs::remove_file(&blocked).unwrap();
    assert_eq!(send(&report, &entries(1)).await, Verdict::Delivered);
}

#[tokio::test]
async fn a_file_that_somebody_else_keeps_is_waited_for() {
    use sqlx::Connection;

    let mut sqlite = open("locked").await;
    sqlite.db.config.max_idle_conns = Some(0);
    let report = sqlite.report("usage_records");
    assert_eq!(send(&report, &entries(1)).await, Verdict::Delivered);
    let url = format!("sqlite://{}", sqlite.config.path.display());
    let mut other = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
    let batch = entries(2);
    let why = again(send(&report, &batch).await);
    assert!(why.contains("another program keeps the file locked"), "{why}");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    assert_eq!(sqlite.count("usage_records").await, 3);
}

/// Polls what is to be broken off `polls` times, as a reporter's limit of time would cut it wherever it is.
async fn break_off(polls: usize, delivery: impl Future<Output = Verdict>) {
    let mut delivery = std::pin::pin!(delivery);
    for _ in 0..polls {
        let once = std::future::poll_fn(|context| Poll::Ready(delivery.as_mut().poll(context)));
        if once.await.is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_broken_off_is_whole_the_next_time() {
    let sqlite = open("broken_off").await;
    let report = sqlite.report("usage_records");
    let path = sqlite.folder.0.join("keys.db");
    let builtin = BuiltinReport::new("builtin", &BuiltinConfig::default(), &path);
    let mut sent = 0;
    for polls in (1..600).step_by(7) {
        let batch = entries(5);
        break_off(polls, send(&report, &batch)).await;
        break_off(polls, builtin.report_batch(&batch)).await;
        if polls % 2 == 0 {
            break_off(polls / 2, builtin.report_batch(&batch)).await;
        }
        assert_eq!(send(&report, &batch).await, Verdict::Delivered, "{polls}");
        assert_eq!(builtin.report_batch(&batch).await, Verdict::Delivered, "{polls}");
        sent += 5;
    }
    assert_eq!(sqlite.count("usage_records").await, sent);
    let store = BuiltinStore::open_to_read(&path).await.unwrap();
    for by in [Group::Day, Group::Hour] {
        let totals = store.totals(&Query { by, ..Query::default() }).await.unwrap();
        assert_eq!(totals.iter().map(|total| total.requests).sum::<u64>(), sent as u64, "{by:?}");
        assert_eq!(totals[0].total_tokens(), 28 * sent as u64);
    }
}

#[tokio::test]
async fn records_wait_without_end() {
    let sqlite = open("without_end").await;
    let builtin = BuiltinReport::new("builtin", &BuiltinConfig::default(), sqlite.folder.0.join("keys.db"));
    assert_eq!((sqlite.report("usage_records").max_age(), builtin.max_age()), (Duration::MAX, Duration::MAX));
}

#[tokio::test]
async fn a_cost_keeps_its_digits() {
    let sqlite = open("digits").await;
    let cost = llmproxy_core::Cost { trillionths: 12_345_678_901_234_567, currency: "EUR".into() };
    let batch = [changed(|record| record.cost = Some(cost))];
    assert_eq!(send(&sqlite.report("usage_records"), &batch).await, Verdict::Delivered);
    let kept = sqlite.one("SELECT CAST(cost AS TEXT) FROM usage_records").await;
    assert_eq!(kept.as_deref(), Some("12345.678901234567"));
}
