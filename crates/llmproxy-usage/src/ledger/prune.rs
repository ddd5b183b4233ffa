//! Deleting what need not be kept any more, in steps that are short whatever there is to delete.

use sqlx::{AssertSqlSafe, SqliteConnection};

/// Records that are deleted in a step at most.
const ROWS: i64 = 1000;
/// And bytes: a record with a request's body may have as many as a thousand without.
const BYTES: i64 = 4 << 20;
/// Pages that are given back to the file system in a step. To do so, pages from the end of the file are moved to where room is.
const PAGES: i64 = 256;

/// What need not be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Old {
    /// Every reporter has had the records up to this one.
    pub(super) seq: i64,
    /// Of them those that were written before that moment go, in milliseconds since 1970,
    pub(super) before: i64,
    /// and whatever it takes for the rest to be no larger than this, in bytes.
    pub(super) max_size: u64,
}

/// What was done of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pruned {
    /// Whether there may be more to do.
    pub(super) has_more: bool,
    /// What the rows take now, in bytes; the file may be larger by what was deleted.
    pub(super) size: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pages {
    all: i64,
    free: i64,
    size: i64,
}

/// Gives some pages back where there are any, else deletes the oldest records, as many as a step has.
pub(super) async fn step(connection: &mut SqliteConnection, old: &Old) -> Result<Pruned, sqlx::Error> {
    let pages = pages(connection).await?;
    // First: of a long list of free pages each is found slowly.
    if pages.free > 0 {
        sqlx::raw_sql(AssertSqlSafe(format!("PRAGMA incremental_vacuum({PAGES})"))).execute(&mut *connection).await?;
        let left = self::pages(connection).await?;
        if left.free < pages.free {
            return Ok(Pruned { has_more: true, size: left.used() });
        }
    }
    let before = if pages.used() > old.max_size { i64::MAX } else { old.before };
    // Lengths are in the rows' heads, so that no body is read for them. One goes, however large it is.
    let sql = "DELETE FROM records WHERE seq IN (
                   SELECT seq FROM (SELECT seq, sum(bytes) OVER (ORDER BY seq) - bytes AS before FROM (
                       SELECT seq, octet_length(record) + COALESCE(octet_length(body), 0) AS bytes
                       FROM records WHERE seq <= ? AND written < ? ORDER BY seq LIMIT ?))
                   WHERE before < ?)";
    let query = sqlx::query(sql).bind(old.seq).bind(before).bind(ROWS).bind(BYTES);
    let deleted = query.execute(&mut *connection).await?.rows_affected();
    let size = self::pages(connection).await?.used();
    Ok(Pruned { has_more: deleted > 0, size })
}

async fn pages(connection: &mut SqliteConnection) -> Result<Pages, sqlx::Error> {
    let sql =
        "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    let (all, free, size) = sqlx::query_as(sql).fetch_one(connection).await?;
    Ok(Pages { all, free, size })
}

// === impl Pages ===

impl Pages {
    fn used(self) -> u64 {
        ((self.all - self.free) * self.size).unsigned_abs()
    }
}
