//! What an error of a database means for the records that met it.

use sqlx::error::DatabaseError;

use super::{columns::COLUMNS, storage::Driver};
use crate::Verdict;

/// What went wrong with a batch.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The records themselves are refused, not all that are sent.
    pub(crate) refused: bool,
    pub(crate) why: String,
}

/// Judges an error of writing records.
pub(crate) fn judge(driver: Driver, error: &sqlx::Error) -> Failure {
    let refused = match error {
        sqlx::Error::Database(error) => {
            if let Some(column) = column_of_theirs(driver, &**error) {
                let why = format!(
                    "{error}; the table has a column `{column}` which must have a value, and a usage record has none for it: \
                     give it a default, or let it be NULL"
                );
                return Failure { refused: false, why };
            }
            is_about_content(driver, &**error)
        }
        sqlx::Error::Encode(_) => true,
        _ => false,
    };
    Failure { refused, why: explain(driver, error) }
}

/// An error of connecting, or of preparing the table: never the records' fault.
pub(crate) fn not_ready(driver: Driver, error: &sqlx::Error) -> Failure {
    Failure { refused: false, why: explain(driver, error) }
}

/// Whether another database error says that there is a row like that already.
pub(crate) fn is_double(driver: Driver, error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    match driver {
        Driver::MySql => number(error) == Some(1062),
        Driver::Postgres | Driver::Sqlite => error.is_unique_violation(),
    }
}

/// The column that is not ours to write and takes no NULL, where that is what the error is about: every row meets it, and not
/// one of them is to blame.
fn column_of_theirs(driver: Driver, error: &dyn DatabaseError) -> Option<String> {
    let column = match driver {
        Driver::Postgres if error.code()? == "23502" => postgres_column(error)?,
        // Field 'tenant' doesn't have a default value
        Driver::MySql if number(error) == Some(1364) => error.message().split('\'').nth(1)?.to_owned(),
        // NOT NULL constraint failed: usage_records.tenant
        Driver::Sqlite if error.code()? == "1299" => error.message().rsplit('.').next()?.to_owned(),
        _ => return None,
    };
    let is_ours = COLUMNS.iter().any(|ours| ours.name.eq_ignore_ascii_case(&column));
    (!is_ours).then_some(column)
}

/// The classes of SQL's states that speak of data: 22 is about values, 23 about constraints. All others are about the
/// server, the account or the table, which somebody can put right.
fn is_about_content(driver: Driver, error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    match driver {
        Driver::Postgres => code.starts_with("22") || code.starts_with("23"),
        Driver::MySql => {
            // A row that is too long for a packet, text that the column's character set lacks, a CHECK: they are in no class.
            matches!(number(error), Some(1153 | 1366 | 3819 | 4025)) || code.starts_with("22") || code.starts_with("23")
        }
        // SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH, SQLITE_RANGE; the higher bytes say more about them.
        Driver::Sqlite => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18 | 19 | 20 | 25)),
    }
}

/// The error, and what to do about it where that is known.
fn explain(driver: Driver, error: &sqlx::Error) -> String {
    let hint = match error {
        sqlx::Error::Database(error) => hint(driver, &**error),
        sqlx::Error::PoolTimedOut => {
            "no connection within 10 s; see that the server runs, that it can be reached from \
            here, and that it has connections left"
        }
        sqlx::Error::Io(_) => "see that the server runs and that `host` and `port`, or the DSN, name it",
        sqlx::Error::Tls(_) => "see to the server's certificate, or say in the DSN how it is checked",
        _ => "",
    };
    if hint.is_empty() { error.to_string() } else { format!("{error}; {hint}") }
}

fn hint(driver: Driver, error: &dyn DatabaseError) -> &'static str {
    const ACCOUNT: &str = "see to `user` and `password`, or to the DSN, in storage.databases";
    const MISSING: &str = "create the database, or name another one in storage.databases";
    const RIGHTS: &str = "give the account the right to create, alter, read and insert into the table";
    const FULL: &str = "make room on the server's disk";
    let code = error.code().unwrap_or_default();
    match driver {
        Driver::Postgres => match &*code {
            "28P01" | "28000" => ACCOUNT,
            "3D000" => MISSING,
            "3F000" => "create the schema that the table's name says",
            "42501" => RIGHTS,
            "53100" => FULL,
            "53300" => "let the server have more connections",
            _ => "",
        },
        Driver::MySql => match number(error) {
            Some(1045 | 1698) => ACCOUNT,
            Some(1044 | 1142) => RIGHTS,
            Some(1049) => MISSING,
            Some(1021 | 1114) => FULL,
            Some(1040) => "let the server have more connections",
            _ => "",
        },
        Driver::Sqlite => match code.parse::<u32>().unwrap_or_default() & 0xff {
            5 | 6 => "another program keeps the file locked",
            8 => "let the proxy's user write the file and its folder",
            13 => "make room on the disk",
            14 => "see that its folder is there and that the proxy's user may write in it",
            11 | 26 => "the file is damaged or is no SQLite database; move it away to begin anew",
            _ => "",
        },
    }
}

#[cfg(feature = "databases")]
fn postgres_column(error: &dyn DatabaseError) -> Option<String> {
    let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
    error.column().map(str::to_owned)
}

#[cfg(not(feature = "databases"))]
fn postgres_column(_: &dyn DatabaseError) -> Option<String> {
    None
}

#[cfg(feature = "databases")]
fn number(error: &dyn DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(sqlx::mysql::MySqlDatabaseError::number)
}

#[cfg(not(feature = "databases"))]
fn number(_: &dyn DatabaseError) -> Option<u16> {
    None
}

// === impl Failure ===

impl Failure {
    pub(crate) fn verdict(self) -> Verdict {
        if self.refused { Verdict::refused(self.why) } else { Verdict::again(self.why) }
    }
}
