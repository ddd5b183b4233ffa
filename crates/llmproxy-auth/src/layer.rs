//! The layer.

use std::sync::Arc;

use tower::Layer;

use crate::{Auth, Authenticator};

/// Makes [`Auth`]; the [crate] has an example of a key that passes. Without any key:
///
/// ```
/// use http::{Request, Response};
/// use llmproxy_auth::AuthLayer;
/// use llmproxy_core::{BoxError, Exchange};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let open = AuthLayer::disabled().layer(service_fn(async |mut request: Request<()>| {
///     let caller = Exchange::of(request.extensions_mut());
///     Ok::<_, BoxError>(Response::new(caller.caller().and_then(|caller| caller.name()).is_none()))
/// }));
/// let request = Request::get("/v1/models").header("x-api-key-name", "mallory").body(())?;
/// assert!(open.oneshot(request).await?.into_body(), "nobody is believed");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AuthLayer(Option<Arc<Authenticator>>);

// === impl AuthLayer ===

impl AuthLayer {
    /// Asks `authenticator` about every request.
    pub fn new(authenticator: Arc<Authenticator>) -> Self {
        Self(Some(authenticator))
    }

    /// Asks for no key: every caller is anonymous, and the client's `Authorization` passes to the backend. What a client
    /// says of itself in `X-API-Key-UserID` and `X-API-Key-Name` is still taken out.
    pub fn disabled() -> Self {
        Self(None)
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth::new(inner, self.0.clone())
    }
}
