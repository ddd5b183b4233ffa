//! The layer.

use std::sync::Arc;

use tower::Layer;

use crate::{Auth, Authenticator};

/// Makes [`Auth`]; see the [crate] for an example.
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
