//! What an exchange came to.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use http::Method;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Attempt, Endpoint, Exchange, Units, nanos};

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The whole answer was handed to the client's connection.
    Complete,
    /// The client left before that.
    ClientGone,
    /// The backend failed: refused, died, or answered with an error of its own.
    BackendFailed,
    /// A limit of time was passed.
    Timeout,
    /// The proxy was stopped, and the grace period was over.
    Shutdown,
    /// The proxy itself failed at it: a panic, which its log tells of.
    ProxyFailed,
    /// The proxy's process died; found at its next start.
    ProxyDied,
}

/// Who counted. The more exact is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The backend said so.
    Backend,
    /// The text was counted with the model's own tokenizer.
    Counted,
    /// Estimated from the size of the text.
    Estimated,
}

/// Who counted each part of a [`TokenUsage`].
///
/// ```
/// use llmproxy_core::{UsageSource, UsageSources};
///
/// let sources = UsageSources { prompt: UsageSource::Backend, completion: UsageSource::Estimated };
/// assert_eq!(sources.less_exact(), UsageSource::Estimated);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UsageSources {
    /// Who counted the prompt.
    pub prompt: UsageSource,
    /// Who counted the completion.
    pub completion: UsageSource,
}

/// Tokens of one exchange.
///
/// ```
/// use llmproxy_core::TokenUsage;
///
/// let usage = TokenUsage { prompt: 12, completion: 30, cached: Some(8), ..TokenUsage::default() };
/// assert_eq!(usage.total(), 42, "what is cached is among the prompt's");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUsage {
    /// Tokens of what was asked.
    pub prompt: u64,
    /// Tokens of what was answered.
    pub completion: u64,
    /// Of the prompt's tokens, those that the backend had cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<u64>,
    /// Of the completion's tokens, those spent on reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<u64>,
}

/// What the tokens of an exchange cost. Exact: a price is so much for a million tokens, of which a millionth is a whole number
/// of trillionths.
///
/// ```
/// use llmproxy_core::Cost;
///
/// let cost = Cost { trillionths: 12 * 150_000, currency: "EUR".into() };
/// assert_eq!(cost.amount(), 0.0000018);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// In trillionths of the currency's unit.
    pub trillionths: u64,
    /// Whatever the operator calls it, `EUR`.
    pub currency: Arc<str>,
}

/// One attempt of an exchange: which backend was asked, why that one, and what came of it.
///
/// ```
/// let step = llmproxy_core::RouteStep {
///     backend: "gpu-1".into(),
///     reason: "the fewest requests".into(),
///     status: None,
///     error: Some("connection refused".into()),
/// };
/// assert!(!serde_json::to_string(&step)?.contains("status"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStep {
    /// The backend's name.
    pub backend: Arc<str>,
    /// Why this one, in words.
    pub reason: Cow<'static, str>,
    /// The status that it answered with, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong instead, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<str>>,
}

/// What one exchange came to: the unit of accounting. Made once by the meter, given to every sink.
///
/// ```
/// use std::sync::Arc;
/// use llmproxy_core::{End, Exchange, UsageRecord, sink_fn};
///
/// let exchange = Exchange::new();
/// exchange.add_sink(Arc::new(sink_fn(|record: &Arc<UsageRecord>| {
///     let tokens = record.usage.map_or(0, |usage| usage.total());
///     let whole = record.end == End::Complete;
///     println!("{:?} used {tokens} tokens in {:?}, complete: {whole}", record.key_name, record.latency);
/// })));
/// ```
///
/// It is kept as JSON, without what is not known, and read back as it was. A row of an older version lacks what was added
/// since, one of a newer has more; both are read. What every record has is never left out: without it, it is none.
///
/// ```
/// use llmproxy_core::{Endpoint, UsageRecord};
///
/// let record = UsageRecord::new(Endpoint::of("/v1/chat/completions"));
/// let row = serde_json::to_string(&record)?;
/// assert_eq!(serde_json::from_str::<UsageRecord>(&row)?, record);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// Our id of the exchange, a UUIDv7; the same on every delivery.
    pub request_id: Uuid,
    /// The id that the client gave, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<Arc<str>>,
    /// The id that the backend gave, from its head or its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_id: Option<Arc<str>>,
    /// When the request arrived.
    pub timestamp: Timestamp,
    /// The key's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<Arc<str>>,
    /// What identifies the key without giving it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<Arc<str>>,
    /// The user that the key belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<Arc<str>>,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<IpAddr>,
    /// The request's method.
    pub method: Arc<str>,
    /// The request's path, without its query.
    pub path: Arc<str>,
    /// The operation.
    pub endpoint: Endpoint,
    /// The model that the client asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Arc<str>>,
    /// The model that the backend says has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_model: Option<Arc<str>>,
    /// Whether a stream was asked for; where no one knows what was asked for, whether the answer was one.
    pub stream: bool,
    /// The backend that answered, or was asked last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Arc<str>>,
    /// Its URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_url: Option<Arc<str>>,
    /// How many times a backend was asked: 1 and one more for each retry.
    pub attempts: u32,
    /// Whom it went to, one after the other, and why. Of more than [`RouteStep::MOST`] the first ones and the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<RouteStep>,
    /// The status that the client was given; 499 where it left before one was known.
    pub status: u16,
    /// How it ended.
    pub end: End,
    /// What went wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<str>>,
    /// The tokens; `None` where the operation has none or the backend did not do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<TokenUsage>,
    /// Of a client that left before the end: the completion's tokens that had been handed to its connection by then. They
    /// are those that `usage` has, unless the rest was read for the count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_tokens: Option<u64>,
    /// Who counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_source: Option<UsageSources>,
    /// What they cost, where there is a price for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// How much was done where it is not measured in tokens; as `usage`, `None` where the backend did not do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<Units>,
    /// From the request's arrival to its end.
    #[serde(with = "nanos")]
    pub latency: Duration,
    /// From the request's arrival to the first byte of the answer's body.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub time_to_first_byte: Option<Duration>,
    /// From the request's arrival to the first token of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub time_to_first_token: Option<Duration>,
    /// The longest wait between two pieces of a stream that carried something.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub longest_gap: Option<Duration>,
    /// How long the request waited for a backend to be found.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub queue_time: Option<Duration>,
    /// How long the proxy itself took until a backend was asked: the time from the request's arrival on, without the waits
    /// for its body and for a backend.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nanos::option")]
    pub proxy_time: Option<Duration>,
}

// === impl RouteStep ===

impl RouteStep {
    /// So many are in a record at most.
    pub const MOST: usize = 8;
    /// The longest text of a step, in bytes; of a longer one the beginning is kept.
    const MOST_TEXT: usize = 256;

    /// Those that a record has of `attempts`: the last one is always among them.
    fn of(attempts: &[Attempt]) -> Vec<Self> {
        let left_out = attempts.len().saturating_sub(Self::MOST);
        let first = attempts.len().min(Self::MOST).saturating_sub(1);
        let kept = attempts[..first].iter().chain(&attempts[first + left_out..]);
        kept.map(|attempt| Self {
            backend: attempt.backend.name.clone(),
            reason: match &attempt.reason {
                reason if reason.len() > Self::MOST_TEXT => Cow::Owned(cut(reason).to_owned()),
                reason => reason.clone(),
            },
            status: attempt.status.map(|status| status.as_u16()),
            error: match &attempt.error {
                Some(error) if error.len() > Self::MOST_TEXT => Some(cut(error).into()),
                error => error.clone(),
            },
        })
        .collect()
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(RouteStep::MOST_TEXT)]
}

// === impl TokenUsage ===

impl TokenUsage {
    /// Prompt and completion together, in tokens.
    pub fn total(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

// === impl End ===

impl End {
    /// The name that records and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::BackendFailed => "backend_failed",
            Self::Timeout => "timeout",
            Self::Shutdown => "shutdown",
            Self::ProxyFailed => "proxy_failed",
            Self::ProxyDied => "proxy_died",
        }
    }
}

// === impl UsageSource ===

impl UsageSource {
    /// The name that records and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Counted => "counted",
            Self::Estimated => "estimated",
        }
    }
}

// === impl UsageSources ===

impl UsageSources {
    /// One who counted both.
    pub fn both(source: UsageSource) -> Self {
        Self { prompt: source, completion: source }
    }

    /// The less exact of the two: how far the sum is to be trusted.
    pub fn less_exact(self) -> UsageSource {
        self.prompt.max(self.completion)
    }
}

// === impl Cost ===

impl Cost {
    /// Trillionths in one unit of the currency.
    pub const UNIT: u64 = 1_000_000_000_000;

    /// The amount in the currency's unit, for people and JSON.
    pub fn amount(&self) -> f64 {
        self.trillionths as f64 / Self::UNIT as f64
    }
}

// === impl UsageRecord ===

impl UsageRecord {
    /// A record of an exchange that was complete a moment ago, at `endpoint`, and of which nothing else is known: for tests of
    /// sinks and reporters, and for whoever fills in the rest.
    ///
    /// ```
    /// use llmproxy_core::{Endpoint, TokenUsage, UsageRecord};
    ///
    /// let usage = Some(TokenUsage { prompt: 12, completion: 30, ..TokenUsage::default() });
    /// let record = UsageRecord { usage, ..UsageRecord::new(Endpoint::of("/v1/chat/completions")) };
    /// assert_eq!(record.status, 200);
    /// ```
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            request_id: Uuid::nil(),
            client_request_id: None,
            upstream_id: None,
            timestamp: Timestamp::now(),
            key_name: None,
            key_fingerprint: None,
            user_id: None,
            client_ip: None,
            method: "POST".into(),
            path: endpoint.template().into(),
            endpoint,
            model: None,
            served_model: None,
            stream: false,
            backend: None,
            backend_url: None,
            attempts: 1,
            route: Vec::new(),
            status: 200,
            end: End::Complete,
            error: None,
            usage: None,
            delivered_tokens: None,
            usage_source: None,
            cost: None,
            units: None,
            latency: Duration::ZERO,
            time_to_first_byte: None,
            time_to_first_token: None,
            longest_gap: None,
            queue_time: None,
            proxy_time: None,
        }
    }

    /// What the facts of `exchange`, which has yet to end, say of it: the prompt's tokens as estimated, no answer, and an end
    /// that is for the caller to say.
    pub fn of(exchange: &Exchange, method: &Method, path: &Arc<str>) -> Self {
        let call = exchange.call();
        let caller = exchange.caller();
        let backend = exchange.backend();
        let attempts = exchange.attempts();
        let prompt = call.map(|call| call.prompt_estimate).filter(|tokens| *tokens > 0);
        Self {
            request_id: exchange.id(),
            client_request_id: exchange.client_request_id().cloned(),
            timestamp: exchange.timestamp(),
            key_name: caller.and_then(|caller| caller.name()).map(Into::into),
            key_fingerprint: caller.and_then(|caller| caller.fingerprint()).cloned(),
            user_id: caller.and_then(|caller| caller.user_id()).map(Into::into),
            client_ip: exchange.client_ip(),
            method: method.as_str().into(),
            path: path.clone(),
            model: call.and_then(|call| call.model.clone()),
            stream: call.is_some_and(|call| call.stream),
            backend: backend.as_ref().map(|backend| backend.name.clone()),
            backend_url: backend.map(|backend| backend.url_text().into()),
            attempts: u32::try_from(attempts.len()).unwrap_or(u32::MAX),
            route: RouteStep::of(&attempts),
            usage: prompt.map(|prompt| TokenUsage { prompt, ..TokenUsage::default() }),
            usage_source: prompt.map(|_| UsageSources::both(UsageSource::Estimated)),
            latency: exchange.elapsed(),
            time_to_first_byte: exchange.time_to_first_byte(),
            time_to_first_token: exchange.time_to_first_token(),
            queue_time: exchange.queue_time(),
            proxy_time: exchange.proxy_time(),
            ..Self::new(call.map_or_else(|| Endpoint::of(path), |call| call.endpoint))
        }
    }

    /// The less exact of those who counted: how far the sum of the tokens is to be trusted.
    pub fn source(&self) -> Option<UsageSource> {
        self.usage_source.map(UsageSources::less_exact)
    }

    /// The mean time from one token of a stream to the next. `None` where fewer than two came or it was no stream.
    pub fn time_per_output_token(&self) -> Option<Duration> {
        let gaps = self.usage?.completion.checked_sub(1).filter(|gaps| *gaps > 0)?;
        let time = self.latency.checked_sub(self.time_to_first_token?)?;
        Some(time.div_f64(gaps as f64))
    }

    /// Tokens of the answer per second, from the first token of a stream to its end; for a plain answer over the
    /// whole time. `None` where there is nothing to divide.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens = self.usage?.completion;
        let (tokens, time) = match self.time_to_first_token {
            // The first token marks the start, so it is not among those that the time was spent on.
            Some(first) => (tokens.checked_sub(1)?, self.latency.checked_sub(first)?),
            None => (tokens, self.latency),
        };
        let seconds = time.as_secs_f64();
        (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}
