//! Where a request goes: backends, how they are, which of them is asked, and when another one is asked instead.
//!
//! [`Balancer`] owns what outlives configurations: what is in flight at each backend, its health, what it serves. Each
//! configuration put in force gives a [`Pool`], and [`BalanceLayer`] sends requests to it:
//!
//! - Among the backends that serve the model and are not out, a [`Policy`] picks one. Weights count in all of them.
//! - Rules, aliases and fallbacks say which model and which group of backends that is, and what stands in where none of
//!   them is to be had.
//! - A request counts as in flight to its last byte, or until it is dropped.
//! - An attempt that fails before its answer is the client's may be followed by another: at once at another backend,
//!   after a wait at one that has failed before, and never if the body can't be sent again. When all fail, the client
//!   gets the last answer that a backend gave, or a [`BalanceError`].
//! - Where a client did not ask for usage, the backend is asked ([`InjectUsage`]). One that may have refused the request for
//!   that is asked once more without, which is neither a failure nor a retry, and what came of it is remembered.
//! - Backends may be found: [`Balancer::discover`] asks files, names and servers for them, again and again.
//! - Backends are checked; one that refuses a connection is out until it proves itself. One where requests fail more often
//!   than elsewhere is ejected, and gets single requests now and then, to bring it back ([`BackendState`]).
//! - Those that tell their own load ([`Load`]) are asked for it, since others may use them too.
//!
//! ```
//! use std::io;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use llmproxy_balancer::{BackendConfig, BalanceLayer, Balancer, HealthCheckConfig, QueueConfig, RoutingConfig};
//! use llmproxy_core::{BoxError, Exchange, HttpClient, RequestBody, Target};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let client = HttpClient::new(service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("down".into())));
//! let balancer = Balancer::new(client); // The client is for health checks and lists of models.
//! let served = |url| BackendConfig { models: vec!["qwen2.5".into()], ..BackendConfig::new(url) };
//! let backends = [served("http://a:8000"), served("http://b:8000")];
//! let unchecked = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
//! let pool = balancer.apply(&backends, &RoutingConfig::default(), &unchecked, &QueueConfig::default());
//!
//! // In the place of `llmproxy-upstream`: nothing listens at `a`.
//! let service = BalanceLayer::new(pool).layer(service_fn(async |request: Request<RequestBody>| {
//!     let target = request.extensions().get::<Target>().expect("the balancer has picked a backend");
//!     if &*target.backend.name == "http://a:8000" {
//!         return Err(BoxError::from(io::Error::from(io::ErrorKind::ConnectionRefused)));
//!     }
//!     Ok(Response::new(Full::new(Bytes::from("hello"))))
//! }));
//!
//! let mut request = Request::new(RequestBody::whole("{}"));
//! let exchange = Exchange::of(request.extensions_mut());
//! assert!(service.oneshot(request).await?.status().is_success());
//! assert_eq!(exchange.attempts().len(), 2);
//! assert_eq!(exchange.backend().unwrap().url, "http://b:8000");
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! Between what is done once for a request and what is done once for an attempt. Outside of it is `llmproxy-metering`'s
//! meter, so that there is one record whatever the retries; inside are `llmproxy-sse`, so that each attempt has its own
//! limits of time, and `llmproxy-upstream`. It reads the model in the [`Call`](llmproxy_core::Call) and the
//! [`Edits`](llmproxy_core::Edits) of the body, and writes the [`Target`](llmproxy_core::Target) of each attempt into its
//! extensions, and the [`Attempt`](llmproxy_core::Attempt)s and the one that was served into the
//! [`Exchange`](llmproxy_core::Exchange), for the meter, `llmproxy-ratelimit` and the access log.
//!
//! # What it must never know
//!
//! A caller, a limit, a token, an HTTP client library. It decides what a backend is to be sent and never how. An inner
//! service's error is told apart by what its source chain says, never by a type of the upstream's: see [`Failure`]. It
//! never retries after an answer's head has gone on, and never counts a 4xx or a client that left as a failure of a
//! backend; a 429 or 503 is pressure, and only where nothing else is said for long a reason to eject it.
//!
//! # Used alone
//!
//! - Without a [`Call`](llmproxy_core::Call) every backend is taken to be able, and aliases are not replaced.
//! - What is not known of a request meets no condition of a rule: without a [`Call`](llmproxy_core::Call) only those about
//!   the path and the headers are ever met, without a [`FlowKey`](llmproxy_core::FlowKey) none about a tag.
//! - Without [`Edits`](llmproxy_core::Edits) in the body no usage event is asked for.
//! - A body that was not read whole ([`RequestBody::Stream`](llmproxy_core::RequestBody::Stream)) is never sent again.
//! - Without `llmproxy-sse` further in, an attempt has no limit of time, so that none fails by it.

pub mod metrics;

mod balancer;
mod budget;
mod check;
mod config;
mod date;
mod discovery;
mod error;
mod flight;
mod health;
mod hub;
mod injection;
mod latency;
mod layer;
mod lengths;
mod line;
mod models;
mod node;
mod opening;
mod peek;
mod plan;
mod policy;
mod pool;
mod retry;
mod service;
mod signals;
mod sync;
mod view;

pub use balancer::Balancer;
pub use config::{
    BackendConfig, Commit, DEFAULT_BASE_EJECTION, DEFAULT_CACHE_TOKENS, DEFAULT_CHECK_TIMEOUT, DEFAULT_COMMIT_AFTER,
    DEFAULT_ERROR_RATE, DEFAULT_EXPECTED_STATUS, DEFAULT_HEALTHY_THRESHOLD, DEFAULT_INDEX_MEMORY, DEFAULT_INITIAL_WAIT,
    DEFAULT_INTERVAL, DEFAULT_LOAD_FACTOR, DEFAULT_MAX_EJECTION, DEFAULT_MAX_RETRIES, DEFAULT_MAX_WAIT,
    DEFAULT_MAX_WAITING, DEFAULT_METHOD, DEFAULT_MIN_REQUESTS, DEFAULT_MULTIPLIER, DEFAULT_PANIC_THRESHOLD,
    DEFAULT_QUEUE_TIMEOUT, DEFAULT_RETRY_BUDGET, DEFAULT_RETRY_ON, DEFAULT_SESSION_HEADERS, DEFAULT_SIGNALS_INTERVAL,
    DEFAULT_SIGNALS_TIMEOUT, DEFAULT_SLOW_START, DEFAULT_UNHEALTHY_THRESHOLD, DEFAULT_WEIGHT, DEFAULT_WINDOW,
    FallbackConfig, HealthCheckConfig, InjectUsage, LoadBalance, LoadSignalsConfig, MatchConfig, ModelConfig,
    PassiveConfig, PrefixAwareConfig, QueueConfig, RetryConfig, RetryOn, RouteFindings, RoutingConfig, RuleConfig,
    SessionConfig, validate_backends, validate_health_check, validate_queue, validate_routes, validate_routing,
};
pub use config::{
    BackendDefaults, DEFAULT_DISCOVERY_INTERVAL, DEFAULT_DISCOVERY_TIMEOUT, DEFAULT_FILE_INTERVAL, DiscoveryConfig,
    DiscoveryMode, DnsRecords, DnsSourceConfig, FileSourceConfig, HttpSourceConfig, Scheme, SourceConfig, SourceType,
    StaticSourceConfig, validate_discovery,
};
pub use discovery::Sources;
pub use error::BalanceError;
pub use flight::Flight;
pub use health::{BackendState, Cause};
pub use layer::BalanceLayer;
pub use models::ModelInfo;
pub use peek::Peeked;
pub use policy::{
    Affinity, Block, Candidate, Choice, Incoming, LatencyBased, LeastConnections, LeastTokens, Policy, PrefixAware,
    Random, RoundRobin, Session, Work,
};
pub use pool::{BackendStatus, Pool};
pub use retry::Failure;
pub use service::{Balance, BalanceBody};
pub use signals::Load;
