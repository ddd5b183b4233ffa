//! How much callers may ask for: models, requests, tokens, and how many at a time.
//!
//! [`RateLimiter`] decides and remembers; it knows nothing of HTTP and lives through every change of its
//! [`RateLimitConfig`]. [`RateLimitLayer`] puts it in front of a service: a request passes, or fails with a
//! [`RateLimitError`] that has all that an answer needs.
//!
//! Tokens are reserved before they are used: the prompt's estimate, and the longest answer that the request allows, or
//! a guess. The layer leaves a sink in the exchange that settles them by the record. When no record comes, they are given
//! back if a balancer asked no backend, and else stay used as they were estimated.
//!
//! A request counts as in flight until the last byte of its answer has passed or the answer, or the wait for it, was
//! dropped. A refused request has taken nothing from any limit.
//!
//! ```
//! use llmproxy_ratelimit::{LimitsConfig, RateLimitConfig, RateLimitError, RateLimitLayer, RateLimiter};
//! use tower::{Layer, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llmproxy_core::BoxError> {
//! let limiter = RateLimiter::new(&RateLimitConfig {
//!     enabled: true,
//!     per_key: LimitsConfig { requests_per_minute: 60, ..LimitsConfig::default() },
//!     ..RateLimitConfig::default()
//! });
//! let hello = tower::service_fn(async |_: http::Request<()>| {
//!     Ok::<_, llmproxy_core::BoxError>(http::Response::new(http_body_util::Full::<bytes::Bytes>::from("hello")))
//! });
//! let limited = RateLimitLayer::new(limiter).layer(hello);
//!
//! let response = limited.oneshot(http::Request::new(())).await?;
//! assert_eq!(response.headers()["x-ratelimit-remaining"], "59");
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! Behind all that says who is calling and what for, before all that works for the request. Outside of it are
//! `llmproxy-auth`, which leaves the [`Caller`](llmproxy_core::Caller), `llmproxy-metering`'s inspect layer, which leaves
//! the [`Call`](llmproxy_core::Call) with its estimate, and `llmproxy-usage`. Inside are the meter, whose record settles
//! what was reserved, and `llmproxy-balancer`, which says in the [`Exchange`](llmproxy_core::Exchange) whether a backend was
//! asked. The layer writes no fact but its sink.
//!
//! It stands outside of the retries: a request takes from the limits once, however many backends are asked for it.
//!
//! # What it must never know
//!
//! A key's secret: callers are told apart by the fingerprint. How tokens are counted: it reserves by an estimate and
//! settles by the record. It never waits, and nothing that it does for a request grows with the number of keys.
//!
//! # Used alone
//!
//! The layer reads what others left in the [`Exchange`](llmproxy_core::Exchange), and enforces less where it finds less:
//!
//! - without a caller, it limits by the client's address; without that too, all such callers share one account;
//! - without a call, models and tokens are not limited;
//! - without a meter further in, no record comes: tokens stay used as they were estimated;
//! - without a balancer further in, every request that passed counts as one for which a backend was asked.

pub mod metrics;

mod account;
mod clock;
mod config;
mod error;
mod layer;
mod learned;
mod limiter;
mod limits;
mod permit;
mod requests;
mod service;
mod standing;
mod sync;
mod tokens;

pub use config::{DEFAULT_BURST_SECONDS, DEFAULT_COMPLETION_TOKENS, LimitsConfig, RateLimitConfig};
pub use error::{LimitKind, LimitedError, RateLimitError, Scope};
pub use layer::RateLimitLayer;
pub use limiter::RateLimiter;
pub use permit::Permit;
pub use service::{HeldPermit, RateLimit, RateLimitFuture};
pub use standing::{Standing, Window};
