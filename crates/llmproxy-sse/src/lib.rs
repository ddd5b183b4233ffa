//! Event streams: their framing, and what a stream needs on its way.
//!
//! [`Scanner`] splits a stream into its events without reading what they say; whoever counts or shapes builds on it.
//! [`SseLayer`] stands between the balancer and the upstream, once per attempt. It passes every chunk on at once as it
//! is, and adds what a plain forwarder lacks: a limit on the wait for the first byte and on silence after it, comments
//! that keep a silent stream's connection alive, and an error event where a backend dies between two events, so that
//! the client's library says what happened instead of "unexpected end".
//!
//! Dropping a request's future or its body drops what is inside; nothing lingers.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use llmproxy_core::{BoxError, RequestBody};
//! use llmproxy_sse::{SseConfig, SseLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let backend = service_fn(|_: Request<RequestBody>| async {
//!     let body = Full::new(bytes::Bytes::from("data: hello\n\n"));
//!     Ok::<_, BoxError>(Response::builder().header("content-type", "text/event-stream").body(body)?)
//! });
//! let service = ServiceBuilder::new().layer(SseLayer::new(&SseConfig::default())).service(backend);
//! let response = service.oneshot(Request::new(RequestBody::whole(""))).await?;
//! assert_eq!(response.headers()["cache-control"], "no-cache");
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "data: hello\n\n");
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! [`SseLayer`] is the last layer before the backend: outside of it is `llmproxy-balancer`, which calls it once for each
//! attempt, so that each attempt has its own limits of time; inside is `llmproxy-upstream`, or whatever sends the request.
//! It reads the [`Target`](llmproxy_core::Target) that the balancer left (the backend's timeout) and the
//! [`Call`](llmproxy_core::Call) that `llmproxy-metering`'s inspect layer left (the API in whose shape errors are), and
//! writes no fact. That an answer ran out of time is said by an [`Ended`](llmproxy_core::Ended) in the error, which is what
//! the balancer and the meter go by.
//!
//! [`Scanner`] stands nowhere in the stack: the meter reads streams with it, which is the one arrow between two parts.
//!
//! # What it must never know
//!
//! An HTTP client, JSON, a token. The scanner does no I/O and keeps no time: it takes slices and gives slices. What an
//! event says is for others to read; here only the names of those that end a stream are known.
//!
//! # Used alone
//!
//! - Without a [`Target`](llmproxy_core::Target) in the request the wait for the first byte, and for the whole of a JSON
//!   answer, has no limit. The gap timeout and the heartbeat hold all the same.
//! - Without a limit on each wait for more of a request's body, a client that stalls its upload is waited for without one:
//!   the backend can't answer what it does not have.
//! - Without a [`Call`](llmproxy_core::Call) in the exchange errors have OpenAI's shape.

pub mod metrics;
pub mod scan;

mod config;
mod error;
mod layer;
mod place;
mod service;
mod stream;
mod timer;
mod upload;

pub use config::SseConfig;
pub use error::SseError;
pub use layer::SseLayer;
pub use scan::{Event, Scanner};
pub use service::{Sse, SseFuture};
pub use stream::Stream;
