//! The layer.

use std::sync::Arc;

use tower::Layer;

use super::Meter;
use crate::Pricing;

/// Makes [`Meter`]; the [crate] has an example of an answer that came. This one did not:
///
/// ```
/// use std::sync::Arc;
///
/// use http::{Request, Response};
/// use llmproxy_core::{BoxError, End, Exchange, RequestBody, sink_fn};
/// use llmproxy_metering::MeterLayer;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let service = MeterLayer::new().layer(service_fn(async |_: Request<RequestBody>| {
///     Err::<Response<RequestBody>, BoxError>("connection reset".into())
/// }));
/// let mut request = Request::new(RequestBody::whole(""));
/// let exchange = Exchange::of(request.extensions_mut());
/// exchange.add_sink(Arc::new(sink_fn(|record| assert_eq!(record.error.as_deref(), Some("connection reset")))));
///
/// assert!(service.oneshot(request).await.is_err());
/// assert_eq!(exchange.end(), Some(End::BackendFailed));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MeterLayer {
    pricing: Option<Arc<Pricing>>,
}

// === impl MeterLayer ===

impl MeterLayer {
    /// A layer that watches answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says in each record what the exchange cost. Without it nobody says so.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use llmproxy_metering::{MeterLayer, Pricing, PricingConfig};
    ///
    /// let layer = MeterLayer::new().with_pricing(Arc::new(Pricing::new(&PricingConfig::default())));
    /// ```
    pub fn with_pricing(self, pricing: Arc<Pricing>) -> Self {
        Self { pricing: Some(pricing) }
    }
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter::new(inner, self.pricing.clone())
    }
}
