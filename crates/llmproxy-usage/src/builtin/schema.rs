//! The tables.

use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::BuiltinError;
use crate::database::{COLUMNS, Column, Driver, Kind};

/// The version that is written into the file. Not SQLite's `user_version`, which is the key store's in the same file.
const VERSION: i64 = 2;
/// Trillionths in a currency's unit.
pub(super) const UNIT: u64 = llmproxy_core::Cost::UNIT;
/// The first version that has costs beyond what 64 bits hold, in `cost_units`.
const WITH_UNITS: i64 = 2;

/// What the Go program's table calls otherwise.
const RENAMED: &[(&str, &str)] = &[("timestamp", "created_at"), ("is_stream", "streaming")];
/// Prompts are not kept here, and the cost is, as a whole number.
const LEFT_OUT: &[&str] = &["request_body", "cost"];

/// The columns that are written, under their names here.
pub(super) fn columns() -> impl Iterator<Item = (&'static str, &'static Column)> {
    COLUMNS.iter().filter(|column| !LEFT_OUT.contains(&column.name)).map(|column| {
        let renamed = RENAMED.iter().find(|(name, _)| *name == column.name);
        (renamed.map_or(column.name, |(_, name)| name), column)
    })
}

/// Makes the tables where they are missing.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), BuiltinError> {
    // A file that is as it should be is not written, so that opening it disturbs nobody.
    if version(connection).await? == Some(VERSION) {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    // Another process may have been faster.
    match version(&mut transaction).await? {
        Some(found) if found < WITH_UNITS => {
            sqlx::raw_sql(AssertSqlSafe(add_units())).execute(&mut *transaction).await?;
            set(&mut transaction, "version", VERSION).await?;
            return Ok(transaction.commit().await?);
        }
        Some(_) => return Ok(()),
        None => {}
    }
    let columns = columns().map(|(name, column)| {
        let more = match (name, column.kind) {
            (_, Kind::Id) => " NOT NULL UNIQUE",
            ("created_at", _) => " NOT NULL",
            _ => "",
        };
        format!("\"{name}\" {}{more}", column.kind.sql(Driver::Sqlite))
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    let sums = |at: &str| {
        format!(
            "{at} TEXT NOT NULL, model TEXT NOT NULL, user_id TEXT NOT NULL, key_name TEXT NOT NULL,
            key_fingerprint TEXT NOT NULL, currency TEXT NOT NULL, requests INTEGER NOT NULL, errors INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
            cost_units INTEGER NOT NULL DEFAULT 0, cost_trillionths INTEGER NOT NULL,
            PRIMARY KEY ({at}, model, user_id, key_name, key_fingerprint, currency)"
        )
    };
    let sql = format!(
        "CREATE TABLE llmproxy_usage (name TEXT NOT NULL PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
        CREATE TABLE usage_records (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns},
            cost_units INTEGER DEFAULT 0, cost_trillionths INTEGER);
        CREATE INDEX idx_usage_created_at ON usage_records (created_at);
        CREATE INDEX idx_usage_api_key ON usage_records (api_key);
        CREATE INDEX idx_usage_user_id ON usage_records (user_id);
        CREATE INDEX idx_usage_model ON usage_records (model);
        CREATE TABLE usage_hourly ({}) WITHOUT ROWID;
        CREATE TABLE usage_daily ({}) WITHOUT ROWID;
        CREATE TABLE usage_purged (request_id TEXT NOT NULL PRIMARY KEY, created_at TEXT NOT NULL) WITHOUT ROWID;
        INSERT INTO llmproxy_usage (name, value) VALUES ('version', {VERSION});",
        sums("hour"),
        sums("day"),
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

/// The first version had a cost in `cost_trillionths` alone, and a sum that was too long for 64 bits had made it a REAL.
fn add_units() -> String {
    let mut sql = "ALTER TABLE usage_records ADD COLUMN cost_units INTEGER DEFAULT 0;".to_owned();
    for table in ["usage_hourly", "usage_daily"] {
        sql += &format!(
            "ALTER TABLE {table} ADD COLUMN cost_units INTEGER NOT NULL DEFAULT 0;
            UPDATE {table} SET cost_units = CAST(cost_trillionths / {UNIT} AS INTEGER),
                cost_trillionths = CASE typeof(cost_trillionths) WHEN 'integer' THEN cost_trillionths % {UNIT}
                    ELSE CAST(max(cost_trillionths - CAST(cost_trillionths / {UNIT} AS INTEGER) * {UNIT}.0, 0) AS INTEGER)
                    END,
                prompt_tokens = CAST(prompt_tokens AS INTEGER),
                completion_tokens = CAST(completion_tokens AS INTEGER),
                cached_tokens = CAST(cached_tokens AS INTEGER);"
        );
    }
    sql
}

/// Whether the tables are there, of whichever version that is known.
pub(super) async fn is_prepared(connection: &mut SqliteConnection) -> Result<bool, BuiltinError> {
    Ok(version(connection).await?.is_some())
}

/// Whether costs have their whole units in a column of their own.
pub(super) async fn has_units(connection: &mut SqliteConnection) -> Result<bool, BuiltinError> {
    Ok(version(connection).await?.is_some_and(|version| version >= WITH_UNITS))
}

/// The version of the tables; none where there are none.
async fn version(connection: &mut SqliteConnection) -> Result<Option<i64>, BuiltinError> {
    let there = sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'llmproxy_usage'");
    if there.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(None);
    }
    match number(connection, "version").await? {
        Some(found) if found > VERSION => Err(BuiltinError::Newer { found, known: VERSION }),
        found => Ok(found),
    }
}

/// A number that the store keeps about itself.
pub(super) async fn number(connection: &mut SqliteConnection, name: &str) -> Result<Option<i64>, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT value FROM llmproxy_usage WHERE name = ?");
    query.bind(name.to_owned()).fetch_optional(connection).await
}

/// A text that the store keeps about itself.
pub(super) async fn text(connection: &mut SqliteConnection, name: &str) -> Result<Option<String>, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT CAST(value AS TEXT) FROM llmproxy_usage WHERE name = ?");
    query.bind(name.to_owned()).fetch_optional(connection).await
}

pub(super) async fn set(
    connection: &mut SqliteConnection,
    name: &str,
    value: impl for<'q> sqlx::Encode<'q, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + Send,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(
        "INSERT INTO llmproxy_usage (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    );
    query.bind(name.to_owned()).bind(value).execute(connection).await.map(drop)
}
