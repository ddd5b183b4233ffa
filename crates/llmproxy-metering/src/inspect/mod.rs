//! Reads what a request asks for, before anything is decided about it.

mod layer;
mod service;

pub use layer::InspectLayer;
pub use service::Inspect;
