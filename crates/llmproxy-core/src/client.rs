//! A small HTTP client for the parts that must ask something, given to them by whoever puts the stack together.

use std::fmt;

use bytes::Bytes;
use http::{Request, Response};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

use crate::BoxError;

/// Asks for small things: a health check, a list of models, a webhook. The answer is read whole, bounded by whoever
/// made the client.
///
/// ```
/// # async fn example(client: llmproxy_core::HttpClient) -> Result<(), llmproxy_core::BoxError> {
/// let request = http::Request::get("http://127.0.0.1:8000/health").body(bytes::Bytes::new())?;
/// let response = client.send(request).await?;
/// assert!(response.status().is_success());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HttpClient(BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>);

// === impl HttpClient ===

impl HttpClient {
    /// A client that sends through `service`.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Bytes>, Response = Response<Bytes>, Error = BoxError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service))
    }

    /// Sends `request` and reads the whole answer, whatever its status. There is no limit of time of its own: the
    /// caller wraps it into `tokio::time::timeout`.
    ///
    /// # Errors
    ///
    /// If there was no answer, or it was larger than the client reads.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        self.0.clone().oneshot(request).await
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}
