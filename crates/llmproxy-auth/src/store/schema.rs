//! Our table.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use llmproxy_core::OnAbort;
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteRow};

use crate::{AddressRules, KeyEntry, KeyHash, KeyStatus, KeyStoreError};

/// The version that is written into the file; a file with a higher one is not touched.
const VERSION: i64 = 3;

/// Makes the table where it is missing, and adds what a version of before did not have.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), KeyStoreError> {
    // A file that is as it should be is not written, so that opening it (to list the keys) disturbs nobody.
    if is_prepared(connection).await? {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    // Another process may have been faster.
    if is_prepared(&mut transaction).await? {
        return Ok(());
    }
    // Lists are JSON, times RFC 3339 in UTC: a person with the sqlite3 tool can read and mend them.
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS llmproxy_keys (
            key_hash BLOB NOT NULL PRIMARY KEY,
            fingerprint TEXT NOT NULL,
            masked TEXT NOT NULL,
            name TEXT,
            user_id TEXT,
            status TEXT NOT NULL,
            allowed_models TEXT,
            allowed_ips TEXT NOT NULL,
            denied_ips TEXT NOT NULL,
            starts_at TEXT,
            expires_at TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        ) WITHOUT ROWID",
    )
    .execute(&mut *transaction)
    .await?;
    // Version 1 had neither, version 2 the first, and the table above, which is version 1's, has none of the two.
    for (column, add) in [
        ("on_abort", "ALTER TABLE llmproxy_keys ADD COLUMN on_abort TEXT"),
        ("tag", "ALTER TABLE llmproxy_keys ADD COLUMN tag TEXT"),
    ] {
        let has = sqlx::query("SELECT 1 FROM pragma_table_info('llmproxy_keys') WHERE name = ?").bind(column);
        if has.fetch_optional(&mut *transaction).await?.is_none() {
            sqlx::raw_sql(add).execute(&mut *transaction).await?;
        }
    }
    sqlx::raw_sql("PRAGMA user_version = 3").execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

async fn is_prepared(connection: &mut SqliteConnection) -> Result<bool, KeyStoreError> {
    match sqlx::query_scalar("PRAGMA user_version").fetch_one(connection).await? {
        found if found > VERSION => Err(KeyStoreError::Newer { found, known: VERSION }),
        found => Ok(found == VERSION),
    }
}

/// SQLite's count of what other connections have written.
pub(super) async fn data_version(connection: &mut SqliteConnection) -> Result<i64, KeyStoreError> {
    Ok(sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await?)
}

/// Every key. One that can't be read is logged and left out, so that it is refused and the others are not.
pub(super) async fn load(connection: &mut SqliteConnection) -> Result<Vec<KeyEntry>, KeyStoreError> {
    let rows = sqlx::query("SELECT * FROM llmproxy_keys ORDER BY created_at DESC").fetch_all(connection).await?;
    let read = |row: &SqliteRow| {
        entry(row)
            .inspect_err(|error| {
                let fingerprint = row.try_get::<String, _>("fingerprint").unwrap_or_default();
                tracing::error!(fingerprint, error, "a key of the key store can't be read and is refused");
            })
            .ok()
    };
    Ok(rows.iter().filter_map(read).collect())
}

/// Adds a key unless it is there already; says whether it did.
pub(super) async fn insert(connection: &mut SqliteConnection, entry: &KeyEntry) -> Result<bool, KeyStoreError> {
    let now = Timestamp::now();
    let text = |time: Timestamp| time.to_string();
    let models = entry.allowed_models.as_ref().map(|models| json(models.iter().cloned()));
    let nets = |nets: &[IpNet]| json(nets.iter().map(IpNet::to_string));
    let done = sqlx::query(
        "INSERT OR IGNORE INTO llmproxy_keys (key_hash, fingerprint, masked, name, user_id, status, allowed_models,
            allowed_ips, denied_ips, starts_at, expires_at, created_at, updated_at, on_abort, tag)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(entry.hash().as_bytes().to_vec())
    .bind(entry.fingerprint().to_string())
    .bind(entry.masked.as_deref().unwrap_or_default().to_owned())
    .bind(entry.name.as_deref().map(str::to_owned))
    .bind(entry.user_id.as_deref().map(str::to_owned))
    .bind(entry.status.as_str())
    .bind(models)
    .bind(nets(&entry.addresses.allowed))
    .bind(nets(&entry.addresses.denied))
    .bind(entry.starts_at.map(text))
    .bind(entry.expires_at.map(text))
    .bind(text(entry.created_at.unwrap_or(now)))
    .bind(text(now))
    .bind(entry.on_abort.map(OnAbort::as_str))
    .bind(entry.tag.as_deref().map(str::to_owned))
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Changes a key's status.
pub(super) async fn set_status(
    connection: &mut SqliteConnection,
    hash: &KeyHash,
    status: KeyStatus,
) -> Result<(), KeyStoreError> {
    sqlx::query("UPDATE llmproxy_keys SET status = ?, updated_at = ? WHERE key_hash = ?")
        .bind(status.as_str())
        .bind(Timestamp::now().to_string())
        .bind(hash.as_bytes().to_vec())
        .execute(connection)
        .await?;
    Ok(())
}

fn entry(row: &SqliteRow) -> Result<KeyEntry, String> {
    let optional = |column: &str| row.try_get::<Option<String>, _>(column).map_err(|error| error.to_string());
    let required = |column: &str| optional(column)?.ok_or_else(|| format!("{column} is missing"));
    let shared =
        |column: &str| Ok::<_, String>(optional(column)?.filter(|text| !text.is_empty()).map(Arc::<str>::from));
    let time = |column: &str| {
        let text = optional(column)?;
        text.map(|text| text.parse::<Timestamp>().map_err(|_| format!("{column} is not a time"))).transpose()
    };
    let list = |column: &str| match optional(column)? {
        Some(text) => serde_json::from_str(&text).map(Some).map_err(|_| format!("{column} is not a list in JSON")),
        None => Ok::<Option<Vec<String>>, String>(None),
    };
    let nets = |column: &str| {
        let texts = list(column)?.unwrap_or_default();
        texts.iter().map(|text| crate::parse_net(text)).collect::<Result<Vec<_>, String>>()
    };

    let hash = row.try_get::<Vec<u8>, _>("key_hash").map_err(|error| error.to_string())?;
    let mut entry = KeyEntry::new(KeyHash::from_bytes(&hash).ok_or("key_hash is not a SHA-256")?);
    entry.masked = shared("masked")?;
    entry.name = shared("name")?;
    entry.user_id = shared("user_id")?;
    entry.status = KeyStatus::from_name(&required("status")?).ok_or("status is not one that is known")?;
    entry.addresses = AddressRules { allowed: nets("allowed_ips")?, denied: nets("denied_ips")? };
    entry.allowed_models = list("allowed_models")?.map(BTreeSet::from_iter).map(Arc::new);
    entry.on_abort = match optional("on_abort")?.filter(|name| !name.is_empty()) {
        Some(name) => Some(OnAbort::from_name(&name).ok_or("on_abort is not one that is known")?),
        None => None,
    };
    entry.tag = shared("tag")?;
    entry.starts_at = time("starts_at")?;
    entry.expires_at = time("expires_at")?;
    entry.created_at = time("created_at")?;
    Ok(entry)
}

fn json(texts: impl Iterator<Item = String>) -> String {
    serde_json::Value::from_iter(texts).to_string()
}
