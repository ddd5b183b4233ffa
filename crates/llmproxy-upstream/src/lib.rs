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
//! This crate must never know: how a backend is chosen, what is retried, what a token is.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use http::Request;
//! use llmproxy_core::{Backend, BoxError, RequestBody, Target};
//! use llmproxy_upstream::{Clients, Upstream};
//! use tower::ServiceExt;
//!
//! # async fn example() -> Result<(), BoxError> {
//! let backend = Arc::new(Backend::new("http://127.0.0.1:8000")?);
//! let mut request = Request::get("/v1/models").body(RequestBody::whole(""))?;
//! request.extensions_mut().insert(Target { backend, model: None, inject_usage: false });
//! let response = Upstream::new(Clients::new()).oneshot(request).await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```

pub mod metrics;

mod body;
mod clients;
mod error;
mod fresh;
mod head;
mod pool;
mod service;
mod url;

pub use body::UpstreamBody;
pub use clients::Clients;
pub use error::{ConnectFailure, UpstreamError};
pub use service::Upstream;
