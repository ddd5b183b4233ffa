//! The server loop: accepts, limits, drains.

use std::{io, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use llmproxy_config::ServerConfig;
use llmproxy_core::{BoxError, StopFlag};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tower::Service;

use crate::{
    connection::{self, Setup},
    crowd::Crowd,
    error::BindError,
    io::Patience,
    refusals::Refusals,
    tls::{Tls, places},
};

/// After the streams' grace period, how long their ends may take before the process goes on without them.
const ABORT_GRACE: Duration = Duration::from_secs(1);
/// How long a connection may take to end once its client knows of it.
const ENDING: Duration = Duration::from_millis(2);

/// Bound listeners, ready to serve HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113). See [`Runtime`](crate::Runtime) for an
/// example.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    setup: Setup,
    max_connections: usize,
    shutdown_timeout: Duration,
    stop: StopFlag,
}

/// Where a server listens.
///
/// ```
/// # use llmproxy_stack::Listening;
/// fn url(listening: &Listening) -> String {
///     format!("{}://{}", if listening.tls { "https" } else { "http" }, listening.address)
/// }
/// assert_eq!(url(&Listening { address: ([127, 0, 0, 1], 8443).into(), tls: true }), "https://127.0.0.1:8443");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The address that was bound; tells the port where the configuration left it to the system.
    pub address: SocketAddr,
    /// Whether TLS is spoken there.
    pub tls: bool,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    tls: Option<Arc<Tls>>,
}

// === impl Server ===

impl Server {
    /// Reads the certificates of `config` and binds its addresses. Exchanges that are cut at the end of a shutdown see
    /// `stop` set.
    ///
    /// # Errors
    ///
    /// If a certificate can't be used, or an address is taken or not ours.
    ///
    /// # Panics
    ///
    /// Where `config` was not validated and names no listener.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing is bound.
    pub async fn bind(config: &ServerConfig, stop: StopFlag) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        for (place, listener) in places(config) {
            let tls = Tls::load(&place, &listener.tls, config.http2.enabled)?;
            let socket = bind(&listener.addresses()).await;
            let socket = socket.map_err(|source| BindError::Listen { listen: listener.listen, source })?;
            listeners.push(Listener { socket, tls });
        }
        // hyper's buffer for a head is at least this large.
        let max_header_bytes = usize::try_from(config.max_header_bytes).unwrap_or(usize::MAX).max(8192);
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            // The connection itself keeps the time, for heads and for idleness apart.
            .header_read_timeout(None)
            .max_buf_size(max_header_bytes);
        if config.max_headers != ServerConfig::DEFAULT_MAX_HEADERS {
            // Any other number than hyper's own costs each request an allocation.
            http1.max_headers(config.max_headers);
        }
        let setup = Setup {
            http1,
            patience: Patience { head: config.read_timeout, idle: config.idle_timeout, write: config.write_timeout },
            max_header_bytes,
            max_headers: config.max_headers,
            http2: config.http2.enabled,
            max_streams: config.http2.max_streams,
            refusals: Refusals::default(),
        };
        Ok(Self {
            listeners,
            setup,
            max_connections: config.max_connections,
            shutdown_timeout: config.shutdown_timeout,
            stop,
        })
    }

    /// Has the answers that the server gives by itself written down:
    /// [`Runtime::refusals`](crate::Runtime::refusals).
    #[must_use]
    pub fn with_refusals(mut self, refusals: Refusals) -> Self {
        self.setup.refusals = refusals;
        self
    }

    /// The address of the first listener; tells the port where the configuration left it to the system.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listeners[0].socket.local_addr()
    }

    /// Where the server listens, in the order of the configuration.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn listening(&self) -> io::Result<Vec<Listening>> {
        let of =
            |listener: &Listener| Ok(Listening { address: listener.socket.local_addr()?, tls: listener.tls.is_some() });
        self.listeners.iter().map(of).collect()
    }

    /// Serves until `shutdown` is ready; then accepts no more, closes idle connections and waits for open streams, at
    /// most the configuration's `shutdown_timeout`. What is still open then is cut.
    ///
    /// `service` is [`Runtime::service`](crate::Runtime::service), or a router of one's own that has it in it. Each
    /// request has a [`Peer`](crate::Peer) in its extensions.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts every connection.
    pub async fn run<S, R>(self, service: S, shutdown: impl Future<Output = ()>)
    where
        S: Service<Request<Body>, Response = Response<R>, Error: Into<BoxError>> + Clone + Send + 'static,
        S::Future: Send,
        R: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let Self { listeners, setup, max_connections, shutdown_timeout, stop } = self;
        let setup = Arc::new(setup);
        let mut watchers = JoinSet::new();
        for tls in listeners.iter().filter_map(|listener| listener.tls.clone()) {
            watchers.spawn(tls.watch());
        }
        // Each connection, and each stream that has a task of its own, holds a receiver: who has all of them gone has
        // nothing left to wait for.
        let (closing, alive) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut crowd = Crowd::default();
        let mut next = 0;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let (listener, stream, peer) = tokio::select! {
                (listener, accepted) = accept(&listeners, &mut next) => match accepted {
                    Ok((stream, peer)) => (listener, stream, peer),
                    Err(error) => {
                        // Out of descriptors, most likely: those in use come back, so go on.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    joined(&ended);
                    continue;
                }
                () = &mut shutdown => break,
            };
            // Those that are over leave room at once.
            while let Some(ended) = connections.try_join_next() {
                joined(&ended);
            }
            if max_connections > 0 && connections.len() >= max_connections {
                // A client that was told of its connection's end may be faster than the end of its task.
                match timeout(ENDING, connections.join_next()).await {
                    Ok(Some(ended)) => joined(&ended),
                    _ => {
                        crowd.refuse(stream, listener.tls.is_some(), max_connections);
                        continue;
                    }
                }
            }
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            let tls = listener.tls.as_ref().map(|tls| tls.acceptor());
            let closing = until_closing(alive.clone());
            connections.spawn(connection::serve(
                stream,
                tls,
                peer,
                service.clone(),
                setup.clone(),
                closing,
                alive.clone(),
            ));
        }
        drop((listeners, watchers, alive));
        tracing::info!(open = connections.len(), "no longer accepting; waiting for open streams");
        let _ = closing.send(());
        if timeout(shutdown_timeout, closing.closed()).await.is_err() {
            stop.set();
            tracing::warn!(open = connections.len(), "streams are still open after the grace period and are cut");
            connections.abort_all();
        }
        let ended = async {
            while connections.join_next().await.is_some() {}
            // Streams of HTTP/2 end when they see that their connection is gone.
            closing.closed().await;
        };
        let _ = timeout(ABORT_GRACE, ended).await;
    }
}

fn joined(ended: &Result<(), JoinError>) {
    if ended.as_ref().is_err_and(JoinError::is_panic) {
        tracing::error!("a connection was closed since the proxy failed in the middle of an answer");
    }
}

/// Binds the first of `addresses` that can be had.
async fn bind(addresses: &[String]) -> io::Result<TcpListener> {
    let mut last = io::Error::other("the address names no interface");
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The next connection of any listener. Each time another one is asked first, so that a busy one leaves room for the rest.
async fn accept<'a>(
    listeners: &'a [Listener],
    next: &mut usize,
) -> (&'a Listener, io::Result<(TcpStream, SocketAddr)>) {
    std::future::poll_fn(|cx| {
        for _ in 0..listeners.len() {
            *next = (*next + 1) % listeners.len();
            let listener = &listeners[*next];
            if let Poll::Ready(accepted) = listener.socket.poll_accept(cx) {
                return Poll::Ready((listener, accepted));
            }
        }
        Poll::Pending
    })
    .await
}

/// Ready when the server begins to close.
async fn until_closing(mut alive: watch::Receiver<()>) {
    let _ = alive.changed().await;
}

#[cfg(test)]
mod tests {
    use llmproxy_config::load_str;

    use super::*;
    use crate::{Options, Runtime};

    /// A task for each connection, for as long as it is open: 1280 bytes with what tokio puts around it.
    const MAX_CONNECTION: usize = 1280 - 128;

    #[tokio::test]
    async fn a_connection_takes_little_room() -> Result<(), BoxError> {
        let text = "server: {listen: '127.0.0.1:0'}\nbackends: [{url: 'http://127.0.0.1:9'}]\n";
        let config = load_str(text, &Default::default())?.config;
        let runtime = Runtime::start(&config, Options::default()).await?;
        let server = Server::bind(&config.server, runtime.stop_flag()).await?;
        let _client = TcpStream::connect(server.local_addr()?).await?;
        let (stream, peer) = server.listeners[0].socket.accept().await?;
        let (_closing, alive) = watch::channel(());
        let closing = until_closing(alive.clone());
        let connection = connection::serve(stream, None, peer, runtime.service(), server.setup.into(), closing, alive);
        let size = size_of_val(&connection);
        assert!(size <= MAX_CONNECTION, "{size} bytes");
        Ok(())
    }
}
