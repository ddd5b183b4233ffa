//! The backends as administrators see them, and the router for that on a listener of its own.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
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
pub(crate) struct Admin(Arc<Served>);

#[derive(Default)]
struct Served {
    alone: ArcSwap<Router>,
    /// Where administrators have found it so far: only a restart opens another listener, so only a restart moves it.
    place: OnceLock<Place>,
    has_started: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    BesideTheApi,
    Alone,
}

// === impl Admin ===

impl Admin {
    /// Puts a configuration in force and returns the routes that belong beside the API, if they do.
    pub(crate) fn apply(&self, config: &AdminConfig, balancer: &Arc<Balancer>) -> Option<Router> {
        let routes = config.is_served().then(|| router(config, Arc::new(Administered(balancer.clone()))));
        let (beside, alone) = match self.place(config) {
            Place::BesideTheApi => (routes, None),
            Place::Alone => (None, routes),
        };
        self.0.alone.store(Arc::new(alone.unwrap_or_default()));
        beside
    }

    fn place(&self, config: &AdminConfig) -> Place {
        let is_start = !self.0.has_started.swap(true, Ordering::AcqRel);
        let wanted = if config.listen.is_empty() { Place::BesideTheApi } else { Place::Alone };
        // A listener that a reload names is not there yet.
        let is_there = is_start || wanted == Place::BesideTheApi;
        if config.is_served() && is_there {
            return *self.0.place.get_or_init(|| wanted);
        }
        self.0.place.get().copied().unwrap_or(wanted)
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
        let router = Router::clone(&self.0.alone.load());
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

#[cfg(test)]
mod tests {
    use llmproxy_core::{BoxError, HttpClient};
    use tower::service_fn;

    use super::*;

    /// Puts these in force one after the other, each by its `listen` or `None` where it is off, and says after each whether
    /// administration is beside the API and whether it is alone.
    async fn check(configs: &[Option<&str>], expected: &[(bool, bool)]) {
        let client =
            HttpClient::new(service_fn(async |_| Err::<http::Response<bytes::Bytes>, BoxError>("down".into())));
        let (admin, balancer) = (Admin::default(), Balancer::new(client));
        let mut found = Vec::new();
        for listen in configs {
            let config = AdminConfig {
                enabled: listen.is_some(),
                token: "t".into(),
                listen: listen.unwrap_or_default().into(),
                ..AdminConfig::default()
            };
            let beside = admin.apply(&config, &balancer).is_some();
            let request = Request::get("/admin/backends").body(Body::empty()).expect("a good request");
            let answer = admin.clone().oneshot(request).await.expect("it can't fail");
            found.push((beside, answer.status() != http::StatusCode::NOT_FOUND));
        }
        assert_eq!(found, expected, "{configs:?}");
    }

    #[tokio::test]
    async fn administration_stays_where_it_is_until_a_restart() {
        let (beside, alone, off) = ((true, false), (false, true), (false, false));
        check(&[Some(""), Some(":9"), None, Some(":9"), Some("")], &[beside, beside, off, beside, beside]).await;
        check(&[Some(":9"), Some(""), None, Some(":8")], &[alone, alone, off, alone]).await;
        // Where there was none it can only be beside; a listener may be somebody else's, who embeds this.
        check(&[None, Some(":9"), Some(""), Some(":9")], &[off, alone, beside, beside]).await;
    }
}
