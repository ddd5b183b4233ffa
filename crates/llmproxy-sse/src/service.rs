//! The service: what is known from the head, and the wait for it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use http_body::Body;
use llmproxy_core::{Api, BoxError, Exchange, RequestBody, Target, Upgrade, body::Shaped};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use crate::{
    SseError, metrics,
    stream::{Allowance, Events, Stream},
    timer::Timer,
    upload::{Noted, NotedWay, Upload},
};

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Made by [`SseLayer`](crate::SseLayer), where there is an example.
///
/// # Errors
///
/// The inner service's, and an [`SseError`] inside of an [`Ended`](llmproxy_core::Ended) where the head does not come in
/// time. After the head the body fails by the same.
///
/// # Cancel safety
///
/// Dropping the future, or the body, drops the inner one and the timer.
#[derive(Clone, Debug)]
pub struct Sse<S> {
    inner: S,
    settings: Settings,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) gap: Option<Duration>,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) quiet_start: bool,
}

pin_project! {
    /// Made by [`Sse`]: the wait for the head, not longer than the backend's timeout.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner future, and so ends the exchange with the backend.
    #[derive(Debug)]
    pub struct SseFuture<F> {
        #[pin]
        inner: F,
        settings: Settings,
        api: Api,
        first: Option<First>,
        // Of a body that passes through.
        upload: Option<Upload>,
        timer: Timer,
    }
}

/// The limit of the wait for the first byte.
#[derive(Clone, Copy, Debug)]
struct First {
    after: Duration,
    began: Instant,
}

// === impl Sse ===

impl<S> Sse<S> {
    pub(crate) fn new(inner: S, settings: Settings) -> Self {
        Self { inner, settings }
    }
}

impl<S, B> Service<Request<RequestBody>> for Sse<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Response = Response<Shaped<B, Box<Stream>>>;
    type Error = BoxError;
    type Future = SseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let (head, mut body) = request.into_parts();
        let api = head
            .extensions
            .get::<Arc<Exchange>>()
            .and_then(|exchange| Some(exchange.call()?.endpoint.api()))
            .unwrap_or(Api::OpenAi);
        let first = head
            .extensions
            .get::<Target>()
            .map(|target| target.backend.timeout)
            .filter(|timeout| !timeout.is_zero())
            .map(|after| First { after, began: Instant::now() });
        let upload = (!matches!(body, RequestBody::Replay(..))).then(Upload::begin);
        if let Some(upload) = &upload {
            body = body.map_stream(|stream| Noted::new(stream, upload.clone()));
        }
        let inner = self.inner.call(Request::from_parts(head, body));
        SseFuture { inner, settings: self.settings, api, first, upload, timer: Timer::default() }
    }
}

// === impl First ===

impl First {
    /// While the client is waited for this moves on, and the timer that was set for it fires too early.
    fn at(self, upload: Option<&Upload>) -> Instant {
        upload.map_or(self.began, Upload::last) + self.after
    }

    fn left(self, upload: Option<&Upload>) -> Allowance {
        Allowance { left: self.at(upload).saturating_duration_since(Instant::now()), after: self.after }
    }
}

// === impl SseFuture ===

impl<F, B, E> Future for SseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Output = Result<Response<Shaped<B, Box<Stream>>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            let (mut head, body) = result.map_err(Into::into)?.into_parts();
            let timer = std::mem::take(this.timer);
            let upload = this.upload.take();
            let first = this.first.map(|first| first.left(upload.as_ref()));
            let whole = first.filter(|_| has_type(&head.headers, "application/json"));
            let events = prepare(&mut head.headers, head.status, &body, *this.settings, *this.api);
            let stream = match other_way(&head) {
                Some(passed) => Stream::tunnel(timer, this.settings.gap, passed),
                None => Stream::new(timer, first, this.settings.gap, whole, events).with_upload(upload),
            };
            return Poll::Ready(Ok(Response::from_parts(head, Shaped::new(body, Box::new(stream)))));
        }
        let Some(first) = this.first else { return Poll::Pending };
        ready!(this.timer.poll(first.at(this.upload.as_ref()), cx));
        let error = SseError::FirstByte { after: first.after };
        metrics::timeout(error.kind());
        Poll::Ready(Err(error.ended()))
    }
}

/// When something passed the other way, where the answer is a tunnel: there only both sides' silence is one.
fn other_way(head: &Parts) -> Option<Upload> {
    let upgrade = head.extensions.get::<Upgrade>().filter(|_| head.status == StatusCode::SWITCHING_PROTOCOLS)?;
    let passed = Upload::begin();
    upgrade.map_to_backend(|inner| Box::pin(NotedWay::new(inner, passed.clone())));
    Some(passed)
}

/// What an event stream's head lacks; and what may be put into its body, if anything may.
fn prepare(
    headers: &mut HeaderMap,
    status: StatusCode,
    body: &impl Body,
    settings: Settings,
    api: Api,
) -> Option<Events> {
    if !has_type(headers, "text/event-stream") {
        return None;
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    headers.entry(X_ACCEL_BUFFERING).or_insert(HeaderValue::from_static("no"));
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return None;
    }
    let heartbeat = settings.heartbeat.filter(|_| status == StatusCode::OK && !body.is_end_stream());
    if heartbeat.is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    // Whoever promised a length would cut an error event off there, and it would look like a clean end.
    let is_open_ended =
        heartbeat.is_some() || (body.size_hint().exact().is_none() && !headers.contains_key(CONTENT_LENGTH));
    Some(Events::new(api, heartbeat, is_open_ended, settings.quiet_start))
}

fn has_type(headers: &HeaderMap, expected: &str) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().split(|&byte| byte == b';').next());
    essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(expected.as_bytes()))
}
