//! The layer.

use std::sync::Arc;

use tower::Layer;

use crate::{RateLimit, RateLimiter};

/// Limits the requests to a service. See the [crate's documentation](crate) for what it reads and leaves.
///
/// ```
/// use llmproxy_core::{BoxError, cause_ref};
/// use llmproxy_ratelimit::{LimitsConfig, RateLimitConfig, RateLimitError, RateLimitLayer, RateLimiter};
/// use tower::{Layer, Service, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let limiter = RateLimiter::new(&RateLimitConfig {
///     enabled: true,
///     per_key: LimitsConfig { max_concurrent: 1, ..LimitsConfig::default() },
///     ..RateLimitConfig::default()
/// });
/// let mut service = RateLimitLayer::new(limiter).layer(service_fn(async |_: http::Request<()>| {
///     Ok::<_, BoxError>(http::Response::new(http_body_util::Full::<bytes::Bytes>::from("hello")))
/// }));
///
/// let first = service.ready().await?.call(http::Request::new(())).await?;
/// // Its answer has not been read, so it is still in flight.
/// let error = service.ready().await?.call(http::Request::new(())).await.unwrap_err();
/// assert!(matches!(cause_ref(&*error), Some(RateLimitError::Limited { .. })));
/// drop(first);
/// assert!(service.ready().await?.call(http::Request::new(())).await.is_ok());
/// # Ok(())
/// # }
/// ```
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
