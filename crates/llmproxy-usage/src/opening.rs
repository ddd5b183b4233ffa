//! Writing down that an exchange begins.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{
    TryFutureExt,
    future::{BoxFuture, Either, ErrInto},
};
use http::{Request, Response};
use llmproxy_core::{BoxError, Exchange};
use tokio::time::timeout;
use tower::{Layer, Service};

use crate::{Reporters, UsageError};

/// Notes in the ledger that an exchange begins, so that it is found and recorded if the process dies before it ends.
///
/// It stands inside of whatever may refuse a request, and outside of what asks a backend; [`UsageLayer`](crate::UsageLayer)
/// stands further out. In relaxed durability nobody waits for the note; in strict durability it is on the disk before a
/// backend is asked.
///
/// ```
/// use llmproxy_core::{HttpClient, BoxError};
/// use llmproxy_usage::{OpeningLayer, Reporters, UsageLayer};
/// use tower::ServiceBuilder;
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # let client = HttpClient::new(tower::service_fn(async |_: Request<Bytes>| Ok::<_, BoxError>(Response::new(Bytes::new()))));
///
/// let reporters = Reporters::new(client);
/// let layers = ServiceBuilder::new()
///     .layer(UsageLayer::new(reporters.clone()))
///     // Limits stand here: what they refuse has not begun.
///     .layer(OpeningLayer::new(reporters));
/// # let _ = layers;
/// ```
#[derive(Clone, Debug)]
pub struct OpeningLayer {
    reporters: Arc<Reporters>,
}

/// Made by [`OpeningLayer`].
///
/// # Errors
///
/// In strict durability [`UsageError::Unwritable`], where the note is not on the disk within `usage.admit_timeout`. Else
/// whatever the inner service says.
///
/// # Cancel safety
///
/// Dropping the future ends the exchange, and the note goes.
#[derive(Clone, Debug)]
pub struct Opening<S> {
    inner: S,
    reporters: Arc<Reporters>,
}

// === impl OpeningLayer ===

impl OpeningLayer {
    /// A layer over `reporters`, the ones that [`UsageLayer`](crate::UsageLayer) has.
    pub fn new(reporters: Arc<Reporters>) -> Self {
        Self { reporters }
    }
}

impl<S> Layer<S> for OpeningLayer {
    type Service = Opening<S>;

    fn layer(&self, inner: S) -> Opening<S> {
        Opening { inner, reporters: self.reporters.clone() }
    }
}

// === impl Opening ===

impl<S, R, B> Service<Request<R>> for Opening<S>
where
    S: Service<Request<R>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    /// Called at once, or when the note is written.
    type Future = Either<ErrInto<S::Future, BoxError>, BoxFuture<'static, Result<Self::Response, BoxError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<R>) -> Self::Future {
        let active = self.reporters.active();
        let Some(ledger) = &active.ledger else {
            return Either::Left(self.inner.call(request).err_into());
        };
        let exchange = Exchange::of(request.extensions_mut());
        let (method, path) = (request.method().clone(), request.uri().path().into());
        let Some(committed) = ledger.begin(exchange, method, path, active.is_strict()) else {
            return Either::Left(self.inner.call(request).err_into());
        };
        let limit = active.admit_timeout;
        // The one that is ready goes along; its clone has to become so first.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Either::Right(Box::pin(async move {
            match timeout(limit, committed).await {
                Ok(Ok(())) => inner.call(request).await.map_err(Into::into),
                Ok(Err(_)) | Err(_) => Err(UsageError::Unwritable.into()),
            }
        }))
    }
}
