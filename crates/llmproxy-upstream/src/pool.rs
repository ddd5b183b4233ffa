//! Connections to one place, and how to send over them.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, Request, Response, redirect, retry};

use crate::{
    UpstreamError,
    error::is_protocol,
    fresh::{NoteConnect, noting_connect},
    metrics,
};

/// How long a connection that nobody uses is kept. Shorter than the servers do: uvicorn, in front of most of them, closes
/// after 5 s, and a request must not meet that. A connection also holds some 25 KiB.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Two clients for the same place: one keeps connections, one makes a new one for every request.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    keeping: Client,
    fresh: Client,
}

/// What a pool must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub(crate) tls: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_idle: usize,
}

// === impl Pool ===

impl Pool {
    pub(crate) fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        Ok(Self { keeping: client(settings, settings.max_idle)?, fresh: client(settings, 0)? })
    }

    /// Sends what `request` makes and waits for the head of the answer. It is made again only where it has to be sent
    /// again: that is seldom, and a copy kept for it would be one of every head.
    pub(crate) async fn send(
        &self,
        backend: &Arc<str>,
        request: impl Fn() -> Request,
    ) -> Result<Response, UpstreamError> {
        match noting_connect(self.keeping.execute(request())).await {
            Ok(response) => Ok(response),
            Err((error, true)) if !error.is_connect() && !error.is_builder() && !is_protocol(&error) => {
                // Nothing of an answer came over a connection that had been idle: the backend had closed it, or did so
                // as the request arrived.
                metrics::stale_connection();
                tracing::debug!(%backend, error = %error.without_url(), "sending again over a fresh connection");
                self.send_once(backend, request()).await
            }
            Err((error, _)) => Err(UpstreamError::before_head(backend, error)),
        }
    }

    /// Sends `request`, whose body can't be sent twice, over a fresh connection.
    pub(crate) async fn send_once(&self, backend: &Arc<str>, request: Request) -> Result<Response, UpstreamError> {
        self.fresh.execute(request).await.map_err(|error| UpstreamError::before_head(backend, error))
    }
}

fn client(settings: Settings, max_idle: usize) -> Result<Client, reqwest::Error> {
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .retry(retry::never().max_retries_per_request(0))
        .no_proxy()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(settings.connect_timeout)
        .pool_max_idle_per_host(max_idle)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .connector_layer(NoteConnect);
    // Without TLS the machine's certificates need not be read, and need not be there.
    let builder = if settings.tls { builder } else { builder.tls_certs_only([]) };
    builder.build()
}
