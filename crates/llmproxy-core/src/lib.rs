//! What two parts of llmproxy must both know, and nothing else.
//!
//! The layers of llmproxy never meet: auth does not know the limiter, the meter does not know the balancer. What one of
//! them finds out and another needs travels in the [`Exchange`], one `Arc` in the request's extensions whose cells are
//! each written once by one part. What an exchange came to is a [`UsageRecord`], given to every [`UsageSink`] that was
//! left in the exchange. Watching or changing an answer on its way is done with the bodies in [`body`], which know all
//! the ways an answer can end.
//!
//! This crate must never know: a server, an HTTP client library, a config file, a metric.
//!
//! ```
//! use llmproxy_core::{Caller, Exchange};
//!
//! let mut request = http::Request::new(());
//! let exchange = Exchange::of(request.extensions_mut());
//! exchange.set_caller(Caller::named("alice"));
//! // Further in, another layer finds the same exchange.
//! assert_eq!(Exchange::of(request.extensions_mut()).caller().unwrap().name(), Some("alice"));
//! ```

pub mod body;
pub mod duration;

mod answer;
mod client;
mod endpoint;
mod error;
mod exchange;
mod facts;
mod record;
mod request;
mod sink;

pub use answer::ApiError;
pub use client::HttpClient;
pub use endpoint::{Api, Endpoint, Work};
pub use error::{BoxError, Ended, cause_ref};
pub use exchange::{Exchange, StopFlag};
pub use facts::{Attempt, Backend, Call, Caller, Target};
pub use record::{End, TokenUsage, UsageRecord, UsageSource};
pub use request::{BoxBody, Edits, Insertion, RequestBody};
pub use sink::{UsageSink, sink_fn};
