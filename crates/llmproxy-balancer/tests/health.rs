//! Backends that come and go, and what they serve.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{Checks, Proxy, Reply, answer, asked, backends, events, text};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use llmproxy_balancer::{
    BackendConfig, BackendState, BackendStatus, BalanceError, Balancer, Candidate, Cause, Choice, HealthCheckConfig,
    Policy, Pool, RoutingConfig, Work,
};
use llmproxy_core::{BoxError, HttpClient, RequestBody, cause_ref};
use proptest::prelude::*;
use tokio::time::Instant;
use tower::service_fn;

fn health() -> HealthCheckConfig {
    HealthCheckConfig::default()
}

async fn settle() {
    // Longer than a check, shorter than the wait for the next.
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn ups(pool: &Pool) -> Vec<bool> {
    pool.snapshot().iter().map(|status| status.up).collect()
}

fn code(error: &BoxError) -> (u16, &'static str) {
    let error = cause_ref::<BalanceError>(&**error).expect("an error of ours");
    (error.status().as_u16(), error.code())
}

fn named(pool: Arc<Pool>) -> Proxy {
    Proxy::new(pool, |target| Reply::Answer(answer(200, &target.backend.name)))
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

#[tokio::test(start_paused = true)]
async fn a_backend_of_weight_zero_gets_nothing() {
    let checks = Checks::default();
    checks.well("a");
    checks.well("b");
    let balancer = Balancer::new(checks.client());
    let proxy = named(balancer.apply(&backends(&[0, 1]), &RoutingConfig::default(), &health(), &Default::default()));
    settle().await;
    for _ in 0..5 {
        assert_eq!(asked(&proxy.ask().await.0), ["b"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_embedder_may_bring_a_policy() {
    /// The last one, unless it is wrong in one of two ways.
    #[derive(Debug)]
    struct Last(Option<usize>);

    impl Policy for Last {
        fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
            let at = self.0.unwrap_or(candidates.len()).checked_sub(1).expect("a mistake of the embedder's");
            Choice::new(at, "the last one")
        }
    }

    use tower::{Layer, ServiceExt};
    for (policy, expected) in [(Last(None), "c"), (Last(Some(1000)), "a"), (Last(Some(0)), "a")] {
        let layer = llmproxy_balancer::BalanceLayer::new(common::unchecked(&[1, 1, 1], &RoutingConfig::default()))
            .with_policy(Arc::new(policy));
        let service = layer.layer(tower::service_fn(async |request: http::Request<RequestBody>| {
            let target = request.extensions().get::<llmproxy_core::Target>().unwrap();
            Ok::<_, BoxError>(answer(200, &target.backend.name))
        }));
        let response = service.oneshot(http::Request::new(RequestBody::whole(""))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected);
    }
}

/// Something that happens to the health of backends.
#[derive(Clone, Debug)]
enum Event {
    /// The backend goes away and comes back well.
    Restarts(usize),
    /// A request finds no connection there.
    Refuses(usize),
    /// A stream breaks there.
    Breaks(usize),
    /// All that it answers for a while is this.
    Answers(usize, u16),
    /// The backend is well, or its health page says otherwise.
    Health(usize, bool),
    /// Time passes.
    Seconds(u64),
    /// The configuration is put in force again.
    Reload,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3_usize).prop_map(Event::Restarts),
        (0..3_usize).prop_map(Event::Refuses),
        (0..3_usize).prop_map(Event::Breaks),
        (0..3_usize, proptest::sample::select(vec![429_u16, 500, 502, 503]))
            .prop_map(|(at, with)| Event::Answers(at, with)),
        (0..3_usize, any::<bool>()).prop_map(|(at, well)| Event::Health(at, well)),
        (1..40_u64).prop_map(Event::Seconds),
        Just(Event::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn there_is_always_a_backend_while_one_is_healthy(events in proptest::collection::vec(event(), 1..30), checked: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let checks = Checks::default();
            for host in ["a", "b", "c"] {
                checks.well(host);
            }
            let config = HealthCheckConfig { enabled: checked, ..health() };
            let mut routing = RoutingConfig::default();
            routing.retry.enabled = false;
            let balancer = Balancer::new(checks.client());
            let mut pool = balancer.apply(&backends(&[1, 2, 3]), &routing, &config, &Default::default());
            settle().await;
            for event in events {
                let host = |at: usize| ["a", "b", "c"][at];
                match event {
                    Event::Restarts(at) => {
                        checks.refuse(host(at));
                        tokio::time::sleep(Duration::from_secs(31)).await;
                        checks.well(host(at));
                    }
                    Event::Refuses(at) | Event::Breaks(at) => {
                        let refuses = matches!(event, Event::Refuses(_));
                        let proxy = Proxy::new(pool.clone(), move |target| match &*target.backend.name {
                            name if name != host(at) => Reply::Answer(answer(200, "")),
                            _ if refuses => Reply::Refused,
                            _ => Reply::Answer(common::events([Err("reset")])),
                        });
                        for _ in 0..6 {
                            if let Ok(response) = proxy.ask().await.1 {
                                let _ = text(response).await;
                            }
                        }
                    }
                    Event::Answers(at, with) => {
                        let proxy = Proxy::new(pool.clone(), move |target| match &*target.backend.name {
                            name if name != host(at) => Reply::Answer(answer(200, "")),
                            _ => {
                                let mut answer = answer(with, "");
                                answer.headers_mut().insert("retry-after", "3".parse().unwrap());
                                Reply::Answer(answer)
                            }
                        });
                        for _ in 0..40 {
                            if let Ok(response) = proxy.ask().await.1 {
                                let _ = text(response).await;
                            }
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                    Event::Health(at, true) => checks.well(host(at)),
                    Event::Health(at, false) => checks.set(host(at), 500, 500, ""),
                    Event::Seconds(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                    Event::Reload => pool = balancer.apply(&backends(&[3, 2, 1]), &routing, &config, &Default::default()),
                }
                let any_up = pool.is_any_up();
                let result = named(pool.clone()).ask().await.1;
                if any_up {
                    prop_assert!(result.is_ok(), "{}", result.unwrap_err());
                }
                if result.is_err() {
                    // None of them is one that a request could still bring back.
                    let hopeless = |status: &BackendStatus| status.state == BackendState::Down && status.out.is_some();
                    prop_assert!(pool.snapshot().iter().all(hopeless));
                }
            }
            // Whatever happened: once all are well and time has passed, all are back.
            for host in ["a", "b", "c"] {
                checks.well(host);
            }
            tokio::time::sleep(Duration::from_secs(150)).await;
            prop_assert_eq!(ups(&pool), [true; 3]);
            for _ in 0..20 {
                let answer = named(pool.clone()).ask().await.1;
                prop_assert!(answer.is_ok());
                let _ = text(answer.unwrap()).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            prop_assert!(pool.snapshot().iter().all(|status| status.state == BackendState::Up), "{:?}", pool.snapshot());
            Ok(())
        })?;
    }
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
