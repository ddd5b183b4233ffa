//! The table: made where it is missing, and given the columns that it lacks. Nothing in it is ever changed or removed.

mod case;

use sqlx::AssertSqlSafe;

use super::{
    columns::{COLUMNS, Kind},
    connect::{Connections, on_pool},
    storage::Driver,
    verdict::is_double,
};

/// What PostgreSQL allows, and MySQL almost.
const MAX_NAME: usize = 63;

/// A table's name, perhaps in a schema of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    schema: Option<String>,
    name: String,
}

/// How a record that is there already is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubles {
    /// By the unique index on `request_id`.
    Indexed,
    /// By a look before each insert: rows of before stand in the way of such an index.
    LookedUp,
}

/// What writing into a table has to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) doubles: Doubles,
    /// Whether `created_at` must be written, since the table does not fill it by itself.
    pub(crate) writes_created_at: bool,
}

// === impl Table ===

impl Table {
    /// Reads `table` or `schema.table`.
    ///
    /// # Errors
    ///
    /// What is allowed.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            (1..=MAX_NAME).contains(&name.len())
                && name.starts_with(|sign: char| sign.is_ascii_alphabetic() || sign == '_')
                && name.chars().all(|sign| sign.is_ascii_alphanumeric() || sign == '_')
        };
        let (schema, name) = text.split_once('.').map_or((None, text), |(schema, name)| (Some(schema), name));
        if !is_name(name) || !schema.is_none_or(is_name) {
            return Err(format!(
                "`{text}` is not a table's name: letters of ASCII, digits and `_`, {MAX_NAME} at most, perhaps with a \
                 schema before it, as in billing.usage_records"
            ));
        }
        Ok(Self { schema: schema.map(str::to_owned), name: name.to_owned() })
    }

    /// As a statement has it.
    pub(crate) fn quoted(&self, driver: Driver) -> String {
        let name = quote(&self.name(driver), driver);
        match self.schema(driver) {
            Some(schema) => format!("{}.{name}", quote(&schema, driver)),
            None => name,
        }
    }

    /// Names without quotes, which is how the Go program writes them, are small ones in PostgreSQL.
    pub(super) fn name(&self, driver: Driver) -> String {
        if driver == Driver::Postgres { self.name.to_ascii_lowercase() } else { self.name.clone() }
    }

    fn schema(&self, driver: Driver) -> Option<String> {
        let schema = self.schema.clone()?;
        Some(if driver == Driver::Postgres { schema.to_ascii_lowercase() } else { schema })
    }

    fn index(&self, what: &str, driver: Driver) -> String {
        let name = self.name(driver);
        format!("{}_{what}", &name[..name.len().min(MAX_NAME - 1 - what.len())])
    }
}

/// A name in the quotes of `driver`; our names have none in them.
pub(crate) fn quote(name: &str, driver: Driver) -> String {
    match driver {
        Driver::MySql => format!("`{name}`"),
        Driver::Postgres | Driver::Sqlite => format!("\"{name}\""),
    }
}

/// Makes `table` what it must be.
///
/// # Errors
///
/// The database's. Two proxies that do it at the same time may be in each other's way, which passes.
///
/// # Cancel safety
///
/// Each statement stands by itself; what is missing is done the next time.
pub(crate) async fn prepare(connections: &Connections, table: &Table) -> Result<Prepared, sqlx::Error> {
    let driver = connections.driver();
    let name = table.quoted(driver);
    let present = columns(connections, table).await?;
    if present.iter().any(|column| column == "cost_trillionths") {
        return Err(sqlx::Error::Configuration(
            "the table is that of a reporter of type builtin; name another table, or another file than admin.db_path"
                .into(),
        ));
    }
    case::refuse(connections, table, &present).await?;
    if present.is_empty() {
        execute(connections, create(&name, driver)).await?;
        let index = quote(&table.index("timestamp", driver), driver);
        execute(connections, on(&index, "", table, driver, &quote("timestamp", driver))).await?;
        tracing::info!(table = %name, "made the table of usage records");
    } else {
        let missing =
            COLUMNS.iter().filter(|column| !present.iter().any(|name| name.eq_ignore_ascii_case(column.name)));
        let mut added = Vec::new();
        for column in missing {
            // Rows of before know nothing of it, so that it may be empty.
            let kind = column.kind.sql(driver);
            // The table's own character set may lack most of the signs that a name of a model can have.
            let set = match (driver, column.kind) {
                (Driver::MySql, Kind::Id | Kind::Text) => " CHARACTER SET utf8mb4",
                _ => "",
            };
            execute(connections, format!("ALTER TABLE {name} ADD COLUMN {} {kind}{set}", quote(column.name, driver)))
                .await?;
            added.push(column.name);
        }
        if !added.is_empty() {
            tracing::info!(table = %name, columns = added.join(", "), "added columns to the table of usage records");
        }
    }
    let writes_created_at = lacks_created_at(connections, table).await?;
    Ok(Prepared { doubles: doubles(connections, table).await?, writes_created_at })
}

fn create(name: &str, driver: Driver) -> String {
    let id = match driver {
        Driver::Postgres => "id BIGSERIAL PRIMARY KEY",
        Driver::MySql => "id BIGINT AUTO_INCREMENT PRIMARY KEY",
        Driver::Sqlite => "id INTEGER PRIMARY KEY AUTOINCREMENT",
    };
    let mut sql = format!("CREATE TABLE {name} ({id}");
    for column in COLUMNS {
        let must = if matches!(column.kind, Kind::Id | Kind::Moment) { " NOT NULL" } else { "" };
        sql += &format!(", {} {}{must}", quote(column.name, driver), column.kind.sql(driver));
    }
    sql += match driver {
        Driver::Postgres => ", created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP)",
        Driver::MySql => {
            ", created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)) DEFAULT CHARACTER SET utf8mb4"
        }
        Driver::Sqlite => ", created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP)",
    };
    sql
}

/// Sees to it that a record that comes again is known.
async fn doubles(connections: &Connections, table: &Table) -> Result<Doubles, sqlx::Error> {
    let driver = connections.driver();
    if is_unique(connections, table).await? {
        return Ok(Doubles::Indexed);
    }
    // Text without a bound is indexed by its beginning in MySQL; our ids are 36 signs long.
    let column = match driver {
        Driver::MySql if is_long_text(connections, table).await? => "`request_id`(64)".to_owned(),
        _ => quote("request_id", driver),
    };
    let index = quote(&table.index("request_id_key", driver), driver);
    match execute(connections, on(&index, "UNIQUE ", table, driver, &column)).await {
        Ok(()) => return Ok(Doubles::Indexed),
        Err(error) if is_double(driver, &error) => {}
        Err(error) => return Err(error),
    }
    let name = table.quoted(driver);
    tracing::warn!(
        table = %name,
        "rows of before have the same request_id, so that no unique index on it can be made; records are looked up before \
         they are written instead, which is slower, and safe as long as one proxy writes there. To be rid of it, remove or \
         change those rows: SELECT request_id FROM {name} GROUP BY request_id HAVING COUNT(*) > 1"
    );
    let index = table.index("request_id_lookup", driver);
    if !has_index(connections, table, &index).await? {
        execute(connections, on(&quote(&index, driver), "", table, driver, &column)).await?;
    }
    Ok(Doubles::LookedUp)
}

/// The statement that makes an index. SQLite has its schema before the index's name, the others before the table's.
fn on(index: &str, unique: &str, table: &Table, driver: Driver, column: &str) -> String {
    match (driver, table.schema(driver)) {
        (Driver::Sqlite, Some(schema)) => {
            let (schema, name) = (quote(&schema, driver), quote(&table.name(driver), driver));
            format!("CREATE {unique}INDEX {schema}.{index} ON {name} ({column})")
        }
        _ => format!("CREATE {unique}INDEX {index} ON {} ({column})", table.quoted(driver)),
    }
}

/// The names of the columns of `table`; none where there is no such table.
async fn columns(connections: &Connections, table: &Table) -> Result<Vec<String>, sqlx::Error> {
    ask(
        connections,
        table,
        [
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
            "SELECT CAST(column_name AS CHAR) FROM information_schema.columns
            WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
            // The look at sqlite_master has a connection notice what others have done to the table.
            "SELECT name FROM pragma_table_info(?2, COALESCE(?1, 'main')) WHERE EXISTS (SELECT 1 FROM sqlite_master)",
        ],
    )
    .await
}

/// Whether there is a `created_at` that stays empty, or refuses to, when it is not written.
async fn lacks_created_at(connections: &Connections, table: &Table) -> Result<bool, sqlx::Error> {
    let found = ask(
        connections,
        table,
        [
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = 'created_at'
                AND NOT atthasdef AND NOT attisdropped",
            "SELECT CAST(column_name AS CHAR) FROM information_schema.columns
            WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = 'created_at'
                AND COALESCE(column_default, 'NULL') = 'NULL'",
            "SELECT name FROM pragma_table_info(?2, COALESCE(?1, 'main'))
            WHERE lower(name) = 'created_at' AND dflt_value IS NULL AND EXISTS (SELECT 1 FROM sqlite_master)",
        ],
    )
    .await?;
    Ok(!found.is_empty())
}

/// Whether nothing can be there twice by its request_id alone.
async fn is_unique(connections: &Connections, table: &Table) -> Result<bool, sqlx::Error> {
    let found = ask(
        connections,
        table,
        [
            "SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
                AND i.indpred IS NULL AND a.attname = 'request_id'",
            "SELECT CAST(MAX(column_name) AS CHAR) FROM information_schema.statistics
            WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?
            GROUP BY index_name HAVING MAX(non_unique) = 0 AND COUNT(*) = 1 AND LOWER(MAX(column_name)) = 'request_id'",
            "SELECT l.name FROM pragma_index_list(?2, COALESCE(?1, 'main')) l WHERE l.\"unique\" = 1 AND l.partial = 0
                AND (SELECT group_concat(lower(name)) FROM pragma_index_info(l.name, COALESCE(?1, 'main'))) = 'request_id'",
        ],
    )
    .await?;
    Ok(!found.is_empty())
}

async fn has_index(connections: &Connections, table: &Table, index: &str) -> Result<bool, sqlx::Error> {
    let found = ask(
        connections,
        table,
        [
            "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE i.indrelid = to_regclass($1)",
            "SELECT CAST(index_name AS CHAR) FROM information_schema.statistics
            WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?",
            "SELECT name FROM pragma_index_list(?2, COALESCE(?1, 'main'))",
        ],
    )
    .await?;
    Ok(found.iter().any(|name| name == index))
}

/// Whether MySQL's request_id is one of the TEXT types.
async fn is_long_text(connections: &Connections, table: &Table) -> Result<bool, sqlx::Error> {
    let sql = "SELECT CAST(data_type AS CHAR) FROM information_schema.columns
        WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = 'request_id'";
    let found = ask(connections, table, [sql; 3]).await?;
    Ok(found.iter().any(|kind| kind.to_ascii_lowercase().ends_with("text")))
}

/// Asks about `table`, in the words of PostgreSQL, MySQL and SQLite.
async fn ask(connections: &Connections, table: &Table, sql: [&'static str; 3]) -> Result<Vec<String>, sqlx::Error> {
    let driver = connections.driver();
    let [_postgres, _mysql, sqlite] = sql;
    match connections {
        #[cfg(feature = "databases")]
        Connections::Postgres(bounded) => {
            sqlx::query_scalar(_postgres).bind(table.quoted(driver)).fetch_all(&bounded.pool).await
        }
        #[cfg(feature = "databases")]
        Connections::MySql(bounded) => {
            let query = sqlx::query_scalar(_mysql).bind(table.schema(driver)).bind(table.name(driver));
            query.fetch_all(&bounded.pool).await
        }
        Connections::Sqlite(_, bounded) => {
            let query = sqlx::query_scalar(sqlite).bind(table.schema(driver)).bind(table.name(driver));
            query.fetch_all(&bounded.pool).await
        }
    }
}

async fn execute(connections: &Connections, sql: String) -> Result<(), sqlx::Error> {
    // A connection that knows the table from before somebody else changed it checks a statement against what it knows.
    let look = if connections.driver() == Driver::Sqlite { "SELECT 1 FROM sqlite_master LIMIT 1; " } else { "" };
    let sql = format!("{look}{sql}");
    on_pool!(connections, pool => sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_nothing_else() {
        for name in ["usage_records", "billing.usage_records", "_a1"] {
            assert!(Table::parse(name).is_ok(), "{name}");
        }
        for name in ["", "a b", "a;drop table b", "a.b.c", "1a", ".a", "a.", "a\"b", "a`b", "ü", &"a".repeat(64)] {
            assert!(Table::parse(name).is_err(), "{name}");
        }
        let table = Table::parse("Billing.Usage").unwrap();
        assert_eq!(table.quoted(Driver::Postgres), r#""billing"."usage""#);
        assert_eq!(table.quoted(Driver::MySql), "`Billing`.`Usage`");
        let long = Table::parse(&"a".repeat(63)).unwrap();
        assert_eq!(long.index("request_id_key", Driver::Postgres).len(), 63);
    }
}
