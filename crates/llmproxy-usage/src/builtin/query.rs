//! Questions about the usage.

use jiff::{SignedDuration, Timestamp, TimestampRound, Unit};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::{
    BuiltinError,
    schema::{self, UNIT},
};
use crate::totals::{Group, Query, Total, Totals, day, hour};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// What may be large, and what it is summed up from. A cost of the first version is all in `cost_trillionths`, and perhaps
/// a REAL.
const SUMMED: [(&str, &str); 5] = [
    ("prompt", "prompt_tokens"),
    ("completion", "completion_tokens"),
    ("cached", "cached_tokens"),
    ("units", "(cost_units + CAST(cost_trillionths / 1000000000000 AS INTEGER))"),
    ("trillionths", "CAST(cost_trillionths % 1000000000000 AS INTEGER)"),
];
/// Where a number of 64 bits is cut in two.
const HALF: u32 = 32;
const LOW: u64 = (1 << HALF) - 1;

/// What `query` asks for. Whole days and hours come from the sums, which outlive the rows; pieces of an hour, at the ends of
/// the query's time, from the rows.
pub(super) async fn totals(connection: &mut SqliteConnection, query: &Query) -> Result<Vec<Total>, BuiltinError> {
    let query = &covered(connection, query).await?;
    let is_on = |seconds: i64| {
        let ends = [query.from, query.to];
        ends.into_iter().flatten().all(|end| end.as_second().rem_euclid(seconds) == 0 && end.subsec_nanosecond() == 0)
    };
    let mut builder = QueryBuilder::<Sqlite>::new("SELECT ");
    builder.push(match query.by {
        Group::All => "''",
        Group::Model => "model",
        Group::User => "user_id",
        Group::Key => "CASE key_name WHEN '' THEN key_fingerprint ELSE key_name END",
        Group::Day => "substr(at, 1, 10)",
        Group::Hour => "at",
    });
    builder.push(" AS name, currency, SUM(requests) AS requests, SUM(errors) AS errors");
    // In two parts each: a sum that is more than 64 bits hold is an error in SQLite.
    for (name, value) in SUMMED {
        builder.push(format_args!(", SUM({value} >> {HALF}) AS {name}_high, SUM({value} & {LOW}) AS {name}_low"));
    }
    builder.push(" FROM (");
    // A file that no proxy of this version has opened yet.
    let units = if schema::has_units(connection).await? { "coalesce(cost_units, 0)" } else { "0" };
    let sums = |at: &str, table: &str| {
        format!(
            "SELECT {at} AS at, model, user_id, key_name, key_fingerprint, currency, requests, errors, prompt_tokens,
                completion_tokens, cached_tokens, {units} AS cost_units, cost_trillionths FROM {table} WHERE TRUE"
        )
    };
    if query.by != Group::Hour && is_on(DAY) {
        builder.push(sums("day", "usage_daily"));
        between(&mut builder, "day", query.from.map(day), query.to.map(day));
    } else {
        let (first, last) = (query.from.map(next_hour), query.to.map(this_hour));
        builder.push(sums("hour", "usage_hourly"));
        between(&mut builder, "hour", first.map(hour), last.map(hour));
        if !is_on(HOUR) {
            rows(&mut builder, query, first, last, units);
        }
    }
    builder.push(") WHERE TRUE");
    for (column, wanted) in [("model", &query.model), ("user_id", &query.user)] {
        if let Some(wanted) = wanted {
            builder.push(format_args!(" AND {column} = ")).push_bind(wanted.clone());
        }
    }
    if let Some(key) = &query.key {
        builder.push(" AND (key_name = ").push_bind(key.clone()).push(" OR key_fingerprint = ").push_bind(key.clone());
        builder.push(")");
    }
    builder.push(" GROUP BY 1, 2");

    let mut totals = Totals::new(query.clone());
    for row in builder.build().persistent(false).fetch_all(connection).await? {
        let number = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
        let sum = |name: &str| {
            let (high, low) = (number(&format!("{name}_high"))?, number(&format!("{name}_low"))?);
            Ok::<_, sqlx::Error>((u128::from(high) << HALF) + u128::from(low))
        };
        let tokens = |name: &str| Ok::<_, sqlx::Error>(u64::try_from(sum(name)?).unwrap_or(u64::MAX));
        let currency: String = row.try_get("currency")?;
        let cost = sum("units")? * u128::from(UNIT) + sum("trillionths")?;
        let part = Total {
            group: String::new(),
            requests: number("requests")?,
            errors: number("errors")?,
            prompt_tokens: tokens("prompt")?,
            completion_tokens: tokens("completion")?,
            cached_tokens: tokens("cached")?,
            cost: (!currency.is_empty()).then_some((currency, cost)).into_iter().collect(),
        };
        totals.add_to(row.try_get("name")?, part);
    }
    Ok(totals.finish())
}

/// `query` about the time that it can be answered for: of an hour whose rows have been removed there is all or nothing.
pub(super) async fn covered(connection: &mut SqliteConnection, query: &Query) -> Result<Query, BuiltinError> {
    let mut query = query.clone();
    let Some(purged) = schema::text(connection, "purged_before").await? else { return Ok(query) };
    let purged: Timestamp = purged.parse()?;
    let is_cut = |moment: &Timestamp| this_hour(*moment) != *moment;
    let begin = query.from;
    if let Some(from) = query.from.filter(is_cut)
        && from < purged
    {
        query.from = Some(this_hour(from));
    }
    if let Some(to) = query.to.filter(is_cut)
        && begin.map_or(this_hour(to), |from| from.max(this_hour(to))) < purged
    {
        query.to = Some(next_hour(to));
    }
    Ok(query)
}

/// The first hour that there are sums of.
pub(super) async fn since(connection: &mut SqliteConnection) -> Result<Option<Timestamp>, BuiltinError> {
    let hour: Option<String> = sqlx::query_scalar("SELECT min(hour) FROM usage_hourly").fetch_one(connection).await?;
    Ok(hour.map(|hour| hour.parse()).transpose()?)
}

/// The rows of the two pieces of an hour; one where they meet.
fn rows(
    builder: &mut QueryBuilder<Sqlite>,
    query: &Query,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    units: &str,
) {
    let text = |moment: Timestamp| format!("{moment:.6}");
    let pieces = match (query.from, query.to) {
        (Some(from), Some(to)) if first > last => vec![(from, to)],
        (from, to) => from.zip(first).into_iter().chain(last.zip(to)).collect(),
    };
    for (from, to) in pieces {
        builder.push(format_args!(
            " UNION ALL SELECT substr(created_at, 1, 13) || ':00:00Z', coalesce(model, ''), coalesce(user_id, ''),
                coalesce(key_name, ''), coalesce(key_fingerprint, ''), coalesce(currency, ''), 1,
                end_reason NOT IN ('complete', 'client_gone'), prompt_tokens, completion_tokens,
                coalesce(cached_tokens, 0), {units}, coalesce(cost_trillionths, 0)
            FROM usage_records WHERE TRUE",
        ));
        between(builder, "created_at", Some(text(from)), Some(text(to)));
    }
}

fn between(builder: &mut QueryBuilder<Sqlite>, column: &str, from: Option<String>, to: Option<String>) {
    if let Some(from) = from {
        builder.push(format_args!(" AND {column} >= ")).push_bind(from);
    }
    if let Some(to) = to {
        builder.push(format_args!(" AND {column} < ")).push_bind(to);
    }
}

/// The beginning of the hour that `moment` is in.
fn this_hour(moment: Timestamp) -> Timestamp {
    let round = TimestampRound::new().smallest(Unit::Hour).mode(jiff::RoundMode::Floor);
    moment.round(round).unwrap_or(moment)
}

/// The first beginning of an hour that is not before `moment`.
fn next_hour(moment: Timestamp) -> Timestamp {
    let this = this_hour(moment);
    if this == moment { this } else { this.saturating_add(SignedDuration::from_hours(1)).unwrap_or(moment) }
}
