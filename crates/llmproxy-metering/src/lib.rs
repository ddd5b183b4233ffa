//! What was asked and what it came to.
//!
//! Two layers that never change a thing, but for one event that the proxy itself has asked for:
//!
//! - [`InspectLayer`] reads a request's JSON once, bounded for each request and over all of them, and leaves in the
//!   [`Exchange`](llmproxy_core::Exchange) what it asks for: model, stream, sizes. Where the body may be edited later
//!   it notes as ranges of bytes. A request that is dropped while its body is read leaves nothing behind.
//! - [`MeterLayer`] watches the answer: tokens, times, the end. Whatever becomes of a request for which a backend was
//!   asked (completed, refused, broken off, dropped before or after its head), each sink in the exchange is given one
//!   and the same record, once.
//!
//! What no backend tells is counted by [`tokens`], which stands alone: it is given text and numbers come out.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use llmproxy_core::{BoxError, Exchange, RequestBody, UsageSource, sink_fn};
//! use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer, MeterLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let config = InspectConfig::default();
//! let service = ServiceBuilder::new()
//!     .layer(InspectLayer::new(&config, BodyBudget::new(config.max_buffered_bytes)))
//!     .layer(MeterLayer::new())
//!     .service(service_fn(async |_: Request<RequestBody>| {
//!         let answer = r#"{"model":"qwen2.5","usage":{"prompt_tokens":12,"completion_tokens":30}}"#;
//!         let answer = Full::new(bytes::Bytes::from(answer));
//!         Ok::<_, BoxError>(Response::builder().header("content-type", "application/json").body(answer)?)
//!     }));
//!
//! let question = Full::<bytes::Bytes>::from(r#"{"model":"qwen2.5","messages":[]}"#);
//! let mut request =
//!     Request::post("/v1/chat/completions").header("content-type", "application/json").body(question)?;
//! let record = Arc::new(Mutex::new(None));
//! let seen = record.clone();
//! Exchange::of(request.extensions_mut())
//!     .add_sink(Arc::new(sink_fn(move |record| *seen.lock().unwrap() = Some(record.clone()))));
//!
//! service.oneshot(request).await?.into_body().collect().await?;
//! let record = record.lock().unwrap().take().expect("one record for each exchange");
//! assert_eq!(record.model.as_deref(), Some("qwen2.5"));
//! assert_eq!(record.usage.map(|usage| usage.total()), Some(42));
//! assert_eq!(record.source(), Some(UsageSource::Backend));
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! The two layers stand apart. [`InspectLayer`] is right inside of `llmproxy-auth`, so that a stranger's body is never read,
//! and outside of everything that wants to know what is asked for: it writes the [`Call`](llmproxy_core::Call), which
//! `llmproxy-ratelimit`, `llmproxy-balancer` and `llmproxy-sse` read, and hands on a
//! [`RequestBody`](llmproxy_core::RequestBody) with its [`Edits`](llmproxy_core::Edits), which `llmproxy-upstream` applies.
//!
//! [`MeterLayer`] is inside of `llmproxy-usage` and `llmproxy-ratelimit`, which leave sinks, and outside of
//! `llmproxy-balancer` and its retries, so that there is one record for each request. It reads every fact for the record, of
//! the [`Target`](llmproxy_core::Target) that was served whether the proxy itself asked for the usage event, and writes the
//! times of the first byte and the first token and the [`End`](llmproxy_core::End).
//!
//! It reads streams with `llmproxy-sse`'s [`Scanner`](llmproxy_sse::Scanner).
//!
//! # What it must never know
//!
//! A limit of a caller, a webhook, the health of a backend or how one is picked. Inspect changes nothing: it notes where a
//! change could be made. Meter parses JSON only where a scan says that it pays, and never serializes any. Why an answer
//! ended it knows from the error's [`Ended`](llmproxy_core::Ended) and nothing else.
//!
//! # Used alone
//!
//! - Without `llmproxy-auth` the record has no caller; without the server's facts, no address.
//! - Without a balancer further in, the record has no backend, every request that passes counts as one for which a backend
//!   was asked, and a usage event stays in the stream: nobody says that the client did not ask for it.
//! - Without inspect, meter's record has no model, and an estimate knows nothing of the prompt.
//! - Without meter, no sink is ever called.

pub mod metrics;
pub mod tokens;

mod abort;
mod answer;
mod budget;
mod config;
mod counters;
mod counts;
mod drains;
mod error;
mod estimate;
mod facts;
mod form;
mod inspect;
mod media;
mod meter;
mod pricing;
mod query;
mod read;

pub use abort::AbortConfig;
pub use budget::BodyBudget;
pub use config::{InspectConfig, MeteringConfig, TokenizerConfig};
pub use counters::Counters;
pub use drains::Drains;
pub use error::InspectError;
pub use inspect::{Inspect, InspectLayer};
pub use llmproxy_core::Pattern;
pub use meter::{Abandon, AbandonLimit, Meter, MeterFuture, MeterLayer, MeteredBody, Metering};
pub use pricing::{PriceConfig, Pricing, PricingConfig};
