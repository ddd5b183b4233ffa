//! The server loop: accepts, limits, drains.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use futures_util::{FutureExt, TryFutureExt};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use llmproxy_config::ServerConfig;
use llmproxy_core::{
    BoxError, StopFlag,
    body::{Hold, Observed, observe},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::{Service, ServiceExt};

use crate::{
    Peer,
    io::{Activity, Busy, Patience, PatientIo},
    metrics::CONNECTIONS,
    pace::PacedBody,
};

/// After the streams' grace period, how long their ends may take before the process goes on without them.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// The body of an answer as hyper is given it.
type Served<B> = Observed<PacedBody<B>, Hold<Busy>>;

/// A bound listener, ready to serve HTTP/1.1 (RFC 9112). See [`Runtime`](crate::Runtime) for an example.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    patience: Patience,
    max_header_bytes: usize,
    shutdown_timeout: Duration,
    stop: StopFlag,
}

// === impl Server ===

impl Server {
    /// Binds the address of `config`. Exchanges that are cut at the end of a shutdown see `stop` set.
    ///
    /// # Errors
    ///
    /// If the address is taken or not ours.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing is bound.
    pub async fn bind(config: &ServerConfig, stop: StopFlag) -> io::Result<Self> {
        let mut last = io::Error::other("the address names no interface");
        for address in config.addresses() {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    return Ok(Self {
                        listener,
                        patience: Patience {
                            head: config.read_timeout,
                            idle: config.idle_timeout,
                            write: config.write_timeout,
                        },
                        // hyper's buffer for a head is at least this large.
                        max_header_bytes: usize::try_from(config.max_header_bytes).unwrap_or(usize::MAX).max(8192),
                        shutdown_timeout: config.shutdown_timeout,
                        stop,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The address that was bound; tells the port where the configuration left it to the system.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is ready; then accepts no more, closes idle connections and waits for open streams, at
    /// most the configuration's `shutdown_timeout`. What is still open then is cut.
    ///
    /// `service` is [`Runtime::service`](crate::Runtime::service), or a router of one's own that has it in it. Each
    /// request has a [`Peer`] in its extensions.
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
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // The connection itself keeps the time, for heads and for idleness apart.
            .header_read_timeout(None)
            .max_buf_size(self.max_header_bytes);
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: those in use come back, so go on.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                () = &mut shutdown => break,
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            let connection = serve_connection(&builder, &graceful, self.patience, stream, peer, service.clone());
            connections.spawn(connection);
        }
        drop(self.listener);
        tracing::info!(open = connections.len(), "no longer accepting; waiting for open streams");
        if tokio::time::timeout(self.shutdown_timeout, graceful.shutdown()).await.is_err() {
            self.stop.set();
            tracing::warn!(open = connections.len(), "streams are still open after the grace period and are cut");
            connections.abort_all();
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(ABORT_GRACE, ended).await;
    }
}

fn serve_connection<S, R>(
    builder: &http1::Builder,
    graceful: &GracefulShutdown,
    patience: Patience,
    stream: TcpStream,
    peer: SocketAddr,
    service: S,
) -> impl Future<Output = ()> + Send + use<S, R>
where
    S: Service<Request<Body>, Response = Response<R>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send,
    R: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let activity = Arc::<Activity>::default();
    let io = TokioIo::new(PatientIo::new(stream, patience, activity.clone()));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        answer(service.clone(), request, &activity)
    });
    let connection = builder.serve_connection(io, service);
    let connection = graceful.watch(connection);
    // Not an async block: it would have room for the connection twice, before and while it is waited for.
    let open = Open::new();
    connection.map(move |result| {
        if let Err(error) = result {
            // A client that leaves, or a stream that was broken off on purpose: each is told where it is decided.
            tracing::debug!(%peer, error = %Chain(&error), "connection ended");
        }
        drop(open);
    })
}

fn answer<S, R>(
    service: S,
    request: Request<Body>,
    activity: &Arc<Activity>,
) -> impl Future<Output = Result<Response<Served<R>>, BoxError>> + Send + use<S, R>
where
    S: Service<Request<Body>, Response = Response<R>, Error: Into<BoxError>> + Send + 'static,
    S::Future: Send,
    R: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (busy, activity) = (activity.begin(), activity.clone());
    let paced = move |response: Response<R>| response.map(|body| PacedBody::new(body, activity));
    observe(service.oneshot(request).map_ok(paced), Hold(busy))
}

/// Counts a connection as long as it lives.
struct Open;

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

/// An error with what caused it.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

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
        let (stream, peer) = server.listener.accept().await?;
        let (builder, graceful) = (http1::Builder::new(), GracefulShutdown::new());
        let connection = serve_connection(&builder, &graceful, server.patience, stream, peer, runtime.service());
        let size = size_of_val(&connection);
        assert!(size <= MAX_CONNECTION, "{size} bytes");
        Ok(())
    }
}
