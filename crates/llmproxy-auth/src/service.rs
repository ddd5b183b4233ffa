//! The service.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use llmproxy_core::{Backend, BoxError, Caller, Exchange, is_spelling_of, subprotocol};
use metrics::counter;
use tower::Service;

use crate::{Authenticator, metrics::REFUSALS};

const USER_ID: HeaderName = HeaderName::from_static("x-api-key-userid");
const NAME: HeaderName = HeaderName::from_static("x-api-key-name");

/// Lets a request pass when its key is good, and says in the exchange whose it is. Made by
/// [`AuthLayer`](crate::AuthLayer); the [crate] has an example.
///
/// # Errors
///
/// An [`AuthError`](crate::AuthError) where the request is refused; its body is dropped unread. Else whatever the inner
/// service says.
///
/// # Cancel safety
///
/// Dropping the future before the inner service was called leaves nothing behind.
#[derive(Clone, Debug)]
pub struct Auth<S> {
    inner: S,
    authenticator: Option<Arc<Authenticator>>,
}

// === impl Auth ===

impl<S> Auth<S> {
    pub(crate) fn new(inner: S, authenticator: Option<Arc<Authenticator>>) -> Self {
        Self { inner, authenticator }
    }
}

impl<S, B> Service<Request<B>> for Auth<S>
where
    S: Service<Request<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that was polled ready goes into the future; its clone waits for the next request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let authenticator = self.authenticator.clone();
        Box::pin(async move {
            let exchange = Exchange::of(request.extensions_mut());
            let caller = match &authenticator {
                None => Caller::anonymous(),
                Some(authenticator) => {
                    let (headers, path) = (request.headers(), request.uri().path());
                    let decision = authenticator.authenticate(headers, path, exchange.client_ip()).await;
                    decision.inspect_err(|error| {
                        counter!(REFUSALS, "code" => error.code()).increment(1);
                        tracing::debug!(%error, "refused");
                    })?
                }
            };
            let headers = request.headers_mut();
            if let Some(authenticator) = &authenticator {
                remove_keys(headers, authenticator.header_names());
            }
            identify(headers, &USER_ID, caller.user_id());
            identify(headers, &NAME, caller.name());
            exchange.set_caller(caller);
            inner.call(request).await.map_err(Into::into)
        })
    }
}

/// Takes off what may be a key: a client may send its own more than once, and servers read one from all of these.
fn remove_keys(headers: &mut HeaderMap, header_names: &[HeaderName]) {
    let may_hold_one =
        |name: &&HeaderName| header_names.iter().chain(&Backend::CREDENTIALS).any(|known| is_spelling_of(name, known));
    let found: Vec<HeaderName> = headers.keys().filter(may_hold_one).cloned().collect();
    for name in &found {
        headers.remove(name);
    }
    subprotocol::remove_key(headers);
}

/// Puts what is known in the place of what the client says of itself. A text that no header can hold is left out.
fn identify(headers: &mut HeaderMap, name: &HeaderName, value: Option<&str>) {
    headers.remove(name);
    if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(name, value);
    }
}
