//! The layer.

use std::sync::Arc;

use tower::Layer;

use super::service::{Inspect, Inspector};
use crate::{BodyBudget, InspectConfig, read::Limits};

/// Makes [`Inspect`].
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use llmproxy_core::{BoxError, Exchange, RequestBody};
/// use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let config = InspectConfig::default();
/// let budget = BodyBudget::new(config.max_buffered_bytes);
/// let service = InspectLayer::new(&config, budget).layer(service_fn(async |mut request: Request<RequestBody>| {
///     assert!(request.body().replay().is_some(), "a JSON body was read whole");
///     let exchange = Exchange::of(request.extensions_mut());
///     Ok::<_, BoxError>(Response::new(exchange.call().and_then(|call| call.model.clone())))
/// }));
///
/// let body = Full::<bytes::Bytes>::from(r#"{"model":"qwen2.5","prompt":"Hi"}"#);
/// let request = Request::post("/v1/completions").header("content-type", "application/json").body(body)?;
/// assert_eq!(service.oneshot(request).await?.into_body().as_deref(), Some("qwen2.5"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct InspectLayer(Arc<Inspector>);

// === impl InspectLayer ===

impl InspectLayer {
    /// A layer that reads bodies within the limits of `config` and of `budget`, which all layers share.
    pub fn new(config: &InspectConfig, budget: BodyBudget) -> Self {
        let limits = Limits { max_size: config.max_body_size, gap: config.body_gap_timeout };
        Self(Arc::new(Inspector { limits, max_upload: config.max_upload_size, budget }))
    }
}

impl<S> Layer<S> for InspectLayer {
    type Service = Inspect<S>;

    fn layer(&self, inner: S) -> Inspect<S> {
        Inspect::new(inner, self.0.clone())
    }
}
