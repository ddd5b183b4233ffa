//! Watches the answer and tells, once, what the exchange came to.

mod layer;
mod record;
mod service;
mod shape;

pub use layer::MeterLayer;
pub use service::{Meter, MeterFuture};
pub use shape::Metering;
