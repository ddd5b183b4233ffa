//! The service.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{
    TryFutureExt,
    future::{BoxFuture, Either, ErrInto, Ready, ready},
};
use http::{Request, Response};
use llmproxy_core::{BoxError, Exchange, RequestBody};
use tower::Service;

use crate::{Reporters, slots::Slots};

/// Made by [`UsageLayer`](crate::UsageLayer).
///
/// # Errors
///
/// A [`UsageError`](crate::UsageError) where no place comes free in time. Else whatever the inner service says.
///
/// # Cancel safety
///
/// Dropping the future while it waits for a place takes none; a place that it has is free again with the exchange.
#[derive(Clone, Debug)]
pub struct Usage<S> {
    inner: S,
    reporters: Arc<Reporters>,
}

type Refused<T> = Ready<Result<T, BoxError>>;

// === impl Usage ===

impl<S> Usage<S> {
    pub(crate) fn new(inner: S, reporters: Arc<Reporters>) -> Self {
        Self { inner, reporters }
    }
}

impl<S, B> Service<Request<RequestBody>> for Usage<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    /// Refused, called at once, or called after a wait: only the last, which is rare, is boxed.
    type Future = Either<
        Refused<Self::Response>,
        Either<ErrInto<S::Future, BoxError>, BoxFuture<'static, Result<Self::Response, BoxError>>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> Self::Future {
        let active = self.reporters.active();
        if active.reporters.is_empty() {
            return Either::Right(Either::Left(self.inner.call(request).err_into()));
        }
        match Slots::try_reserve(&active, whole(request.body())) {
            Ok(Some(slots)) => {
                Exchange::of(request.extensions_mut()).add_sink(Arc::new(slots));
                Either::Right(Either::Left(self.inner.call(request).err_into()))
            }
            Ok(None) => {
                // The one that is ready goes along; its clone has to become so first.
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                let body = whole(request.body()).cloned();
                Either::Right(Either::Right(Box::pin(async move {
                    let slots = Slots::reserve(&active, body.as_ref()).await?;
                    Exchange::of(request.extensions_mut()).add_sink(Arc::new(slots));
                    inner.call(request).await.map_err(Into::into)
                })))
            }
            Err(error) => Either::Left(ready(Err(error.into()))),
        }
    }
}

/// The body, where it was read.
fn whole(body: &RequestBody) -> Option<&Bytes> {
    match body {
        RequestBody::Replay(bytes, _) => Some(bytes),
        RequestBody::Stream(_) | RequestBody::Form(_) => None,
    }
}
