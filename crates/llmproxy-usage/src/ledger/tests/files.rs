//! Files that can't be used, and what is said of them.

use std::fs;

use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

use super::{log::Log, writing::rewrite, *};

async fn refusal(path: &Path) -> LedgerError {
    open_with(&config(path)).await.expect_err("it can't be used")
}

#[tokio::test]
async fn two_do_not_write_one_file() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    let error = Ledger::open(&config(&folder.ledger()), Durability::Relaxed, 10).await.unwrap_err();
    assert!(matches!(error, LedgerError::InUse { .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("usage.db") && said.contains("usage.ledger.path"), "{said}");
    ledger.close().await;
    drop(ledger);
    open(&folder.ledger()).await.close().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_is_the_file_that_it_leads_to() {
    let folder = Folder::new();
    let link = folder.0.join("link.db");
    // Which is not there yet.
    std::os::unix::fs::symlink(folder.ledger(), &link).unwrap();
    let ledger = open(&link).await;
    let written = fill(&ledger, 2).await;
    for path in [folder.ledger(), link.clone()] {
        let error = Ledger::open(&config(&path), Durability::Relaxed, 10).await.unwrap_err();
        assert!(matches!(error, LedgerError::InUse { .. }), "{error:?}");
    }
    assert_eq!(ledger.beside("x"), folder.0.join("x"));
    ledger.close().await;
    drop(ledger);
    // One that is broken is put aside, and not the link.
    rewrite(&folder.ledger(), "UPDATE state SET clean = 0").await;
    let bytes = fs::read(folder.ledger()).unwrap();
    fs::write(folder.ledger(), &bytes[..bytes.len() / 2]).unwrap();
    let log = Log::new();
    let ledger = open(&link).await;
    assert_eq!(log.with("the usage ledger was broken").len(), 1);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(written.starts_with(&ids(&read(&folder.ledger()).await)));
    ledger.close().await;
}

#[tokio::test]
async fn a_lock_file_that_is_removed_is_made_again() {
    let folder = Folder::new();
    let log = Log::new();
    let ledger = open(&folder.ledger()).await;
    let lock = folder.0.join("usage.db.lock");
    fs::remove_file(&lock).unwrap();
    eventually("it is made again", async || {
        fill(&ledger, 1).await;
        lock.exists()
    })
    .await;
    eventually("it is said", async || !log.with("was removed while the proxy runs").is_empty()).await;
    let error = Ledger::open(&config(&folder.ledger()), Durability::Relaxed, 10).await.unwrap_err();
    assert!(matches!(error, LedgerError::InUse { .. }), "{error:?}");
    // Where somebody else was quicker, that is said.
    fs::remove_file(&lock).unwrap();
    let other = fs::File::create(&lock).unwrap();
    other.try_lock().unwrap();
    eventually("it is said", async || {
        fill(&ledger, 1).await;
        !log.with("another process writes the usage ledger too").is_empty()
    })
    .await;
    ledger.close().await;
}

#[tokio::test]
async fn a_start_waits_for_another_program_that_has_the_file() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    let written = fill(&ledger, 2).await;
    ledger.close().await;
    drop(ledger);
    let mut other = SqliteConnectOptions::new().filename(folder.ledger()).connect().await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let log = Log::new();
    let said = "the start waits";
    let end = eventually("it is said", async || !log.with(said).is_empty());
    let end = async {
        end.await;
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    };
    let path = folder.ledger();
    let (ledger, ()) = tokio::join!(open(&path), end);
    assert_eq!(log.with(said).len(), 1);
    assert_eq!(ids(&read(&folder.ledger()).await), written);
    ledger.close().await;
}

#[tokio::test]
async fn what_a_newer_version_has_made_is_left_alone() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    let written = fill(&ledger, 1).await;
    ledger.close().await;
    drop(ledger);
    rewrite(&folder.ledger(), "PRAGMA user_version = 99").await;
    let error = refusal(&folder.ledger()).await;
    assert!(matches!(error, LedgerError::Newer { found: 99, .. }), "{error:?}");
    assert!(error.to_string().contains("newer llmproxy"), "{error}");
    assert!(matches!(LedgerReader::open(folder.ledger()).await, Err(LedgerError::Newer { .. })));
    rewrite(&folder.ledger(), "PRAGMA user_version = 1").await;
    assert_eq!(ids(&read(&folder.ledger()).await), written);
}

#[tokio::test]
async fn somebody_elses_database_is_left_alone() {
    let folder = Folder::new();
    fs::write(folder.ledger(), b"").unwrap();
    rewrite(&folder.ledger(), "CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('a')").await;
    let error = refusal(&folder.ledger()).await;
    assert!(matches!(error, LedgerError::Foreign { .. }), "{error:?}");
    assert!(error.to_string().contains("not a usage ledger"), "{error}");
    assert!(matches!(LedgerReader::open(folder.ledger()).await, Err(LedgerError::Foreign { .. })));
    rewrite(&folder.ledger(), "INSERT INTO users VALUES ('b')").await;
}

#[tokio::test]
async fn what_is_no_database_is_left_alone() {
    let folder = Folder::new();
    for text in ["a log of something else", "S", "SQLite format 4 is not known", "\0"] {
        let is_ours = text == "S";
        fs::write(folder.ledger(), text).unwrap();
        if is_ours {
            // What a ledger may have been that was cut off.
            open(&folder.ledger()).await.close().await;
            continue;
        }
        let error = refusal(&folder.ledger()).await;
        assert!(matches!(error, LedgerError::NoDatabase { .. }), "{error:?}");
        assert!(error.to_string().contains("is not a database"), "{error}");
        assert_eq!(fs::read(folder.ledger()).unwrap(), text.as_bytes(), "it is as it was");
    }
}

#[tokio::test]
async fn a_place_that_is_none_is_told_with_what_to_see_to() {
    let folder = Folder::new();
    fs::write(folder.0.join("file"), b"").unwrap();
    let error = refusal(&folder.0.join("file/usage.db")).await;
    assert!(matches!(error, LedgerError::Open { .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("file/usage.db") && said.contains("see that its folder exists"), "{said}");
    // A folder in its place.
    fs::create_dir(folder.0.join("folder")).unwrap();
    let error = refusal(&folder.0.join("folder")).await;
    assert!(error.to_string().contains("folder"), "{error}");
    assert!(matches!(LedgerReader::open(folder.ledger()).await, Err(LedgerError::Open { .. })), "there is none");
}

#[tokio::test]
async fn its_folder_is_made() {
    let folder = Folder::new();
    let path = folder.0.join("a/b/usage.db");
    open(&path).await.close().await;
    assert!(path.exists());
}

#[tokio::test]
async fn a_file_that_was_closed_is_whole_by_itself() {
    let folder = Folder::new();
    let ledger = open(&folder.ledger()).await;
    let written = fill(&ledger, 10).await;
    ledger.close().await;
    drop(ledger);
    let alone = folder.0.join("alone.db");
    fs::copy(folder.ledger(), &alone).unwrap();
    assert_eq!(ids(&read(&alone).await), written);
}
