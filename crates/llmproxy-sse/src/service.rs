//! The service: what is known from the head, and the wait for it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
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
use llmproxy_core::{
    Api, BoxError, Exchange, RequestBody, Target, ToBackend, Upgrade,
    body::{Ending, Observe, Observed, Shaped},
};
use pin_project_lite::pin_project;
use tokio::{io::AsyncWrite, time::Instant};
use tower::Service;

use crate::{
    SseError, metrics,
    stream::{Allowance, Events, Stream},
    timer::Timer,
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
        timer: Timer,
    }
}

/// The limit of the wait for the first byte.
#[derive(Clone, Debug)]
struct First {
    after: Duration,
    upload: Upload,
}

/// A client that has said all keeps nobody waiting: how long the backend has for the rest is whoever moves the bytes to say.
/// This is only so that it ends.
const AFTERWARDS: Duration = Duration::from_secs(60);

/// The way to the backend, with a note of when something passed.
struct Noted {
    inner: ToBackend,
    passed: Upload,
}

/// Since when only the backend is waited for: since the last piece of a request's body that passes through, where it does.
/// A client may take longer to send a recording than a backend may to answer.
#[derive(Clone, Debug)]
pub(crate) struct Upload(Arc<Mutex<Instant>>);

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
            .map(|after| First { after, upload: Upload::begin() });
        if let Some(first) = &first {
            body = body.map_stream(|stream| Observed::new(stream, first.upload.clone()));
        }
        let inner = self.inner.call(Request::from_parts(head, body));
        SseFuture { inner, settings: self.settings, api, first, timer: Timer::default() }
    }
}

// === impl First ===

impl First {
    fn at(&self) -> Instant {
        self.upload.last() + self.after
    }

    fn left(&self) -> Allowance {
        Allowance { left: self.at().saturating_duration_since(Instant::now()), after: self.after }
    }
}

// === impl Upload ===

impl Upload {
    fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passed(&self) {
        self.passes(Instant::now());
    }

    fn passes(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

impl Observe for Upload {
    fn chunk(&mut self, _: &Bytes) {
        self.passed();
    }

    fn end(self, _: Ending<'_>) {
        self.passed();
    }
}

// === impl Noted ===

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.inner.as_mut().poll_write(cx, data));
        self.passed.passed();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.passed.passes(Instant::now() + AFTERWARDS);
        self.inner.as_mut().poll_shutdown(cx)
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
            let first = this.first.as_ref().map(First::left);
            let whole = first.filter(|_| has_type(&head.headers, "application/json"));
            let events = prepare(&mut head.headers, head.status, &body, *this.settings, *this.api);
            let stream = match other_way(&head) {
                Some(passed) => Stream::tunnel(timer, this.settings.gap, passed),
                None => Stream::new(timer, first, this.settings.gap, whole, events),
            };
            return Poll::Ready(Ok(Response::from_parts(head, Shaped::new(body, Box::new(stream)))));
        }
        let Some(first) = this.first else { return Poll::Pending };
        ready!(this.timer.poll(first.at(), cx));
        let error = SseError::FirstByte { after: first.after };
        metrics::timeout(error.kind());
        Poll::Ready(Err(error.ended()))
    }
}

/// When something passed the other way, where the answer is a tunnel: there only both sides' silence is one.
fn other_way(head: &Parts) -> Option<Upload> {
    let upgrade = head.extensions.get::<Upgrade>().filter(|_| head.status == StatusCode::SWITCHING_PROTOCOLS)?;
    let passed = Upload::begin();
    upgrade.map_to_backend(|inner| Box::pin(Noted { inner, passed: passed.clone() }));
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
