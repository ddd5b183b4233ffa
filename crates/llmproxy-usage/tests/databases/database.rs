//! What holds for every database.

use std::sync::Arc;

use bytes::Bytes;
use llmproxy_core::UsageRecord;
use llmproxy_usage::{DatabaseConfig, DatabaseReport, DatabaseReporterConfig, Entry, Report, StorageConfig, Verdict};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::common::record;

/// A database, and a look into it that goes another way than the reporter's.
pub(crate) struct Db {
    pub(crate) config: DatabaseConfig,
    pub(crate) peek: Peek,
    /// What follows `CREATE TABLE name (id ` in the Go program's table.
    pub(crate) id: &'static str,
    pub(crate) json: &'static str,
}

pub(crate) enum Peek {
    Sqlite(String),
    #[cfg(feature = "databases")]
    Postgres(String),
    #[cfg(feature = "databases")]
    MySql(String),
}

// === impl Db ===

impl Db {
    pub(crate) fn report(&self, table: &str) -> DatabaseReport {
        self.report_with(DatabaseReporterConfig { table: table.into(), ..DatabaseReporterConfig::default() })
    }

    pub(crate) fn report_with(&self, config: DatabaseReporterConfig) -> DatabaseReport {
        let storage = StorageConfig { databases: vec![self.config.clone()] };
        let config = DatabaseReporterConfig { storage: self.config.name.clone(), ..config };
        DatabaseReport::new("test", &config, &storage).unwrap()
    }

    /// The one value that a query has, cast to text by itself.
    pub(crate) async fn one(&self, sql: &str) -> Option<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.peek {
            Peek::Sqlite(url) => {
                let mut connection = SqliteConnection::connect(url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
            #[cfg(feature = "databases")]
            Peek::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
            #[cfg(feature = "databases")]
            Peek::MySql(url) => {
                let mut connection = sqlx::MySqlConnection::connect(url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.peek {
            Peek::Sqlite(url) => {
                let mut connection = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            }
            #[cfg(feature = "databases")]
            Peek::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            }
            #[cfg(feature = "databases")]
            Peek::MySql(url) => {
                let mut connection = sqlx::MySqlConnection::connect(url).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            }
        }
    }

    /// An expression as text.
    pub(crate) fn text(&self, what: &str) -> String {
        match &self.peek {
            #[cfg(feature = "databases")]
            Peek::MySql(_) => format!("CAST({what} AS CHAR)"),
            _ => format!("CAST({what} AS TEXT)"),
        }
    }

    pub(crate) async fn count(&self, table: &str) -> usize {
        let sql = format!("SELECT {} FROM {table}", self.text("COUNT(*)"));
        self.one(&sql).await.unwrap().parse().unwrap()
    }

    async fn value(&self, table: &str, column: &str, id: &str) -> Option<String> {
        self.one(&format!("SELECT {} FROM {table} WHERE request_id = '{id}'", self.text(column))).await
    }

    /// The Go program's table, with what its users may have written there.
    async fn go_table(&self, table: &str, more: &str) {
        let (id, json) = (self.id, self.json);
        self.run(&format!(
            "CREATE TABLE {table} (id {id}, request_id VARCHAR(64), timestamp TIMESTAMP, api_key VARCHAR(255),
                user_id VARCHAR(255), method VARCHAR(10), path VARCHAR(255), backend_url VARCHAR(255), status_code INTEGER,
                latency_ms BIGINT, prompt_tokens INTEGER, completion_tokens INTEGER, total_tokens INTEGER,
                request_body {json}, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP{more})"
        ))
        .await;
    }
}

pub(crate) fn entries(count: usize) -> Vec<Entry> {
    (0..count).map(|_| Entry::new(record())).collect()
}

pub(crate) async fn send(report: &DatabaseReport, entries: &[Entry]) -> Verdict {
    report.batches().unwrap().report_batch(entries).await
}

#[track_caller]
pub(crate) fn again(verdict: Verdict) -> String {
    match verdict {
        Verdict::Again { why, .. } => why,
        other => panic!("not Again: {other:?}"),
    }
}

#[track_caller]
fn refused(verdict: Verdict) -> String {
    match verdict {
        Verdict::Refused { why } => why,
        other => panic!("not Refused: {other:?}"),
    }
}

pub(crate) fn changed(change: impl FnOnce(&mut UsageRecord)) -> Entry {
    let mut record = UsageRecord::clone(&record());
    change(&mut record);
    Entry::new(Arc::new(record))
}

pub(crate) async fn a_table_is_made_and_batches_are_written_once(db: &Db) {
    let table = "made_records";
    let report = db.report(table);
    let batch = entries(250);
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    assert_eq!(db.count(table).await, 250);
    // Again as a whole, in part, with others, twice in one batch, and by one who comes later.
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    assert_eq!(send(&report, &batch[..7]).await, Verdict::Delivered);
    let mut mixed = entries(3);
    mixed.extend_from_slice(&batch[..3]);
    mixed.push(mixed[0].clone());
    assert_eq!(send(&db.report(table), &mixed).await, Verdict::Delivered);
    assert_eq!(db.count(table).await, 253);
    assert_eq!(report.report(batch[0].clone()).await, Verdict::Delivered);
    assert_eq!(db.count(table).await, 253);

    let id = batch[0].record.request_id.to_string();
    for (column, expected) in [
        ("user_id", Some("u-1")),
        ("api_key", Some("ab12")),
        ("key_name", Some("alice")),
        ("method", Some("POST")),
        ("path", Some("/v1/chat/completions")),
        ("backend_url", Some("http://gpu-1:8000")),
        ("status_code", Some("200")),
        ("latency_ms", Some("1500")),
        ("prompt_tokens", Some("7")),
        ("completion_tokens", Some("21")),
        ("total_tokens", Some("28")),
        ("request_body", None),
        ("schema_version", Some("1")),
        ("model", Some("demo")),
        ("served_model", None),
        ("client_ip", Some("10.0.0.1")),
        ("upstream_id", Some("chatcmpl-1")),
        ("attempts", Some("2")),
        ("end_reason", Some("complete")),
        ("usage_source", Some("backend")),
        ("cached_tokens", Some("4")),
        ("reasoning_tokens", None),
        ("currency", Some("EUR")),
        ("time_to_first_token_ms", Some("500")),
        ("longest_gap_ms", Some("70.25")),
    ] {
        assert_eq!(db.value(table, column, &id).await.as_deref(), expected, "{column}");
    }
    let cost: f64 = db.value(table, "cost", &id).await.unwrap().parse().unwrap();
    assert!((cost - 0.0000168).abs() < 1e-12, "{cost}");
    let moment = db.value(table, "timestamp", &id).await.unwrap().replace('T', " ");
    assert!(moment.starts_with("2026-01-23 10:30:00.5"), "{moment}");
    assert!(matches!(db.value(table, "is_stream", &id).await.as_deref(), Some("1" | "true")));
    assert!(db.value(table, "created_at", &id).await.is_some());
}

pub(crate) async fn the_go_programs_table_gets_what_it_lacks(db: &Db) {
    let table = "go_records";
    db.go_table(table, "").await;
    db.run(&format!("INSERT INTO {table} (request_id, api_key, total_tokens) VALUES ('old', 'sk-old', 5)")).await;
    let report = db.report(table);
    let batch = entries(2);
    for _ in 0..2 {
        assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    }
    assert_eq!(db.count(table).await, 3);
    assert_eq!(db.value(table, "api_key", "old").await.as_deref(), Some("sk-old"));
    assert_eq!(db.value(table, "total_tokens", "old").await.as_deref(), Some("5"));
    assert_eq!(db.value(table, "model", "old").await, None);
    let id = batch[1].record.request_id.to_string();
    assert_eq!(db.value(table, "model", &id).await.as_deref(), Some("demo"));
    let moment = db.value(table, "timestamp", &id).await.unwrap().replace('T', " ");
    assert!(moment.starts_with("2026-01-23 10:30:0"), "{moment}");
    // Another start finds it as it should be.
    assert_eq!(send(&db.report(table), &batch).await, Verdict::Delivered);
    assert_eq!(db.count(table).await, 3);
}

pub(crate) async fn a_table_with_doubles_is_written_once_all_the_same(db: &Db) {
    let table = "double_records";
    db.go_table(table, "").await;
    db.run(&format!("INSERT INTO {table} (request_id) VALUES ('a'), ('a'), (''), ('')")).await;
    let report = db.report(table);
    let mut batch = entries(150);
    batch.push(batch[0].clone());
    for report in [&report, &report, &db.report(table)] {
        assert_eq!(send(report, &batch).await, Verdict::Delivered);
    }
    assert_eq!(db.count(table).await, 154);
}

pub(crate) async fn what_a_database_refuses_is_refused_and_costs_nobody_else(db: &Db) {
    let table = "strict_records";
    db.go_table(table, ", CHECK (length(user_id) <= 3)").await;
    let report = db.report(table);
    let good = entries(2);
    let bad = changed(|record| record.user_id = Some("u-1234".into()));
    let why = refused(send(&report, &[good[0].clone(), bad.clone(), good[1].clone()]).await);
    assert!(why.to_lowercase().contains("constraint"), "{why}");
    assert_eq!(db.count(table).await, 0, "all or none");
    assert_eq!(send(&report, &good).await, Verdict::Delivered);
    refused(send(&report, &[bad]).await);
    assert_eq!(db.count(table).await, 2);
}

pub(crate) async fn a_column_of_theirs_is_told_and_waited_for(db: &Db) {
    let table = "their_records";
    db.go_table(table, ", tenant VARCHAR(20) NOT NULL").await;
    let report = db.report(table);
    let batch = entries(2);
    let why = again(send(&report, &batch).await);
    assert!(why.contains("column `tenant`") && why.contains("give it a default"), "{why}");
    db.run(&format!("DROP TABLE {table}")).await;
    db.go_table(table, ", tenant VARCHAR(20) NOT NULL DEFAULT 'a'").await;
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    assert_eq!(db.value(table, "tenant", &batch[0].record.request_id.to_string()).await.as_deref(), Some("a"));
}

pub(crate) async fn created_at_is_written_where_the_table_does_not(db: &Db) {
    for (table, must) in [("must_records", " NOT NULL"), ("may_records", "")] {
        let id = db.id;
        db.run(&format!("CREATE TABLE {table} (id {id}, request_id VARCHAR(64), created_at VARCHAR(64){must})")).await;
        let batch = entries(2);
        assert_eq!(send(&db.report(table), &batch).await, Verdict::Delivered);
        let moment = db.value(table, "created_at", &batch[1].record.request_id.to_string()).await.unwrap();
        assert!(moment.starts_with("20"), "{moment}");
    }
}

pub(crate) async fn bodies_are_kept_where_they_are_wanted(db: &Db) {
    let table = "body_records";
    let body = Bytes::from_static(br#"{"messages": [{"content": "a\u0000b \ud83d\ude00"}], "n": 1}"#);
    let entry = Entry::new(record()).with_request_body(body.clone());
    let id = entry.record.request_id.to_string();
    assert_eq!(send(&db.report(table), &[entry]).await, Verdict::Delivered);
    assert_eq!(db.value(table, "request_body", &id).await, None);

    let config = DatabaseReporterConfig { table: table.into(), include_request_body: true, ..Default::default() };
    let report = db.report_with(config);
    assert!(report.wants_request_body());
    let large = Bytes::from(format!("{{\"prompt\": \"{}\"}}", "x".repeat(700_000)));
    let deep = Bytes::from("[".repeat(100) + &"]".repeat(100));
    let too_deep = Bytes::from("[".repeat(1000) + &"]".repeat(1000));
    let odd = [&b"no json"[..], br#"{"a": "\ud800"}"#, b"{\"a\": 1e999}", b"\0\xff"].map(Bytes::from_static);
    let batch: Vec<_> = [body, large]
        .into_iter()
        .chain(odd.clone())
        .chain([deep.clone(), too_deep.clone()])
        .map(|body| Entry::new(record()).with_request_body(body))
        .collect();
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    let kept = async |index: usize| db.value(table, "request_body", &batch[index].record.request_id.to_string()).await;
    let json: serde_json::Value = serde_json::from_str(&kept(0).await.unwrap()).unwrap();
    assert_eq!(json["messages"][0]["content"], "a\u{fffd}b \u{1f600}");
    assert!(kept(1).await.unwrap().len() > 700_000);
    let kept = async |index: usize| -> serde_json::Value { serde_json::from_str(&kept(index).await.unwrap()).unwrap() };
    for (index, body) in odd[..3].iter().chain([&too_deep]).enumerate() {
        let index = if index == 3 { 7 } else { index + 2 };
        assert_eq!(kept(index).await, *std::str::from_utf8(body).unwrap());
    }
    assert_eq!(kept(5).await, "\u{fffd}\u{fffd}");
    let kept = kept(6).await;
    assert!(kept.is_array() || kept == *std::str::from_utf8(&deep).unwrap(), "{kept}");
}

pub(crate) async fn odd_text_is_no_reason_to_lose_a_record(db: &Db) {
    let table = "odd_records";
    let report = db.report(table);
    let batch = [
        changed(|record| record.model = Some("a\0b".into())),
        changed(|record| record.path = "/x".repeat(5_000).into()),
        changed(|record| record.key_name = Some("Zoë 🦀 '\"`;--\\".into())),
        changed(|record| record.latency = std::time::Duration::MAX),
        changed(|record| record.usage = Some(llmproxy_core::TokenUsage { prompt: u64::MAX, ..Default::default() })),
    ];
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    let id = |index: usize| batch[index].record.request_id.to_string();
    assert_eq!(db.value(table, "length(path)", &id(1)).await.as_deref(), Some("10000"));
    assert_eq!(db.value(table, "key_name", &id(2)).await.as_deref(), Some("Zoë 🦀 '\"`;--\\"));
}

pub(crate) async fn a_table_that_goes_away_is_made_again(db: &Db) {
    let table = "gone_records";
    let report = db.report(table);
    assert_eq!(send(&report, &entries(1)).await, Verdict::Delivered);
    db.run(&format!("DROP TABLE {table}")).await;
    let batch = entries(2);
    again(send(&report, &batch).await);
    assert_eq!(send(&report, &batch).await, Verdict::Delivered);
    assert_eq!(db.count(table).await, 2);
}

/// A test for each, of the database that `$open` opens.
macro_rules! suite {
    (@one [$(#[$meta:meta])*] $open:path, $name:ident) => {
        $(#[$meta])*
        #[tokio::test]
        async fn $name() {
            let db = $open(stringify!($name)).await;
            crate::database::$name(&db).await;
        }
    };
    (@each $attributes:tt $open:path: $($name:ident)*) => {
        $(crate::database::suite! { @one $attributes $open, $name })*
    };
    ($attributes:tt $open:path) => {
        crate::database::suite! {
            @each $attributes $open:
                a_table_is_made_and_batches_are_written_once
                the_go_programs_table_gets_what_it_lacks
                a_table_with_doubles_is_written_once_all_the_same
                what_a_database_refuses_is_refused_and_costs_nobody_else
                a_column_of_theirs_is_told_and_waited_for
                created_at_is_written_where_the_table_does_not
                bodies_are_kept_where_they_are_wanted
                odd_text_is_no_reason_to_lose_a_record
                a_table_that_goes_away_is_made_again
        }
    };
}
pub(crate) use suite;
