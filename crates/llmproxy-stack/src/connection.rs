//! One client's connection: from its acceptance to HTTP/1 or HTTP/2, and to its end.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::TokioIo;
use llmproxy_core::{
    Api, ApiError, BoxError, Upgrade,
    body::{Hold, ObserveFuture, Observed, observe},
};
use pin_project_lite::pin_project;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Timeout, timeout},
};
use tokio_rustls::{Accept, TlsAcceptor};
use tower::{Service, util::Oneshot};

use crate::{
    OverTls, Peer,
    http2::{self, Http2},
    io::{Activity, Busy, Patience, PatientIo},
    metrics::{CLIENT_TIMEOUTS, CONNECTIONS},
    pace::{PacedBody, PacedFuture},
    refusals::Refusals,
    tls::chose_http2,
    transport::Transport,
    tunnel::{self, Handed, Handing},
};

/// What answers requests: any service that fits, by a name.
pub(crate) trait Handler: Clone + Send + 'static {
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    type Error: Into<BoxError>;
    type Future: Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;

    fn handle(&self, request: Request<Body>) -> Self::Future;
}

/// What all connections of a server have in common.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) http1: http1::Builder,
    pub(crate) patience: Patience,
    pub(crate) max_header_bytes: usize,
    pub(crate) max_headers: usize,
    /// Whether HTTP/2 is spoken.
    pub(crate) http2: bool,
    /// Of one HTTP/2 connection at a time.
    pub(crate) max_streams: u32,
    pub(crate) refusals: Refusals,
}

/// Hands the requests of one connection over.
pub(crate) struct Requests<S> {
    handler: S,
    tls: bool,
    pub(crate) activity: Arc<Activity>,
    /// What the connection becomes; made when a client asks for it.
    upgrade: OnceLock<Upgrade>,
}

type Io = TokioIo<PatientIo<Transport>>;
type Http1<S> = http1::Connection<Io, Requests<S>>;

pin_project! {
    /// The connection. Not an async block: it would have room for it twice, before and while it is waited for.
    pub(crate) struct Connection<S: Handler, C> {
        phase: Phase<S>,
        setup: Arc<Setup>,
        activity: Arc<Activity>,
        // Ready when the server closes.
        #[pin]
        closing: C,
        closed: bool,
        // Held as long as the connection or a stream of it lives.
        alive: watch::Receiver<()>,
        open: Open,
    }
}

/// What a connection is at.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all connections are the large one, which a box would only make larger"
)]
enum Phase<S: Handler> {
    /// Keys are agreed upon.
    Handshake(Pin<Box<Timeout<Accept<TcpStream>>>>, S),
    Http1(Http1<S>),
    /// In a box: it is large, and few connections are one.
    Http2(Pin<Box<Http2<S>>>),
    /// HTTP is over.
    Tunnel(Pin<Box<dyn Future<Output = ()> + Send>>),
    Over,
}

/// Counts a connection as long as it lives.
struct Open;

/// An error with what caused it.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

/// Serves a connection, encrypted by `tls`, until its end, or until `closing` is ready and its last request is over.
pub(crate) fn serve<S: Handler, C: Future<Output = ()>>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: SocketAddr,
    handler: S,
    setup: Arc<Setup>,
    closing: C,
    alive: watch::Receiver<()>,
) -> Connection<S, C> {
    let activity = Arc::new(Activity::new(peer));
    let phase = match tls {
        Some(tls) => Phase::Handshake(Box::pin(timeout(setup.patience.head, tls.accept(stream))), handler),
        None => {
            let requests = Requests::new(handler, false, activity.clone());
            Phase::begin(Transport::Plain(stream), requests, &setup, None)
        }
    };
    Connection { phase, setup, activity, closing, closed: false, alive, open: Open::new() }
}

// === impl Handler ===

impl<S, R> Handler for S
where
    S: Service<Request<Body>, Response = Response<R>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = R;
    type Error = S::Error;
    type Future = Oneshot<S, Request<Body>>;

    fn handle(&self, request: Request<Body>) -> Self::Future {
        Oneshot::new(self.clone(), request)
    }
}

// === impl Requests ===

/// Nothing in it is pinned: each request is given to a clone.
impl<S> Unpin for Requests<S> {}

impl<S: Handler> hyper::service::Service<Request<Incoming>> for Requests<S> {
    type Response = Response<PacedBody<Handed<Observed<S::Body, Hold<Busy>>>>>;
    type Error = BoxError;
    type Future = PacedFuture<Handing<ObserveFuture<S::Future, Hold<Busy>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = self.activity.begin();
        let mut request = request.map(Body::new);
        if tunnel::is_wanted(&request) {
            request.extensions_mut().insert(self.upgrade.get_or_init(Upgrade::default).clone());
        }
        PacedFuture::new(Handing { inner: self.answer(request, busy) }, self.activity.clone())
    }
}

impl<S: Handler> Requests<S> {
    fn new(handler: S, tls: bool, activity: Arc<Activity>) -> Self {
        Self { handler, tls, activity, upgrade: OnceLock::new() }
    }

    /// Has a request answered that is counted as long as `busy` lives.
    pub(crate) fn answer(&self, mut request: Request<Body>, busy: Busy) -> ObserveFuture<S::Future, Hold<Busy>> {
        request.extensions_mut().insert(Peer(self.activity.peer));
        if self.tls {
            request.extensions_mut().insert(OverTls);
        }
        observe(self.handler.handle(request), Hold(busy))
    }
}

// === impl Connection ===

impl<S: Handler, C: Future<Output = ()>> Future for Connection<S, C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if !*this.closed && this.closing.poll(cx).is_ready() {
            *this.closed = true;
            this.activity.close();
            match this.phase {
                // Nothing was asked yet.
                Phase::Handshake(..) => return Poll::Ready(()),
                Phase::Http1(connection) => Pin::new(connection).graceful_shutdown(),
                Phase::Http2(connection) => connection.as_mut().graceful_shutdown(),
                // It has the time that streams have.
                Phase::Tunnel(_) | Phase::Over => {}
            }
        }
        loop {
            let next = match this.phase {
                Phase::Handshake(handshake, handler) => match handshake.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Ok(stream))) => {
                        let http2 = chose_http2(stream.get_ref().1);
                        let requests = Requests::new(handler.clone(), true, this.activity.clone());
                        let alive = http2.then_some(&*this.alive);
                        Phase::begin(Transport::Tls(Box::new(stream)), requests, this.setup, alive)
                    }
                    Poll::Ready(Ok(Err(error))) => {
                        tracing::debug!(peer = %this.activity.peer, %error, "no TLS connection came about");
                        return Poll::Ready(());
                    }
                    Poll::Ready(Err(_)) => {
                        metrics::counter!(CLIENT_TIMEOUTS, "kind" => "handshake").increment(1);
                        return Poll::Ready(());
                    }
                },
                Phase::Http1(connection) => match Pin::new(connection).poll(cx) {
                    Poll::Pending if !this.activity.saw_preface() => return Poll::Pending,
                    Poll::Pending => {
                        let Phase::Http1(connection) = std::mem::replace(this.phase, Phase::Over) else { continue };
                        let parts = connection.into_parts();
                        let io = parts.io.into_inner();
                        Phase::Http2(http2::serve(io, parts.service, this.setup.clone(), this.alive.clone()))
                    }
                    Poll::Ready(result) => {
                        let Phase::Http1(connection) = std::mem::replace(this.phase, Phase::Over) else { continue };
                        let parts = connection.into_parts();
                        let mut io = parts.io.into_inner();
                        if let Err(error) = result {
                            ended(&error, this.activity.peer);
                            refused(&error, &mut io, this.activity, &this.setup.refusals, cx);
                            return Poll::Ready(());
                        }
                        match parts.service.upgrade.get().and_then(Upgrade::take) {
                            Some(tunnel) => {
                                Phase::Tunnel(Box::pin(tunnel::run(io.into_tunnel(), parts.read_buf, tunnel)))
                            }
                            None => return Poll::Ready(()),
                        }
                    }
                },
                Phase::Http2(connection) => {
                    let told = this.activity.is_closing();
                    match connection.as_mut().poll(cx) {
                        Poll::Pending if told == this.activity.is_closing() => return Poll::Pending,
                        Poll::Pending => {
                            connection.as_mut().graceful_shutdown();
                            continue;
                        }
                        Poll::Ready(result) => {
                            result.unwrap_or_else(|error| ended(&error, this.activity.peer));
                            return Poll::Ready(());
                        }
                    }
                }
                Phase::Tunnel(tunnel) => return tunnel.as_mut().poll(cx),
                Phase::Over => return Poll::Ready(()),
            };
            *this.phase = next;
            if *this.closed {
                // The first request is served all the same: it may be under way.
                match this.phase {
                    Phase::Http1(connection) => Pin::new(connection).graceful_shutdown(),
                    Phase::Http2(connection) => connection.as_mut().graceful_shutdown(),
                    _ => {}
                }
            }
        }
    }
}

/// A client that leaves, or a stream that was broken off on purpose: each is told where it is decided.
fn ended(error: &hyper::Error, peer: SocketAddr) {
    tracing::debug!(%peer, error = %Chain(error), "connection ended");
}

/// Answers a head that never became a request, and writes it down: one that was not complete in time (RFC 9110, 15.5.9),
/// or that hyper can't read.
fn refused(
    error: &hyper::Error,
    io: &mut PatientIo<Transport>,
    activity: &Activity,
    refusals: &Refusals,
    cx: &mut Context<'_>,
) {
    let is_late = activity.is_head_late();
    let (status, code, why) = match error {
        _ if is_late => {
            metrics::counter!(CLIENT_TIMEOUTS, "kind" => "head").increment(1);
            let why = "the request's head was not complete in time (server.read_timeout)".to_owned();
            (StatusCode::REQUEST_TIMEOUT, "head_timeout", why)
        }
        _ if !error.is_parse() || error.is_parse_version_h2() => return,
        _ if error.is_parse_too_large() && error.to_string().contains("URI") => {
            (StatusCode::URI_TOO_LONG, "url_too_long", "the request's URL is too long".to_owned())
        }
        _ if error.is_parse_too_large() => {
            let why = "the request's head is too large, or has too many headers (server.max_header_bytes, server.max_headers)";
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", why.to_owned())
        }
        error => {
            let why = format!("the request's head is no HTTP/1.1: {}", Chain(error));
            (StatusCode::BAD_REQUEST, "bad_request", why)
        }
    };
    let id = refusals.note(activity.peer, status, &why);
    if is_late || activity.is_withheld() {
        io.answer(cx, own_answer(ApiError::new(status, code, why), &id).as_bytes());
    }
}

/// An answer as it is on the wire.
fn own_answer(error: ApiError, id: &HeaderValue) -> String {
    let (status, body) = (error.status, error.body(Api::OpenAi));
    let (length, id) = (body.len(), id.to_str().unwrap_or_default());
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         x-request-id: {id}\r\n\r\n{body}"
    )
}

// === impl Phase ===

impl<S: Handler> Phase<S> {
    /// HTTP/2 where that was agreed upon, with what its streams hold; else HTTP/1, unless the client begins the other.
    fn begin(
        transport: Transport,
        requests: Requests<S>,
        setup: &Arc<Setup>,
        agreed: Option<&watch::Receiver<()>>,
    ) -> Self {
        let may_turn = setup.http2 && agreed.is_none();
        let io = PatientIo::new(transport, setup.patience, requests.activity.clone(), may_turn);
        match agreed {
            Some(alive) => Self::Http2(http2::serve(io, requests, setup.clone(), alive.clone())),
            None => Self::Http1(setup.http1.serve_connection(TokioIo::new(io), requests)),
        }
    }
}

// === impl Open ===

impl Open {
    fn new() -> Self {
        metrics::gauge!(CONNECTIONS).increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(CONNECTIONS).decrement(1);
    }
}

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}
