//! What an operator may write about backends, routing and health checks.

mod discovery;
mod health;
mod load_signals;
mod models;
mod prefix_aware;
mod routes;
mod rules;
mod session;
mod validate;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use llmproxy_core::{Backend, duration};
use serde::{Deserialize, Deserializer, de};

pub use discovery::{
    BackendDefaults, DEFAULT_DISCOVERY_INTERVAL, DEFAULT_DISCOVERY_TIMEOUT, DEFAULT_FILE_INTERVAL, DiscoveryConfig,
    DiscoveryMode, DnsRecords, DnsSourceConfig, FileSourceConfig, HttpSourceConfig, Scheme, SourceConfig, SourceType,
    StaticSourceConfig, validate_discovery,
};
pub use health::*;
pub use load_signals::{DEFAULT_SIGNALS_INTERVAL, DEFAULT_SIGNALS_TIMEOUT, LoadSignalsConfig};
pub use models::{FallbackConfig, ModelConfig};
pub(crate) use models::{Named, resolve};
pub use prefix_aware::{DEFAULT_CACHE_TOKENS, DEFAULT_INDEX_MEMORY, PrefixAwareConfig};
pub use routes::{RouteFindings, validate_routes};
pub use rules::{MatchConfig, RuleConfig};
pub use session::{DEFAULT_LOAD_FACTOR, DEFAULT_SESSION_HEADERS, SessionConfig};
pub use validate::{validate_backends, validate_health_check, validate_queue, validate_routing};

/// One entry of `backends`.
///
/// ```
/// use llmproxy_balancer::BackendConfig;
///
/// let backend = BackendConfig { weight: 3, ..BackendConfig::new("http://vllm:8000") };
/// assert!(llmproxy_balancer::validate_backends(&[backend]).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BackendConfig {
    /// The name in logs, records and metrics; the URL where none is given.
    pub name: Option<String>,
    /// Scheme, host and port, with a path prefix where the server has one. A trailing slash or `/v1` does no harm.
    pub url: String,
    /// The share of the work, relative to the other backends, in every strategy. A backend of weight 0 is checked and
    /// gets no requests.
    pub weight: u32,
    /// The longest wait for the first byte of an answer, and for the whole of a JSON answer; `routing.timeout` where
    /// none is given.
    #[serde(with = "duration::option")]
    pub timeout: Option<Duration>,
    /// The longest wait for a connection; `routing.connect_timeout` where none is given.
    #[serde(with = "duration::option")]
    pub connect_timeout: Option<Duration>,
    /// How many idle connections are kept.
    pub max_idle_conns: Option<usize>,
    /// Whether it is asked over HTTP/2: at once over `http`, over `https` where it agrees in the handshake.
    pub http2: bool,
    /// A file of certificates, in PEM. One of them must vouch for the backend, and those that the machine trusts count no
    /// more. Read when a configuration is put in force, not when other backends are found.
    pub ca_file: Option<PathBuf>,
    /// Whether it gets the Host that the client sent, in the place of its own.
    pub preserve_host: bool,
    /// Headers for every request to this backend, health checks included: credentials belong here.
    pub headers: BTreeMap<String, String>,
    /// Backends of one tier are asked before those of the next higher one: what is cheap and near first.
    pub tier: u32,
    /// The group that rules of `routing.rules` may name.
    pub group: Option<String>,
    /// The most requests that are there at a time; the next one waits, or goes to another backend.
    pub max_concurrent: Option<usize>,
    /// The most tokens, of prompts and expected answers, that are there at a time.
    pub max_tokens: Option<u64>,
    /// The models that it serves; learned from its `/v1/models` where none is given.
    pub models: Vec<String>,
    /// Whether it is asked for usage in streams whose clients did not ask.
    pub inject_usage: InjectUsage,
    /// Where it tells its load; looked for at the usual places where none is given.
    pub metrics_path: Option<String>,
}

/// `backends[].inject_usage`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectUsage {
    /// Until it has shown that it does not take such requests.
    #[default]
    Auto,
    /// Whatever it says.
    Always,
    /// Not at all.
    Never,
}

/// The `routing` block, as far as it is about backends.
///
/// ```
/// use llmproxy_balancer::{LoadBalance, RetryConfig, RetryOn, RoutingConfig, validate_routing};
///
/// let routing = RoutingConfig {
///     load_balance: LoadBalance::LeastConnections,
///     retry: RetryConfig { retry_on: vec![RetryOn::new("connect"), RetryOn::new("5xx")], ..RetryConfig::default() },
///     ..RoutingConfig::default()
/// };
/// assert!(validate_routing(&routing).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct RoutingConfig {
    /// How a backend is chosen among those that can do the work.
    pub load_balance: LoadBalance,
    /// What tells one session from another, where sessions are what it is chosen by.
    pub session: SessionConfig,
    /// The longest wait for the first byte of an answer, for backends that say nothing else.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The longest wait for a connection, for backends that say nothing else.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// When an answer is the client's, so that no other backend is asked any more.
    pub commit: Commit,
    /// With `commit: first_byte`, how long the head of an event stream is held back for the first byte at most.
    #[serde(with = "duration")]
    pub commit_after: Duration,
    /// Names that clients may use for models: `gpt-4: qwen2.5-32b-instruct`.
    pub model_mapping: BTreeMap<String, String>,
    /// Models by other names, and what stands in for them.
    pub models: BTreeMap<String, ModelConfig>,
    /// Requests that go another way than the model alone would send them.
    pub rules: Vec<RuleConfig>,
    /// What stands in for models and backends, as older files say it.
    pub fallback: Vec<FallbackConfig>,
    /// When and how often another attempt is made.
    pub retry: RetryConfig,
    /// Whether backends are asked for their own load.
    pub load_signals: LoadSignalsConfig,
    /// What [`LoadBalance::PrefixAware`] may remember.
    pub prefix_aware: PrefixAwareConfig,
}

/// The `queue` block: the line in which requests wait while every backend that could take them is full.
///
/// ```
/// use llmproxy_balancer::{QueueConfig, validate_queue};
///
/// assert!(validate_queue(&QueueConfig { max_waiting: 0, ..QueueConfig::default() }).is_empty());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct QueueConfig {
    /// The longest wait.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How many may wait at a time; 0: whoever finds no room is refused at once.
    pub max_waiting: usize,
}

/// `routing.load_balance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalance {
    /// In turn, by weight.
    RoundRobin,
    /// Any one, by weight.
    Random,
    /// The one with the fewest requests in flight, up to the last byte, over its weight.
    #[serde(alias = "least_conn")]
    LeastConnections,
    /// The one whose first token comes soonest, over its weight.
    LatencyBased,
    /// The one with the fewest tokens of prompts and answers still to be made, over its weight.
    LeastTokens,
    /// All requests of a session to the same one, as long as that has not too much to do.
    Session,
    /// The one that has the least to compute before the first token, over its weight: what it has cached of the prompt
    /// does not count.
    #[default]
    PrefixAware,
}

/// `routing.commit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Commit {
    /// A head goes to the client as soon as it has come.
    #[default]
    Head,
    /// The head of a successful event stream waits for the first byte of its body: a backend that dies before that is
    /// replaced by another one.
    FirstByte,
}

/// `routing.retry`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct RetryConfig {
    /// Whether another attempt is made at all.
    pub enabled: bool,
    /// How many attempts may follow the first.
    pub max_retries: u32,
    /// The first wait before a backend that has failed in this request is asked again. Another backend is asked at once.
    #[serde(with = "duration")]
    pub initial_wait: Duration,
    /// The longest such wait.
    #[serde(with = "duration")]
    pub max_wait: Duration,
    /// By how much each wait is longer than the one before.
    pub multiplier: f64,
    /// How many attempts may follow others, as a share of all requests of the last ten seconds; three a second more always may.
    pub budget: f64,
    /// After what another attempt is made: `connect`, `reset`, `timeout`, `5xx` and statuses.
    pub retry_on: Vec<RetryOn>,
}

/// One word of `routing.retry.retry_on`, as written: a name or a status, which may also be a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn(String);

/// 1: equal shares.
pub const DEFAULT_WEIGHT: u32 = 1;
/// 30 s: about as long as people wait for a first word.
pub const DEFAULT_QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
/// A thousand: their bodies are bounded elsewhere.
pub const DEFAULT_MAX_WAITING: usize = 1000;
/// 2 s: long enough for a prompt of common size, short enough that nobody takes the proxy for dead.
pub const DEFAULT_COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Three more attempts.
pub const DEFAULT_MAX_RETRIES: u32 = 3;
/// A fifth: what one of several backends fails at can be done by the others, what all fail at does not get much more.
pub const DEFAULT_RETRY_BUDGET: f64 = 0.2;
/// 1 s.
pub const DEFAULT_INITIAL_WAIT: Duration = Duration::from_secs(1);
/// 10 s.
pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(10);
/// Each wait is twice the one before.
pub const DEFAULT_MULTIPLIER: f64 = 2.0;
/// What says that the backend, not the request, is at fault, and that it probably has not begun to work.
pub const DEFAULT_RETRY_ON: [&str; 5] = ["connect", "reset", "502", "503", "504"];

// === impl BackendConfig ===

impl BackendConfig {
    /// A backend at `url` of which nothing else is said.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self {
            name: None,
            url: String::new(),
            weight: DEFAULT_WEIGHT,
            timeout: None,
            connect_timeout: None,
            max_idle_conns: None,
            http2: false,
            ca_file: None,
            preserve_host: false,
            headers: BTreeMap::new(),
            tier: 0,
            group: None,
            max_concurrent: None,
            max_tokens: None,
            models: Vec::new(),
            inject_usage: InjectUsage::default(),
            metrics_path: None,
        }
    }
}

// === impl RoutingConfig ===

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            load_balance: LoadBalance::default(),
            session: SessionConfig::default(),
            timeout: Backend::DEFAULT_TIMEOUT,
            connect_timeout: Backend::DEFAULT_CONNECT_TIMEOUT,
            commit: Commit::default(),
            commit_after: DEFAULT_COMMIT_AFTER,
            model_mapping: BTreeMap::new(),
            models: BTreeMap::new(),
            rules: Vec::new(),
            fallback: Vec::new(),
            retry: RetryConfig::default(),
            load_signals: LoadSignalsConfig::default(),
            prefix_aware: PrefixAwareConfig::default(),
        }
    }
}

// === impl QueueConfig ===

impl Default for QueueConfig {
    fn default() -> Self {
        Self { timeout: DEFAULT_QUEUE_TIMEOUT, max_waiting: DEFAULT_MAX_WAITING }
    }
}

// === impl RetryConfig ===

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_retries: DEFAULT_MAX_RETRIES,
            initial_wait: DEFAULT_INITIAL_WAIT,
            max_wait: DEFAULT_MAX_WAIT,
            multiplier: DEFAULT_MULTIPLIER,
            budget: DEFAULT_RETRY_BUDGET,
            retry_on: DEFAULT_RETRY_ON.map(RetryOn::new).to_vec(),
        }
    }
}

// === impl RetryOn ===

impl RetryOn {
    /// A word as an operator writes it.
    pub fn new(word: impl Into<String>) -> Self {
        Self(word.into())
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;

        impl de::Visitor<'_> for Word {
            type Value = RetryOn;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("connect, reset, timeout, 5xx or a status")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RetryOn, E> {
                Ok(RetryOn::new(word))
            }

            fn visit_u64<E: de::Error>(self, status: u64) -> Result<RetryOn, E> {
                Ok(RetryOn(status.to_string()))
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<RetryOn, E> {
                Ok(RetryOn(status.to_string()))
            }
        }

        deserializer.deserialize_any(Word)
    }
}
