//! A batch of rows, in one transaction.

use std::collections::HashSet;

use sqlx::{Database, Encode, QueryBuilder, Type};

use super::{
    columns::{COLUMNS, Row, Value},
    connect::{Connections, on_pool},
    storage::Driver,
    table::{Doubles, Prepared, Table, quote},
};

/// Rows in one statement: the databases take 32766 parameters and more.
const ROWS: usize = 100;
/// Text in one statement, in bytes: MySQL's servers take 16 MiB at a time, old ones 1 MiB.
const BYTES: usize = 512 * 1024;

/// Writes `rows`, all or none. A row that is there already stays as it is.
///
/// # Errors
///
/// The database's.
///
/// # Cancel safety
///
/// Dropped half way, nothing is written, or all if it was being committed.
pub(crate) async fn insert(
    connections: &Connections,
    table: &Table,
    prepared: Prepared,
    rows: &[Row<'_>],
) -> Result<(), sqlx::Error> {
    let driver = connections.driver();
    // A reader that wants to write after all can't wait for its turn in SQLite.
    let begin = if driver == Driver::Sqlite { "BEGIN IMMEDIATE" } else { "BEGIN" };
    on_pool!(connections, pool => {
        let mut transaction = pool.begin_with(begin).await?;
        if driver == Driver::Sqlite {
            // A connection that knows the table from before it had its index takes ON CONFLICT for a mistake, unless it has
            // had a reason to look.
            sqlx::raw_sql("SELECT 1 FROM sqlite_master LIMIT 1").execute(&mut *transaction).await?;
        }
        let mut rest = rows;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest));
            rest = later;
            let mut known = HashSet::new();
            if prepared.doubles == Doubles::LookedUp {
                let mut builder = look_up(driver, table, now);
                let found: Vec<String> = builder.build_query_scalar().fetch_all(&mut *transaction).await?;
                known.extend(found);
            }
            let new: Vec<_> = now.iter().filter(|row| known.insert(row.record.request_id.to_string())).collect();
            if !new.is_empty() {
                // Only statements of the same length are the same, and worth being remembered.
                let whole = new.len() == ROWS;
                let mut builder = statement(driver, table, prepared, &new);
                builder.build().persistent(whole).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await
    })
}

/// How many of `rows` go into one statement: at least one.
fn fitting(rows: &[Row<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |row: &&Row<'_>| {
        bytes += 2048 + row.request_body.as_ref().map_or(0, String::len);
        bytes <= BYTES
    };
    rows.iter().take(ROWS).take_while(fits).count().max(1)
}

fn look_up<DB: Database>(driver: Driver, table: &Table, rows: &[Row<'_>]) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
{
    let (column, name) = (quote("request_id", driver), table.quoted(driver));
    let mut builder = QueryBuilder::new(format!("SELECT {column} FROM {name} WHERE {column} IN ("));
    let mut ids = builder.separated(", ");
    for row in rows {
        ids.push_bind(row.record.request_id.to_string());
    }
    builder.push(")");
    builder
}

fn statement<DB: Database>(driver: Driver, table: &Table, prepared: Prepared, rows: &[&Row<'_>]) -> QueryBuilder<DB>
where
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    Option<i64>: for<'q> Encode<'q, DB> + Type<DB>,
    Option<f64>: for<'q> Encode<'q, DB> + Type<DB>,
    bool: for<'q> Encode<'q, DB> + Type<DB>,
{
    let created_at = prepared.writes_created_at.then_some("created_at");
    let names = COLUMNS.iter().map(|column| column.name).chain(created_at);
    let names: Vec<_> = names.map(|name| quote(name, driver)).collect();
    let mut builder = QueryBuilder::new(format!("INSERT INTO {} ({}) VALUES ", table.quoted(driver), names.join(", ")));
    for (index, row) in rows.iter().enumerate() {
        builder.push(if index == 0 { "(" } else { ", (" });
        for (index, column) in COLUMNS.iter().enumerate() {
            if index > 0 {
                builder.push(", ");
            }
            let cast = column.kind.cast(driver);
            if cast.is_some() {
                builder.push("CAST(");
            }
            match (column.value)(row).fit(column.kind, driver) {
                Value::Text(text) => builder.push_bind(text),
                Value::Integer(number) => builder.push_bind(number),
                Value::Real(number) => builder.push_bind(number),
                Value::Switch(on) => builder.push_bind(on),
            };
            if let Some(cast) = cast {
                builder.push(format_args!(" AS {cast})"));
            }
        }
        builder.push(if prepared.writes_created_at { ", CURRENT_TIMESTAMP)" } else { ")" });
    }
    if prepared.doubles == Doubles::Indexed {
        let id = quote("request_id", driver);
        match driver {
            Driver::Postgres | Driver::Sqlite => builder.push(format_args!(" ON CONFLICT ({id}) DO NOTHING")),
            // Not INSERT IGNORE, which would hide every other mistake, too.
            Driver::MySql => builder.push(format_args!(" ON DUPLICATE KEY UPDATE {id} = {id}")),
        };
    }
    builder
}
