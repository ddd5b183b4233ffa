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
//! This crate must never know: a limit of a caller, a webhook, how a backend is picked. Used without the layers around
//! it, the record has no caller and no backend, and the usage event stays in the stream.
//!
//! ```
//! use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer, MeterLayer};
//! use tower::ServiceBuilder;
//!
//! let config = InspectConfig::default();
//! let layers = ServiceBuilder::new()
//!     .layer(InspectLayer::new(&config, BodyBudget::new(config.max_buffered_bytes)))
//!     .layer(MeterLayer::new());
//! ```

pub mod metrics;

mod answer;
mod budget;
mod config;
mod counts;
mod error;
mod estimate;
mod facts;
mod inspect;
mod meter;
mod read;

pub use budget::BodyBudget;
pub use config::InspectConfig;
pub use error::InspectError;
pub use inspect::{Inspect, InspectLayer};
pub use meter::{Meter, MeterFuture, MeterLayer, Metering};
