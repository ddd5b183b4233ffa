//! The service: room for the record before anything else, and its end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{
    TryFutureExt,
    future::{BoxFuture, Either, ErrInto, Ready, ready},
};
use http::{Request, Response};
use llmproxy_core::{BoxError, EndHold, Exchange, RequestBody, UsageRecord, UsageSink};
use tokio::time::timeout;
use tower::Service;

use crate::{
    Reporters, UsageError,
    error::Uncommitted,
    ledger::{Committed, Reserved},
    reporters::Active,
};

/// Made by [`UsageLayer`](crate::UsageLayer).
///
/// # Errors
///
/// A [`UsageError`] where no place comes free in time, or in strict durability the ledger can't be written. Else whatever
/// the inner service says.
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

/// Hands the record to the ledger.
#[derive(Debug)]
struct Sink(Mutex<Option<Reserved>>);

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
        let Some(ledger) = &active.ledger else {
            return Either::Right(Either::Left(self.inner.call(request).err_into()));
        };
        if active.is_strict() && ledger.is_failing() {
            return Either::Left(ready(Err(UsageError::Unwritable.into())));
        }
        let exchange = Exchange::of(request.extensions_mut());
        let body = whole(request.body()).filter(|_| active.wants_request_body);
        if let Some(reserved) = ledger.try_reserve(exchange.id(), body) {
            admit(&active, &exchange, reserved);
            return Either::Right(Either::Left(self.inner.call(request).err_into()));
        }
        // The one that is ready goes along; its clone has to become so first.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let (ledger, body) = (ledger.clone(), body.cloned());
        Either::Right(Either::Right(Box::pin(async move {
            let reserve = ledger.reserve(exchange.id(), body.as_ref());
            let Ok(reserved) = timeout(active.admit_timeout, reserve).await else {
                tracing::warn!("a request is refused: as many usage records as usage.queue_size are not written yet");
                return Err(UsageError::Full.into());
            };
            admit(&active, &exchange, reserved);
            inner.call(request).await.map_err(Into::into)
        })))
    }
}

/// Leaves the place in the exchange, and what the end of its answer waits for.
fn admit(active: &Active, exchange: &Exchange, mut reserved: Reserved) {
    if active.is_strict() {
        exchange.hold_end(EndHold::new(written(reserved.committed(), active.commit_timeout)));
    }
    exchange.add_sink(Arc::new(Sink(Mutex::new(Some(reserved)))));
}

/// Waits until the record is on the disk, from the moment on that somebody asks.
async fn written(committed: Committed, limit: std::time::Duration) -> Result<(), BoxError> {
    match timeout(limit, committed).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Uncommitted.into()),
    }
}

/// The body, where it was read.
fn whole(body: &RequestBody) -> Option<&Bytes> {
    match body {
        RequestBody::Replay(bytes, _) => Some(bytes),
        RequestBody::Stream(_) | RequestBody::Form(_) => None,
    }
}

// === impl Sink ===

impl UsageSink for Sink {
    fn record(&self, record: &Arc<UsageRecord>) {
        if let Some(reserved) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reserved.record(record);
        }
    }
}
