//! Names that differ by their case alone, which are others in PostgreSQL: a table is never half ours because of that.

use super::{Connections, Table, quote};
use crate::database::{columns::COLUMNS, storage::Driver};

/// Refuses what is there under such a name; `present` are the table's columns, none where there is no such table.
pub(super) async fn refuse(connections: &Connections, table: &Table, present: &[String]) -> Result<(), sqlx::Error> {
    if connections.driver() != Driver::Postgres {
        return Ok(());
    }
    if present.is_empty() {
        let Some((schema, name)) = twin(connections, table).await? else { return Ok(()) };
        let (schema, quoted) = (quote(&schema, Driver::Postgres), quote(&name, Driver::Postgres));
        let ours = table.name(Driver::Postgres);
        return Err(refusal(format!(
            "there is a table {quoted}, which is another one than {ours} in PostgreSQL, where names that are not quoted are \
             small: ALTER TABLE {schema}.{quoted} RENAME TO {ours}, or name another table"
        )));
    }
    let twins = COLUMNS.iter().filter_map(|column| {
        let has = |name: &&String| name.as_str() == column.name;
        let twin = present.iter().find(|name| name.eq_ignore_ascii_case(column.name))?;
        (!present.iter().any(|name| has(&name))).then_some((twin, column.name))
    });
    let name = table.quoted(Driver::Postgres);
    let renaming: Vec<_> = twins
        .map(|(twin, ours)| format!("ALTER TABLE {name} RENAME COLUMN {} TO {ours}", quote(twin, Driver::Postgres)))
        .collect();
    if renaming.is_empty() {
        return Ok(());
    }
    Err(refusal(format!(
        "the table {name} has columns whose names differ from those of usage records by their case alone, which are others \
         in PostgreSQL: {}, or name another table",
        renaming.join("; ")
    )))
}

fn refusal(why: String) -> sqlx::Error {
    sqlx::Error::Configuration(why.into())
}

/// The schema and the name of a table that differs from `table` by its case.
#[cfg(feature = "databases")]
async fn twin(connections: &Connections, table: &Table) -> Result<Option<(String, String)>, sqlx::Error> {
    let Connections::Postgres(bounded) = connections else { return Ok(None) };
    let query = sqlx::query_as(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND lower(c.relname) = $1
            AND (n.nspname = $2 OR $2 IS NULL AND n.nspname = ANY(current_schemas(false)))
        ORDER BY 1, 2 LIMIT 1",
    );
    let query = query.bind(table.name(Driver::Postgres)).bind(table.schema(Driver::Postgres));
    query.fetch_optional(&bounded.pool).await
}

#[cfg(not(feature = "databases"))]
async fn twin(_: &Connections, _: &Table) -> Result<Option<(String, String)>, sqlx::Error> {
    Ok(None)
}
