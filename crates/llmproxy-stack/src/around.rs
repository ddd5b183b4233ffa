//! Around every request: a span, so that what is logged on the way says which request it was, and a net for panics.
//!
//! tower-http has a layer for each. Together they box every answer's body once more and pass each of its frames through
//! four wrappers, for callbacks that nobody gives them.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use llmproxy_core::{Api, Exchange};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::Span;

use crate::respond::Answer;

/// Makes [`Around`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AroundLayer;

/// Enters the request's span whenever something is done for it until its answer's head is there: what is logged at the
/// end of a body names the request itself, and to enter a span for each chunk costs a third of what its meter does. A panic
/// before the head is this one request's end, an answer like any other, and not the connection's.
#[derive(Clone, Debug)]
pub(crate) struct Around<S>(S);

/// What a panic says.
type Panic = Box<dyn Any + Send>;

pin_project! {
    /// The answer, or what is made of a panic.
    pub(crate) struct AroundFuture<F> {
        #[pin]
        called: Called<F>,
        exchange: Option<Arc<Exchange>>,
        span: Span,
    }
}

pin_project! {
    #[project = CalledProjection]
    #[project_replace = CalledReplaced]
    enum Called<F> {
        Future { #[pin] future: F },
        Panicked { panic: Option<Panic> },
        Done,
    }
}

// === impl AroundLayer ===

impl<S> Layer<S> for AroundLayer {
    type Service = Around<S>;

    fn layer(&self, inner: S) -> Around<S> {
        Around(inner)
    }
}

// === impl Around ===

impl<S> Service<Request<Body>> for Around<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = AroundFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let exchange = request.extensions().get::<Arc<Exchange>>().cloned();
        let span =
            exchange.as_ref().map_or_else(Span::none, |exchange| tracing::info_span!("request", id = %exchange.id()));
        let called = span.in_scope(|| match catch_unwind(AssertUnwindSafe(|| self.0.call(request))) {
            Ok(future) => Called::Future { future },
            Err(panic) => Called::Panicked { panic: Some(panic) },
        });
        AroundFuture { called, exchange, span }
    }
}

// === impl AroundFuture ===

impl<F, E> Future for AroundFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _entered = this.span.enter();
        let response = match this.called.as_mut().project() {
            CalledProjection::Future { future } => match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(result) => ready!(result)?,
                Err(panic) => {
                    if let Some(exchange) = this.exchange {
                        exchange.set_panicked();
                    }
                    // Whatever is held for the exchange, and its record, end here and not when the answer has been read.
                    this.called.project_replace(Called::Done);
                    panicked(&*panic)
                }
            },
            CalledProjection::Panicked { panic } => {
                panicked(&*panic.take().expect("a future is not polled after it was ready"))
            }
            CalledProjection::Done => panic!("a future is not polled after it was ready"),
        };
        Poll::Ready(Ok(response))
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response<Body> {
    let what = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(what, "a request panicked");
    Answer::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        &"the proxy failed while it handled this request; its log says more",
    )
    .into_response(Api::OpenAi)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;
    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn check(what: &'static str, panics_in_call: bool) {
        let service = AroundLayer.layer(service_fn(move |_: Request<Body>| {
            assert!(!panics_in_call, "{what}");
            async move {
                if what.is_empty() {
                    return Ok::<_, Infallible>(Response::new(Body::from("well")));
                }
                panic!("{what}")
            }
        }));
        let response = service.oneshot(Request::new(Body::empty())).await.expect("infallible");
        let status = response.status();
        let text = response.into_body().collect().await.expect("a whole body").to_bytes();
        if what.is_empty() {
            assert_eq!((status, &text[..]), (StatusCode::OK, &b"well"[..]));
        } else {
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
            assert!(text.starts_with(b"{\"error\"") && !text.windows(what.len()).any(|part| part == what.as_bytes()));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_exchange_before_its_answer_is_read() {
        let mut request = Request::new(Body::empty());
        let exchange = Exchange::of(request.extensions_mut());
        let held = Arc::new(());
        let kept = held.clone();
        // What is in a layer's own future, not on the stack of the poll that fails.
        let failing = std::future::poll_fn(move |_| -> Poll<Result<Response<Body>, Infallible>> {
            panic!("{} hold it", Arc::strong_count(&kept))
        });
        let mut failing = Some(failing);
        let mut service = AroundLayer.layer(service_fn(move |_| failing.take().expect("called once")));
        let mut future = Box::pin(service.call(request));
        let response = future.as_mut().await.expect("infallible");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(exchange.is_panicked());
        assert_eq!(Arc::strong_count(&held), 1);
        drop(future);
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_wherever_it_happens() {
        check("", false).await;
        check("the future is broken", false).await;
        check("the call is broken", true).await;
    }
}
