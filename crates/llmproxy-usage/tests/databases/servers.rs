//! PostgreSQL and MariaDB, as `cargo xtask test` starts them: each server's URL, and the program that stops and starts it,
//! are in the environment.

use std::{env, process::Command, time::Duration};

use llmproxy_usage::{DatabaseConfig, Entry, Verdict};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection};
use tokio::{
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Instant,
};

use crate::database::{Db, Peek, again, entries, send};

/// For a server to be there again, at worst.
const PATIENCE: Duration = Duration::from_secs(60);
/// What stands in the password's place must be nowhere.
const SECRET: &str = "gEhEiM";

/// A database of a test's own.
struct Own<G> {
    db: Db,
    control: String,
    _turn: G,
}

impl<G> std::ops::Deref for Own<G> {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

impl<G> Own<G> {
    /// Stops the server as a crash would, or starts it.
    async fn control(&self, what: &str) {
        let mut command = Command::new(&self.control);
        command.arg(what);
        let status = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
        assert!(status.success(), "{what}: {status}");
    }

    /// Until it is delivered.
    async fn insist(&self, report: &llmproxy_usage::DatabaseReport, batch: &[Entry]) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let mut tries = 1;
        loop {
            match send(report, batch).await {
                Verdict::Delivered => return tries,
                Verdict::Again { why, .. } => assert!(Instant::now() < deadline, "{why}"),
                Verdict::Refused { why } | Verdict::RefusedAll { why } => panic!("refused: {why}"),
            }
            tries += 1;
            tokio::task::yield_now().await;
        }
    }

    async fn down_at_the_start_is_only_late(&self) {
        self.control("kill").await;
        let report = self.report("late_records");
        let batch = entries(5);
        let why = again(send(&report, &batch).await);
        assert!(why.contains("see that the server runs"), "{why}");
        self.control("start").await;
        self.insist(&report, &batch).await;
        assert_eq!(self.count("late_records").await, 5);
    }

    async fn a_crash_in_the_midst_loses_and_doubles_nothing(&self) {
        let report = self.report("crash_records");
        let batches: Vec<_> = (0..60).map(|_| entries(20)).collect();
        assert_eq!(send(&report, &batches[0]).await, Verdict::Delivered);
        let write = async {
            let mut tries = 0;
            for batch in &batches {
                tries += self.insist(&report, batch.as_slice()).await;
            }
            tries
        };
        let crash = async {
            for _ in 0..3 {
                self.control("kill").await;
                self.control("start").await;
            }
        };
        let (tries, ()) = tokio::join!(write, crash);
        println!("60 batches took {tries} tries over 3 crashes");
        // What was delivered before a crash comes once more, in other batches.
        let all: Vec<_> = batches.into_iter().flatten().collect();
        for batch in all.chunks(500) {
            self.insist(&report, batch).await;
        }
        assert_eq!(self.count("crash_records").await, 60 * 20);
        let distinct =
            self.one(&format!("SELECT {} FROM crash_records", self.text("COUNT(DISTINCT request_id)"))).await;
        assert_eq!(distinct.as_deref(), Some("1200"));
    }

    async fn wrong_credentials_wait_and_are_told(&self) {
        let other = |change: fn(&mut DatabaseConfig)| {
            let mut config = self.config.clone();
            change(&mut config);
            Db { config, peek: Peek::Sqlite(String::new()), id: "", json: "" }
        };
        let wrong = other(|config| config.password = SECRET.into());
        let why = again(send(&wrong.report("usage_records"), &entries(1)).await);
        assert!(why.contains("see to `user` and `password`") && !why.contains(SECRET), "{why}");
        let missing = other(|config| config.database = "nowhere".into());
        let why = again(send(&missing.report("usage_records"), &entries(1)).await);
        assert!(why.contains("create the database") || why.contains("give the account the right"), "{why}");
    }

    /// `dsn` insists on TLS, and ends where the file with the authorities is named.
    async fn tls_is_used_and_the_server_known(&self, dsn: &str) {
        let with = |dsn: String| {
            let config = DatabaseConfig { dsn, ..self.config.clone() };
            Db { config, peek: Peek::Sqlite(String::new()), id: "", json: "" }
        };
        let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bins/llmproxy/tests/proxy/certificates/");
        let report = with(format!("{dsn}{ca}ca.pem")).report("tls_records");
        assert_eq!(send(&report, &entries(3)).await, Verdict::Delivered);
        assert_eq!(self.count("tls_records").await, 3);
        let stranger = with(format!("{dsn}{ca}stranger.pem"));
        let why = again(send(&stranger.report("tls_records"), &entries(1)).await);
        assert!(why.contains("certificate") && !why.contains("test-only"), "{why}");
    }

    async fn a_value_that_is_too_long_is_refused(&self) {
        self.run("CREATE TABLE short_records (request_id VARCHAR(64), user_id VARCHAR(2))").await;
        let report = self.report("short_records");
        let Verdict::Refused { why } = send(&report, &entries(1)).await else { panic!("not refused") };
        assert!(why.contains("too long"), "{why}");
    }
}

/// Tests take turns where one of them stops the server.
static POSTGRES: RwLock<()> = RwLock::const_new(());
static MARIADB: RwLock<()> = RwLock::const_new(());

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set; `cargo xtask test` sets it"))
}

/// What a URL of ours says: `scheme://user:password@host:port/`.
fn config(url: &str, driver: &str, database: String) -> DatabaseConfig {
    let (user, rest) = url.split_once("://").unwrap().1.split_once(':').unwrap();
    let (password, place) = rest.split_once('@').unwrap();
    let (host, port) = place.trim_end_matches('/').split_once(':').unwrap();
    DatabaseConfig {
        name: "test".into(),
        driver: driver.into(),
        host: host.into(),
        port: port.parse().unwrap(),
        user: user.into(),
        password: password.into(),
        database,
        ..DatabaseConfig::default()
    }
}

async fn postgres<G>(name: &str, turn: G) -> Own<G> {
    let (url, database) = (variable("LLMPROXY_TEST_POSTGRES"), format!("t_{name}")[..name.len().min(50)].to_owned());
    let mut connection = PgConnection::connect(&format!("{url}postgres")).await.unwrap();
    for sql in [format!("DROP DATABASE IF EXISTS {database}"), format!("CREATE DATABASE {database}")] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    let peek = Peek::Postgres(format!("{url}{database}"));
    let db = Db { config: config(&url, "postgres", database), peek, id: "SERIAL PRIMARY KEY", json: "JSONB" };
    Own { db, control: variable("LLMPROXY_TEST_POSTGRES_CONTROL"), _turn: turn }
}

async fn mariadb<G>(name: &str, turn: G) -> Own<G> {
    let (url, database) = (variable("LLMPROXY_TEST_MARIADB"), format!("t_{name}")[..name.len().min(50)].to_owned());
    let mut connection = MySqlConnection::connect(&url).await.unwrap();
    for sql in [format!("DROP DATABASE IF EXISTS {database}"), format!("CREATE DATABASE {database}")] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    let peek = Peek::MySql(format!("{url}{database}"));
    let id = "BIGINT AUTO_INCREMENT PRIMARY KEY";
    let db = Db { config: config(&url, "mariadb", database), peek, id, json: "JSON" };
    Own { db, control: variable("LLMPROXY_TEST_MARIADB_CONTROL"), _turn: turn }
}

/// How to insist on TLS, up to the name of the file with the authorities.
fn tls(db: &Db) -> String {
    let DatabaseConfig { driver, host, port, user, password, database, .. } = &db.config;
    match driver.as_str() {
        "postgres" => format!(
            "host={host} port={port} user={user} password='{password}' dbname={database} sslmode=verify-full sslrootcert="
        ),
        _ => format!("mysql://{user}:{password}@{host}:{port}/{database}?ssl-mode=VERIFY_IDENTITY&ssl-ca="),
    }
}

/// The tests of one server.
macro_rules! server {
    ($module:ident, $lock:ident, $($own:item)*) => {
        mod $module {
            use super::*;

            $($own)*

            async fn shared(name: &str) -> Own<RwLockReadGuard<'static, ()>> {
                super::$module(name, $lock.read().await).await
            }

            async fn alone(name: &str) -> Own<RwLockWriteGuard<'static, ()>> {
                super::$module(name, $lock.write().await).await
            }

            crate::database::suite! {
                [#[ignore = "needs a server, which `cargo xtask test` starts"]] shared
            }

            #[ignore = "needs a server, which `cargo xtask test` starts"]
            #[tokio::test]
            async fn down_at_the_start_is_only_late() {
                alone("down").await.down_at_the_start_is_only_late().await;
            }

            #[ignore = "needs a server, which `cargo xtask test` starts"]
            #[tokio::test]
            async fn a_crash_in_the_midst_loses_and_doubles_nothing() {
                alone("crash").await.a_crash_in_the_midst_loses_and_doubles_nothing().await;
            }

            #[ignore = "needs a server, which `cargo xtask test` starts"]
            #[tokio::test]
            async fn wrong_credentials_wait_and_are_told() {
                shared("wrong").await.wrong_credentials_wait_and_are_told().await;
            }

            #[ignore = "needs a server, which `cargo xtask test` starts"]
            #[tokio::test]
            async fn tls_is_used_and_the_server_known() {
                let own = shared("tls").await;
                own.tls_is_used_and_the_server_known(&tls(&own)).await;
            }

            #[ignore = "needs a server, which `cargo xtask test` starts"]
            #[tokio::test]
            async fn a_value_that_is_too_long_is_refused() {
                shared("long").await.a_value_that_is_too_long_is_refused().await;
            }
        }
    };
}

server! {
    postgres, POSTGRES,
    #[ignore = "needs a server, which `cargo xtask test` starts"]
    #[tokio::test]
    async fn names_of_another_case_are_refused() {
        let db = shared("case").await;
        db.run(r#"CREATE TABLE "Go6" (request_id TEXT); CREATE TABLE go7 (request_id TEXT, "Model" TEXT)"#).await;
        for name in ["go6", "Go6"] {
            let why = again(send(&db.report(name), &entries(1)).await);
            assert!(why.contains(r#"ALTER TABLE "public"."Go6" RENAME TO go6"#), "{why}");
        }
        assert_eq!(db.one("SELECT to_regclass('go6')::text").await, None, "none is made beside it");
        let report = db.report("go7");
        let why = again(send(&report, &entries(1)).await);
        assert!(why.contains(r#"RENAME COLUMN "Model" TO model"#), "{why}");
        let columns = "SELECT COUNT(*)::text FROM information_schema.columns WHERE table_name = 'go7'";
        assert_eq!(db.one(columns).await.as_deref(), Some("2"), "nothing is added to it");
        db.run(r#"ALTER TABLE go7 RENAME COLUMN "Model" TO model; ALTER TABLE "Go6" RENAME TO go6"#).await;
        for report in [report, db.report("Go6")] {
            assert_eq!(send(&report, &entries(1)).await, Verdict::Delivered);
        }
    }
}
server! {
    mariadb, MARIADB,
    #[ignore = "needs a server, which `cargo xtask test` starts"]
    #[tokio::test]
    async fn the_character_set_of_a_table_is_not_that_of_our_columns() {
        let db = shared("latin").await;
        db.run("CREATE TABLE latin_records (request_id VARCHAR(64)) DEFAULT CHARACTER SET latin1").await;
        let entry = crate::database::changed(|record| record.model = Some("crab 🦀".into()));
        assert_eq!(send(&db.report("latin_records"), &[entry]).await, Verdict::Delivered);
        assert_eq!(db.one("SELECT model FROM latin_records").await.as_deref(), Some("crab 🦀"));
    }
}
