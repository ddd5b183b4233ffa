//! One stack and the routes beside it.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use futures_util::future::{BoxFuture, Either, ready};
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use llmproxy_auth::AuthLayer;
use llmproxy_config::AllowedOrigin;
use llmproxy_core::{Api, Endpoint};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use crate::{
    cors::{CorsLayer, refuse_page},
    message,
    models::Models,
    respond::{RespondLayer, answer},
    runtime::Shared,
};

/// What a request is handed to: a stack for all that goes to a backend, and what the proxy answers itself.
///
/// What is asked of backends all the time (an operation of the API, posted) can be no route of ours: it goes to the stack
/// without being looked up. Everything else is the router's.
#[derive(Clone)]
pub(crate) struct Routes(Arc<Inner>);

struct Inner {
    router: Router,
    stack: Stack,
    metrics_path: Option<String>,
    /// Whose pages may open a WebSocket.
    pages: Arc<[AllowedOrigin]>,
}

/// What operators have beside the API.
pub(crate) struct Beside<'a> {
    pub(crate) metrics_path: Option<&'a str>,
    pub(crate) admin: Option<Router>,
}

type Answered = Result<Response, Infallible>;
type Stack = Box<dyn Fn(Request<Body>) -> BoxFuture<'static, Answered> + Send + Sync>;

// === impl Routes ===

impl Routes {
    /// Nothing but 404, until there is a configuration.
    pub(crate) fn none() -> Self {
        let router = Router::new();
        let stack = router.clone();
        Self(Arc::new(Inner { router, stack: boxed(stack), metrics_path: None, pages: Arc::default() }))
    }

    /// `stack` and the routes beside it.
    pub(crate) fn new<S>(
        shared: &Arc<Shared>,
        stack: S,
        auth: AuthLayer,
        models: Models,
        beside: Beside<'_>,
        cors: Option<&CorsLayer>,
    ) -> Self
    where
        S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let router = router(shared, stack.clone(), auth, models);
        let (mut router, stack) = match cors {
            Some(cors) => (router.layer(cors.clone()), boxed(cors.layer(stack))),
            None => (router, boxed(stack)),
        };
        // After that: what operators read is no page's business.
        let Beside { metrics_path, admin } = beside;
        if let Some(admin) = admin {
            router = router.merge(admin);
        }
        if let Some(path) = metrics_path {
            let shared = shared.clone();
            router = router.route(path, get(async move || render(&shared)));
        }
        let pages = cors.map(CorsLayer::origins).unwrap_or_default();
        Self(Arc::new(Inner { router, stack, metrics_path: metrics_path.map(str::to_owned), pages }))
    }
}

impl Service<Request<Body>> for Routes {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Answered>, axum::routing::future::RouteFuture<Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each request is handed to a clone, whose readiness is waited for there.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let asked = Endpoint::of(path);
        if let Err(error) = message::check(&request) {
            let mut refusal = answer(&error).into_response(asked.api());
            if request.version() < Version::HTTP_2 {
                // Whoever sent it may take another place for its end than we do: what follows is no request.
                refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return Either::Left(Box::pin(ready(Ok(refusal))));
        }
        if message::is_server_wide(request.method(), request.uri()) {
            return Either::Left(Box::pin(ready(Ok(StatusCode::NO_CONTENT.into_response()))));
        }
        if let Some(refusal) = refuse_page(&self.0.pages, &request) {
            return Either::Left(Box::pin(ready(Ok(refusal))));
        }
        let is_operation = asked.is_known() && asked.api() != Api::Proxy && asked.template() != "/v1/models";
        if is_operation && request.method() == Method::POST && self.0.metrics_path.as_deref() != Some(path) {
            return Either::Left((self.0.stack)(request));
        }
        Either::Right(self.0.router.clone().call(request))
    }
}

fn boxed<S>(stack: S) -> Stack
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Box::new(move |request| Box::pin(stack.clone().oneshot(request)))
}

fn router<S>(shared: &Arc<Shared>, stack: S, auth: AuthLayer, models: Models) -> Router
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    // Only the errors of auth can come here; the list itself is answered as it is.
    let models = ServiceBuilder::new().layer(RespondLayer::new()).layer(auth).service(models);
    let ready = shared.clone();
    Router::new()
        // Alive is whoever answers: all backends may be down, or a restart would be all that a probe achieves.
        .route("/health", any(async || "OK"))
        .route("/ready", get(async move || readiness(&ready)))
        .route_service("/v1/models", models.clone())
        .route_service("/v1/models/{*id}", models)
        .fallback_service(stack)
}

/// Whether new requests should come here.
fn readiness(shared: &Shared) -> Response {
    match shared.not_ready() {
        None => "ready".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

fn render(shared: &Shared) -> Response {
    match &shared.render_metrics {
        Some(render) => {
            shared.show_states();
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render()).into_response()
        }
        None => (StatusCode::NOT_FOUND, "this process exports no metrics").into_response(),
    }
}
