//! What many records come to, in groups.

use std::collections::BTreeMap;

use jiff::Timestamp;
use llmproxy_core::{End, UsageRecord};

/// What is summed up by what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// Everything is one group, whose name is empty.
    #[default]
    All,
    /// The model that was asked for.
    Model,
    /// The user that the key belongs to.
    User,
    /// The key: its name, or its fingerprint where it has none.
    Key,
    /// The day, in UTC: `2026-01-23`.
    Day,
    /// The hour, in UTC: `2026-01-23T10:00:00Z`.
    Hour,
}

/// Which records, and how they are grouped.
///
/// ```
/// use llmproxy_usage::{Group, Query};
///
/// let query = Query { from: Some("2026-01-01T00:00:00Z".parse()?), by: Group::Model, ..Query::default() };
/// # assert!(query.to.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Requests that arrived at this moment or later.
    pub from: Option<Timestamp>,
    /// And before this one.
    pub to: Option<Timestamp>,
    /// How they are grouped.
    pub by: Group,
    /// Only those that asked for this model.
    pub model: Option<String>,
    /// Only those of this user.
    pub user: Option<String>,
    /// Only those of the key with this name or fingerprint.
    pub key: Option<String>,
}

/// What the records of one group come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// The group's name; empty where a record does not say.
    pub group: String,
    /// How many there are.
    pub requests: u64,
    /// Of them, those that failed: they ended neither complete nor by the client.
    pub errors: u64,
    /// Tokens of what was asked.
    pub prompt_tokens: u64,
    /// Tokens of what was answered.
    pub completion_tokens: u64,
    /// Of the prompts' tokens, those that backends had cached.
    pub cached_tokens: u64,
    /// What they cost, in trillionths of each currency's unit.
    pub cost: BTreeMap<String, u128>,
}

/// Sums up records one by one.
///
/// ```
/// use llmproxy_core::{Endpoint, TokenUsage, UsageRecord};
/// use llmproxy_usage::{Group, Query, Totals};
///
/// let mut totals = Totals::new(Query { by: Group::Model, ..Query::default() });
/// let usage = Some(TokenUsage { prompt: 12, completion: 30, ..TokenUsage::default() });
/// let record = UsageRecord { model: Some("m".into()), usage, ..UsageRecord::new(Endpoint::of("/v1/completions")) };
/// totals.add(&record);
/// totals.add(&record);
/// let totals = totals.finish();
/// assert_eq!((&*totals[0].group, totals[0].requests, totals[0].total_tokens()), ("m", 2, 84));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Totals {
    query: Query,
    groups: BTreeMap<String, Total>,
}

// === impl Total ===

impl Total {
    /// Prompt and completion together, in tokens.
    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    /// What they cost in `currency`, in its unit, for people and JSON.
    pub fn amount(&self, currency: &str) -> f64 {
        self.cost.get(currency).map_or(0.0, |trillionths| *trillionths as f64 / llmproxy_core::Cost::UNIT as f64)
    }

    /// Adds `other`, whatever its group.
    pub(crate) fn add(&mut self, other: Total) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        for (currency, trillionths) in other.cost {
            *self.cost.entry(currency).or_default() += trillionths;
        }
    }
}

// === impl Totals ===

impl Totals {
    /// Nothing yet.
    pub fn new(query: Query) -> Self {
        Self { query, groups: BTreeMap::new() }
    }

    /// Adds a record, if the query is about it.
    pub fn add(&mut self, record: &UsageRecord) {
        if !self.query.matches(record) {
            return;
        }
        let usage = record.usage.unwrap_or_default();
        let cost = record.cost.iter().map(|cost| (cost.currency.to_string(), u128::from(cost.trillionths)));
        self.add_to(
            self.query.by.name(record),
            Total {
                group: String::new(),
                requests: 1,
                errors: u64::from(is_error(record.end)),
                prompt_tokens: usage.prompt,
                completion_tokens: usage.completion,
                cached_tokens: usage.cached.unwrap_or_default(),
                cost: cost.collect(),
            },
        );
    }

    /// The groups, by their names.
    pub fn finish(self) -> Vec<Total> {
        self.groups.into_values().collect()
    }

    pub(crate) fn add_to(&mut self, group: String, part: Total) {
        let total = self.groups.entry(group.clone()).or_insert_with(|| Total { group, ..Total::default() });
        total.add(part);
    }
}

// === impl Query ===

impl Query {
    /// Whether it is about `record`.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| wanted == found.unwrap_or_default())
        };
        let key = self.key.as_deref().is_none_or(|key| {
            record.key_name.as_deref() == Some(key) || record.key_fingerprint.as_deref() == Some(key)
        });
        self.from.is_none_or(|from| from <= record.timestamp)
            && self.to.is_none_or(|to| record.timestamp < to)
            && is(&self.model, record.model.as_deref())
            && is(&self.user, record.user_id.as_deref())
            && key
    }
}

// === impl Group ===

impl Group {
    fn name(self, record: &UsageRecord) -> String {
        let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
        match self {
            Self::All => String::new(),
            Self::Model => text(&record.model),
            Self::User => text(&record.user_id),
            Self::Key => match text(&record.key_name) {
                name if name.is_empty() => text(&record.key_fingerprint),
                name => name,
            },
            Self::Day => day(record.timestamp),
            Self::Hour => hour(record.timestamp),
        }
    }
}

/// Whether an exchange that ended so has failed.
pub(crate) fn is_error(end: End) -> bool {
    !matches!(end, End::Complete | End::ClientGone)
}

/// The day that a moment is in.
pub(crate) fn day(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%d").to_string()
}

/// The hour that a moment is in.
pub(crate) fn hour(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:00:00Z").to_string()
}
