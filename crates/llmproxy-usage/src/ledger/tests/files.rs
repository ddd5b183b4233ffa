//! Files that can't be used, and what is said of them.

use std::fs;

use super::{writing::rewrite, *};

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
