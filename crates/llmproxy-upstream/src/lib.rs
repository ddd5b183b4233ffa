//! The innermost service: one HTTP exchange with one backend.
//!
//! [`Upstream`] renders the [`Target`](llmproxy_core::Target) that it finds in a request and decides nothing: the body's
//! edits are spliced in, headers that are meant for one connection only are taken off, the request is sent, and the answer
//! comes back with its bytes as they arrive. Redirects are not followed, nothing is decompressed, there is no limit of time
//! but the one for the connection.
//!
//! A connection that the backend had closed while it was idle never costs the client an error: a request that fails on a
//! reused connection before anything of an answer came is sent once more over a fresh one, if its body can be sent twice;
//! a body that can't is only ever sent over a fresh one.
//!
//! Dropping the future, or the body of the answer, closes the connection to the backend at once: that cancels the
//! generation.
//!
//! ```
//! use std::sync::Arc;
//!
//! use http::Request;
//! use http_body_util::BodyExt;
//! use llmproxy_core::{Backend, BoxError, Edits, RequestBody, Target};
//! use llmproxy_testkit::{Backend as Server, script};
//! use llmproxy_upstream::{Clients, Upstream};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let server = Server::start(script::json(200, serde_json::json!({"choices": []}))).await;
//!
//! let backend = Arc::new(Backend::new(&server.url())?);
//! let edits = Edits { model: Some(9..16), include_usage: None };
//! let body = RequestBody::Replay(r#"{"model":"gpt-4","x":1}"#.into(), edits);
//! let mut request = Request::post("/v1/chat/completions").header("connection", "close").body(body)?;
//! request.extensions_mut().insert(Target { backend, model: Some("qwen2.5".into()), inject_usage: false });
//!
//! let response = Upstream::new(Clients::new()).oneshot(request).await?;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), r#"{"choices":[]}"#);
//! // Nothing but the model's name has changed, and what was meant for one connection only did not go on.
//! let seen = &server.seen()[0];
//! assert_eq!(seen.body, r#"{"model":"qwen2.5","x":1}"#);
//! assert_eq!(seen.header("connection"), None);
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! Innermost: inside of it is the network. Outside is `llmproxy-sse`, and outside of that `llmproxy-balancer`, which writes
//! the [`Target`](llmproxy_core::Target) anew for each attempt. Of the [`Exchange`](llmproxy_core::Exchange) it reads the id
//! and the connection that the request came by, which the backend is told; it writes no fact.
//!
//! Beside the stack, [`Clients::http_client`] is the [`HttpClient`](llmproxy_core::HttpClient) of the parts that must ask
//! something themselves: `llmproxy-balancer`'s health checks, `llmproxy-usage`'s webhooks.
//!
//! # What it must never know
//!
//! How a backend is chosen, what is retried, what a token is. It decides nothing, and keeps no time but the connection's.
//! It is the only crate with an HTTP client library in it.
//!
//! # Used alone
//!
//! - Without a [`Target`](llmproxy_core::Target) in its extensions a request fails: [`UpstreamError::NoTarget`].
//! - Without an [`Exchange`](llmproxy_core::Exchange) one is made for its id. Without the connection in it (its hop) the
//!   backend is told what the client says of where it comes from, and nothing is added.
//! - Without `llmproxy-sse` outside of it there is no limit of time past the connection's.

pub mod metrics;

mod body;
mod clients;
mod error;
mod forwarded;
mod fresh;
mod head;
mod pool;
mod sending;
mod service;
mod tls;
mod tunnel;
mod url;

pub use body::UpstreamBody;
pub use clients::Clients;
pub use error::{ConnectFailure, UpstreamError};
pub use service::Upstream;
pub use tls::{CertificatesError, check_certificates};
