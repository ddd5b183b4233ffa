//! Watches the answer and tells, once, what the exchange came to.

mod abandon;
mod end;
mod gate;
mod hear;
mod layer;
mod record;
mod rules;
mod service;
mod settle;
mod shape;
mod stream;

pub use abandon::{Abandon, AbandonLimit};
pub use layer::MeterLayer;
pub use service::{Meter, MeterFuture, MeteredBody};
pub use shape::Metering;
