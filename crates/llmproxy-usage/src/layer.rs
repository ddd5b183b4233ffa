//! The layer.

use std::sync::Arc;

use tower::Layer;

use crate::{Reporters, Usage};

/// Lets a request on only when there is room for its record.
///
/// It stands outside of whatever asks a backend, and outside of the meter that makes the record. The [crate] has an
/// example.
#[derive(Clone, Debug)]
pub struct UsageLayer {
    reporters: Arc<Reporters>,
}

// === impl UsageLayer ===

impl UsageLayer {
    /// A layer over `reporters`; without any of them in use it lets everything pass.
    pub fn new(reporters: Arc<Reporters>) -> Self {
        Self { reporters }
    }
}

impl<S> Layer<S> for UsageLayer {
    type Service = Usage<S>;

    fn layer(&self, inner: S) -> Usage<S> {
        Usage::new(inner, self.reporters.clone())
    }
}
