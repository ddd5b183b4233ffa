//! Which backends serve a model, as they tell, and when they are asked again.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{Checks, Proxy, Reply, asked, backends, code, named, settle, text};
use http::{Request, Response};
use llmproxy_balancer::{BalanceError, Balancer, HealthCheckConfig, RoutingConfig};
use llmproxy_core::{BoxError, HttpClient, RequestBody, cause_ref};
use tokio::time::Instant;
use tower::service_fn;

fn health() -> HealthCheckConfig {
    HealthCheckConfig::default()
}

#[tokio::test(start_paused = true)]
async fn requests_go_where_their_model_is() {
    let checks = Checks::default();
    checks.serves("a", &["qwen"]);
    checks.serves("b", &["llama3:latest"]);
    let balancer = Balancer::new(checks.client());
    let proxy = named(balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &health(), &Default::default()));
    for (model, host) in [("qwen", "a"), ("llama3", "b"), ("qwen", "a"), ("llama3:latest", "b")] {
        let (exchange, response) = proxy.ask_with(Some(model), RequestBody::whole("{}")).await;
        response.unwrap();
        assert_eq!(asked(&exchange), [host], "the first of these waits until the lists are known");
    }
    let error = proxy.ask_with(Some("gpt-4"), RequestBody::whole("{}")).await.1.unwrap_err();
    assert_eq!(code(&error), (404, "model_not_found"));
    let (exchange, response) = proxy.ask_with(None, RequestBody::whole("{}")).await;
    assert!(response.is_ok() && exchange.attempts().len() == 1, "without a model, anywhere");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_model_may_be_on_a_backend_that_has_not_told_yet() {
    let checks = Checks::default();
    checks.serves("a", &["qwen"]);
    let balancer = Balancer::new(checks.client());
    let proxy = named(balancer.apply(&backends(&[1, 1, 1]), &RoutingConfig::default(), &health(), &Default::default()));
    settle().await;
    let error = proxy.ask_with(Some("gpt-4"), RequestBody::whole("{}")).await.1.unwrap_err();
    assert_eq!(code(&error), (503, "model_not_known_yet"));
    checks.serves("b", &["qwen"]);
    checks.serves("c", &["gpt-4"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(asked(&proxy.ask_with(Some("gpt-4"), RequestBody::whole("{}")).await.0), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_takes_every_name_gets_its_own_and_those_that_nobody_has() {
    let checks = Checks::default();
    checks.takes_any_name("a", "chat");
    checks.takes_any_name("b", "embed");
    let balancer = Balancer::new(checks.client());
    let proxy = named(balancer.apply(&backends(&[1, 1, 1]), &RoutingConfig::default(), &health(), &Default::default()));
    let ask = async |model| asked(&proxy.ask_with(Some(model), RequestBody::whole("{}")).await.0);
    for (model, host) in [("chat", "a"), ("embed", "b"), ("chat", "a"), ("chat", "a"), ("embed", "b")] {
        assert_eq!(ask(model).await, [host], "from the first request on");
    }
    // The third has not told yet and does not answer; then one that takes every name may have it.
    assert!(["a", "b"].contains(&&*ask("gpt-4").await[0]));
    checks.serves("c", &["gpt-4"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..3 {
        assert_eq!(ask("gpt-4").await, ["c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_out_still_has_its_models() {
    let checks = Checks::default();
    checks.serves("a", &["qwen"]);
    checks.serves("b", &["llama3"]);
    let balancer = Balancer::new(checks.client());
    let mut routing = RoutingConfig::default();
    routing.retry.enabled = false;
    let pool = balancer.apply(&backends(&[1, 1]), &routing, &health(), &Default::default());
    settle().await;
    Proxy::new(pool.clone(), |_| Reply::Refused).ask_with(Some("qwen"), RequestBody::whole("")).await.1.unwrap_err();
    let error = named(pool).ask_with(Some("qwen"), RequestBody::whole("")).await.1.unwrap_err();
    assert_eq!(code(&error), (503, "no_backend"));
    let retry_after = cause_ref::<BalanceError>(&*error).unwrap().retry_after().unwrap().as_secs_f64();
    assert!((1.0..=1.1).contains(&retry_after), "{retry_after}");
}

#[tokio::test(start_paused = true)]
async fn all_models_are_listed_once_with_their_aliases() {
    let checks = Checks::default();
    checks.set("a", 200, 200, r#"{"data":[{"id":"qwen","created":7,"owned_by":"vllm"}]}"#);
    checks.serves("b", &["qwen", "llama3"]);
    let balancer = Balancer::new(checks.client());
    let mut routing = RoutingConfig::default();
    routing.model_mapping.insert("gpt-4".into(), "qwen".into());
    routing.model_mapping.insert("nowhere".into(), "nothing".into());
    let mut backends = backends(&[1, 1, 1, 0]);
    backends[2].models = vec!["mine".into()];
    backends[3].models = vec!["idle".into()];
    let pool = balancer.apply(&backends, &routing, &health(), &Default::default());
    settle().await;
    let models = pool.models();
    let ids: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(ids, ["gpt-4", "llama3", "mine", "qwen"]);
    let alias = &models[0];
    assert_eq!((alias.created, alias.owned_by.as_deref()), (Some(7), Some("vllm")));
    assert_eq!(alias.backends, ["a".into(), "b".into()]);
}

/// Asks for `model` and returns the answer's status, and how long it took.
async fn ask_for(proxy: &Proxy, model: &str) -> (u16, Duration) {
    let began = Instant::now();
    let (_, answer) = proxy.ask_with(Some(model), RequestBody::whole("{}")).await;
    let status = answer.map_or_else(|error| code(&error).0, |answer| answer.status().as_u16());
    (status, began.elapsed())
}

fn unchecked() -> HealthCheckConfig {
    HealthCheckConfig { enabled: false, ..health() }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_a_backend_has_got_since_is_found_by_the_first_who_asks_for_it() {
    for health in [health(), unchecked()] {
        let checks = Checks::default();
        checks.serves("a", &["qwen"]);
        checks.serves("b", &["qwen"]);
        let balancer = Balancer::new(checks.client());
        let pool = balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &health, &Default::default());
        settle().await;
        checks.serves("b", &["qwen", "llama"]);
        let proxy = named(pool);
        assert_eq!(ask_for(&proxy, "llama").await.0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_knows_makes_backends_tell_their_models_once_in_five_seconds() {
    let checks = Checks::default();
    checks.serves("a", &["qwen"]);
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &unchecked(), &Default::default());
    settle().await;
    let proxy = named(pool);
    for asked in [2, 3] {
        for _ in 0..10 {
            assert_eq!(ask_for(&proxy, "typo").await, (404, Duration::ZERO));
        }
        assert_eq!(checks.asked("a").len(), asked);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_tell_again_holds_nobody_up_for_long() {
    let asked = Arc::new(AtomicUsize::new(0));
    let client = HttpClient::new(service_fn(move |_: Request<Bytes>| {
        let hangs = asked.fetch_add(1, Ordering::Relaxed) > 0;
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok::<_, BoxError>(Response::new(Bytes::from_static(br#"{"data":[{"id":"qwen"}]}"#)))
        }
    }));
    let balancer = Balancer::new(client);
    let pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &unchecked(), &Default::default());
    settle().await;
    let proxy = named(pool);
    assert_eq!(ask_for(&proxy, "typo").await, (404, Duration::from_secs(2)));
    assert_eq!(ask_for(&proxy, "typo").await, (404, Duration::ZERO));
    assert_eq!(ask_for(&proxy, "qwen").await, (200, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_never_tells_holds_up_only_those_who_come_at_first() {
    for (others, status) in [(&["a"][..], 200), (&[], 503)] {
        let checks = Checks::default();
        others.iter().for_each(|host| checks.well(host));
        let balancer = Balancer::new(checks.client());
        let pool = balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &unchecked(), &Default::default());
        let proxy = named(pool.clone());
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(ask_for(&proxy, "m").await, (status, Duration::from_millis(1500)));
        assert_eq!(ask_for(&proxy, "m").await, (status, Duration::ZERO));
        // One that is new is waited for again, and those that are known are not.
        balancer.apply(&backends(&[1, 1, 1]), &RoutingConfig::default(), &unchecked(), &Default::default());
        assert_eq!(ask_for(&proxy, "m").await.1.as_secs(), 2);
        assert_eq!(ask_for(&proxy, "m").await, (status, Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_is_no_list() {
    let checks = Checks::default();
    checks.serves("a", &["qwen"]);
    checks.set("b", 200, 200, r#"{"object":"list","data":[]}"#);
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    let proxy = named(pool);
    let whom =
        async |model| text(proxy.ask_with(Some(model), RequestBody::whole("{}")).await.1.unwrap()).await.unwrap();
    assert_eq!((whom("qwen").await, whom("llama").await), ("a".into(), "b".into()));
}
