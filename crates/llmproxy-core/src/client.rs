//! A small HTTP client for the parts that must ask something, given to them by whoever puts the stack together.

use std::fmt;

use bytes::Bytes;
use http::{Request, Response};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

use crate::BoxError;

/// Asks for small things: a health check, a list of models, a webhook. The answer is read whole, bounded by whoever
/// made the client. The one that speaks HTTP is `Clients::http_client` of `llmproxy-upstream`; in a test any service is
/// one:
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use llmproxy_core::{BoxError, HttpClient};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let healthy = tower::service_fn(async |_: Request<Bytes>| Ok::<_, BoxError>(Response::new(Bytes::new())));
/// let client = HttpClient::new(healthy);
/// let response = client.send(Request::get("http://127.0.0.1:8000/health").body(Bytes::new())?).await?;
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
    /// Dropping the future closes the connection, where the service behind the client does as `llmproxy-upstream`'s. The
    /// other side may have done what it was asked for all the same.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        self.0.clone().oneshot(request).await
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}
