//! The service.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use llmproxy_core::{BoxError, Endpoint, Exchange, RequestBody, Target, Upgrade};
use tower::Service;

use crate::{
    Clients, UpstreamBody, UpstreamError,
    clients::Place,
    head,
    pool::Answered,
    sending::{Rest, Upload},
    tunnel,
};

/// Sends each request to the backend that its [`Target`] names.
///
/// Of the head, the backend gets everything but what RFC 9110, section 7.6.1, keeps to one connection, with its own Host
/// (or the client's, where the backend's `preserve_host` says so), an exact Content-Length, our `x-request-id`, `Via`, the
/// connection that it came by in `x-forwarded-for`, `-proto`, `-host` and `Forwarded`, the backend's own headers in place
/// of the client's (and no key of the client's beside one of ours), and `accept-encoding: identity` where usage is asked
/// for. A request without an Accept header gets `accept: */*`, which says the same; the client library can't be kept from
/// it. User and password in a backend's URL are not sent: credentials are headers. Answers get no `Via`: on them a gateway
/// may leave it out (section 7.6.3).
///
/// Used alone, without an [`Exchange`] in the request, it makes one for its id. The [crate] has an example.
///
/// # Errors
///
/// An [`UpstreamError`], alone or inside of an [`Ended`](llmproxy_core::Ended). A backend's own error is an answer.
///
/// # Cancel safety
///
/// Dropping the future, or the body of the answer, closes the connection that the request was sent over.
#[derive(Clone, Debug)]
pub struct Upstream {
    clients: Arc<Clients>,
}

// === impl Upstream ===

impl Upstream {
    /// Sends through `clients`.
    pub fn new(clients: Arc<Clients>) -> Self {
        Self { clients }
    }
}

impl Service<Request<RequestBody>> for Upstream {
    type Response = Response<UpstreamBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<UpstreamBody>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    /// # Cancel safety
    ///
    /// Dropping the future closes the connection that the request was sent over.
    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let clients = self.clients.clone();
        Box::pin(exchange(clients, request))
    }
}

async fn exchange(clients: Arc<Clients>, request: Request<RequestBody>) -> Result<Response<UpstreamBody>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let target = parts.extensions.remove::<Target>().ok_or(UpstreamError::NoTarget)?;
    let place = clients.place(&target.backend).map_err(UpstreamError::boxed)?;
    let backend = place.origin.clone();
    let upgrade = parts.extensions.remove::<Upgrade>();
    let is_in_query = |_: &&str| Endpoint::of(parts.uri.path()).template() == "/v1/realtime";
    let aliased = target.model.as_deref().filter(is_in_query);
    let aliased = aliased.and_then(|model| tunnel::with_model(&parts.uri, model));
    let url = place.url(aliased.as_ref().unwrap_or(&parts.uri), &target.backend).map_err(UpstreamError::boxed)?;
    let exchange = Exchange::of(&mut parts.extensions);
    let http1 = upgrade.as_ref().map(|_| clients.http1(&target.backend)).transpose().map_err(UpstreamError::boxed)?;
    let pool = http1.as_ref().unwrap_or(&place.pool);
    let request = |body: reqwest::Body| {
        let mut request = reqwest::Request::new(parts.method.clone(), url.clone());
        *request.headers_mut() = head::for_backend(&parts, &target, &exchange);
        if upgrade.is_some() {
            tunnel::ask(request.headers_mut());
        }
        *request.body_mut() = Some(body);
        request
    };
    let ((response, stream), rest) = match body {
        RequestBody::Replay(bytes, edits) => {
            let bytes = edits.apply(&bytes, target.model.as_deref(), target.inject_usage);
            (pool.send(&backend, || request(bytes.clone().into())).await.map_err(UpstreamError::boxed)?, None)
        }
        // Nothing can be sent any number of times.
        RequestBody::Stream(body) if body.is_end_stream() => {
            (pool.send(&backend, || request(Bytes::new().into())).await.map_err(UpstreamError::boxed)?, None)
        }
        RequestBody::Form(form) => {
            let form = form.with_model(target.model.as_deref());
            once(&place, request, RequestBody::Form(form)).await?
        }
        body @ RequestBody::Stream(_) => once(&place, request, body).await?,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(upgrade) = upgrade
    {
        return Box::pin(tunnel::agreed(response, upgrade, backend)).await;
    }
    let (mut parts, body) = response.into_parts();
    head::for_client(&mut parts.headers);
    let version = mem::replace(&mut parts.version, Version::HTTP_11);
    Ok(Response::from_parts(parts, UpstreamBody::new(body, backend, version, stream).with_rest(rest)))
}

/// Sends what can't be sent twice.
async fn once(
    place: &Place,
    request: impl FnOnce(reqwest::Body) -> reqwest::Request,
    body: RequestBody,
) -> Result<(Answered, Option<Rest>), BoxError> {
    let upload = Upload::new(body);
    let body = reqwest::Body::wrap(upload.sending());
    match place.pool.send_once(&place.origin, request(body)).await {
        Ok(answered) => Ok((answered, Some(upload.rest()))),
        Err(error) => Err(upload.failure().unwrap_or_else(|| error.boxed())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_shared_between_threads() {
        fn check<T: Clone + Send + Sync + 'static>() {}
        check::<Upstream>();
    }
}
