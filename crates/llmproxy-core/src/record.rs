//! What an exchange came to.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Endpoint;

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
}

/// Who counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The backend said so.
    Backend,
    /// Estimated from the request's size and the pieces of the answer.
    Estimated,
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
    pub cached: Option<u64>,
    /// Of the completion's tokens, those spent on reasoning.
    pub reasoning: Option<u64>,
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
#[derive(Clone, Debug)]
pub struct UsageRecord {
    /// Our id of the exchange, a UUIDv7; the same on every delivery.
    pub request_id: Uuid,
    /// The id that the client gave, if it gave one.
    pub client_request_id: Option<Arc<str>>,
    /// The id that the backend gave, from its head or its answer.
    pub upstream_id: Option<Arc<str>>,
    /// When the request arrived.
    pub timestamp: Timestamp,
    /// The key's name.
    pub key_name: Option<Arc<str>>,
    /// What identifies the key without giving it away.
    pub key_fingerprint: Option<Arc<str>>,
    /// The user that the key belongs to.
    pub user_id: Option<Arc<str>>,
    /// Where the request came from.
    pub client_ip: Option<IpAddr>,
    /// The request's method.
    pub method: Arc<str>,
    /// The request's path, without its query.
    pub path: Arc<str>,
    /// The operation.
    pub endpoint: Endpoint,
    /// The model that the client asked for.
    pub model: Option<Arc<str>>,
    /// The model that the backend says has answered.
    pub served_model: Option<Arc<str>>,
    /// Whether a stream was asked for; where no one knows what was asked for, whether the answer was one.
    pub stream: bool,
    /// The backend that answered, or was asked last.
    pub backend: Option<Arc<str>>,
    /// Its URL.
    pub backend_url: Option<Arc<str>>,
    /// How many times a backend was asked: 1 and one more for each retry.
    pub attempts: u32,
    /// The status that the client was given; 499 where it left before one was known.
    pub status: u16,
    /// How it ended.
    pub end: End,
    /// What went wrong, in words.
    pub error: Option<Arc<str>>,
    /// The tokens; `None` where the operation has none or the backend did not do it.
    pub usage: Option<TokenUsage>,
    /// Who counted them.
    pub usage_source: Option<UsageSource>,
    /// From the request's arrival to its end.
    pub latency: Duration,
    /// From the request's arrival to the first byte of the answer's body.
    pub time_to_first_byte: Option<Duration>,
    /// From the request's arrival to the first token of a stream.
    pub time_to_first_token: Option<Duration>,
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
        }
    }
}

// === impl UsageSource ===

impl UsageSource {
    /// The name that records and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Estimated => "estimated",
        }
    }
}

// === impl UsageRecord ===

impl UsageRecord {
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
