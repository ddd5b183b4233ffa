//! Taking over the keys of the Go program.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod support;

use std::path::Path;

use llmproxy_auth::{KeyEntry, KeyHash, KeySource, KeyStatus, KeyStore};
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use support::Folder;

const SCHEMA: &str = "
    CREATE TABLE api_keys (key TEXT PRIMARY KEY, name TEXT, user_id TEXT, status INTEGER DEFAULT 0,
        starts_at DATETIME, expires_at DATETIME, created_at DATETIME, updated_at DATETIME);
    CREATE INDEX idx_api_keys_status ON api_keys(status);
    CREATE INDEX idx_api_keys_user_id ON api_keys(user_id);
    CREATE TABLE usage_records (id INTEGER PRIMARY KEY, request_id TEXT, api_key TEXT);
";

const KEYS: &str = "
    INSERT INTO api_keys VALUES
        ('sk-alice-0001', 'alice', 'u-1', 0, '2026-01-23 10:30:00.123456789 +0800 CST m=+12.34', NULL,
            '2026-01-23 10:30:00.123456789 +0800 CST m=+12.34', '2026-01-23 10:30:00 +0000 UTC'),
        ('sk-bob-00001', 'bob', NULL, 1, NULL, '2030-01-01T00:00:00Z', '2026-01-23 10:30:00', NULL),
        ('sk-carol-001', '', '', 2, NULL, '2030-01-01 00:00:00+08:00', NULL, NULL),
        ('sk-dave-0001', 'dave', 'u-4', 0, NULL, 'next spring', NULL, NULL),
        ('sk-erin-0001', 'erin', 'u-5', 7, NULL, NULL, NULL, NULL);
";

async fn execute(path: &Path, sql: &'static str) {
    let mut connection = SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn old_store(folder: &Folder) -> std::path::PathBuf {
    let path = folder.join("keys.db");
    execute(&path, SCHEMA).await;
    execute(&path, KEYS).await;
    path
}

async fn entry(store: &KeyStore, key: &str) -> std::sync::Arc<KeyEntry> {
    store.lookup(KeyHash::of(key.as_bytes())).await.unwrap().unwrap()
}

#[tokio::test]
async fn every_key_is_taken_over_hashed() {
    let folder = Folder::new();
    let path = old_store(&folder).await;
    let store = KeyStore::open(&path).await.unwrap();
    assert_eq!(store.len(), 5);
    let alice = entry(&store, "sk-alice-0001").await;
    assert_eq!((alice.name.as_deref(), alice.user_id.as_deref()), (Some("alice"), Some("u-1")));
    assert_eq!(alice.status, KeyStatus::Active);
    assert_eq!(alice.masked.as_deref(), Some("sk-a***0001"));
    assert_eq!(alice.starts_at, Some("2026-01-23T02:30:00.123456789Z".parse().unwrap()));
    let bob = entry(&store, "sk-bob-00001").await;
    assert_eq!((bob.status, bob.expires_at), (KeyStatus::Disabled, Some("2030-01-01T00:00:00Z".parse().unwrap())));
    let carol = entry(&store, "sk-carol-001").await;
    assert_eq!((carol.name.as_deref(), carol.status), (None, KeyStatus::QuotaExceeded));
    assert_eq!(carol.expires_at, Some("2029-12-31T16:00:00Z".parse().unwrap()));
    store.close().await;
    let bytes = std::fs::read(folder.join("keys.llmproxy.db")).unwrap();
    assert!(!bytes.windows(8).any(|window| window == b"sk-alice"));
}

#[tokio::test]
async fn what_is_not_understood_is_not_let_in() {
    let folder = Folder::new();
    let store = KeyStore::open(old_store(&folder).await).await.unwrap();
    assert_eq!(entry(&store, "sk-dave-0001").await.status, KeyStatus::Disabled);
    assert_eq!(entry(&store, "sk-erin-0001").await.status, KeyStatus::Disabled);
}

#[tokio::test]
async fn the_old_file_is_untouched_byte_for_byte() {
    let folder = Folder::new();
    let path = old_store(&folder).await;
    let (before, modified) = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
    let store = KeyStore::open(&path).await.unwrap();
    store.revoke("alice").await.unwrap();
    store.close().await;
    assert_eq!(KeyHash::of(&std::fs::read(&path).unwrap()), KeyHash::of(&before));
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), modified);
    assert_eq!(folder.names(), ["keys.db", "keys.llmproxy.db"]);
}

#[tokio::test]
async fn an_old_file_in_wal_mode_is_untouched_too() {
    let folder = Folder::new();
    let path = old_store(&folder).await;
    execute(&path, "PRAGMA journal_mode = WAL; DELETE FROM api_keys WHERE key = 'sk-erin-0001'").await;
    assert_eq!(folder.names(), ["keys.db"]);
    let before = std::fs::read(&path).unwrap();
    let store = KeyStore::open(&path).await.unwrap();
    assert_eq!(store.len(), 4);
    store.close().await;
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(folder.names(), ["keys.db", "keys.llmproxy.db"]);
}

#[tokio::test]
async fn a_revoked_key_stays_revoked_and_a_new_one_is_taken_over_at_the_next_start() {
    let folder = Folder::new();
    let path = old_store(&folder).await;
    let store = KeyStore::open(&path).await.unwrap();
    store.revoke("sk-alice-0001").await.unwrap();
    store.close().await;
    execute(&path, "INSERT INTO api_keys (key, name) VALUES ('sk-frank-001', 'frank')").await;

    let store = KeyStore::open(&path).await.unwrap();
    assert_eq!(store.len(), 6);
    assert_eq!(entry(&store, "sk-alice-0001").await.status, KeyStatus::Disabled);
    assert_eq!(entry(&store, "sk-frank-001").await.status, KeyStatus::Active);
}

#[tokio::test]
async fn the_keys_stay_when_the_old_file_is_deleted() {
    let folder = Folder::new();
    let path = old_store(&folder).await;
    KeyStore::open(&path).await.unwrap().close().await;
    std::fs::remove_file(&path).unwrap();
    let store = KeyStore::open(&path).await.unwrap();
    assert_eq!(store.len(), 5);
    store.close().await;
    assert_eq!(folder.names(), ["keys.llmproxy.db"]);
}

#[tokio::test]
async fn an_empty_store_of_the_go_program_is_fine() {
    let folder = Folder::new();
    let path = folder.join("keys.db");
    execute(&path, SCHEMA).await;
    assert!(KeyStore::open(&path).await.unwrap().is_empty());
}
