//! One stack and the routes beside it.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::{Request, StatusCode, header};
use llmproxy_auth::AuthLayer;
use tower::{Service, ServiceBuilder};

use crate::{models::Models, respond::RespondLayer, runtime::Shared};

/// The router that a request is handed to: `stack` for all that goes to a backend, and what the proxy answers itself.
pub(crate) fn router<S>(
    shared: &Arc<Shared>,
    stack: S,
    auth: AuthLayer,
    models: Models,
    metrics_path: Option<&str>,
) -> Router
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    // Only the errors of auth can come here; the list itself is answered as it is.
    let models = ServiceBuilder::new().layer(RespondLayer::new()).layer(auth).service(models);
    let ready = shared.clone();
    let mut router = Router::new()
        // Alive is whoever answers: all backends may be down, or a restart would be all that a probe achieves.
        .route("/health", any(async || "OK"))
        .route("/ready", get(async move || readiness(&ready)))
        .route_service("/v1/models", models.clone())
        .route_service("/v1/models/{*id}", models)
        .fallback_service(stack);
    if let Some(path) = metrics_path {
        let shared = shared.clone();
        router = router.route(path, get(async move || render(&shared)));
    }
    router
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
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render()).into_response()
        }
        None => (StatusCode::NOT_FOUND, "this process exports no metrics").into_response(),
    }
}
