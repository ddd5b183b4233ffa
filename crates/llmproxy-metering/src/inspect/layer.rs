//! The layer.

use std::sync::Arc;

use tower::Layer;

use super::service::{Inspect, Inspector};
use crate::{BodyBudget, InspectConfig, read::Limits};

/// Makes [`Inspect`].
///
/// ```
/// use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer};
///
/// let config = InspectConfig::default();
/// let budget = BodyBudget::new(config.max_buffered_bytes);
/// let layer = InspectLayer::new(&config, budget);
/// ```
#[derive(Clone, Debug)]
pub struct InspectLayer(Arc<Inspector>);

// === impl InspectLayer ===

impl InspectLayer {
    /// A layer that reads bodies within the limits of `config` and of `budget`, which all layers share.
    pub fn new(config: &InspectConfig, budget: BodyBudget) -> Self {
        let limits = Limits { max_size: config.max_body_size, gap: config.body_gap_timeout };
        Self(Arc::new(Inspector { limits, budget }))
    }
}

impl<S> Layer<S> for InspectLayer {
    type Service = Inspect<S>;

    fn layer(&self, inner: S) -> Inspect<S> {
        Inspect::new(inner, self.0.clone())
    }
}
