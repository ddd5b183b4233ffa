//! Scripted backends, bodies, clients and webhook receivers, for the tests of llmproxy and of those who embed it.
//!
//! Everything here is in control of its bytes: a [`Backend`] writes exactly the chunks that its script says and can break
//! off wherever it likes, a [`Client`] sees exactly the chunks that it was sent and how they ended, a [`ScriptedBody`] ends
//! in any of the ways that a body can. [`ModelServer`] is a whole model server that needs no model, fit for a demo.
//!
//! Nothing waits by sleeping: counts can be awaited, and whatever does not come within ten seconds of the wall's clock (also
//! where tokio's clock is paused) panics and says what was seen instead. One caution with a paused clock: tokio moves it
//! forward whenever only sockets are waited for, so that timeouts around real sockets fire at once.
//!
//! ```
//! use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, script};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let backend = Backend::start(script::sse(["data: {\"n\":1}\n\n", DONE])).await;
//! let mut client = Client::connect(backend.addr()).await;
//! let answer = client.post_json("/v1/chat/completions", &serde_json::json!({"stream": true})).await;
//! assert_eq!(answer.pieces, ["data: {\"n\":1}\n\n", DONE]);
//! assert_eq!(answer.end, BodyEnd::Complete);
//! assert_eq!(backend.seen()[0].json()["stream"], true);
//! # });
//! ```
//!
//! # Where it stands
//!
//! Beside the proxy, never in it: a client in front of it, backends and receivers behind it, over real sockets, or a body
//! in the place of one that a layer wraps. Tests of every other crate use it, and of the shipped program only the command
//! line's `demo`, whose backend is a [`ModelServer`].
//!
//! # What it must never know
//!
//! Any other crate of llmproxy, or a library that speaks HTTP: it speaks HTTP/1.1 (RFC 9112) by its own few lines, so that
//! a mistake of the proxy can't hide behind the same mistake in its tests.

pub mod script;

mod backend;
mod body;
mod client;
mod http1;
mod model;
mod patience;
mod receiver;
mod seen;
mod wire;

pub use backend::{Backend, Counts, KEPT, Refused, Requests};
pub use body::{BodyHandle, BoxError, ScriptedBody};
pub use client::{BodyEnd, Client, Head, Response};
pub use model::{ModelServer, ModelServerBuilder};
pub use patience::within;
pub use receiver::{Behaviour, Receiver};
pub use script::{DONE, event};
pub use seen::Seen;
pub use wire::Wire;
