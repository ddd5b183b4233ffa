//! Errors become answers here, and only here.
//!
//! Below this layer nothing writes a status of its own: a refusal is an error, and the list in [`answer`] says what the
//! client sees of it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use llmproxy_auth::AuthError;
use llmproxy_balancer::BalanceError;
use llmproxy_core::{Api, ApiError, BoxError, Endpoint, cause_ref};
use llmproxy_metering::InspectError;
use llmproxy_ratelimit::{LimitedError, RateLimitError};
use llmproxy_sse::SseError;
use llmproxy_upstream::UpstreamError;
use llmproxy_usage::{Uncommitted, UsageError};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{message::MessageError, paths::PathError};

#[cfg(test)]
mod tests;

/// Left in the extensions of an answer that refuses: what the access log says of it.
#[derive(Clone, Debug)]
pub(crate) struct Refusal(pub(crate) Arc<str>);

/// What a client sees of an error.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) error: ApiError,
    pub(crate) headers: HeaderMap,
}

/// Makes [`Respond`].
///
/// For those who put single layers into a service of their own: the layers' error is a box, a router wants a service that
/// does not fail, and this stands between the two.
///
/// ```
/// use axum::{Router, routing::get};
/// use llmproxy_auth::AuthLayer;
/// use llmproxy_stack::RespondLayer;
/// use tower::ServiceBuilder;
///
/// let layers = ServiceBuilder::new().layer(RespondLayer::new()).layer(AuthLayer::disabled());
/// let app: Router = Router::new().route("/", get(async || "hello")).layer(layers);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RespondLayer(());

/// Turns the errors of all parts into answers: status, `Retry-After` and the like, and a body in the shape of the API
/// whose path was asked for; OpenAI's on a path that it does not know. An error that is no part's is a logged 500. An
/// answer that the inner service made itself passes as it is, whatever its status.
///
/// # Cancel safety
///
/// Dropping the future drops the inner one, and nothing else.
#[derive(Clone, Debug)]
pub struct Respond<S>(S);

pin_project! {
    /// The answer, or what is made of the error.
    #[derive(Debug)]
    pub struct RespondFuture<F> {
        #[pin]
        inner: F,
        api: Api,
    }
}

/// What the client sees of `error`: a flat list, one entry for each part's errors.
pub(crate) fn answer(error: &(dyn std::error::Error + 'static)) -> Answer {
    if let Some(error) = cause_ref::<MessageError>(error) {
        return Answer::new(error.status(), error.code(), error);
    }
    if let Some(error) = cause_ref::<PathError>(error) {
        return match error {
            PathError::Unknown(_) => Answer::new(StatusCode::NOT_FOUND, "not_found", error),
            PathError::Ambiguous => Answer::new(StatusCode::BAD_REQUEST, "bad_path", error),
        };
    }
    if let Some(error) = cause_ref::<AuthError>(error) {
        return Answer::new(error.status(), error.code(), error)
            .with_header(header::WWW_AUTHENTICATE, (error.status() == StatusCode::UNAUTHORIZED).then_some("Bearer"));
    }
    if let Some(error) = cause_ref::<InspectError>(error) {
        let mut answer = Answer::new(error.status(), error.code(), error).with_retry_after(error.retry_after());
        answer.error.param = error.param();
        return answer;
    }
    if let Some(error) = cause_ref::<UsageError>(error) {
        let code = match error {
            UsageError::Full => "usage_queue_full",
            UsageError::Unwritable => "usage_not_written",
        };
        return Answer::new(StatusCode::SERVICE_UNAVAILABLE, code, error).with_retry_after(Some(error.retry_after()));
    }
    // Of an answer without a body; one that has a body is broken off.
    if let Some(error) = cause_ref::<Uncommitted>(error) {
        return Answer::new(StatusCode::SERVICE_UNAVAILABLE, "usage_not_written", error)
            .with_retry_after(Some(UsageError::Unwritable.retry_after()));
    }
    if let Some(error) = cause_ref::<RateLimitError>(error) {
        let mut answer = Answer::new(error.status(), error.code(), error);
        answer.headers.extend(error.headers());
        return answer;
    }
    // Before what the balancer makes of it: the path is the client's, not a backend's.
    if let Some(error @ UpstreamError::Path { .. }) = cause_ref::<UpstreamError>(error) {
        return Answer::new(StatusCode::BAD_REQUEST, "bad_path", error);
    }
    if let Some(error) = cause_ref::<BalanceError>(error) {
        let mut answer = Answer::new(error.status(), error.code(), error).with_retry_after(error.retry_after());
        answer.error.param = error.param();
        return answer;
    }
    if let Some(error) = cause_ref::<SseError>(error) {
        return Answer::new(StatusCode::GATEWAY_TIMEOUT, "backend_timeout", error);
    }
    if let Some(error) = cause_ref::<UpstreamError>(error) {
        return Answer::new(StatusCode::BAD_GATEWAY, "backend_error", error);
    }
    tracing::error!(%error, "an error that no part answers for");
    Answer::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        &"the proxy failed in a way that it does not know; its log says more",
    )
}

// === impl Answer ===

impl Answer {
    pub(crate) fn new(status: StatusCode, code: &str, message: &dyn std::fmt::Display) -> Self {
        Self { error: ApiError::new(status, code, message.to_string()), headers: HeaderMap::new() }
    }

    fn with_retry_after(self, after: Option<Duration>) -> Self {
        // Whole seconds, rounded up: who comes back a moment early is refused again.
        let seconds = after.map(|after| after.as_millis().div_ceil(1000).max(1).to_string());
        self.with_header(header::RETRY_AFTER, seconds.as_deref())
    }

    fn with_header(mut self, name: HeaderName, value: Option<&str>) -> Self {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The answer in the shape of `api`.
    pub(crate) fn into_response(self, api: Api) -> Response<Body> {
        let mut response = Response::new(Body::from(self.error.body(api)));
        *response.status_mut() = self.error.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response.extensions_mut().insert(Refusal(self.error.message.into()));
        response
    }
}

// === impl RespondLayer ===

impl RespondLayer {
    /// It stands outside of all layers whose errors it turns into answers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond(inner)
    }
}

// === impl Respond ===

impl<S, B, R> Service<Request<B>> for Respond<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = BoxError>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // No layer of ours refuses here; one that did would do so again in `call`, where it can be answered.
        self.0.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let api = Endpoint::of(request.uri().path()).api();
        RespondFuture { inner: self.0.call(request), api }
    }
}

impl<F, R> Future for RespondFuture<F>
where
    F: Future<Output = Result<Response<R>, BoxError>>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(match ready!(this.inner.poll(cx)) {
            // The one box at the edge.
            Ok(response) => response.map(Body::new),
            Err(error) => {
                let mut answer = answer(&*error);
                // A request that had passed the limits says what is left of them, whatever came of it.
                if let Some(limited) = cause_ref::<LimitedError>(&*error) {
                    answer.headers.extend(limited.standing.headers());
                }
                answer.into_response(*this.api)
            }
        }))
    }
}
