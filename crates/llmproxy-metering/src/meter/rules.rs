//! What a layer is told of how to meter, the same for all its exchanges.

use std::sync::Arc;

use super::abandon::Bounds;
use crate::{Counters, Pricing};

/// Each part is left out where nothing is said of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) pricing: Option<Arc<Pricing>>,
    pub(super) bounds: Option<Arc<Bounds>>,
    pub(super) counters: Option<Counters>,
}
