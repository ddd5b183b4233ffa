//! Records into rows, and into the sums of their hours and days, in one transaction.

use std::{collections::BTreeMap, sync::LazyLock};

use jiff::{SignedDuration, Timestamp};
use llmproxy_core::UsageRecord;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::{BuiltinError, schema};
use crate::{
    database::{Driver, Row, Value},
    totals::{day, hour, is_error},
};

/// How long it is remembered that a row was there once. A reporter is told again within seven days, or never.
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
    cost_trillionths: i64,
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
            // Nobody would send it for the first time so late: its row was there, was summed up, and has been removed.
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
    let cost = record.cost.as_ref().map(|cost| i64::try_from(cost.trillionths).unwrap_or(i64::MAX));
    let mut query = sqlx::query(AssertSqlSafe(INSERT.as_str())).bind(id);
    for (_, column) in schema::columns().skip(1) {
        query = match (column.value)(&row).fit(column.kind, Driver::Sqlite) {
            Value::Text(text) => query.bind(text),
            Value::Integer(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Switch(on) => query.bind(on),
        };
    }
    Ok(query.bind(cost).execute(connection).await?.rows_affected() > 0)
}

/// The id is the first column.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<_> = schema::columns().map(|(name, _)| format!("\"{name}\"")).collect();
    let places = vec!["?"; names.len()].join(", ");
    format!(
        "INSERT INTO usage_records ({}, cost_trillionths) VALUES ({places}, ?) ON CONFLICT (request_id) DO NOTHING",
        names.join(", ")
    )
});

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
            cost_trillionths: number(record.cost.as_ref().map_or(0, |cost| cost.trillionths)),
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
        for (table, at, sums) in [("usage_hourly", "hour", self.hours), ("usage_daily", "day", self.days)] {
            let sql = format!(
                "INSERT INTO {table} ({at}, model, user_id, key_name, key_fingerprint, currency, requests, errors,
                    prompt_tokens, completion_tokens, cached_tokens, cost_trillionths)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, errors = errors + excluded.errors,
                    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                    completion_tokens = completion_tokens + excluded.completion_tokens,
                    cached_tokens = cached_tokens + excluded.cached_tokens,
                    cost_trillionths = cost_trillionths + excluded.cost_trillionths"
            );
            for (name, sum) in sums {
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
                    .bind(sum.cost_trillionths)
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
