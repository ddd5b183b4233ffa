//! The service: reads the facts, has the limiter decide, and keeps the permit until the answer has ended.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response};
use http_body::Body;
use llmproxy_core::{
    BoxError, Exchange, FlowKey,
    body::{Hold, ObserveFuture, Observed, observe},
};
use pin_project_lite::pin_project;
use tower::Service;

use crate::{LimitedError, Permit, RateLimitError, RateLimiter, Standing, metrics};

/// Limits the requests to `S`. Made by [`RateLimitLayer`](crate::RateLimitLayer), where there is an example.
///
/// # Errors
///
/// A [`RateLimitError`] where the limiter refuses, and a [`LimitedError`] around whatever the inner service says.
///
/// # Cancel safety
///
/// Dropping the future, or the body of the answer, ends the request: it no longer counts as in flight. Its tokens are
/// given back where a balancer has asked no backend.
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    limiter: Arc<RateLimiter>,
}

/// A permit on its way with an answer; dropped with it, and refunded where no backend was asked.
#[derive(Debug)]
pub struct HeldPermit {
    permit: Permit,
    exchange: Arc<Exchange>,
}

pin_project! {
    /// What [`RateLimit`] answers with.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the request: it no longer counts as in flight.
    #[derive(Debug)]
    pub struct RateLimitFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProjection]
    #[derive(Debug)]
    enum State<F> {
        Called { #[pin] future: ObserveFuture<F, Hold<HeldPermit>>, standing: Standing },
        Refused { error: Option<RateLimitError> },
    }
}

// === impl RateLimit ===

impl<S> RateLimit<S> {
    /// Limits `inner` by `limiter`.
    pub fn new(inner: S, limiter: Arc<RateLimiter>) -> Self {
        Self { inner, limiter }
    }
}

impl<S, A, B> Service<Request<A>> for RateLimit<S>
where
    S: Service<Request<A>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body,
{
    type Response = Response<Observed<B, Hold<HeldPermit>>>;
    type Error = BoxError;
    type Future = RateLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let exchange = Exchange::of(request.extensions_mut());
        // Whether limits are on or not: whoever routes is told of a caller what its key says, and no more.
        if let Some(tag) = exchange.caller().and_then(|caller| caller.tag()) {
            exchange.set_flow(FlowKey { tag: Some(tag.clone()) });
        }
        // Nothing is generated for what is not posted; a WebSocket, whose tokens nobody counts, is none of it either.
        let checked = if *request.method() == Method::POST {
            self.limiter.check(exchange.caller(), exchange.call(), exchange.client_ip())
        } else {
            self.limiter.check_lookup(exchange.caller(), exchange.call(), exchange.client_ip())
        };
        let state = match checked {
            Ok(permit) => {
                if let Some(sink) = permit.sink() {
                    exchange.add_sink(sink);
                }
                let standing = *permit.standing();
                let held = Hold(HeldPermit { permit, exchange });
                State::Called { future: observe(self.inner.call(request), held), standing }
            }
            Err(error) => {
                metrics::refused(&error);
                State::Refused { error: Some(error) }
            }
        };
        RateLimitFuture { state }
    }
}

// === impl HeldPermit ===

impl Drop for HeldPermit {
    fn drop(&mut self) {
        // The answer has ended, so that nobody will be asked any more; and where nobody was, no record will come.
        if self.exchange.is_unasked() {
            self.permit.refund();
        }
    }
}

// === impl RateLimitFuture ===

impl<F, B, E> Future for RateLimitFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: Into<BoxError>,
{
    type Output = Result<Response<Observed<B, Hold<HeldPermit>>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Called { future, standing } => {
                let mut response =
                    ready!(future.poll(cx)).map_err(|source| LimitedError { standing: *standing, source })?;
                for (name, value) in standing.headers() {
                    response.headers_mut().insert(name, value);
                }
                Poll::Ready(Ok(response))
            }
            StateProjection::Refused { error } => {
                Poll::Ready(Err(error.take().expect("a future is not polled after it was ready").into()))
            }
        }
    }
}
