//! The usage of the Go program: rows of its file, taken over once.

use std::path::Path;

use llmproxy_core::{End, Endpoint, TokenUsage, UsageRecord, go_time};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    BuiltinError, file,
    rows::{Sums, insert_row},
    schema,
};

/// Rows in one transaction.
const ROWS: i64 = 1000;

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Imported {
    pub(super) rows: u64,
    /// Those that can't be understood.
    pub(super) skipped: u64,
}

/// Takes over what has not been taken over yet of the file at `from`. Up to where is written with each piece, so that it
/// goes on from there; a Go program that still runs may add more, which the next call finds.
pub(super) async fn import(to: &mut SqliteConnection, from: &Path) -> Result<Imported, BuiltinError> {
    let mut old = file::open_to_read(from).await?;
    let imported = import_from(to, &mut old).await;
    old.close().await?;
    imported
}

/// How many rows of the file at `from` have not been taken over.
pub(super) async fn left(ours: &mut SqliteConnection, from: &Path) -> Result<u64, BuiltinError> {
    let done = schema::number(ours, "go_imported").await?.unwrap_or(i64::MIN);
    let mut old = file::open_to_read(from).await?;
    let left: i64 = match has(&mut old, "usage_records").await? {
        true => {
            let query = sqlx::query_scalar("SELECT COUNT(*) FROM usage_records WHERE rowid > ?").bind(done);
            query.fetch_one(&mut old).await?
        }
        false => 0,
    };
    old.close().await?;
    Ok(left.unsigned_abs())
}

async fn import_from(to: &mut SqliteConnection, old: &mut SqliteConnection) -> Result<Imported, BuiltinError> {
    let mut imported = Imported::default();
    if !has(old, "usage_records").await? {
        return Ok(imported);
    }
    let names = if has(old, "api_keys").await? {
        "(SELECT MAX(CAST(name AS TEXT)) FROM api_keys k WHERE k.key = u.api_key)"
    } else {
        "NULL"
    };
    // The casts take the columns as they are, whatever type the driver of the day has stored in them.
    let sql = format!(
        "SELECT u.rowid AS place, CAST(u.request_id AS TEXT) AS request_id, CAST(u.api_key AS TEXT) AS api_key,
            {names} AS key_name, CAST(u.user_id AS TEXT) AS user_id, CAST(u.model AS TEXT) AS model,
            CAST(u.prompt_tokens AS INTEGER) AS prompt_tokens, CAST(u.completion_tokens AS INTEGER) AS completion_tokens,
            CAST(u.endpoint AS TEXT) AS endpoint, CAST(u.backend_url AS TEXT) AS backend_url,
            CAST(u.status_code AS INTEGER) AS status_code, CAST(u.latency_ms AS INTEGER) AS latency_ms,
            CAST(u.streaming AS TEXT) AS streaming, CAST(u.created_at AS TEXT) AS created_at
        FROM usage_records u WHERE u.rowid > ? ORDER BY u.rowid LIMIT ?"
    );
    loop {
        let mut transaction = to.begin_with("BEGIN IMMEDIATE").await?;
        let done = schema::number(&mut transaction, "go_imported").await?.unwrap_or(i64::MIN);
        let rows = sqlx::query(AssertSqlSafe(sql.clone())).bind(done).bind(ROWS).fetch_all(&mut *old).await?;
        let Some(last) = rows.last() else { return Ok(imported) };
        let last: i64 = last.try_get("place")?;
        let (mut sums, mut skipped) = (Sums::default(), 0);
        for row in &rows {
            let place: i64 = row.try_get("place")?;
            match read(row) {
                // Their request_id is the backend's, which need not be there, or be the only one.
                Ok(record) => {
                    if insert_row(&mut transaction, format!("go-{place}"), &record).await? {
                        sums.add(&record);
                        imported.rows += 1;
                    }
                }
                Err(why) => {
                    skipped += 1;
                    tracing::warn!(
                        row = place,
                        why,
                        "a usage record of the Go program can't be understood and is left out"
                    );
                }
            }
        }
        sums.write(&mut transaction).await?;
        schema::set(&mut transaction, "go_imported", last).await?;
        let before = schema::number(&mut transaction, "go_skipped").await?.unwrap_or_default();
        schema::set(&mut transaction, "go_skipped", before + skipped).await?;
        transaction.commit().await?;
        imported.skipped += skipped.unsigned_abs();
    }
}

async fn has(old: &mut SqliteConnection, table: &str) -> Result<bool, sqlx::Error> {
    let query = sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?");
    Ok(query.bind(table.to_owned()).fetch_optional(old).await?.is_some())
}

fn read(row: &SqliteRow) -> Result<UsageRecord, String> {
    let text = |column: &str| {
        let text = row.try_get::<Option<String>, _>(column).map_err(|error| error.to_string())?;
        Ok::<_, String>(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    };
    let number = |column: &str| {
        let number = row.try_get::<Option<i64>, _>(column).map_err(|error| error.to_string())?;
        u64::try_from(number.unwrap_or_default()).map_err(|_| format!("{column} is below 0"))
    };
    let created_at = text("created_at")?.ok_or("created_at is missing")?;
    let timestamp = go_time::parse(&created_at).ok().flatten().ok_or("created_at is not a time")?;
    let endpoint = text("endpoint")?.unwrap_or_default();
    let status = u16::try_from(number("status_code")?).map_err(|_| "status_code is no status")?;
    let usage = TokenUsage {
        prompt: number("prompt_tokens")?,
        completion: number("completion_tokens")?,
        ..TokenUsage::default()
    };
    Ok(UsageRecord {
        upstream_id: text("request_id")?.map(Into::into),
        timestamp,
        key_name: text("key_name")?.map(Into::into),
        key_fingerprint: text("api_key")?.map(|key| fingerprint(&key).into()),
        user_id: text("user_id")?.map(Into::into),
        path: endpoint.as_str().into(),
        model: text("model")?.map(Into::into),
        stream: matches!(text("streaming")?.as_deref(), Some("1" | "true")),
        backend_url: text("backend_url")?.map(Into::into),
        status,
        end: if status >= 400 { End::BackendFailed } else { End::Complete },
        usage: Some(usage),
        latency: std::time::Duration::from_millis(number("latency_ms")?),
        ..UsageRecord::new(Endpoint::of(&endpoint))
    })
}

/// What the key store knows a key by: the first 16 digits of its SHA-256.
fn fingerprint(key: &str) -> String {
    Sha256::digest(key.as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn fingerprints_are_the_key_stores() {
        // printf sk-a | sha256sum
        assert_eq!(super::fingerprint("sk-a"), "a4a6d307ad00fa67");
    }
}
