//! SQLite, which needs nothing.

use std::path::PathBuf;

use llmproxy_usage::{DatabaseConfig, Verdict};

use crate::database::{Db, Peek, again, entries, send, suite};

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
