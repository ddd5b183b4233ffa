//! The whole proxy: state, stack, server loop, and errors into answers.
//!
//! [`Runtime`] owns what outlives a configuration and builds stacks over it; [`Server`] accepts connections and hands
//! their requests to [`Runtime::service`]. To put the proxy into a service of your own, take the service and leave the
//! server, or hand your own router, with the service in it, to the server. To use single layers, take [`RespondLayer`] along.
//!
//! ```
//! use axum::body::Body;
//! use http::Request;
//! use llmproxy_stack::{Options, Runtime};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llmproxy_core::BoxError> {
//! let text = "backends: [{url: 'http://127.0.0.1:11434'}]\nlogging: {enabled: false}\n";
//! let loaded = llmproxy_config::load_str(text, &Default::default())?;
//! let runtime = Runtime::start(&loaded.config, Options::default()).await?;
//!
//! // Any server can hand its requests over: `Server`, an axum router's fallback, a test.
//! let answer = runtime.service().oneshot(Request::get("/health").body(Body::empty())?).await?;
//! assert!(answer.status().is_success() && answer.headers().contains_key("x-request-id"));
//!
//! runtime.shutdown(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! Around everything but the command line. It knows all parts and the file, `llmproxy-config`; no part knows it. From the
//! client inwards the stack is: the access log, the span and the net for panics, the newest configuration's routes, what
//! makes errors into answers, the check of paths, then `llmproxy-auth`, `llmproxy-metering`'s inspect, `llmproxy-usage`,
//! `llmproxy-ratelimit`, `llmproxy-metering`'s meter, `llmproxy-balancer`, `llmproxy-sse` and `llmproxy-upstream`. The order,
//! with the reason for each line, is `Runtime::stack`.
//!
//! It makes the [`Exchange`](llmproxy_core::Exchange) and writes the client into it, from the [`Peer`] that the server leaves
//! and the headers of the proxies that the configuration trusts.
//!
//! # What it must never know
//!
//! How anything is decided about keys, limits, tokens or backends: it puts the parts that do into one order. In return it
//! alone writes statuses of our own, and turns each part's error into an answer in one place.

pub mod metrics;

mod access;
mod access_log;
mod admin;
mod around;
mod connection;
mod cors;
mod counting;
mod crowd;
mod error;
mod forwarded;
mod http2;
mod io;
mod measures;
mod message;
mod models;
mod pace;
mod paths;
mod preface;
mod refusals;
mod request_body;
mod respond;
mod routes;
mod runtime;
mod server;
mod timer;
mod tls;
mod transport;
mod tunnel;

pub use access::{OverTls, Peer};
pub use counting::check_tokenizers;
pub use error::{BindError, StartError};
pub use refusals::Refusals;
pub use respond::{Respond, RespondFuture, RespondLayer};
pub use runtime::{Options, RenderMetrics, Runtime, http_client};
pub use server::{Listening, Server};
pub use tls::{TlsError, check_tls};
