//! The builtin store on real files.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod support;

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use llmproxy_auth::{
    AuthConfig, Authenticator, KeyHash, KeySource, KeyStatus, KeyStore, KeyStoreError, NewKey, parse_net,
};
use llmproxy_core::OnAbort;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use support::Folder;

async fn ask(store: &KeyStore, key: &str) -> Result<String, &'static str> {
    let config = AuthConfig { enabled: true, ..AuthConfig::default() };
    let authenticator = Authenticator::new(&config, Some(store.clone())).unwrap();
    let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap())]);
    let decision = authenticator.authenticate(&headers, "/v1/models", "10.0.0.1".parse().ok()).await;
    decision.map(|caller| caller.name().unwrap_or_default().to_owned()).map_err(|error| error.code())
}

async fn raw(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

#[tokio::test]
async fn a_created_key_opens_the_door_at_once_and_a_revoked_one_shuts_it_at_once() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    assert!(store.is_empty());
    let created = store.create(NewKey::named("alice")).await.unwrap();
    assert_eq!(ask(&store, &created.key).await.as_deref(), Ok("alice"));
    assert_eq!(ask(&store, "sk-guess").await, Err("NOT_FOUND"));
    let revoked = store.revoke("alice").await.unwrap();
    assert_eq!(revoked.status, KeyStatus::Disabled);
    assert_eq!(ask(&store, &created.key).await, Err("DISABLED"));
    assert_eq!(store.len(), 1);
}

#[tokio::test]
async fn a_store_of_version_1_is_taken_over_where_it_is() {
    let folder = Folder::new();
    let path = folder.join("keys.db");
    let store = KeyStore::open(&path).await.unwrap();
    let old = store.create(NewKey::named("alice")).await.unwrap();
    store.close().await;
    let mut version_1 = raw(&path).await;
    sqlx::raw_sql("ALTER TABLE llmproxy_keys DROP COLUMN on_abort; ALTER TABLE llmproxy_keys DROP COLUMN tag; PRAGMA user_version = 1")
        .execute(&mut version_1)
        .await
        .unwrap();
    version_1.close().await.unwrap();

    for round in 0..2 {
        let store = KeyStore::open(&path).await.unwrap();
        let entry = store.lookup(KeyHash::of(old.key.as_bytes())).await.unwrap().unwrap();
        assert_eq!((entry.name.as_deref(), entry.on_abort), (Some("alice"), None), "round {round}");
        let new = NewKey { on_abort: Some(OnAbort::Delivered), ..NewKey::named(format!("key {round}")) };
        let new = store.create(new).await.unwrap().key;
        let entry = store.lookup(KeyHash::of(new.as_bytes())).await.unwrap().unwrap();
        assert_eq!(entry.caller(new.as_bytes()).on_abort(), Some(OnAbort::Delivered));
        store.close().await;
    }
    // A word that nobody knows makes the key one that can't be read.
    let mut meddled = raw(&path).await;
    sqlx::query("UPDATE llmproxy_keys SET on_abort = 'sometimes' WHERE name = 'alice'")
        .execute(&mut meddled)
        .await
        .unwrap();
    meddled.close().await.unwrap();
    let store = KeyStore::open(&path).await.unwrap();
    assert_eq!(ask(&store, &old.key).await, Err("NOT_FOUND"));
    assert_eq!(store.len(), 2);
}

#[tokio::test]
async fn everything_about_a_key_is_there_after_a_restart() {
    let folder = Folder::new();
    let path = folder.join("deep/down/keys.db");
    let store = KeyStore::open(&path).await.unwrap();
    let new = NewKey {
        name: Some(" alice ".into()),
        user_id: Some("u-1".into()),
        allowed_models: vec!["qwen".into(), "llama".into()],
        allowed_ips: vec![parse_net("10.0.0.0/8").unwrap()],
        denied_ips: vec![parse_net("fd00::1").unwrap()],
        on_abort: Some(OnAbort::Drain),
        tag: Some(" batch ".into()),
        starts_at: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        expires_at: Some("2999-01-01T00:00:00.5Z".parse().unwrap()),
    };
    let created = store.create(new).await.unwrap();
    store.close().await;

    let store = KeyStore::open(&path).await.unwrap();
    let entry = store.lookup(KeyHash::of(created.key.as_bytes())).await.unwrap().unwrap();
    assert_eq!(format!("{entry:?}"), format!("{:?}", created.entry));
    assert_eq!(entry.name.as_deref(), Some("alice"));
    assert_eq!(entry.allowed_models.as_ref().unwrap().len(), 2);
    assert_eq!(entry.on_abort, Some(OnAbort::Drain));
    assert_eq!(entry.caller(created.key.as_bytes()).tag().map(|tag| &**tag), Some("batch"));
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn the_file_holds_no_key_and_nothing_is_left_beside_it_when_closed() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let created = store.create(NewKey::named("alice")).await.unwrap();
    assert!(created.key.starts_with("sk-") && created.key.len() == 67, "{}", created.key.len());
    assert!(!format!("{created:?}").contains(&created.key));
    store.close().await;
    assert_eq!(folder.names(), ["keys.db"]);
    let bytes = std::fs::read(folder.join("keys.db")).unwrap();
    assert!(!bytes.windows(created.key.len()).any(|window| window == created.key.as_bytes()));
}

#[tokio::test]
async fn no_two_keys_are_the_same() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let (a, b) = (store.create(NewKey::default()).await.unwrap(), store.create(NewKey::default()).await.unwrap());
    assert_ne!(a.key, b.key);
    assert_eq!(store.len(), 2);
}

#[tokio::test]
async fn a_key_is_revoked_by_name_by_fingerprint_or_by_itself() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    for by in 0..3 {
        let created = store.create(NewKey::named("alice")).await.unwrap();
        let named = match by {
            0 => "alice".to_owned(),
            1 => created.entry.fingerprint().to_uppercase(),
            _ => created.key.clone(),
        };
        assert_eq!(store.revoke(&named).await.unwrap().hash(), created.entry.hash());
        assert_eq!(ask(&store, &created.key).await, Err("DISABLED"));
    }
    // Once more is no mistake.
    assert_eq!(store.revoke("alice").await.unwrap().status, KeyStatus::Disabled);
}

#[tokio::test]
async fn revoking_nobody_says_so_without_repeating_what_may_be_a_key() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let error = store.revoke("sk-secret").await.unwrap_err();
    assert!(matches!(error, KeyStoreError::NotFound));
    assert!(!error.to_string().contains("sk-secret"));
}

#[tokio::test]
async fn a_name_is_taken_until_its_key_is_revoked() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    store.create(NewKey::named("alice")).await.unwrap();
    let error = store.create(NewKey::named("alice")).await.unwrap_err();
    assert!(matches!(error, KeyStoreError::NameTaken(_)), "{error}");
    store.revoke("alice").await.unwrap();
    store.create(NewKey::named("alice")).await.unwrap();
    assert_eq!(store.len(), 2);
}

#[tokio::test]
async fn what_another_process_writes_is_seen_at_the_next_look() {
    let folder = Folder::new();
    let proxy = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let command = KeyStore::open(folder.join("keys.db")).await.unwrap();
    assert!(!proxy.refresh().await.unwrap());
    let created = command.create(NewKey::named("alice")).await.unwrap();
    assert_eq!(ask(&proxy, &created.key).await, Err("NOT_FOUND"));
    assert!(proxy.refresh().await.unwrap());
    assert_eq!(ask(&proxy, &created.key).await.as_deref(), Ok("alice"));
    assert!(!proxy.refresh().await.unwrap());
}

#[tokio::test]
async fn own_writes_and_those_of_others_do_not_hide_each_other() {
    let folder = Folder::new();
    let one = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let other = KeyStore::open(folder.join("keys.db")).await.unwrap();
    other.create(NewKey::named("a")).await.unwrap();
    one.create(NewKey::named("b")).await.unwrap();
    assert_eq!(one.len(), 2);
    other.refresh().await.unwrap();
    assert_eq!(other.len(), 2);
}

#[tokio::test]
async fn a_write_that_was_dropped_half_way_is_seen_at_the_next_look() {
    let folder = Folder::new();
    let path = folder.join("keys.db");
    let store = KeyStore::open(&path).await.unwrap();
    let statuses = |store: &KeyStore| {
        let mut all: Vec<_> = store.list().iter().map(|key| (key.name.clone(), key.status)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let mut dropped = 0;
    // How far a number of polls goes depends on how quick the file is: each number has its turn several times.
    for round in 0..60 {
        let polls = round % 10;
        let name = format!("key-{round}");
        store.create(NewKey::named(&name)).await.unwrap();
        let mut revoke = Box::pin(store.revoke(&name));
        let mut left = polls;
        let done = std::future::poll_fn(|cx| {
            if left == 0 {
                return std::task::Poll::Ready(false);
            }
            left -= 1;
            revoke.as_mut().poll(cx).map(|_| true)
        });
        let done = done.await;
        drop(revoke);
        store.refresh().await.unwrap();
        let file = KeyStore::open(&path).await.unwrap();
        assert_eq!(statuses(&store), statuses(&file), "dropped after {polls} polls");
        dropped += usize::from(!done && polls > 0);
    }
    assert!(dropped > 3, "{dropped}");
}

#[tokio::test(start_paused = true)]
async fn the_watcher_looks_each_second_and_ends_with_the_store() {
    let folder = Folder::new();
    let proxy = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let watcher = proxy.watch();
    let command = KeyStore::open(folder.join("keys.db")).await.unwrap();
    command.create(NewKey::named("alice")).await.unwrap();
    // SQLite works on a thread of its own, which the paused clock does not wait for.
    let started = SystemTime::now();
    while proxy.is_empty() {
        assert!(started.elapsed().unwrap() < Duration::from_secs(30), "the key was never seen");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    proxy.close().await;
    watcher.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watcher_does_not_keep_the_store_open() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let watcher = store.watch();
    drop(store);
    watcher.await.unwrap();
}

#[tokio::test]
async fn a_failing_refresh_keeps_what_is_known_and_the_next_one_goes_on() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let created = store.create(NewKey::named("alice")).await.unwrap();
    let mut vandal = raw(&folder.join("keys.db")).await;
    sqlx::query("ALTER TABLE llmproxy_keys RENAME TO gone").execute(&mut vandal).await.unwrap();
    assert!(store.refresh().await.is_err());
    assert_eq!(ask(&store, &created.key).await.as_deref(), Ok("alice"));
    assert!(store.refresh().await.is_err(), "it is tried again, although nothing was written since");
    sqlx::query("ALTER TABLE gone RENAME TO llmproxy_keys").execute(&mut vandal).await.unwrap();
    sqlx::query("UPDATE llmproxy_keys SET status = 'disabled'").execute(&mut vandal).await.unwrap();
    assert!(store.refresh().await.unwrap());
    assert_eq!(ask(&store, &created.key).await, Err("DISABLED"));
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_refused_and_the_others_are_not() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let alice = store.create(NewKey::named("alice")).await.unwrap();
    let bob = store.create(NewKey::named("bob")).await.unwrap();
    let mut vandal = raw(&folder.join("keys.db")).await;
    sqlx::query("UPDATE llmproxy_keys SET allowed_ips = 'oops' WHERE name = 'bob'").execute(&mut vandal).await.unwrap();
    store.refresh().await.unwrap();
    assert_eq!(ask(&store, &alice.key).await.as_deref(), Ok("alice"));
    assert_eq!(ask(&store, &bob.key).await, Err("NOT_FOUND"));
}

#[tokio::test]
async fn a_closed_store_still_answers_but_writes_no_more() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    let created = store.create(NewKey::named("alice")).await.unwrap();
    store.close().await;
    store.close().await;
    assert_eq!(ask(&store, &created.key).await.as_deref(), Ok("alice"));
    assert!(matches!(store.create(NewKey::default()).await, Err(KeyStoreError::Closed)));
    assert!(matches!(store.revoke("alice").await, Err(KeyStoreError::Closed)));
}

#[tokio::test]
async fn the_database_of_something_else_is_left_alone() {
    let folder = Folder::new();
    let path = folder.join("other.db");
    let mut other = raw(&path).await;
    sqlx::query("CREATE TABLE songs (title TEXT)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(KeyStore::open(&path).await, Err(KeyStoreError::Foreign)));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(folder.names(), ["other.db"]);
}

#[tokio::test]
async fn the_file_of_a_newer_version_is_refused() {
    let folder = Folder::new();
    KeyStore::open(folder.join("keys.db")).await.unwrap().close().await;
    let mut newer = raw(&folder.join("keys.db")).await;
    sqlx::query("PRAGMA user_version = 99").execute(&mut newer).await.unwrap();
    newer.close().await.unwrap();
    assert!(matches!(KeyStore::open(folder.join("keys.db")).await, Err(KeyStoreError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn what_is_no_database_is_an_error_and_not_overwritten() {
    let folder = Folder::new();
    std::fs::write(folder.join("keys.db"), "auth:\n  enabled: true\n".repeat(10)).unwrap();
    assert!(matches!(KeyStore::open(folder.join("keys.db")).await, Err(KeyStoreError::Database(_))));
    assert!(std::fs::read(folder.join("keys.db")).unwrap().starts_with(b"auth:"));
}

#[tokio::test]
async fn keys_are_listed_newest_first() {
    let folder = Folder::new();
    let store = KeyStore::open(folder.join("keys.db")).await.unwrap();
    for name in ["a", "b", "c"] {
        let before = Timestamp::now();
        while Timestamp::now() == before {
            std::hint::spin_loop();
        }
        store.create(NewKey::named(name)).await.unwrap();
    }
    let names: Vec<_> = store.list().iter().map(|entry| entry.name.clone().unwrap()).collect();
    assert_eq!(names, ["c", "b", "a"].map(std::sync::Arc::from));
}
