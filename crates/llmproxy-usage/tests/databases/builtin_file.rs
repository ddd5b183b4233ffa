//! The builtin store's file: the Go program's beside it, somebody else's, a later version's, another one in its place.

use llmproxy_usage::{
    BuiltinConfig, BuiltinError, BuiltinReport, BuiltinStore, DatabaseConfig, DatabaseReport, DatabaseReporterConfig,
    Group, ReportBatch, StorageConfig, Verdict,
};

use crate::{
    builtin::{by, count, everything, execute},
    common::record,
    database::{again, entries, send},
    sqlite::Folder,
};

const GO: &str = "CREATE TABLE api_keys (key TEXT PRIMARY KEY, name TEXT, user_id TEXT, status INTEGER DEFAULT 0,
        starts_at DATETIME, expires_at DATETIME, created_at DATETIME, updated_at DATETIME);
    CREATE TABLE usage_records (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT, api_key TEXT, user_id TEXT,
        model TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, total_tokens INTEGER, endpoint TEXT,
        backend_url TEXT, status_code INTEGER, latency_ms INTEGER, streaming INTEGER, created_at DATETIME);
    INSERT INTO api_keys (key, name) VALUES ('sk-a', 'alice');
    INSERT INTO usage_records (request_id, api_key, user_id, model, prompt_tokens, completion_tokens, total_tokens,
        endpoint, backend_url, status_code, latency_ms, streaming, created_at) VALUES
        ('chatcmpl-1', 'sk-a', 'u', 'm', 5, 7, 12, '/v1/chat/completions', 'http://b', 200, 12, 1,
            '2026-01-23 01:30:00.123456789 +0800 CST m=+12.34'),
        ('chatcmpl-1', 'sk-b', 'u', 'm', 1, 1, 2, '/v1/chat/completions', 'http://b', 502, 12, 0, '2026-01-23 10:30:00'),
        ('', 'sk-b', '', 'm', 1, 1, 2, '/v1/chat/completions', 'http://b', 200, 12, 0, 'yesterday'),
        (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-01-23T10:30:00Z');";

#[tokio::test]
async fn usage_of_the_go_program_is_taken_over_once() {
    let folder = Folder::new("go");
    let path = folder.0.join("keys.db");
    execute(&path, GO).await;
    let before = std::fs::read(&path).unwrap();
    for _ in 0..2 {
        let store = BuiltinStore::open(&path).await.unwrap();
        assert_eq!(store.path(), folder.0.join("keys.llmproxy.db"));
        let total = everything(&store).await;
        assert_eq!((total.requests, total.errors, total.total_tokens()), (3, 1, 14));
        let days: Vec<_> = store.totals(&by(Group::Day)).await.unwrap().into_iter().map(|total| total.group).collect();
        assert_eq!(days, ["2026-01-22", "2026-01-23"]);
        let keys: Vec<_> = store.totals(&by(Group::Key)).await.unwrap().into_iter().map(|total| total.group).collect();
        // printf sk-b | sha256sum
        assert_eq!(keys, ["", "18519d64d0d18b0e", "alice"]);
        store.close().await;
    }
    assert_eq!(std::fs::read(&path).unwrap(), before, "it is not changed by a byte");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 2, "nothing is left beside it");
    let ours = folder.0.join("keys.llmproxy.db");
    assert_eq!(count(&ours, "SELECT value FROM llmproxy_usage WHERE name = 'go_skipped'").await, 1);
    let bytes = std::fs::read(&ours).unwrap();
    assert!(!bytes.windows(4).any(|window| window == b"sk-a" || window == b"sk-b"), "keys stay where they are");

    // It has gone on, and then its file goes away.
    execute(&path, "INSERT INTO usage_records (model, prompt_tokens, created_at) VALUES ('n', 9, '2026-01-24')").await;
    let store = BuiltinStore::open(&path).await.unwrap();
    assert_eq!(everything(&store).await.requests, 4);
    store.close().await;
    std::fs::remove_file(&path).unwrap();
    let store = BuiltinStore::open_to_read(&path).await.unwrap();
    assert_eq!(everything(&store).await.requests, 4);
}

#[tokio::test]
async fn usage_of_the_go_program_is_taken_over_at_the_start() {
    let folder = Folder::new("go_start");
    let path = folder.0.join("keys.db");
    execute(&path, GO).await;
    let told = BuiltinStore::open_to_read(&path).await.unwrap_err().to_string();
    assert!(told.contains("keys.llmproxy.db yet") && told.contains("is taken over when a proxy starts"), "{told}");
    let report = BuiltinReport::new("builtin", &BuiltinConfig::default(), &path);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let store = loop {
        if let Ok(store) = BuiltinStore::open_to_read(&path).await
            && store.not_taken_over().await.unwrap().is_none()
        {
            break store;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing is taken over");
        tokio::task::yield_now().await;
    };
    assert_eq!(everything(&store).await.requests, 3);
    // It goes on there without a record of ours, too.
    execute(&path, "INSERT INTO usage_records (model, created_at) VALUES ('n', '2026-01-24'), ('n', '2026-01-24')")
        .await;
    assert_eq!(store.not_taken_over().await.unwrap(), Some((2, &*path)));
    drop(report);
    let none = folder.0.join("none.db");
    drop(BuiltinReport::new("builtin", &BuiltinConfig::default(), &none));
    assert!(!none.exists(), "nothing is made where there is nothing");
}

#[tokio::test]
async fn a_file_that_is_removed_is_made_again_and_one_in_its_place_is_not_touched() {
    let folder = Folder::new("removed");
    let path = folder.0.join("keys.db");
    let report = BuiltinReport::new("builtin", &BuiltinConfig::default(), &path);
    assert_eq!(report.report_batch(&entries(3)).await, Verdict::Delivered);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(report.report_batch(&entries(2)).await, Verdict::Delivered);
    let requests = async || {
        let store = BuiltinStore::open_to_read(&path).await.unwrap();
        let requests = everything(&store).await.requests;
        store.close().await;
        requests
    };
    assert_eq!(requests().await, 2);
    // As a restore of a backup does it.
    let other = folder.0.join("other.db");
    BuiltinStore::open(&other).await.unwrap().close().await;
    std::fs::rename(&other, &path).unwrap();
    let batch = entries(1);
    let why = again(report.report_batch(&batch).await);
    assert!(why.contains("keys.db is another file") && why.contains("restart the proxy"), "{why}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(report.report_batch(&batch).await, Verdict::Delivered);
    assert_eq!(requests().await, 1);
}

#[tokio::test]
async fn a_file_of_somebody_else_is_left_alone() {
    let folder = Folder::new("foreign");
    let path = folder.0.join("keys.db");
    let missing = BuiltinStore::open_to_read(&path).await;
    assert!(matches!(missing, Err(BuiltinError::Missing(_))), "{missing:?}");
    assert!(!path.exists());
    execute(&path, "CREATE TABLE recipes (name TEXT)").await;
    let report = BuiltinReport::new("builtin", &BuiltinConfig::default(), &path);
    let batch = entries(1);
    let why = again(report.report_batch(&batch).await);
    assert!(why.contains("the database of something else") && why.contains("admin.db_path"), "{why}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(report.report_batch(&batch).await, Verdict::Delivered);
}

#[tokio::test]
async fn a_later_version_is_not_touched() {
    let folder = Folder::new("later");
    let path = folder.0.join("keys.db");
    BuiltinStore::open(&path).await.unwrap().close().await;
    execute(&path, "UPDATE llmproxy_usage SET value = 99 WHERE name = 'version'").await;
    for opened in [BuiltinStore::open(&path).await, BuiltinStore::open_to_read(&path).await] {
        assert!(matches!(opened, Err(BuiltinError::Newer { found: 99, known: 2 })), "{opened:?}");
    }
}

#[tokio::test]
async fn its_table_is_not_a_database_reporters() {
    let folder = Folder::new("both");
    let path = folder.0.join("keys.db");
    let store = BuiltinStore::open(&path).await.unwrap();
    let config = DatabaseConfig { name: "a".into(), driver: "sqlite".into(), path, ..DatabaseConfig::default() };
    let storage = StorageConfig { databases: vec![config] };
    for (table, taken) in [("usage_records", false), ("other_records", true)] {
        let config =
            DatabaseReporterConfig { storage: "a".into(), table: table.into(), ..DatabaseReporterConfig::default() };
        let verdict = send(&DatabaseReport::new("a", &config, &storage).unwrap(), &entries(1)).await;
        match taken {
            true => assert_eq!(verdict, Verdict::Delivered),
            false => assert!(again(verdict).contains("of type builtin; name another table")),
        }
    }
    assert_eq!(everything(&store).await.requests, 0);
}

#[tokio::test]
async fn the_key_stores_file_is_shared_and_its_version_left_alone() {
    let folder = Folder::new("keys_first");
    let path = folder.0.join("keys.db");
    execute(&path, "CREATE TABLE llmproxy_keys (key_hash BLOB); PRAGMA user_version = 2").await;
    let store = BuiltinStore::open(&path).await.unwrap();
    assert_eq!(store.path(), path);
    store.insert(&[&record()]).await.unwrap();
    assert_eq!(count(&path, "PRAGMA user_version").await, 2);
    assert_eq!(everything(&store).await.requests, 1);
}
