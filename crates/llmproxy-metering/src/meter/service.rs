//! The service and its future: from the request to the head of the answer.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use llmproxy_core::{
    BoxError, Exchange, RequestBody,
    body::{Drained, Ending, Out, Shaped, Shaper},
};
use pin_project_lite::pin_project;
use tower::Service;

use super::{Abandon, Metering, rules::Rules};

/// Watches answers and gives each sink of an exchange one [`UsageRecord`](llmproxy_core::UsageRecord) at its end.
///
/// A request that was called is an exchange, however it ends: an answer that passed, an error, a drop of the future or
/// of the body. Only where a balancer says that no backend was asked there is no record. Without
/// [`Inspect`](crate::Inspect) outside of it the record has no model and no estimate of the prompt. Made by
/// [`MeterLayer`](crate::MeterLayer), where there is an example.
///
/// # Errors
///
/// The inner service's, as they are.
///
/// # Cancel safety
///
/// Dropping the future, or the body of the answer, is an end of the exchange, and recorded as one; where the rest of the
/// body is read ([`MeterLayer::with_abort`](crate::MeterLayer::with_abort)), when that is over.
#[derive(Clone, Debug)]
pub struct Meter<S> {
    inner: S,
    rules: Arc<Rules>,
}

pin_project! {
    /// Waits for the head of an answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping it is an end of the exchange, and recorded as one.
    #[derive(Debug)]
    pub struct MeterFuture<F> {
        #[pin]
        inner: F,
        // After the future: what is further in ends before.
        shaper: Option<Shaper<Box<Metering>>>,
        abandon: Abandon,
    }
}

/// The body of an answer that is watched.
pub type MeteredBody<B> = Drained<Shaped<B, Box<Metering>>, Abandon>;

// === impl Meter ===

impl<S> Meter<S> {
    pub(super) fn new(inner: S, rules: Arc<Rules>) -> Self {
        Self { inner, rules }
    }
}

impl<S, R, B> Service<Request<R>> for Meter<S>
where
    R: 'static,
    S: Service<Request<R>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<MeteredBody<B>>;
    type Error = BoxError;
    type Future = MeterFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<R>) -> Self::Future {
        let exchange = Exchange::of(request.extensions_mut());
        let abandon = Abandon::new(self.rules.bounds.clone());
        let mut metering = Metering::new(exchange, request.method(), request.uri().path(), self.rules.clone());
        // Whatever body the service takes; only of one that was read there is a prompt to count.
        if let Some(RequestBody::Replay(body, _)) = (request.body() as &dyn Any).downcast_ref() {
            metering.prompt(body);
        }
        let shaper = Shaper::new(Box::new(metering));
        MeterFuture { inner: self.inner.call(request), shaper: Some(shaper), abandon }
    }
}

// === impl MeterFuture ===

impl<F, B, E> Future for MeterFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Output = Result<Response<MeteredBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let mut shaper = this.shaper.take().expect("a future is not polled after it was ready");
        Poll::Ready(match result {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                shaper.get_mut().head(&mut head);
                let body = Drained::new(Shaped::with_shaper(body, shaper), this.abandon.clone());
                Ok(Response::from_parts(head, body))
            }
            Err(error) => {
                let error = error.into();
                shaper.end(Ending::Failed(&error), &mut Out::default());
                Err(error)
            }
        })
    }
}
