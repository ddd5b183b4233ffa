//! The layer.

use tower::Layer;

use super::Meter;

/// Makes [`Meter`].
#[derive(Clone, Copy, Debug, Default)]
pub struct MeterLayer(());

// === impl MeterLayer ===

impl MeterLayer {
    /// A layer that watches answers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter::new(inner)
    }
}
