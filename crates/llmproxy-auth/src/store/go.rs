//! The database of the Go program: a table `api_keys` with the keys in clear.

use jiff::Timestamp;
use llmproxy_core::go_time;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use crate::{KeyEntry, KeyHash, KeyStatus, KeyStoreError, mask};

/// Whether the table `api_keys` is the Go program's.
pub(super) async fn has_clear_keys(connection: &mut SqliteConnection) -> Result<bool, KeyStoreError> {
    let found = sqlx::query("SELECT 1 FROM pragma_table_info('api_keys') WHERE name = 'key'");
    Ok(found.fetch_optional(connection).await?.is_some())
}

/// Its keys, hashed.
pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Vec<KeyEntry>, KeyStoreError> {
    // The casts take the columns as they are, whatever type the driver of the day has stored in them.
    let rows = sqlx::query(
        "SELECT CAST(key AS TEXT) AS key, CAST(name AS TEXT) AS name, CAST(user_id AS TEXT) AS user_id,
            CAST(status AS TEXT) AS status, CAST(starts_at AS TEXT) AS starts_at,
            CAST(expires_at AS TEXT) AS expires_at, CAST(created_at AS TEXT) AS created_at
        FROM api_keys",
    )
    .fetch_all(connection)
    .await?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in &rows {
        entries.extend(entry(row)?);
    }
    Ok(entries)
}

fn entry(row: &SqliteRow) -> Result<Option<KeyEntry>, KeyStoreError> {
    let text = |column: &str| {
        let text = row.try_get::<Option<String>, _>(column)?;
        Ok::<_, sqlx::Error>(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    };
    let Some(key) = text("key")? else { return Ok(None) };
    let mut entry = KeyEntry::new(KeyHash::of(key.as_bytes()));
    let fingerprint = entry.fingerprint().clone();
    let mut doubt = |column: &str| {
        tracing::warn!(%fingerprint, column, "a key of the Go program can't be understood and is imported as disabled");
        entry.status = KeyStatus::Disabled;
    };
    let mut moment = |column: &str| {
        let text = text(column)?;
        let read = text.as_deref().map(go_time::parse);
        if matches!(read, Some(Err(_))) {
            doubt(column);
        }
        Ok::<Option<Timestamp>, sqlx::Error>(read.and_then(Result::ok).flatten())
    };
    let (starts_at, expires_at) = (moment("starts_at")?, moment("expires_at")?);
    let status = KeyStatus::from_name(&text("status")?.unwrap_or_default());
    match status {
        None => doubt("status"),
        // A doubt about a time outweighs what the status says.
        Some(status) if entry.status == KeyStatus::Active => entry.status = status,
        Some(_) => {}
    }
    entry.masked = Some(mask(&key).into());
    entry.name = text("name")?.map(Into::into);
    entry.user_id = text("user_id")?.map(Into::into);
    entry.starts_at = starts_at;
    entry.expires_at = expires_at;
    // Of no weight, so one that can't be read is not worth a doubt.
    entry.created_at = text("created_at")?.and_then(|text| go_time::parse(&text).ok()).flatten();
    Ok(Some(entry))
}
