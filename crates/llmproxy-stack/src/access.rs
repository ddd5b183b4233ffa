//! The outermost layer: every request gets an exchange, every answer an id, a log line and a count.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, response::Parts};
use http_body::Body;
use ipnet::IpNet;
use llmproxy_core::{
    BoxError, Endpoint, Exchange, Hop, StopFlag, UsageSink,
    body::{Ending, Observe, ObserveFuture, Observed, observe},
    labels,
};
use metrics::{Counter, Histogram};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    access_log::{AccessLog, Line},
    forwarded::{client_ip, is_trusted},
    metrics::{Known, LATENCY, REQUESTS},
    respond::Refusal,
};

const X_BACKEND: HeaderName = HeaderName::from_static("x-llmproxy-backend");
const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-llmproxy-attempts");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's own id is returned, logged and recorded; longer ones than this are cut off from that.
const MAX_CLIENT_ID: usize = 128;

/// The other end of the connection, left in the request's extensions by whoever accepts it. Without it no address is known:
/// a key with a list of addresses is refused, and callers without a key share one account.
///
/// ```
/// use llmproxy_stack::Peer;
///
/// let mut request = http::Request::new(axum::body::Body::empty());
/// request.extensions_mut().insert(Peer(([127, 0, 0, 1], 50_000).into()));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Says that the client's connection is encrypted; left beside [`Peer`] by whoever accepts it. Backends are told that the
/// request came by `https`, without it by `http`.
///
/// ```
/// use llmproxy_stack::OverTls;
///
/// let mut request = http::Request::new(axum::body::Body::empty());
/// request.extensions_mut().insert(OverTls);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OverTls;

/// What may change with a reload.
#[derive(Debug, Default)]
pub(crate) struct AccessSettings {
    /// Proxies before us whose word about where a request comes from is believed.
    pub(crate) trusted: Vec<IpNet>,
    pub(crate) log: Option<Arc<AccessLog>>,
    /// Whether answers say who gave them.
    pub(crate) explain: bool,
}

/// Makes [`Access`].
#[derive(Clone)]
pub(crate) struct AccessLayer {
    pub(crate) settings: Arc<ArcSwap<AccessSettings>>,
    pub(crate) stop: StopFlag,
    pub(crate) sinks: Arc<[Arc<dyn UsageSink>]>,
    pub(crate) series: Arc<Known<Kind, Series>>,
}

/// What requests are told apart by in the metrics.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    path: &'static str,
    stream: bool,
    backend: Option<Arc<str>>,
    status: u16,
}

/// Where requests of one kind are counted.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    requests: Counter,
    latency: Histogram,
}

/// The service.
#[derive(Clone)]
pub(crate) struct Access<S> {
    inner: S,
    layer: AccessLayer,
}

/// Writes the line and the count at the end of the answer.
pub(crate) struct AccessObserver {
    exchange: Arc<Exchange>,
    /// Of the URI only the path: it would keep the whole buffer that the head was read into.
    log: Option<(Arc<AccessLog>, http::Method, Box<str>)>,
    series: Arc<Known<Kind, Series>>,
    endpoint: Endpoint,
    status: Option<StatusCode>,
    error: Option<Arc<str>>,
}

pin_project! {
    /// Puts the request's id on the answer, and who gave it.
    pub(crate) struct AccessFuture<F> {
        #[pin]
        inner: ObserveFuture<F, AccessObserver>,
        exchange: Arc<Exchange>,
        explain: bool,
    }
}

// === impl AccessLayer ===

impl AccessLayer {
    /// Writes down an answer that came before there was a request, and gives the id that it has.
    pub(crate) fn note(&self, peer: SocketAddr, status: StatusCode, error: &str) -> HeaderValue {
        let exchange = Exchange::with_stop_flag(self.stop.clone());
        let status = status.as_u16();
        let kind = Kind { path: Endpoint::of("").template(), stream: false, backend: None, status };
        self.series.get(kind, Series::of).requests.increment(1);
        if let Some(log) = &self.settings.load().log {
            log.write(&Line {
                timestamp: exchange.timestamp(),
                request_id: exchange.id(),
                // What proxies before us say about it could not be read either.
                client_ip: Some(peer.ip().to_canonical()),
                method: "-",
                path: "-",
                status_code: status,
                latency_ms: 0,
                backend_url: None,
                api_key: "-",
                user_id: None,
                model: None,
                is_stream: false,
                end: None,
                error: Some(error),
            });
        }
        exchange.id_value()
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access { inner, layer: self.clone() }
    }
}

// === impl Access ===

impl<S, B, R> Service<Request<B>> for Access<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Response = Response<Observed<R, AccessObserver>>;
    type Error = BoxError;
    type Future = AccessFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let settings = self.layer.settings.load();
        let exchange = Exchange::with_stop_flag(self.layer.stop.clone());
        let hop = request.extensions().get::<Peer>().map(|peer| {
            let ip = peer.0.ip().to_canonical();
            let tls = request.extensions().get::<OverTls>().is_some();
            Hop { ip, tls, trusted: is_trusted(ip, &settings.trusted) }
        });
        let client_id = request.headers().get(X_REQUEST_ID).and_then(client_id);
        let ip = hop.and_then(|hop| client_ip(hop.ip, request.headers(), &settings.trusted));
        exchange.set_client(ip, client_id);
        if let Some(hop) = hop {
            exchange.set_hop(hop);
        }
        for sink in self.layer.sinks.iter() {
            exchange.add_sink(sink.clone());
        }
        request.extensions_mut().insert(exchange.clone());
        let observer = AccessObserver {
            exchange: exchange.clone(),
            log: settings.log.clone().map(|log| (log, request.method().clone(), request.uri().path().into())),
            series: self.layer.series.clone(),
            endpoint: Endpoint::of(request.uri().path()),
            status: None,
            error: None,
        };
        let explain = settings.explain;
        AccessFuture { inner: observe(self.inner.call(request), observer), exchange, explain }
    }
}

impl<F, R, E> Future for AccessFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
    E: Into<BoxError>,
{
    type Output = Result<Response<Observed<R, AccessObserver>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        set_request_id(this.exchange, response.headers_mut());
        explain(this.exchange, *this.explain, response.headers_mut());
        Poll::Ready(Ok(response))
    }
}

/// The id that a client gave, where it is fit to be returned and logged.
fn client_id(value: &HeaderValue) -> Option<Arc<str>> {
    let text = value.to_str().ok()?;
    (!text.is_empty() && text.len() <= MAX_CLIENT_ID).then(|| text.into())
}

// === impl Series ===

impl Series {
    fn of(kind: &Kind) -> Self {
        let Kind { path, stream, backend, status } = kind;
        let stream = if *stream { "true" } else { "false" };
        let backend = backend.as_deref().unwrap_or_default().to_owned();
        Self {
            requests: metrics::counter!(
                REQUESTS,
                "path" => *path, "stream" => stream, "backend" => backend.clone(), "status" => status.to_string()
            ),
            latency: metrics::histogram!(LATENCY, "path" => *path, "stream" => stream, "backend" => backend),
        }
    }
}

// === impl AccessObserver ===

impl Observe for AccessObserver {
    fn head(&mut self, head: &Parts) {
        self.status = Some(head.status);
        self.error = head.extensions.get::<Refusal>().map(|refusal| refusal.0.clone());
    }

    fn end(self, ending: Ending<'_>) {
        let exchange = &self.exchange;
        let latency = exchange.elapsed();
        // 499: the client left before there was an answer, as nginx writes it.
        let none = if exchange.is_stopped() { 503 } else { 499 };
        let status = self.status.map_or(none, |status| status.as_u16());
        let call = exchange.call();
        let stream = call.is_some_and(|call| call.stream);
        let backend = exchange.backend();
        let label = backend.as_ref().map(|backend| labels::backend(&backend.name));
        let kind = Kind { path: self.endpoint.template(), stream, backend: label, status };
        let series = self.series.get(kind, Series::of);
        series.requests.increment(1);
        series.latency.record(latency.as_secs_f64() * 1000.0);

        let Some((log, method, path)) = &self.log else { return };
        let caller = exchange.caller();
        let backend_url = backend.map(|backend| backend.url_text());
        let error = match ending {
            Ending::Failed(error) => Some(error.to_string()),
            _ => self.error.as_deref().map(str::to_owned),
        };
        log.write(&Line {
            timestamp: exchange.timestamp(),
            request_id: exchange.id(),
            client_ip: exchange.client_ip(),
            method: method.as_str(),
            path,
            status_code: status,
            latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            backend_url: backend_url.as_deref(),
            api_key: caller.and_then(|caller| caller.masked_key()).unwrap_or("-"),
            user_id: caller.and_then(|caller| caller.user_id()),
            model: call.and_then(|call| call.model.as_deref()),
            is_stream: stream,
            end: exchange.end().map(llmproxy_core::End::as_str),
            error: error.as_deref(),
        });
    }
}

/// The client's own id where it gave one, else ours; whatever the backend said is its own affair.
fn set_request_id(exchange: &Exchange, headers: &mut HeaderMap) {
    let value = match exchange.client_request_id() {
        Some(id) => HeaderValue::from_str(id).ok(),
        None => Some(exchange.id_value()),
    };
    if let Some(value) = value {
        headers.insert(X_REQUEST_ID, value);
    }
}

/// Who gave the answer, where that is to be said and a backend was asked. What a backend says under these names has not
/// come this far: the upstream takes it off.
fn explain(exchange: &Exchange, is_wanted: bool, headers: &mut HeaderMap) {
    if !is_wanted {
        return;
    }
    let Some(backend) = exchange.backend() else { return };
    headers.insert(X_ATTEMPTS, exchange.attempts().len().into());
    // A name may have letters that no header can.
    let name = backend.name.chars().map(|char| if matches!(char, ' '..='~') { char } else { '?' });
    if let Ok(name) = HeaderValue::try_from(name.collect::<String>()) {
        headers.insert(X_BACKEND, name);
    }
}
