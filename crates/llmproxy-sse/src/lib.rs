//! Event streams: their framing, and what a stream needs on its way.

mod scan;

pub use scan::{Event, Scanner};
