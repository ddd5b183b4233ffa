//! Backends that come and go, as their checks find them.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Checks, Proxy, Reply, answer, asked, backends, code, events, named, settle, text, ups};
use llmproxy_balancer::{
    BackendConfig, BackendState, BalanceError, Balancer, Cause, HealthCheckConfig, Pool, RoutingConfig,
};

fn health() -> HealthCheckConfig {
    HealthCheckConfig::default()
}

#[tokio::test(start_paused = true)]
async fn the_first_check_is_made_at_start() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &health(), &Default::default());
    assert!(!pool.is_any_up(), "nothing is known yet");
    settle().await;
    assert_eq!(ups(&pool), [true, false]);
    assert!(pool.is_any_up());
    assert_eq!(checks.asked("a"), ["/health", "/v1/models"]);
}

#[tokio::test(start_paused = true)]
async fn a_check_now_is_waited_for() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &health(), &Default::default());
    balancer.check_now().await;
    assert_eq!(ups(&pool), [true]);
}

#[tokio::test(start_paused = true)]
async fn without_a_path_any_answer_below_500_is_good() {
    let checks = Checks::default();
    checks.set("a", 404, 200, r#"{"data":[]}"#);
    checks.set("b", 500, 200, r#"{"data":[]}"#);
    checks.set("c", 503, 503, "");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1, 1]), &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    assert_eq!(ups(&pool), [true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn with_a_path_the_status_is_strict() {
    let checks = Checks::default();
    checks.set("a", 204, 404, "");
    checks.set("b", 200, 404, "");
    let config = HealthCheckConfig { path: Some("/ready".into()), expected_status: 204, ..health() };
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &config, &Default::default());
    settle().await;
    assert_eq!(ups(&pool), [true, false]);
    assert_eq!(checks.asked("b"), ["/ready"]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_comes_back_is_found_soon() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    let proxy = Proxy::new(pool.clone(), |_| Reply::Refused);
    checks.refuse("a");
    // Its retries would go on for seconds; one attempt is enough here.
    let _ = tokio::time::timeout(Duration::from_millis(10), proxy.ask()).await;
    assert_eq!(pool.snapshot()[0].out, Some(Cause::Refused));
    checks.well("a");
    // A tenth more than a second, at most.
    tokio::time::sleep(Duration::from_millis(1101)).await;
    assert_eq!(ups(&pool), [true]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_needs_its_thresholds_to_go_and_to_come_back() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    checks.set("a", 500, 500, "");
    // Waits are up to a tenth shorter or longer, so it is the number of checks that says when.
    let more_checks = async |number: usize| {
        let before = checks.asked("a").len();
        while checks.asked("a").len() < before + number {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        settle().await;
    };
    // A check that fails asks both paths.
    for up in [true, true, false] {
        more_checks(2).await;
        assert_eq!(ups(&pool), [up]);
    }
    checks.well("a");
    let began = tokio::time::Instant::now();
    while ups(&pool) == [false] {
        more_checks(1).await;
    }
    let took = began.elapsed().as_secs_f64();
    assert!((1.8..2.3).contains(&took), "two good checks, each after a second: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_misconfigured_backend_must_show_that_it_takes_the_credentials() {
    let checks = Checks::default();
    checks.set("a", 200, 200, r#"{"data":[]}"#);
    let backend = BackendConfig {
        headers: [("x-api-key".into(), "ours".into())].into(),
        models: vec!["m".into()],
        ..BackendConfig::new("http://a")
    };
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&[backend], &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    checks.set("a", 200, 401, "");
    Proxy::new(pool.clone(), |_| Reply::Answer(answer(401, ""))).ask().await.1.unwrap_err();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(pool.snapshot()[0].out, Some(Cause::Credentials), "its health page is open to all");
    // While it is out its clients are told what they were told before: no waiting mends a key.
    let (exchange, result) = Proxy::new(pool.clone(), |_| Reply::Refused).ask().await;
    let error = result.unwrap_err();
    let error = llmproxy_core::cause_ref::<BalanceError>(&*error).unwrap();
    assert_eq!((error.status().as_u16(), error.code()), (502, "backend_misconfigured"));
    assert!(exchange.is_unasked() && error.retry_after().is_none());
    checks.set("a", 200, 200, r#"{"data":[]}"#);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(ups(&pool), [true]);
}

/// Two backends that get a key of ours, and whose checks are good; they list models to everybody.
async fn keyed() -> (Checks, Arc<Balancer>, Arc<Pool>) {
    let checks = Checks::default();
    let keyed = |mut backend: BackendConfig| {
        checks.set(backend.name.as_deref().expect("they are named"), 200, 200, r#"{"data":[]}"#);
        backend.headers = [("Authorization".into(), "Bearer ours".into())].into();
        backend.models = vec!["m".into()];
        backend
    };
    let backends: Vec<_> = backends(&[1, 1]).into_iter().map(keyed).collect();
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends, &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    (checks, balancer, pool)
}

#[tokio::test(start_paused = true)]
async fn no_client_takes_a_backend_from_all_by_what_it_is_refused() {
    for has_worked in [false, true] {
        let (checks, _balancer, pool) = keyed().await;
        if has_worked {
            for _ in 0..4 {
                let _ = text(named(pool.clone()).ask().await.1.unwrap()).await;
            }
            // Not even where the key is not for lists.
            checks.set("a", 200, 403, "");
            checks.set("b", 200, 403, "");
        }
        let before = checks.asked("a").len();
        let policy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(403, "we don't speak about that")));
        for _ in 0..3 {
            assert_eq!(code(&policy.ask().await.1.unwrap_err()), (502, "backend_misconfigured"));
            settle().await;
            assert_eq!(pool.snapshot().iter().filter_map(|status| status.out).next(), None, "{has_worked}");
        }
        assert_eq!(checks.asked("a")[before..], ["/health", "/v1/models"], "once, though it was refused three times");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_that_no_check_finds_is_found_by_requests_and_does_not_flap() {
    let (_checks, _balancer, pool) = keyed().await;
    let proxy = Proxy::new(pool.clone(), |target| match &*target.backend.name {
        "a" => Reply::Answer(answer(401, "no")),
        name => Reply::Answer(answer(200, name)),
    });
    let mut there = 0;
    for _ in 0..3000 {
        let (exchange, response) = proxy.ask().await;
        assert_eq!(text(response.unwrap()).await.unwrap(), "b");
        there += usize::from(asked(&exchange).iter().any(|name| name == "a"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Ten to find out, and then after 5, 10, 20, ... seconds.
    assert!((11..=20).contains(&there), "{there}");
    let status = &pool.snapshot()[0];
    assert_eq!((status.state, status.out), (BackendState::Ejected, Some(Cause::ErrorRate)));
    let reason = status.reason.as_deref().unwrap();
    assert!(
        reason.ends_with("answered with 401 Unauthorized, though it had the credentials of its `headers`"),
        "{reason}"
    );

    // Where all have it, each client is told of it.
    let (_checks, _balancer, pool) = keyed().await;
    let proxy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(401, "no")));
    for _ in 0..100 {
        assert_eq!(code(&proxy.ask().await.1.unwrap_err()), (502, "backend_misconfigured"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_known_and_what_is_in_flight() {
    let checks = Checks::default();
    checks.well("a");
    checks.well("b");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1]), &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    let proxy = Proxy::new(pool, |_| Reply::Answer(events([Ok("1"), Ok("2")])));
    let stream = proxy.ask().await.1.unwrap();
    let checks_before = checks.asked("a").len();

    let renamed = BackendConfig { name: Some("first".into()), weight: 7, ..BackendConfig::new("http://a/v1/") };
    let reloaded = balancer.apply(&[renamed], &RoutingConfig::default(), &health(), &Default::default());
    assert_eq!(ups(&reloaded), [true]);
    assert_eq!(reloaded.snapshot()[0].in_flight, 1);
    settle().await;
    assert_eq!(checks.asked("a").len(), checks_before, "nothing changed for its checks");
    assert_eq!(text(stream).await.unwrap(), "12");
    assert_eq!(reloaded.snapshot()[0].in_flight, 0);

    // The one that is gone is checked no more.
    let checks_of_b = checks.asked("b").len();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(checks.asked("b").len(), checks_of_b);
    assert!(checks.asked("a").len() > checks_before);
}

#[tokio::test(start_paused = true)]
async fn checks_end_with_the_balancer() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let _pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &health(), &Default::default());
    settle().await;
    let before = checks.asked("a").len();
    drop(balancer);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(checks.asked("a").len(), before);
}
