//! The columns: those of the Go program's table under its names, then what a record knows beyond them.

use llmproxy_core::{UsageRecord, UsageSource};

use super::storage::Driver;
use crate::json;

/// The version of what a record says, in the column `schema_version`.
const SCHEMA: i64 = 1;

/// One column.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) value: fn(&Row<'_>) -> Value,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our id of the request: short, and indexed.
    Id,
    Text,
    Moment,
    Integer,
    Real,
    Switch,
    /// An exact amount.
    Money,
    Json,
}

/// What a statement is given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(Option<String>),
    Integer(Option<i64>),
    Real(Option<f64>),
    Switch(bool),
}

/// A record, and what goes with it.
pub(crate) struct Row<'a> {
    pub(crate) record: &'a UsageRecord,
    pub(crate) request_body: Option<String>,
}

/// All columns that are written. The database itself fills `id` and `created_at`.
pub(crate) const COLUMNS: &[Column] = &[
    // The Go program's. Where it had no value it wrote none of SQL's NULLs, which its columns may not take.
    column("request_id", Kind::Id, |row| text(row.record.request_id.to_string())),
    column("timestamp", Kind::Moment, |row| text(format!("{:.6}", row.record.timestamp))),
    column("api_key", Kind::Text, |row| text(row.record.key_fingerprint.as_deref().unwrap_or_default())),
    column("user_id", Kind::Text, |row| text(row.record.user_id.as_deref().unwrap_or_default())),
    column("method", Kind::Text, |row| text(&*row.record.method)),
    column("path", Kind::Text, |row| text(&*row.record.path)),
    column("backend_url", Kind::Text, |row| text(row.record.backend_url.as_deref().unwrap_or_default())),
    column("status_code", Kind::Integer, |row| integer(u64::from(row.record.status))),
    column("latency_ms", Kind::Integer, |row| millis(Some(row.record.latency))),
    column("prompt_tokens", Kind::Integer, |row| integer(row.record.usage.unwrap_or_default().prompt)),
    column("completion_tokens", Kind::Integer, |row| integer(row.record.usage.unwrap_or_default().completion)),
    column("total_tokens", Kind::Integer, |row| integer(row.record.usage.unwrap_or_default().total())),
    column("request_body", Kind::Json, |row| Value::Text(row.request_body.clone())),
    // Ours.
    column("schema_version", Kind::Integer, |_| Value::Integer(Some(SCHEMA))),
    column("model", Kind::Text, |row| maybe(row.record.model.as_deref())),
    column("served_model", Kind::Text, |row| maybe(row.record.served_model.as_deref())),
    column("key_name", Kind::Text, |row| maybe(row.record.key_name.as_deref())),
    column("key_fingerprint", Kind::Text, |row| maybe(row.record.key_fingerprint.as_deref())),
    column("client_ip", Kind::Text, |row| maybe(row.record.client_ip.map(|ip| ip.to_string()))),
    column("client_request_id", Kind::Text, |row| maybe(row.record.client_request_id.as_deref())),
    column("upstream_id", Kind::Text, |row| maybe(row.record.upstream_id.as_deref())),
    column("endpoint", Kind::Text, |row| text(row.record.endpoint.template())),
    column("is_stream", Kind::Switch, |row| Value::Switch(row.record.stream)),
    column("backend", Kind::Text, |row| maybe(row.record.backend.as_deref())),
    column("attempts", Kind::Integer, |row| integer(u64::from(row.record.attempts))),
    // Not `end`, which is a word of SQL.
    column("end_reason", Kind::Text, |row| text(row.record.end.as_str())),
    column("error", Kind::Text, |row| maybe(row.record.error.as_deref())),
    column("usage_source", Kind::Text, |row| maybe(row.record.source().map(UsageSource::as_str))),
    column("prompt_usage_source", Kind::Text, |row| {
        maybe(row.record.usage_source.map(|sources| sources.prompt.as_str()))
    }),
    column("completion_usage_source", Kind::Text, |row| {
        maybe(row.record.usage_source.map(|sources| sources.completion.as_str()))
    }),
    column("cached_tokens", Kind::Integer, |row| maybe_integer(row.record.usage.and_then(|usage| usage.cached))),
    column("reasoning_tokens", Kind::Integer, |row| maybe_integer(row.record.usage.and_then(|usage| usage.reasoning))),
    column("delivered_tokens", Kind::Integer, |row| maybe_integer(row.record.delivered_tokens)),
    column("cost", Kind::Money, |row| maybe(row.record.cost.as_ref().map(|cost| amount(cost.trillionths)))),
    column("currency", Kind::Text, |row| maybe(row.record.cost.as_ref().map(|cost| &*cost.currency))),
    column("unit_kind", Kind::Text, |row| maybe(row.record.units.map(|units| units.kind.as_str()))),
    column("unit_count", Kind::Integer, |row| maybe_integer(row.record.units.map(|units| units.count))),
    column("time_to_first_byte_ms", Kind::Integer, |row| millis(row.record.time_to_first_byte)),
    column("time_to_first_token_ms", Kind::Integer, |row| millis(row.record.time_to_first_token)),
    column("longest_gap_ms", Kind::Real, |row| fine_millis(row.record.longest_gap)),
    column("queue_time_ms", Kind::Real, |row| fine_millis(row.record.queue_time)),
    column("proxy_time_ms", Kind::Real, |row| fine_millis(row.record.proxy_time)),
];

const fn column(name: &'static str, kind: Kind, value: fn(&Row<'_>) -> Value) -> Column {
    Column { name, kind, value }
}

fn text(text: impl Into<String>) -> Value {
    Value::Text(Some(text.into()))
}

fn maybe(text: Option<impl Into<String>>) -> Value {
    Value::Text(text.map(Into::into))
}

/// More than a column holds is more than anybody could have used.
fn integer(number: u64) -> Value {
    Value::Integer(Some(i64::try_from(number).unwrap_or(i64::MAX)))
}

fn maybe_integer(number: Option<u64>) -> Value {
    number.map_or(Value::Integer(None), integer)
}

fn millis(duration: Option<std::time::Duration>) -> Value {
    maybe_integer(duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

fn fine_millis(duration: Option<std::time::Duration>) -> Value {
    Value::Real(duration.map(|duration| duration.as_micros() as f64 / 1000.0))
}

/// All twelve decimals: an amount in binary would be a little beside it.
fn amount(trillionths: u64) -> String {
    let unit = llmproxy_core::Cost::UNIT;
    format!("{}.{:012}", trillionths / unit, trillionths % unit)
}

// === impl Kind ===

impl Kind {
    /// The type that a column of this kind is made with.
    pub(crate) fn sql(self, driver: Driver) -> &'static str {
        use Driver::{MySql, Postgres, Sqlite};
        match (self, driver) {
            (Self::Id, MySql) => "VARCHAR(64)",
            (Self::Id | Self::Text, _) => "TEXT",
            (Self::Moment, Postgres) => "TIMESTAMPTZ",
            (Self::Moment, MySql) => "DATETIME(6)",
            (Self::Moment, Sqlite) => "DATETIME",
            (Self::Integer, _) => "BIGINT",
            (Self::Real, Postgres) => "DOUBLE PRECISION",
            (Self::Real, MySql) => "DOUBLE",
            (Self::Real, Sqlite) => "REAL",
            (Self::Switch, _) => "BOOLEAN",
            (Self::Money, MySql) => "DECIMAL(32,12)",
            // NUMERIC there is a double, which has no room for all digits.
            (Self::Money, Sqlite) => "TEXT",
            (Self::Money, _) => "NUMERIC(32,12)",
            (Self::Json, Postgres) => "JSONB",
            (Self::Json, MySql) => "JSON",
            (Self::Json, Sqlite) => "TEXT",
        }
    }

    /// What a value that is sent as text must be turned into.
    pub(crate) fn cast(self, driver: Driver) -> Option<&'static str> {
        (driver == Driver::Postgres && matches!(self, Self::Moment | Self::Money | Self::Json))
            .then(|| self.sql(driver))
    }
}

impl Value {
    /// The value as `driver` takes it in a column of `kind`.
    pub(crate) fn fit(self, kind: Kind, driver: Driver) -> Self {
        match self {
            // 2026-01-23 10:30:00.123456: MySQL has no word for UTC.
            Self::Text(Some(text)) if kind == Kind::Moment && driver == Driver::MySql => {
                Self::Text(Some(text.replace('T', " ").trim_end_matches('Z').to_owned()))
            }
            // The one sign that PostgreSQL's text can't hold, and no reason to lose a record.
            Self::Text(Some(text)) if driver == Driver::Postgres && text.contains('\0') => {
                Self::Text(Some(text.replace('\0', "\u{fffd}")))
            }
            other => other,
        }
    }
}

/// What MariaDB takes in JSON, one in another: 32, and MySQL 100.
const MOST_NESTED: usize = 30;

/// A request's body as JSON that `driver` takes: read and written anew, and without the NULs that JSONB refuses. What can't be
/// read, or is nested deeper than the database takes, is one string.
pub(crate) fn body_text(body: &[u8], driver: Driver) -> Option<String> {
    let mut value = json::whole_body(body)?;
    if driver == Driver::MySql && nesting(&value) > MOST_NESTED {
        value = json::text_of(body);
    }
    without_nul(&mut value);
    Some(value.to_string())
}

fn nesting(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(items) => 1 + items.iter().map(nesting).max().unwrap_or_default(),
        serde_json::Value::Object(map) => 1 + map.values().map(nesting).max().unwrap_or_default(),
        _ => 0,
    }
}

fn without_nul(value: &mut serde_json::Value) {
    use serde_json::Value::{Array, Object, String};
    match value {
        String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Array(items) => items.iter_mut().for_each(without_nul),
        Object(map) => {
            map.values_mut().for_each(without_nul);
            if map.keys().any(|key| key.contains('\0')) {
                let old = std::mem::take(map);
                map.extend(old.into_iter().map(|(key, value)| (key.replace('\0', "\u{fffd}"), value)));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_written_to_the_last_trillionth() {
        assert_eq!(amount(1_800_000), "0.000001800000");
        assert_eq!(amount(u64::MAX), "18446744.073709551615");
    }

    #[test]
    fn bodies_lose_what_databases_refuse() {
        let text = |body: &[u8]| body_text(body, Driver::Postgres);
        assert_eq!(text(br#"{"a\u0000":["b\u0000c",1]}"#).unwrap(), "{\"a\u{fffd}\":[\"b\u{fffd}c\",1]}");
        assert_eq!(text(b"not\0 json\xff").unwrap(), "\"not\u{fffd} json\u{fffd}\"");
        assert_eq!(text(b""), None);
    }

    #[test]
    fn no_name_is_used_twice() {
        let names: std::collections::BTreeSet<_> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(names.len(), COLUMNS.len());
    }
}
