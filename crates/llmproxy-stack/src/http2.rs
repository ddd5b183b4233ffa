//! HTTP/2 towards clients (RFC 9113): what hyper leaves to us of it.
//!
//! hyper runs each stream in a task of its own and asks its body for more as soon as it could put the last piece into the
//! stream's queue. Two things must be known of that queue and are not told: whether what was sent before a failure is on
//! its way, since a reset throws the rest away, and whether the client takes anything at all. So each piece of a body says
//! when it is written, and when it is gone.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::http2::{Builder, Connection},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use llmproxy_core::{
    ApiError, BoxError, Endpoint,
    body::{Hold, Observed},
};
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::Instant};

use crate::{
    connection::{Handler, Requests, Setup},
    io::{Busy, PatientIo},
    metrics::CLIENT_TIMEOUTS,
    request_body::WholeBody,
    timer::Timer,
    transport::Transport,
};

/// How often a client is asked whether it is there still; so long again it may take to answer.
const PING: Duration = Duration::from_secs(30);
/// The most of an answer that waits in a stream's queue for a client that does not read, in bytes, besides one piece.
const MAX_QUEUE: usize = 16 * 1024;
/// How much of a request's body a client may send ahead, in bytes: of one request, and of all on its connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection whose streams are served.
pub(crate) type Http2<S> = Connection<TokioIo<PatientIo<Transport>>, Streams<S>, Spawn>;

/// Serves the requests of one connection.
pub(crate) struct Streams<S> {
    requests: Requests<S>,
    setup: Arc<Setup>,
    spawn: Spawn,
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(crate) struct Spawn {
    /// The queue of the stream that is about to be run: hyper calls the service, then this with what came of it.
    next: Arc<Mutex<Option<Arc<Queue>>>>,
    write_timeout: Duration,
    /// Held by each task: the server waits at its end until nobody does.
    alive: watch::Receiver<()>,
}

pin_project! {
    /// A stream, as long as its client takes what it is sent.
    struct Stream<F> {
        #[pin]
        inner: F,
        // How long the client may take nothing.
        limit: Duration,
        queue: Option<Arc<Queue>>,
        timer: Timer,
        // Since when nothing was written, and how much had been by then.
        stalled: Option<(Instant, usize)>,
        _alive: watch::Receiver<()>,
    }
}

/// What is under way between a body and the socket.
#[derive(Debug, Default)]
struct Queue {
    pieces: AtomicUsize,
    /// Grows with each write.
    written: AtomicUsize,
    /// Woken when the queue is empty.
    waiter: AtomicWaker,
}

/// A piece of a body on its way.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Bytes,
    queue: Arc<Queue>,
}

pin_project! {
    /// A body that knows what has become of its pieces.
    pub(crate) struct Queued<B> {
        #[pin]
        inner: B,
        queue: Arc<Queue>,
        // What it failed with, kept until all before it is written.
        failure: Option<BoxError>,
    }
}

/// Begins to serve HTTP/2.
pub(crate) fn serve<S: Handler>(
    io: PatientIo<Transport>,
    requests: Requests<S>,
    setup: Arc<Setup>,
    alive: watch::Receiver<()>,
) -> Pin<Box<Http2<S>>> {
    let spawn = Spawn { next: Arc::default(), write_timeout: setup.patience.write, alive };
    let mut builder = Builder::new(spawn.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(setup.max_streams)
        .max_header_list_size(u32::try_from(setup.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(MAX_QUEUE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let service = Streams { requests, setup, spawn };
    Box::pin(builder.serve_connection(TokioIo::new(io.into_http2()), service))
}

// === impl Streams ===

impl<S: Handler> hyper::service::Service<Request<Incoming>> for Streams<S> {
    type Response = Response<Queued<Either<Observed<S::Body, Hold<Busy>>, Full<Bytes>>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let queue = Arc::<Queue>::default();
        *self.spawn.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue.clone());
        let busy = self.requests.activity.begin();
        let mut request = request.map(|body| Body::new(WholeBody(body)));
        if request.headers().len() > self.setup.max_headers {
            // HTTP/2 itself limits only the size of a head.
            let (status, why) = (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers (server.max_headers)");
            let id = self.setup.refusals.note(self.requests.activity.peer, status, why);
            let api = Endpoint::of(request.uri().path()).api();
            let body = ApiError::new(status, "head_too_large", why).body(api);
            let mut response = Response::new(Queued::new(Either::Right(body.into()), queue));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().insert("x-request-id", id);
            return Box::pin(async move {
                drop((request, busy));
                Ok(response)
            });
        }
        as_http1(&mut request);
        let answer = self.requests.answer(request, busy);
        Box::pin(async move { Ok(answer.await?.map(|body| Queued::new(Either::Left(body), queue))) })
    }
}

/// Writes down what HTTP/1 has in headers and HTTP/2 elsewhere, for all who read it there (RFC 9113, 8.2.3 and 8.3.1).
fn as_http1(request: &mut Request<Body>) {
    // Of two names for the host the authority counts.
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    join_cookies(request.headers_mut());
}

fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    if let (Some(_), Some(_)) = (all.next(), all.next()) {
        let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(header::COOKIE, whole);
        }
    }
}

// === impl Spawn ===

impl<F> Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, inner: F) {
        let queue = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (limit, _alive) = (self.write_timeout, self.alive.clone());
        tokio::spawn(Stream { inner, limit, queue, timer: Timer::default(), stalled: None, _alive });
    }
}

// === impl Stream ===

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.inner.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(queue) = this.queue else { return Poll::Pending };
        if queue.pieces.load(Ordering::Acquire) == 0 {
            *this.stalled = None;
            this.timer.disarm();
            return Poll::Pending;
        }
        let written = queue.written.load(Ordering::Acquire);
        let since = match *this.stalled {
            Some((since, known)) if known == written => since,
            _ => {
                let now = Instant::now();
                *this.stalled = Some((now, written));
                now
            }
        };
        if this.timer.poll(Some(since + *this.limit), cx).is_pending() {
            return Poll::Pending;
        }
        // The stream is reset by being dropped.
        metrics::counter!(CLIENT_TIMEOUTS, "kind" => "write").increment(1);
        Poll::Ready(())
    }
}

// === impl Piece ===

impl Piece {
    fn new(bytes: Bytes, queue: &Arc<Queue>) -> Self {
        queue.pieces.fetch_add(1, Ordering::AcqRel);
        Self { bytes, queue: queue.clone() }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.queue.written.fetch_add(count, Ordering::AcqRel);
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.queue.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.waiter.wake();
        }
    }
}

// === impl Queued ===

impl<B> Queued<B> {
    fn new(inner: B, queue: Arc<Queue>) -> Self {
        Self { inner, queue, failure: None }
    }
}

impl<B> http_body::Body for Queued<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Piece;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BoxError>>> {
        let this = self.project();
        if this.failure.is_none() {
            match ready!(this.inner.poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => {
                    return Poll::Ready(Some(Ok(frame.map_data(|bytes| Piece::new(bytes, this.queue)))));
                }
                Some(Err(error)) => *this.failure = Some(error.into()),
            }
        }
        this.queue.waiter.register(cx.waker());
        if this.queue.pieces.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        Poll::Ready(this.failure.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn stream(queue: &Arc<Queue>) -> Stream<std::future::Pending<()>> {
        let (inner, queue, _alive) = (std::future::pending(), Some(queue.clone()), watch::channel(()).1);
        Stream { inner, limit: LIMIT, queue, timer: Timer::default(), stalled: None, _alive }
    }

    async fn seconds(future: impl Future) -> u64 {
        let start = Instant::now();
        future.await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_which_nothing_is_written_is_given_up() {
        let queue = Arc::<Queue>::default();
        let _piece = Piece::new("waits".into(), &queue);
        assert_eq!(seconds(stream(&queue)).await, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn each_write_buys_time_and_an_empty_queue_all_of_it() {
        let queue = Arc::<Queue>::default();
        let mut piece = Piece::new("waits".into(), &queue);
        let stream = tokio::spawn({
            let stream = stream(&queue);
            async move { seconds(stream).await }
        });
        for _ in 0..5 {
            sleep(Duration::from_secs(50)).await;
            piece.advance(1);
        }
        assert!(!piece.has_remaining());
        drop(piece);
        sleep(Duration::from_secs(3600)).await;
        assert!(!stream.is_finished(), "nothing waits to be written");
        stream.abort();
    }

    #[tokio::test]
    async fn an_error_waits_until_all_before_it_is_gone() {
        let queue = Arc::<Queue>::default();
        let frames = [Ok(Frame::data(Bytes::from("one"))), Err(BoxError::from("it broke"))];
        let inner = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        let mut body = Box::pin(Queued::new(inner, queue));
        let piece = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
        let waits = tokio::spawn(async move {
            let error = body.frame().await.expect("an error").expect_err("an error");
            (error.to_string(), body.frame().await.is_none())
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(piece);
        assert_eq!(waits.await.expect("no panic"), ("it broke".to_owned(), true));
    }

    /// What a stream's task takes for its answer's body, in bytes.
    fn size_of_answer<S: Handler>(_: &S) -> usize {
        size_of::<<Streams<S> as hyper::service::Service<Request<Incoming>>>::Response>() - size_of::<Response<()>>()
            + size_of::<Stream<()>>()
    }

    #[tokio::test]
    async fn a_stream_takes_little_room() -> Result<(), BoxError> {
        let text = "backends: [{url: 'http://127.0.0.1:9'}]\n";
        let config = llmproxy_config::load_str(text, &Default::default())?.config;
        let runtime = crate::Runtime::start(&config, crate::Options::default()).await?;
        let size = size_of_answer(&runtime.service());
        assert!(size <= 384, "{size} bytes");
        Ok(())
    }

    #[test]
    fn crumbs_of_cookies_become_one_header_and_the_authority_is_the_host() {
        let request = Request::builder().uri("https://right:8443/v1").header(header::HOST, "wrong");
        let mut request =
            request.header(header::COOKIE, "a=1").header(header::COOKIE, "b=2").body(Body::empty()).expect("a request");
        as_http1(&mut request);
        let all = |name| request.headers().get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        assert_eq!((all(header::HOST), all(header::COOKIE)), (vec![&b"right:8443"[..]], vec![&b"a=1; b=2"[..]]));
    }
}
