//! Where a request goes: backends, how they are, which of them is asked, and when another one is asked instead.
//!
//! [`Balancer`] owns what outlives configurations: what is in flight at each backend, its health, what it serves. Each
//! configuration put in force gives a [`Pool`], and [`BalanceLayer`] sends requests to it:
//!
//! - Among the backends that serve the model and are not out, a [`Policy`] picks one. Weights count in all of them.
//! - A request counts as in flight to its last byte, or until it is dropped.
//! - An attempt that fails before its answer is the client's may be followed by another: at once at another backend,
//!   after a wait at one that has failed before, and never if the body can't be sent again. When all fail, the client
//!   gets the last answer that a backend gave, or a [`BalanceError`].
//! - Backends are checked; one that refuses a connection is out until it proves itself.
//!
//! This crate must never know: a caller, a limit, a token, an HTTP client library. An inner service's error is told
//! apart by what its source chain says: see [`Failure`].
//!
//! ```no_run
//! # fn example(client: llmproxy_core::HttpClient) {
//! use llmproxy_balancer::{BackendConfig, BalanceLayer, Balancer, LoadBalance, RoutingConfig};
//!
//! let balancer = Balancer::new(client);
//! let routing = RoutingConfig { load_balance: LoadBalance::LeastConnections, ..RoutingConfig::default() };
//! let backends = [BackendConfig { weight: 3, ..BackendConfig::new("http://big:8000") }, BackendConfig::new("http://small:8000")];
//! let layer = BalanceLayer::new(balancer.apply(&backends, &routing, &Default::default()));
//! # }
//! ```

pub mod metrics;

mod balancer;
mod check;
mod config;
mod error;
mod flight;
mod health;
mod latency;
mod layer;
mod models;
mod node;
mod peek;
mod policy;
mod pool;
mod retry;
mod service;

pub use balancer::Balancer;
pub use config::{
    BackendConfig, Commit, DEFAULT_CHECK_TIMEOUT, DEFAULT_COMMIT_AFTER, DEFAULT_EXPECTED_STATUS,
    DEFAULT_HEALTHY_THRESHOLD, DEFAULT_INITIAL_WAIT, DEFAULT_INTERVAL, DEFAULT_MAX_RETRIES, DEFAULT_MAX_WAIT,
    DEFAULT_METHOD, DEFAULT_MULTIPLIER, DEFAULT_RETRY_ON, DEFAULT_UNHEALTHY_THRESHOLD, DEFAULT_WEIGHT,
    HealthCheckConfig, LoadBalance, RetryConfig, RetryOn, RoutingConfig, validate_backends, validate_health_check,
    validate_routing,
};
pub use error::BalanceError;
pub use flight::Flight;
pub use health::Cause;
pub use layer::BalanceLayer;
pub use models::ModelInfo;
pub use peek::Peeked;
pub use policy::{Candidate, LatencyBased, LeastConnections, Policy, RoundRobin};
pub use pool::{BackendStatus, Pool};
pub use retry::Failure;
pub use service::{Balance, BalanceBody};
