//! What two parts of llmproxy must both know, and nothing else.
//!
//! The layers of llmproxy never meet: auth does not know the limiter, the meter does not know the balancer. What one of
//! them finds out and another needs travels in the [`Exchange`], one `Arc` in the request's extensions whose cells are
//! each written once by one part. What an exchange came to is a [`UsageRecord`], given to every [`UsageSink`] that was
//! left in the exchange. Watching or changing an answer on its way is done with the bodies in [`body`], which know all
//! the ways an answer can end.
//!
//! For whoever writes a layer, or a service of their own around llmproxy's layers: this is the only crate of llmproxy that
//! a layer has to depend on.
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
//!
//! # Where it stands
//!
//! Below everything: every other crate of the proxy depends on it, and it depends on none of them. It is no step of the
//! stack, but what the steps hand to each other. From the client inwards, with the facts that each leaves behind:
//!
//! | step | writes | reads |
//! |---|---|---|
//! | access, in `llmproxy-stack` | the [`Exchange`] itself, [the client](Exchange::set_client) | all of it, at the end |
//! | `llmproxy-auth` | [`Caller`] | the client's address |
//! | inspect, in `llmproxy-metering` | [`Call`], [`RequestBody`] with its [`Edits`] | |
//! | `llmproxy-usage` | a [`UsageSink`]; an [`EndHold`] where records must not be lost | |
//! | `llmproxy-ratelimit` | a [`UsageSink`] | [`Caller`], [`Call`], the client's address |
//! | meter, in `llmproxy-metering` | times and [`End`]; the [`UsageRecord`] for every sink | all of it |
//! | `llmproxy-balancer` | [`Target`], [`Attempt`]s | [`Call`], [`Edits`] |
//! | `llmproxy-sse` | | [`Call`], [`Target`] |
//! | `llmproxy-upstream` | | [`Target`], the id, the client's address |
//!
//! A type enters this crate only when two parts that may not meet both need it.
//!
//! # What it must never know
//!
//! A server, an HTTP client library, a config file, a metric. It opens no socket and spawns no task. Nothing in it holds
//! a secret: a [`Caller`] is a name and a fingerprint, never a key.
//!
//! # A layer of your own
//!
//! What a layer wants to know of an answer's end is an observer, what it wants to know of the whole exchange is a sink.
//! Both hear exactly once, whatever ended the exchange:
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use llmproxy_core::{BoxError, body::{Ending, Observe, observe}};
//! use tower::{Layer, Service, ServiceExt, layer::layer_fn, service_fn, util::MapFuture};
//!
//! /// Counts the bytes of answers.
//! struct Count(Arc<AtomicU64>);
//!
//! impl Observe for Count {
//!     fn chunk(&mut self, data: &Bytes) {
//!         self.0.fetch_add(data.len() as u64, Ordering::Relaxed);
//!     }
//!     fn end(self, ending: Ending<'_>) {
//!         println!("an answer ended: {ending:?}");
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let bytes = Arc::new(AtomicU64::new(0));
//! let hello = service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("hello")))));
//! let counted = layer_fn(|inner| {
//!     let bytes = bytes.clone();
//!     MapFuture::new(inner, move |future| observe(future, Count(bytes.clone())))
//! });
//!
//! let answer = counted.layer(hello).oneshot(Request::new(())).await?;
//! answer.into_body().collect().await?;
//! assert_eq!(bytes.load(Ordering::Relaxed), 5);
//! # Ok(())
//! # }
//! ```

pub mod body;
pub mod duration;
pub mod go_db;
pub mod go_time;
pub mod labels;
pub mod subprotocol;

mod answer;
mod backend;
mod client;
mod endpoint;
mod error;
mod exchange;
mod facts;
mod hold;
mod nanos;
mod pattern;
mod record;
mod request;
mod sink;
mod spelling;
mod suggest;
mod units;
mod upgrade;

pub use answer::ApiError;
pub use backend::Backend;
pub use client::HttpClient;
pub use endpoint::{Api, Endpoint, Work};
pub use error::{BoxError, Ended, cause_ref};
pub use exchange::{Exchange, StopFlag};
pub use facts::{Attempt, Call, Caller, FlowKey, Hop, Needs, OnAbort, Prompt, Target};
pub use hold::EndHold;
pub use pattern::Pattern;
pub use record::{Cost, End, RouteStep, TokenUsage, UsageRecord, UsageSource, UsageSources};
pub use request::{BoxBody, Edits, Form, Insertion, RequestBody};
pub use sink::{UsageSink, sink_fn};
pub use spelling::is_spelling_of;
pub use suggest::nearest;
pub use units::{UnitKind, Units};
pub use upgrade::{ToBackend, Tunnel, Upgrade};
