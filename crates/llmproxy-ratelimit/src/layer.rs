//! The layer.

use std::sync::Arc;

use tower::Layer;

use crate::{RateLimit, RateLimiter};

/// Limits the requests to a service. See the [crate's documentation](crate) for what it reads and leaves.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limiter: Arc<RateLimiter>,
}

// === impl RateLimitLayer ===

impl RateLimitLayer {
    /// Limits by `limiter`, which may be shared with other layers and outlive them.
    pub fn new(limiter: Arc<RateLimiter>) -> Self {
        Self { limiter }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit::new(inner, self.limiter.clone())
    }
}
