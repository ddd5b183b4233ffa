//! What records come to in series.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use llmproxy_balancer::Pool;
use llmproxy_config::CustomLabel;
use llmproxy_core::{
    Cost, End, TokenUsage, UsageRecord, UsageSink, UsageSource, Work,
    labels::{self, Names},
};
use metrics::{Counter, Histogram, Label, counter, histogram};

use crate::metrics::{
    ATTEMPTS, COST, EXCHANGES, Known, LONGEST_GAP, PROXY_TIME, QUEUE_TIME, REQUEST_DURATION, TIME_PER_OUTPUT_TOKEN,
    TIME_TO_FIRST_BYTE, TIME_TO_FIRST_TOKEN, TOKEN_USAGE, TOKENS, TOKENS_BY_MODEL, TOKENS_PER_SECOND,
};

/// So many models have a label of their own.
const MAX_MODELS: usize = 100;
/// So many keys, and so many users.
const MAX_CALLERS: usize = 1000;

/// Makes series of records. The facade finds a series by its labels, which it allocates, sorts and hashes; here they are kept
/// by what tells them apart.
#[derive(Debug)]
pub(crate) struct MetricsSink {
    settings: ArcSwap<Settings>,
    models: Names,
    keys: Names,
    users: Names,
    exchanges: Known<(End, Option<UsageSource>), Counter>,
    prompt: OnceLock<Counter>,
    completion: OnceLock<Counter>,
    times: Known<Kind, Times>,
    tokens: Known<Account, Arc<Tokens>>,
}

/// What may change with a reload.
#[derive(Debug, Default)]
struct Settings {
    pool: Option<Arc<Pool>>,
    custom: Vec<CustomLabel>,
}

/// What exchanges are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    work: Work,
    model: Arc<str>,
    backend: Arc<str>,
    end: End,
}

/// Whose tokens they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Account {
    model: Arc<str>,
    backend: Arc<str>,
    key: Option<Arc<str>>,
    user: Option<Arc<str>>,
    currency: Option<Arc<str>>,
}

/// The times of exchanges of one kind.
#[derive(Clone, Debug)]
struct Times {
    duration: Histogram,
    prompt: Histogram,
    completion: Histogram,
    first_byte: Histogram,
    first_token: Histogram,
    per_token: Histogram,
    longest_gap: Histogram,
    per_second: Histogram,
    queue: Histogram,
    proxy: Histogram,
    attempts: Histogram,
}

/// The tokens of one account, and what they cost.
#[derive(Debug)]
struct Tokens {
    prompt: Counter,
    completion: Counter,
    cached: Counter,
    reasoning: Counter,
    cost: Counter,
    // In trillionths: rounded one by one, cheap exchanges would cost nothing.
    spent: AtomicU64,
}

// === impl MetricsSink ===

impl MetricsSink {
    pub(crate) fn new() -> Self {
        Self {
            settings: ArcSwap::default(),
            models: Names::new(MAX_MODELS),
            keys: Names::new(MAX_CALLERS),
            users: Names::new(MAX_CALLERS),
            exchanges: Known::default(),
            prompt: OnceLock::new(),
            completion: OnceLock::new(),
            times: Known::default(),
            tokens: Known::default(),
        }
    }

    /// From now on models are those that `pool` knows, and `custom` are the labels that were asked for.
    pub(crate) fn apply(&self, pool: Arc<Pool>, custom: &[CustomLabel]) {
        self.settings.store(Arc::new(Settings { pool: Some(pool), custom: custom.to_vec() }));
    }
}

impl UsageSink for MetricsSink {
    fn record(&self, record: &Arc<UsageRecord>) {
        let exchanges = self.exchanges.get((record.end, record.source()), |(end, source)| {
            let source = source.map_or("none", UsageSource::as_str);
            counter!(EXCHANGES, "end" => end.as_str(), "usage_source" => source)
        });
        exchanges.increment(1);
        let settings = self.settings.load();
        let none: Arc<str> = Arc::default();
        // Any client may name any model: one that no backend knows has no label of its own.
        let is_known = |model: &Arc<str>| settings.pool.as_ref().is_none_or(|pool| pool.knows(model));
        let model = record.model.as_ref().map_or(none.clone(), |model| self.models.label(model, || is_known(model)));
        let backend = record.backend.as_ref().map_or(none, labels::backend);
        if let Some(usage) = record.usage {
            let tokens = |kind| move || counter!(TOKENS, "type" => kind);
            self.prompt.get_or_init(tokens("prompt")).increment(usage.prompt);
            self.completion.get_or_init(tokens("completion")).increment(usage.completion);
            let caller = |label, names: &Names, name: &Option<Arc<str>>| {
                settings
                    .custom
                    .contains(&label)
                    .then(|| name.as_ref().map_or_else(Arc::default, |name| names.label(name, || true)))
            };
            let account = Account {
                model: model.clone(),
                backend: backend.clone(),
                key: caller(CustomLabel::KeyName, &self.keys, &record.key_name),
                user: caller(CustomLabel::UserId, &self.users, &record.user_id),
                currency: record.cost.as_ref().map(|cost| cost.currency.clone()),
            };
            self.tokens.get(account, Tokens::of).add(&usage, record.cost.as_ref());
        }
        if operation(record.endpoint.work()).is_some() {
            let kind = Kind { work: record.endpoint.work(), model, backend, end: record.end };
            self.times.get(kind, Times::of).add(record);
        }
    }
}

/// The convention's name for what a model does.
fn operation(work: Work) -> Option<&'static str> {
    match work {
        Work::Chat => Some("chat"),
        Work::Completion => Some("text_completion"),
        Work::Embedding => Some("embeddings"),
        Work::Other => None,
    }
}

// === impl Times ===

impl Times {
    fn of(kind: &Kind) -> Self {
        let Kind { work, model, backend, end } = kind;
        let (model, backend) = (Label::new("model", model.to_string()), Label::new("backend", backend.to_string()));
        let ours = vec![model.clone(), backend.clone()];
        let theirs = vec![
            Label::new("gen_ai_operation_name", operation(*work).unwrap_or_default()),
            Label::new("gen_ai_request_model", model.value().to_owned()),
            backend,
        ];
        let with = |name, value: &'static str| {
            let mut labels = theirs.clone();
            labels.push(Label::new(name, value));
            labels
        };
        // The convention leaves it out where nothing went wrong.
        let duration = if *end == End::Complete { theirs.clone() } else { with("error_type", end.as_str()) };
        Self {
            duration: histogram!(REQUEST_DURATION, duration),
            prompt: histogram!(TOKEN_USAGE, with("gen_ai_token_type", "input")),
            completion: histogram!(TOKEN_USAGE, with("gen_ai_token_type", "output")),
            first_byte: histogram!(TIME_TO_FIRST_BYTE, ours.clone()),
            first_token: histogram!(TIME_TO_FIRST_TOKEN, theirs.clone()),
            per_token: histogram!(TIME_PER_OUTPUT_TOKEN, theirs.clone()),
            longest_gap: histogram!(LONGEST_GAP, ours.clone()),
            per_second: histogram!(TOKENS_PER_SECOND, ours.clone()),
            queue: histogram!(QUEUE_TIME, ours.clone()),
            proxy: histogram!(PROXY_TIME, ours.clone()),
            attempts: histogram!(ATTEMPTS, ours),
        }
    }

    fn add(&self, record: &UsageRecord) {
        let time = |series: &Histogram, time: Option<Duration>| {
            if let Some(time) = time {
                series.record(time.as_secs_f64());
            }
        };
        self.duration.record(record.latency.as_secs_f64());
        self.attempts.record(f64::from(record.attempts));
        time(&self.first_byte, record.time_to_first_byte);
        time(&self.first_token, record.time_to_first_token);
        time(&self.per_token, record.time_per_output_token());
        time(&self.longest_gap, record.longest_gap);
        time(&self.queue, record.queue_time);
        time(&self.proxy, record.proxy_time);
        if let Some(rate) = record.tokens_per_second() {
            self.per_second.record(rate);
        }
        if let Some(usage) = record.usage {
            self.prompt.record(usage.prompt as f64);
            if record.endpoint.work() != Work::Embedding {
                self.completion.record(usage.completion as f64);
            }
        }
    }
}

// === impl Tokens ===

impl Tokens {
    fn of(account: &Account) -> Arc<Self> {
        let Account { model, backend, key, user, currency } = account;
        let mut labels = vec![Label::new("model", model.to_string()), Label::new("backend", backend.to_string())];
        labels.extend(key.as_ref().map(|key| Label::new("key_name", key.to_string())));
        labels.extend(user.as_ref().map(|user| Label::new("user_id", user.to_string())));
        let with = |name, value: String| {
            let mut labels = labels.clone();
            labels.push(Label::new(name, value));
            labels
        };
        let tokens = |kind: &str| counter!(TOKENS_BY_MODEL, with("type", kind.to_owned()));
        Arc::new(Self {
            prompt: tokens("prompt"),
            completion: tokens("completion"),
            cached: tokens("cached"),
            reasoning: tokens("reasoning"),
            cost: currency
                .as_ref()
                .map_or_else(Counter::noop, |currency| counter!(COST, with("currency", currency.to_string()))),
            spent: AtomicU64::new(0),
        })
    }

    fn add(&self, usage: &TokenUsage, cost: Option<&Cost>) {
        self.prompt.increment(usage.prompt);
        self.completion.increment(usage.completion);
        self.cached.increment(usage.cached.unwrap_or(0));
        self.reasoning.increment(usage.reasoning.unwrap_or(0));
        if let Some(cost) = cost {
            let add = |spent: u64| Some(spent.saturating_add(cost.trillionths));
            let before =
                self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or_else(|spent| spent);
            self.cost.absolute(before.saturating_add(cost.trillionths) / (Cost::UNIT / 1_000_000));
        }
    }
}
