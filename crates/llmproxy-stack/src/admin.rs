//! The backends as administrators see them, and the router for that on a listener of its own.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use axum::{Router, body::Body, response::Response};
use futures_util::future::BoxFuture;
use http::Request;
use llmproxy_admin::{AdminConfig, BackendView, Backends, LoadView, Overview, router};
use llmproxy_balancer::{BackendStatus, Balancer};
use tower::{Service, ServiceExt};

/// A balancer's backends.
struct Administered(Arc<Balancer>);

/// The routes of the newest configuration, for a listener that has nothing else. Where the configuration has none, all is 404.
#[derive(Clone, Default)]
pub(crate) struct Admin(Arc<ArcSwap<Router>>);

// === impl Admin ===

impl Admin {
    /// Puts a configuration in force and returns the routes that belong beside the API, if they do.
    pub(crate) fn apply(&self, config: &AdminConfig, balancer: &Arc<Balancer>) -> Option<Router> {
        let routes = config.is_served().then(|| router(config, Arc::new(Administered(balancer.clone()))));
        let (beside, alone) = if config.listen.is_empty() { (routes, None) } else { (None, routes) };
        self.0.store(Arc::new(alone.unwrap_or_default()));
        beside
    }
}

impl Service<Request<Body>> for Admin {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let router = Router::clone(&self.0.load());
        Box::pin(router.oneshot(request))
    }
}

// === impl Administered ===

impl Backends for Administered {
    fn overview(&self) -> Overview {
        let pool = self.0.pool();
        Overview { backends: pool.snapshot().into_iter().map(view).collect(), waiting: pool.waiting() }
    }

    fn set_draining(&self, name: &str, draining: bool) -> Option<bool> {
        self.0.set_draining(name, draining)
    }

    fn set_weight(&self, name: &str, weight: u32) -> Option<()> {
        self.0.set_weight(name, weight)
    }
}

fn view(status: BackendStatus) -> BackendView {
    BackendView {
        name: status.backend.name.to_string(),
        url: status.backend.url_text(),
        state: status.state.as_str().to_owned(),
        reason: status.reason.map(Into::into),
        seconds: status.since.elapsed().as_secs_f64(),
        draining: status.draining,
        weight: status.weight,
        tier: status.tier,
        group: status.group.as_deref().map(str::to_owned),
        in_flight: status.in_flight,
        max_concurrent: status.max_concurrent,
        tokens_in_flight: status.tokens_in_flight,
        latency_ms: status.latency.map(|latency| latency.as_secs_f64() * 1000.0),
        models: status.models,
        reported: status.load.map(|load| LoadView {
            running: load.running,
            waiting: load.waiting,
            kv_usage: load.kv_usage,
        }),
    }
}
