//! The layer.

use std::sync::Arc;

use tower::Layer;

use super::{Meter, abandon::Bounds, rules::Rules};
use crate::{AbortConfig, Counters, Drains, Pricing};

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
pub struct MeterLayer(Arc<Rules>);

// === impl MeterLayer ===

impl MeterLayer {
    /// A layer that watches answers. Whoever leaves one is billed what it was given.
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
    #[must_use]
    pub fn with_pricing(self, pricing: Arc<Pricing>) -> Self {
        self.with(|rules| rules.pricing = Some(pricing))
    }

    /// Has what a backend does not tell counted by these. Without them it is estimated by size.
    ///
    /// A record may be given to its sinks later then, and on another thread; [`Counters::finish`] waits for that.
    #[must_use]
    pub fn with_counters(self, counters: Counters) -> Self {
        self.with(|rules| rules.counters = Some(counters))
    }

    /// Has the rest of an answer read where its client leaves and `config`, or the caller's key, says so.
    ///
    /// ```
    /// use llmproxy_core::OnAbort;
    /// use llmproxy_metering::{AbortConfig, Drains, MeterLayer};
    ///
    /// let drains = Drains::default();
    /// let config = AbortConfig { on_abort: OnAbort::Drain, ..AbortConfig::default() };
    /// let layer = MeterLayer::new().with_abort(&config, drains.clone());
    /// ```
    #[must_use]
    pub fn with_abort(self, config: &AbortConfig, drains: Drains) -> Self {
        let bounds = Bounds { config: config.clone(), drains };
        self.with(|rules| rules.bounds = Some(Arc::new(bounds)))
    }

    fn with(mut self, set: impl FnOnce(&mut Rules)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter::new(inner, self.0.clone())
    }
}
