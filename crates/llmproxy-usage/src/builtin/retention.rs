//! Old rows go; the sums stay.

use jiff::Timestamp;
use sqlx::{Connection, Row, SqliteConnection};

use super::{BuiltinError, rows::REMEMBERED, schema};

/// Rows in one transaction, so that nobody waits long for it.
const ROWS: i64 = 1000;

/// Removes some of the rows from before `before`. Returns how many; fewer than [`is_all`] says, and there are no more.
pub(super) async fn purge(connection: &mut SqliteConnection, before: Timestamp) -> Result<u64, BuiltinError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let horizon = format!("{before:.6}");
    let known = schema::text(&mut transaction, "purged_before").await?;
    if known.is_none_or(|known| known < horizon) {
        schema::set(&mut transaction, "purged_before", horizon.clone()).await?;
    }
    let removed = sqlx::query(
        "DELETE FROM usage_records
        WHERE id IN (SELECT id FROM usage_records WHERE created_at < ? ORDER BY created_at LIMIT ?)
        RETURNING request_id, created_at",
    )
    .bind(horizon)
    .bind(ROWS)
    .fetch_all(&mut *transaction)
    .await?;
    let remembered = format!("{:.6}", Timestamp::now().saturating_sub(REMEMBERED)?);
    for row in &removed {
        let (id, at): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if at >= remembered {
            let insert = sqlx::query("INSERT OR IGNORE INTO usage_purged (request_id, created_at) VALUES (?, ?)");
            insert.bind(id).bind(at).execute(&mut *transaction).await?;
        }
    }
    sqlx::query("DELETE FROM usage_purged WHERE created_at < ?").bind(remembered).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(removed.len() as u64)
}

/// Whether a purge that removed so many has left nothing.
pub(super) fn is_all(removed: u64) -> bool {
    removed < ROWS.unsigned_abs()
}
