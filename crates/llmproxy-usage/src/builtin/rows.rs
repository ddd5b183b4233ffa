//! Records into rows, and into the sums of their hours and days, in one transaction.

use std::{collections::BTreeMap, sync::LazyLock};

use jiff::{SignedDuration, Timestamp};
use llmproxy_core::UsageRecord;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::{
    BuiltinError,
    schema::{self, UNIT},
};
use crate::{
    database::{Driver, Row, Value},
    totals::{day, hour, is_error},
};

/// How long it is remembered that a row was there once. A record may wait for longer, and then it can't be told from one
/// that comes again.
pub(super) const REMEMBERED: SignedDuration = SignedDuration::from_hours(8 * 24);

/// What tells sums apart, besides their hour or day.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    at: String,
    model: String,
    user_id: String,
    key_name: String,
    key_fingerprint: String,
    currency: String,
}

#[derive(Clone, Default)]
struct Sum {
    requests: i64,
    errors: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    cached_tokens: i64,
    cost_trillionths: u128,
}

/// The sums that a transaction adds to.
#[derive(Default)]
pub(super) struct Sums {
    hours: BTreeMap<Name, Sum>,
    days: BTreeMap<Name, Sum>,
}

/// Writes records, all or none; those that were written before stay as they are, and are not summed up again.
pub(super) async fn insert(connection: &mut SqliteConnection, records: &[&UsageRecord]) -> Result<(), BuiltinError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let purged_before = schema::text(&mut transaction, "purged_before").await?;
    let purged_before = purged_before.and_then(|text| text.parse::<Timestamp>().ok());
    let remembered = Timestamp::now().saturating_sub(REMEMBERED)?;
    let mut sums = Sums::default();
    for record in records {
        if purged_before.is_some_and(|before| record.timestamp < before) {
            // So late it is taken for one whose row was there, was summed up, and has been removed.
            let known = sqlx::query("SELECT 1 FROM usage_purged WHERE request_id = ?");
            let known = known.bind(record.request_id.to_string()).fetch_optional(&mut *transaction).await?.is_some();
            if known || record.timestamp < remembered {
                continue;
            }
        }
        if insert_row(&mut transaction, record.request_id.to_string(), record).await? {
            sums.add(record);
        }
    }
    sums.write(&mut transaction).await?;
    Ok(transaction.commit().await?)
}

/// Writes one record, unless there is one of that id; says whether it did.
pub(super) async fn insert_row(
    connection: &mut SqliteConnection,
    id: String,
    record: &UsageRecord,
) -> Result<bool, sqlx::Error> {
    let row = Row { record, request_body: None };
    let cost = record.cost.as_ref().map(|cost| in_units(cost.trillionths.into()));
    let mut query = sqlx::query(AssertSqlSafe(INSERT.as_str())).bind(id);
    for (_, column) in schema::columns().skip(1) {
        query = match (column.value)(&row).fit(column.kind, Driver::Sqlite) {
            Value::Text(text) => query.bind(text),
            Value::Integer(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Switch(on) => query.bind(on),
        };
    }
    let query = query.bind(cost.map(|(units, _)| units)).bind(cost.map(|(_, rest)| rest));
    Ok(query.execute(connection).await?.rows_affected() > 0)
}

/// The id is the first column.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<_> = schema::columns().map(|(name, _)| format!("\"{name}\"")).collect();
    let places = vec!["?"; names.len()].join(", ");
    format!(
        "INSERT INTO usage_records ({}, cost_units, cost_trillionths) VALUES ({places}, ?, ?)
        ON CONFLICT (request_id) DO NOTHING",
        names.join(", ")
    )
});

/// An amount in whole units and the trillionths beyond them, each of which is far from the end of its column.
fn in_units(trillionths: u128) -> (i64, i64) {
    let (units, rest) = (trillionths / u128::from(UNIT), trillionths % u128::from(UNIT));
    (i64::try_from(units).unwrap_or(i64::MAX), i64::try_from(rest).unwrap_or(i64::MAX))
}

// === impl Sums ===

impl Sums {
    pub(super) fn add(&mut self, record: &UsageRecord) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let usage = record.usage.unwrap_or_default();
        let sum = Sum {
            requests: 1,
            errors: i64::from(is_error(record.end)),
            prompt_tokens: number(usage.prompt),
            completion_tokens: number(usage.completion),
            cached_tokens: number(usage.cached.unwrap_or_default()),
            cost_trillionths: record.cost.as_ref().map_or(0, |cost| cost.trillionths.into()),
        };
        let name = Name {
            at: hour(record.timestamp),
            model: text(record.model.as_deref()),
            user_id: text(record.user_id.as_deref()),
            key_name: text(record.key_name.as_deref()),
            key_fingerprint: text(record.key_fingerprint.as_deref()),
            currency: text(record.cost.as_ref().map(|cost| &*cost.currency)),
        };
        self.days.entry(Name { at: day(record.timestamp), ..name.clone() }).or_default().add(&sum);
        self.hours.entry(name).or_default().add(&sum);
    }

    pub(super) async fn write(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        // A sum of integers that is too long for one is a REAL in SQLite: tokens end at the most that an integer holds, and
        // a cost carries what is whole into its units.
        for (table, at, sums) in [("usage_hourly", "hour", self.hours), ("usage_daily", "day", self.days)] {
            let sql = format!(
                "INSERT INTO {table} ({at}, model, user_id, key_name, key_fingerprint, currency, requests, errors,
                    prompt_tokens, completion_tokens, cached_tokens, cost_units, cost_trillionths)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, errors = errors + excluded.errors,
                    prompt_tokens = CAST(prompt_tokens + excluded.prompt_tokens AS INTEGER),
                    completion_tokens = CAST(completion_tokens + excluded.completion_tokens AS INTEGER),
                    cached_tokens = CAST(cached_tokens + excluded.cached_tokens AS INTEGER),
                    cost_units = cost_units + excluded.cost_units
                        + (cost_trillionths + excluded.cost_trillionths) / {UNIT},
                    cost_trillionths = (cost_trillionths + excluded.cost_trillionths) % {UNIT}"
            );
            for (name, sum) in sums {
                let (units, trillionths) = in_units(sum.cost_trillionths);
                sqlx::query(AssertSqlSafe(sql.clone()))
                    .bind(name.at)
                    .bind(name.model)
                    .bind(name.user_id)
                    .bind(name.key_name)
                    .bind(name.key_fingerprint)
                    .bind(name.currency)
                    .bind(sum.requests)
                    .bind(sum.errors)
                    .bind(sum.prompt_tokens)
                    .bind(sum.completion_tokens)
                    .bind(sum.cached_tokens)
                    .bind(units)
                    .bind(trillionths)
                    .execute(&mut *connection)
                    .await?;
            }
        }
        Ok(())
    }
}

// === impl Sum ===

impl Sum {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.cost_trillionths = self.cost_trillionths.saturating_add(other.cost_trillionths);
    }
}
