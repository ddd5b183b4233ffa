//! Questions about the usage.

use jiff::{SignedDuration, Timestamp, TimestampRound, Unit};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::BuiltinError;
use crate::totals::{Group, Query, Total, Totals, day, hour};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// What `query` asks for. Whole days and hours come from the sums, which outlive the rows; pieces of an hour, at the ends of
/// the query's time, from the rows.
pub(super) async fn totals(connection: &mut SqliteConnection, query: &Query) -> Result<Vec<Total>, BuiltinError> {
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
    // The cost in two parts: the sum of many may be more than 64 bits hold.
    builder.push(
        " AS name, currency, SUM(requests) AS requests, SUM(errors) AS errors, SUM(prompt_tokens) AS prompt_tokens,
            SUM(completion_tokens) AS completion_tokens, SUM(cached_tokens) AS cached_tokens,
            SUM(cost_trillionths / 1000000000000) AS units, SUM(cost_trillionths % 1000000000000) AS trillionths FROM (",
    );
    const SUMS: &str = " AS at, model, user_id, key_name, key_fingerprint, currency, requests, errors, prompt_tokens,
        completion_tokens, cached_tokens, cost_trillionths FROM ";
    if query.by != Group::Hour && is_on(DAY) {
        builder.push(format_args!("SELECT day{SUMS}usage_daily WHERE TRUE"));
        between(&mut builder, "day", query.from.map(day), query.to.map(day));
    } else {
        let (first, last) = (query.from.map(next_hour), query.to.map(this_hour));
        builder.push(format_args!("SELECT hour{SUMS}usage_hourly WHERE TRUE"));
        between(&mut builder, "hour", first.map(hour), last.map(hour));
        if !is_on(HOUR) {
            rows(&mut builder, query, first, last);
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
        let currency: String = row.try_get("currency")?;
        let cost =
            u128::from(number("units")?) * u128::from(llmproxy_core::Cost::UNIT) + u128::from(number("trillionths")?);
        let part = Total {
            group: String::new(),
            requests: number("requests")?,
            errors: number("errors")?,
            prompt_tokens: number("prompt_tokens")?,
            completion_tokens: number("completion_tokens")?,
            cached_tokens: number("cached_tokens")?,
            cost: (!currency.is_empty()).then_some((currency, cost)).into_iter().collect(),
        };
        totals.add_to(row.try_get("name")?, part);
    }
    Ok(totals.finish())
}

/// The first hour that there are sums of.
pub(super) async fn since(connection: &mut SqliteConnection) -> Result<Option<Timestamp>, BuiltinError> {
    let hour: Option<String> = sqlx::query_scalar("SELECT min(hour) FROM usage_hourly").fetch_one(connection).await?;
    Ok(hour.map(|hour| hour.parse()).transpose()?)
}

/// The rows of the two pieces of an hour; one where they meet.
fn rows(builder: &mut QueryBuilder<Sqlite>, query: &Query, first: Option<Timestamp>, last: Option<Timestamp>) {
    let text = |moment: Timestamp| format!("{moment:.6}");
    let pieces = match (query.from, query.to) {
        (Some(from), Some(to)) if first > last => vec![(from, to)],
        (from, to) => from.zip(first).into_iter().chain(last.zip(to)).collect(),
    };
    for (from, to) in pieces {
        builder.push(
            " UNION ALL SELECT substr(created_at, 1, 13) || ':00:00Z', coalesce(model, ''), coalesce(user_id, ''),
                coalesce(key_name, ''), coalesce(key_fingerprint, ''), coalesce(currency, ''), 1,
                end_reason NOT IN ('complete', 'client_gone'), prompt_tokens, completion_tokens,
                coalesce(cached_tokens, 0), coalesce(cost_trillionths, 0)
            FROM usage_records WHERE TRUE",
        );
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
