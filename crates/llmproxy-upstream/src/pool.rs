//! Connections to one place, and how to send over them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Response, header::UPGRADE};
use llmproxy_core::BoxError;
use reqwest::{Client, ClientBuilder, Request, redirect, retry};
use tokio::time::Instant;

use crate::{
    UpstreamError,
    error::{is_broken_off, is_protocol},
    fresh::{NoteConnect, noting_connect},
    head, metrics, tls,
};

/// How long a connection that nobody uses is kept. Shorter than the servers do: uvicorn, in front of most of them, closes
/// after 5 s, and a request must not meet that. A connection also holds some 25 KiB.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How soon after its request a kept connection breaks that the backend had closed. One that breaks later was worked on.
const STALE_WITHIN: Duration = Duration::from_secs(1);
/// How soon one breaks whose backend was gone before the request: the way there and back, in a network of one's own. A server
/// that reads a request and dies of it takes longer until its sockets are closed.
const GONE_WITHIN: Duration = Duration::from_millis(10);
/// How long connections to a host with a name are made use of. One that is never idle would be used for ever, wherever
/// the name leads by now.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How many streams share a connection of HTTP/2: what RFC 9113, section 6.5.2, has servers allow at least, and many allow
/// no more. Those above it would wait for others to end, which takes minutes.
const MAX_STREAMS: usize = 100;
/// What a backend may send ahead on one stream of HTTP/2 while its client does not read. Memory, where clients stall.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection together: so much that those that stall never hold back another one.
const CONNECTION_WINDOW: u32 = MAX_STREAMS as u32 * STREAM_WINDOW;
/// A connection of HTTP/2 with open streams is asked for a sign of life this often, and given up without one: one whose
/// other end has vanished would be given to every new request.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long that sign may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients for one place: some keep connections, one makes a new one for every request.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    tls: Option<rustls::ClientConfig>,
    fresh: Client,
    /// One, or for HTTP/2 as many as there are hundreds of streams; never none.
    keeping: ArcSwap<Vec<Arc<Keeping>>>,
    /// Held by whoever changes the list.
    changing: Mutex<()>,
}

/// A client that keeps connections, of HTTP/2 one. Dropped, it closes those that are idle.
#[derive(Debug)]
struct Keeping {
    client: Client,
    born: Instant,
    streams: AtomicUsize,
}

/// One request at such a client, counted there until it is dropped.
#[derive(Debug)]
pub(crate) struct Stream(Arc<Keeping>);

/// What a pool must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub(crate) tls: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_idle: usize,
    pub(crate) http2: bool,
    pub(crate) ca: Option<Arc<[u8]>>,
    /// Whether the host is a name, which may lead elsewhere in a minute.
    pub(crate) named: bool,
}

/// An answer, and what counts it among those of its connection.
pub(crate) type Answered = (Response<reqwest::Body>, Option<Stream>);

// === impl Pool ===

impl Pool {
    pub(crate) fn new(settings: Settings) -> Result<Self, BoxError> {
        let tls = settings.tls.then(|| tls::config(settings.ca.as_deref(), settings.http2)).transpose()?;
        let fresh = client(&settings, tls.clone(), 0)?;
        let keeping = Keeping::new(client(&settings, tls.clone(), settings.max_idle)?);
        let keeping = ArcSwap::from_pointee(vec![keeping]);
        Ok(Self(Arc::new(Inner { settings, tls, fresh, keeping, changing: Mutex::default() })))
    }

    /// Sends what `request` makes and waits for the head of the answer. It is made again only where it has to be sent
    /// again: that is seldom, and a copy kept for it would be one of every head.
    pub(crate) async fn send(
        &self,
        backend: &Arc<str>,
        request: impl Fn() -> Request,
    ) -> Result<Answered, UpstreamError> {
        let stream = self.stream();
        let first = request();
        let upgrades = asks_to_upgrade(&first);
        let sent = Instant::now();
        match noting_connect(stream.0.client.execute(first)).await {
            // A connection that nonsense came over can't be told to close. With its client it does when it is free.
            Ok(response) => match checked(backend, response, upgrades) {
                Ok(response) => Ok((response, Some(stream))),
                Err(error) => {
                    self.renew(|keeping| !Arc::ptr_eq(keeping, &stream.0));
                    Err(error)
                }
            },
            Err((error, true)) if is_stale(&error) && sent.elapsed() < STALE_WITHIN => {
                let broke_after = sent.elapsed();
                // Nothing of an answer came over a connection that had been idle: the backend had closed it, or did so
                // as the request arrived.
                metrics::stale_connection();
                let error = UpstreamError::before_head(backend, error);
                tracing::debug!(%backend, %error, "sending again over a fresh connection");
                match self.send_once(backend, request()).await {
                    // It has died, with a request that it may have died of: whoever sends that on must know. Of one that was
                    // gone before there is no more to say than that there is no connection.
                    Err(UpstreamError::Connect { backend, source, .. }) if broke_after >= GONE_WITHIN => {
                        Err(UpstreamError::Died { backend, source })
                    }
                    again => again,
                }
            }
            Err((error, _)) => Err(UpstreamError::before_head(backend, error)),
        }
    }

    /// Sends `request`, whose body can't be sent twice, over a fresh connection.
    pub(crate) async fn send_once(&self, backend: &Arc<str>, request: Request) -> Result<Answered, UpstreamError> {
        let upgrades = asks_to_upgrade(&request);
        match self.0.fresh.execute(request).await {
            Ok(response) => Ok((checked(backend, response, upgrades)?, None)),
            Err(error) => Err(UpstreamError::before_head(backend, error)),
        }
    }

    /// A place at a client that is not too old, and whose connection has room for one more.
    fn stream(&self) -> Stream {
        self.free_stream().unwrap_or_else(|| self.renew(|keeping| !self.is_old(keeping)))
    }

    fn free_stream(&self) -> Option<Stream> {
        let most = if self.0.settings.http2 { MAX_STREAMS } else { usize::MAX };
        self.0.keeping.load().iter().filter(|keeping| !self.is_old(keeping)).find_map(|keeping| keeping.enter(most))
    }

    fn is_old(&self, keeping: &Keeping) -> bool {
        self.0.settings.named && keeping.born.elapsed() >= MAX_AGE
    }

    /// Makes no more use of clients that are not to `stay`, and gives a place at one that does, or at a new one. What runs
    /// over those that go runs on.
    fn renew(&self, stay: impl Fn(&Arc<Keeping>) -> bool) -> Stream {
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keeping: Vec<_> = self.0.keeping.load().iter().filter(|keeping| stay(keeping)).cloned().collect();
        // Another request may have been here first.
        if !keeping.is_empty()
            && let Some(stream) = self.free_stream().filter(|stream| stay(&stream.0))
        {
            self.0.keeping.store(Arc::new(keeping));
            return stream;
        }
        match client(&self.0.settings, self.0.tls.clone(), self.0.settings.max_idle) {
            Ok(client) => {
                let new = Keeping::new(client);
                keeping.push(new.clone());
                self.0.keeping.store(Arc::new(keeping));
                Stream::at(new)
            }
            // It went well before. One that is old or full is better than none.
            Err(error) => {
                tracing::warn!(%error, "no new HTTP client could be made; an old one stays in use");
                Stream::at(self.0.keeping.load()[0].clone())
            }
        }
    }
}

// === impl Keeping ===

impl Keeping {
    fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, born: Instant::now(), streams: AtomicUsize::new(0) })
    }

    /// A place here, if fewer than `most` are taken.
    fn enter(self: &Arc<Self>, most: usize) -> Option<Stream> {
        let stream = Stream::at(self.clone());
        // Counted before it is compared, so that no two take the last place; the one too many goes with its guard.
        (self.streams.load(Ordering::Relaxed) <= most).then_some(stream)
    }
}

// === impl Stream ===

impl Stream {
    fn at(keeping: Arc<Keeping>) -> Self {
        keeping.streams.fetch_add(1, Ordering::Relaxed);
        Self(keeping)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the client asks for was taken off, so it is ours where it is there.
fn asks_to_upgrade(request: &Request) -> bool {
    request.headers().contains_key(UPGRADE)
}

/// The answer, unless its head is none that can go on.
fn checked(
    backend: &Arc<str>,
    response: reqwest::Response,
    upgrades: bool,
) -> Result<Response<reqwest::Body>, UpstreamError> {
    let (head, body) = Response::from(response).into_parts();
    match head::nonsense(&head, upgrades) {
        None => Ok(Response::from_parts(head, body)),
        Some(nonsense) => Err(UpstreamError::protocol(backend.clone(), nonsense)),
    }
}

/// Whether a request that failed on a reused connection may be sent once more.
fn is_stale(error: &reqwest::Error) -> bool {
    !error.is_connect() && !error.is_builder() && !is_protocol(error) && !is_broken_off(error)
}

fn client(settings: &Settings, tls: Option<rustls::ClientConfig>, max_idle: usize) -> Result<Client, reqwest::Error> {
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .retry(retry::never().max_retries_per_request(0))
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(settings.connect_timeout)
        .pool_max_idle_per_host(max_idle)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .connector_layer(NoteConnect);
    let builder = match (settings.http2, &tls) {
        (false, _) => builder.http1_only(),
        (true, None) => with_http2(builder).http2_prior_knowledge(),
        // What both sides offer is agreed on with the handshake.
        (true, Some(_)) => with_http2(builder),
    };
    let builder = match tls {
        Some(tls) => builder.tls_backend_preconfigured(tls),
        // Without TLS the machine's certificates need not be read, and need not be there.
        None => builder.tls_certs_only([]),
    };
    builder.build()
}

fn with_http2(builder: ClientBuilder) -> ClientBuilder {
    builder
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(http2: bool, named: bool) -> Pool {
        // Whoever makes these has chosen who encrypts.
        let _ = crate::Clients::new();
        let connect_timeout = Duration::from_secs(1);
        Pool::new(Settings { tls: false, connect_timeout, max_idle: 4, http2, ca: None, named }).unwrap()
    }

    fn clients(pool: &Pool) -> usize {
        pool.0.keeping.load().len()
    }

    #[test]
    fn a_hundred_streams_share_a_connection_and_the_next_has_another() {
        let pool = pool(true, false);
        let mut streams: Vec<Stream> = (0..MAX_STREAMS).map(|_| pool.stream()).collect();
        assert_eq!(clients(&pool), 1);
        streams.extend((0..MAX_STREAMS + 1).map(|_| pool.stream()));
        assert_eq!(clients(&pool), 3);
        // Where one ended there is room again, on the first of them.
        drop(streams.remove(0));
        assert!(Arc::ptr_eq(&pool.stream().0, &streams[0].0));
        assert_eq!(clients(&pool), 3);
    }

    #[test]
    fn http1_needs_one_client_for_any_number() {
        let pool = pool(false, false);
        let _streams: Vec<Stream> = (0..3 * MAX_STREAMS).map(|_| pool.stream()).collect();
        assert_eq!(clients(&pool), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_and_an_address_is_not() {
        for http2 in [false, true] {
            let (named, fixed) = (pool(http2, true), pool(http2, false));
            let (old, same) = (named.stream(), fixed.stream());
            tokio::time::advance(MAX_AGE - Duration::from_secs(1)).await;
            assert!(Arc::ptr_eq(&named.stream().0, &old.0));
            tokio::time::advance(Duration::from_secs(1)).await;
            let new = named.stream();
            assert!(!Arc::ptr_eq(&new.0, &old.0) && Arc::ptr_eq(&new.0, &named.stream().0));
            assert!(Arc::ptr_eq(&fixed.stream().0, &same.0));
            assert_eq!((clients(&named), clients(&fixed)), (1, 1));
        }
    }
}
