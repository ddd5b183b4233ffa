//! The service and its future: from the request to the head of the answer.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH};
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
/// Where an [`EndHold`](llmproxy_core::EndHold) was left in the exchange, the end of the answer waits for it; see [`Metering`].
/// So does an error in the place of an answer, and the head of an answer without a body.
///
/// # Errors
///
/// The inner service's, as they are; that of the hold, where an answer has no body and its record is not kept.
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
    /// Waits for the head of an answer; where that is an end, and the end is held, until it may pass.
    ///
    /// # Cancel safety
    ///
    /// Dropping it is an end of the exchange, and recorded as one.
    #[derive(Debug)]
    pub struct MeterFuture<F, B> {
        #[pin]
        inner: F,
        // What it has come to, where that is an end that has to wait. Rarely there.
        held: Option<Box<Result<Response<B>, BoxError>>>,
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
    type Future = MeterFuture<S::Future, B>;

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
        MeterFuture { inner: self.inner.call(request), held: None, shaper: Some(shaper), abandon }
    }
}

// === impl MeterFuture ===

impl<F, B, E> Future for MeterFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Output = Result<Response<MeteredBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let shaper = this.shaper.as_mut().expect("a future is not polled after it was ready");
        let result = match this.held.take() {
            Some(held) => *held,
            None => see(ready!(this.inner.poll(cx)).map_err(Into::into), shaper),
        };
        let result = match shaper.poll_end(cx) {
            Poll::Pending => {
                *this.held = Some(Box::new(result));
                return Poll::Pending;
            }
            // What has failed has failed by its own error.
            Poll::Ready(released) => result.and_then(|response| released.map(|()| response)),
        };
        let shaper = this.shaper.take().expect("it was there");
        Poll::Ready(result.map(|response| {
            let (head, body) = response.into_parts();
            Response::from_parts(head, Drained::new(Shaped::with_shaper(body, shaper), this.abandon.clone()))
        }))
    }
}

/// Tells the meter what the wait has come to.
fn see<B: Body>(
    result: Result<Response<B>, BoxError>,
    shaper: &mut Shaper<Box<Metering>>,
) -> Result<Response<B>, BoxError> {
    match result {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            // A server gives the head of such a body and never polls it. An HTTP/2 backend may say both one after the other.
            let is_empty = head.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
            let is_over = body.is_end_stream() || is_empty;
            shaper.get_mut().head(&mut head);
            if is_over {
                shaper.end(Ending::Complete, &mut Out::default());
            }
            Ok(Response::from_parts(head, body))
        }
        Err(error) => {
            shaper.end(Ending::Failed(&error), &mut Out::default());
            Err(error)
        }
    }
}
