//! What those who look for a backend find while a configuration comes.

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, request::Parts};
use llmproxy_core::{BoxError, Endpoint, HttpClient};
use tower::service_fn;

use super::*;
use crate::{BackendConfig, Balancer, HealthCheckConfig, QueueConfig, RoutingConfig, plan::Asked};

/// A balancer of unchecked backends, each with its name and the model that it has, and room for one.
fn balancer(backends: &[(&str, &str)]) -> Arc<Balancer> {
    let client =
        HttpClient::new(service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("nobody".into())));
    let balancer = Balancer::new(client);
    apply(&balancer, backends);
    balancer
}

fn apply(balancer: &Balancer, backends: &[(&str, &str)]) {
    let backends: Vec<BackendConfig> = backends
        .iter()
        .map(|(name, model)| BackendConfig {
            name: Some((*name).into()),
            models: vec![(*model).into()],
            max_concurrent: Some(1),
            ..BackendConfig::new(format!("http://{name}"))
        })
        .collect();
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(&backends, &RoutingConfig::default(), &health, &QueueConfig::default());
}

fn plan(view: &View) -> Arc<Plan> {
    let head: Parts = Request::new(()).into_parts().0;
    let mut call = Call::new(Endpoint::of("/v1/chat/completions"));
    call.model = Some("m".into());
    Arc::new(view.planner.plan(Asked { head: &head, call: Some(&call), flow: None, body: None }, None))
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_goes_is_there_until_the_configuration_without_it_is_shown() {
    let balancer = balancer(&[("a", "m")]);
    let pool = balancer.pool();
    let view = pool.view.load_full();
    let plan = plan(&view);
    // What putting the next configuration in force does first.
    view.members[0].node.retire();
    let held = pool.pick_now(&view, &plan).unwrap().unwrap();
    let mut number = None;
    let mut waits = Box::pin(pool.pick_first(&view, &plan, Instant::now(), &mut number));
    assert!(waits.as_mut().now_or_never().is_none() && pool.waiting() == 1);
    apply(&balancer, &[("b", "m")]);
    let pick = waits.await.unwrap().unwrap();
    assert_eq!((&*held.member.backend.name, &*pick.member.backend.name), ("a", "b"));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_by_a_plan_of_an_older_configuration() {
    let balancer = balancer(&[("a", "m")]);
    let pool = balancer.pool();
    let view = pool.view.load_full();
    let plan = plan(&view);
    apply(&balancer, &[("b", "n")]);
    assert!(pool.pick_now(&view, &plan).is_none());
    assert!(pool.pick_first(&view, &plan, Instant::now(), &mut None).await.unwrap().is_none());
}
