//! Backends that are full, and the line in which requests wait for them.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod common;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{Answer, Checks, Proxy, Reply, answer, asked, backends, pool_of, text};
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use llmproxy_balancer::{
    BackendConfig, BackendState, BalanceError, Balancer, HealthCheckConfig, QueueConfig, RoutingConfig,
};
use llmproxy_core::{BoxError, Exchange, RequestBody, cause_ref};
use proptest::prelude::*;
use tokio::{
    task::{JoinHandle, yield_now},
    time::{Instant, advance, sleep},
};

type Asking = JoinHandle<(Arc<Exchange>, Result<Answer, BoxError>)>;

/// Backends `a`, `b`, ... that serve `m`, each with room for so many.
fn with_room(room: &[usize]) -> Vec<BackendConfig> {
    let mut backends = backends(&vec![1; room.len()]);
    for (backend, room) in backends.iter_mut().zip(room) {
        backend.models.push("m".into());
        backend.max_concurrent = Some(*room);
    }
    backends
}

fn balancer() -> Arc<Balancer> {
    Balancer::new(Checks::default().client())
}

fn apply(balancer: &Balancer, backends: &[BackendConfig], queue: QueueConfig) {
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(backends, &RoutingConfig::default(), &health, &queue);
}

/// A proxy over `balancer` whose backends answer with their names.
fn named(balancer: &Balancer) -> Proxy {
    Proxy::new(balancer.pool().clone(), |target| Reply::Answer(answer(200, &target.backend.name)))
}

fn proxy(room: &[usize], queue: QueueConfig) -> Proxy {
    let balancer = balancer();
    apply(&balancer, &with_room(room), queue);
    named(&balancer)
}

/// Asks, and lets it come as far as it can.
async fn ask(proxy: &Proxy) -> Asking {
    let proxy = proxy.clone();
    let asking = tokio::spawn(async move { proxy.ask().await });
    settle().await;
    asking
}

async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

async fn name(asking: Asking) -> String {
    text(asking.await.unwrap().1.unwrap()).await.unwrap()
}

fn refusal(result: &Result<Answer, BoxError>) -> &BalanceError {
    let Err(error) = result else { panic!("it is refused") };
    cause_ref(&**error).expect("by the balancer")
}

#[tokio::test(start_paused = true)]
async fn a_full_backend_is_not_asked_and_the_next_request_waits_for_the_last_byte() {
    let proxy = proxy(&[1], QueueConfig::default());
    let (first, answered) = proxy.ask().await;
    let answered = answered.unwrap();
    assert_eq!(first.queue_time(), Some(Duration::ZERO));
    let second = ask(&proxy).await;
    assert!(!second.is_finished());
    assert_eq!((proxy.in_flight(), proxy.pool.waiting()), (vec![1], 1));
    sleep(Duration::from_secs(7)).await;
    assert!(!second.is_finished(), "the head has come, but not the last byte");
    assert_eq!(text(answered).await.unwrap(), "a");
    let (exchange, result) = second.await.unwrap();
    assert!(result.is_ok());
    assert_eq!(exchange.queue_time().map(|time| time.as_secs()), Some(7));
    assert_eq!(proxy.pool.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_came_first_is_served_first() {
    let proxy = proxy(&[1], QueueConfig::default());
    let mut held = Some(proxy.ask().await.1.unwrap());
    let mut waiting = VecDeque::new();
    for _ in 0..5 {
        waiting.push_back(ask(&proxy).await);
    }
    for round in 0..6 {
        // Whoever comes now stands behind the others.
        if round == 2 {
            waiting.push_back(ask(&proxy).await);
        }
        let first: Asking = waiting.pop_front().unwrap();
        drop(held.take());
        settle().await;
        assert!(first.is_finished() && waiting.iter().all(|other| !other.is_finished()));
        held = Some(first.await.unwrap().1.unwrap());
    }
    assert_eq!(proxy.in_flight(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_the_line_leaves_its_place() {
    let proxy = proxy(&[1], QueueConfig::default());
    let held = proxy.ask().await.1.unwrap();
    let leaves = ask(&proxy).await;
    let stays = ask(&proxy).await;
    assert_eq!(proxy.pool.waiting(), 2);
    leaves.abort();
    settle().await;
    assert_eq!(proxy.pool.waiting(), 1);
    drop(held);
    assert_eq!(name(stays).await, "a");
    assert_eq!((proxy.in_flight(), proxy.pool.waiting()), (vec![0], 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_as_its_turn_comes_keeps_nothing() {
    let proxy = proxy(&[1], QueueConfig::default());
    let held = proxy.ask().await.1.unwrap();
    let leaves = ask(&proxy).await;
    let stays = ask(&proxy).await;
    // In one step: its turn has come, and it has not been polled since.
    drop(held);
    leaves.abort();
    settle().await;
    assert_eq!(name(stays).await, "a");
    assert_eq!((proxy.in_flight(), proxy.pool.waiting()), (vec![0], 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_line_refuses_at_once() {
    let proxy = proxy(&[1], QueueConfig { max_waiting: 1, ..QueueConfig::default() });
    let _held = proxy.ask().await.1.unwrap();
    let _waits = ask(&proxy).await;
    let (exchange, result) = proxy.ask().await;
    let error = refusal(&result);
    assert!(matches!(error, BalanceError::QueueFull { .. }), "{error:?}");
    assert_eq!((error.status(), error.code()), (StatusCode::SERVICE_UNAVAILABLE, "queue_full"));
    assert!(error.retry_after().unwrap() >= Duration::from_secs(1));
    assert!(exchange.is_unasked());
}

#[tokio::test(start_paused = true)]
async fn without_a_line_whoever_finds_no_room_is_refused() {
    let proxy = proxy(&[1], QueueConfig { max_waiting: 0, ..QueueConfig::default() });
    let held = proxy.ask().await.1.unwrap();
    assert!(matches!(refusal(&proxy.ask().await.1), BalanceError::QueueFull { .. }));
    drop(held);
    assert!(proxy.ask().await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_wait_has_an_end() {
    let proxy = proxy(&[1], QueueConfig { timeout: Duration::from_secs(10), ..QueueConfig::default() });
    let _held = proxy.ask().await.1.unwrap();
    let began = Instant::now();
    let (_, result) = proxy.ask().await;
    let error = refusal(&result);
    assert!(matches!(error, BalanceError::QueueTimeout { .. }), "{error:?}");
    assert_eq!(began.elapsed().as_secs(), 10);
    assert!(error.to_string().contains("10s"), "{error}");
    assert_eq!((proxy.in_flight(), proxy.pool.waiting()), (vec![1], 0));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_how_long_those_who_wait_will_take() {
    let proxy = proxy(&[1], QueueConfig { max_waiting: 4, timeout: Duration::from_secs(600) });
    let mut held = Some(proxy.ask().await.1.unwrap());
    // One leaves every three seconds; there are always four in the line.
    let mut waiting = VecDeque::new();
    for _ in 0..4 {
        waiting.push_back(ask(&proxy).await);
    }
    for _ in 0..20 {
        sleep(Duration::from_secs(3)).await;
        drop(held.take());
        let next: Asking = waiting.pop_front().unwrap();
        held = Some(next.await.unwrap().1.unwrap());
        waiting.push_back(ask(&proxy).await);
    }
    let (_, result) = proxy.ask().await;
    assert_eq!(refusal(&result).retry_after().unwrap().as_secs(), 15, "five times three seconds");
}

#[tokio::test(start_paused = true)]
async fn those_in_the_line_get_what_a_new_configuration_brings() {
    let balancer = balancer();
    apply(&balancer, &with_room(&[1]), QueueConfig::default());
    let proxy = named(&balancer);
    let _held = proxy.ask().await.1.unwrap();
    let waits = ask(&proxy).await;
    apply(&balancer, &with_room(&[1, 1]), QueueConfig::default());
    assert_eq!(name(waits).await, "b");
}

#[tokio::test(start_paused = true)]
async fn those_in_the_line_are_told_when_there_is_nobody_left_to_wait_for() {
    let balancer = balancer();
    apply(&balancer, &with_room(&[1]), QueueConfig::default());
    let proxy = named(&balancer);
    let _held = proxy.ask().await.1.unwrap();
    let waits = ask(&proxy).await;
    balancer.set_draining("a", true).unwrap();
    let result = waits.await.unwrap().1;
    assert!(matches!(refusal(&result), BalanceError::NoBackend { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_go_where_there_is_no_room() {
    let mut backends = with_room(&[1, 1]);
    backends[1].tier = 1;
    let pool = pool_of(&backends, &RoutingConfig::default());
    let first = Proxy::new(pool.clone(), |target| Reply::Answer(answer(200, &target.backend.name)));
    let a = first.ask().await.1.unwrap();
    let _b = first.ask().await.1.unwrap();
    drop(a);
    let proxy = Proxy::new(pool, |target| match &*target.backend.name {
        "a" => Reply::Answer(answer(503, "busy")),
        name => Reply::Answer(answer(200, name)),
    });
    let (exchange, result) = proxy.ask().await;
    assert_eq!(result.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(asked(&exchange).iter().all(|name| name == "a"), "{:?}", asked(&exchange));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_kept_while_another_is_tried_for_takes_no_place() {
    let mut number = 0;
    let proxy = Proxy::new(pool_of(&with_room(&[1]), &RoutingConfig::default()), move |_| {
        number += 1;
        Reply::Answer(answer(if number == 1 { 503 } else { 200 }, "a"))
    });
    let (exchange, result) = proxy.ask().await;
    assert_eq!((asked(&exchange), result.unwrap().status()), (vec!["a".into(), "a".into()], StatusCode::OK));
    assert_eq!(proxy.in_flight(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_waits_for_room_at_one_that_has_not_failed_and_holds_up_nobody() {
    let mut number = 0;
    let proxy = Proxy::new(pool_of(&with_room(&[9, 1]), &RoutingConfig::default()), move |target| {
        number += 1;
        match (&*target.backend.name, number) {
            ("a", 3) => Reply::Answer(answer(502, "no engine")),
            (name, _) => Reply::Answer(answer(200, name)),
        }
    });
    let [_, held] = [proxy.ask().await.1.unwrap(), proxy.ask().await.1.unwrap()];
    assert_eq!(proxy.in_flight()[1], 1);
    let waits = ask(&proxy).await;
    assert_eq!((waits.is_finished(), proxy.pool.waiting()), (false, 1));
    let (exchange, result) = proxy.ask().await;
    assert_eq!((asked(&exchange), text(result.unwrap()).await.unwrap()), (vec!["a".into()], "a".into()));
    sleep(Duration::from_secs(7)).await;
    assert!(!waits.is_finished());
    // It was there before whoever comes now.
    drop(held);
    let later = ask(&proxy).await;
    let (exchange, result) = waits.await.unwrap();
    assert_eq!((asked(&exchange), result.unwrap().status()), (vec!["a".into(), "b".into()], StatusCode::OK));
    assert_eq!(name(later).await, "a");
    assert_eq!(proxy.pool.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_waits_for_room_once_and_no_longer_than_anyone() {
    let mut room = with_room(&[9, 1]);
    room[1].tier = 1;
    let first = Proxy::new(pool_of(&room, &RoutingConfig::default()), |target| {
        Reply::Answer(answer(if &*target.backend.name == "a" { 502 } else { 200 }, ""))
    });
    let _held = first.ask().await.1.unwrap();
    let began = Instant::now();
    let (exchange, result) = first.ask().await;
    assert_eq!((asked(&exchange), result.unwrap().status()), (vec!["a".to_owned(); 4], StatusCode::BAD_GATEWAY));
    let (waited, queue) = (began.elapsed(), QueueConfig::default().timeout);
    assert!(waited >= queue && waited < queue + Duration::from_secs(10), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn where_the_only_backend_is_out_and_full_all_wait_for_it() {
    let proxy = Proxy::new(pool_of(&with_room(&[1]), &RoutingConfig::default()), |_| Reply::Answer(answer(500, "")));
    while proxy.pool.snapshot()[0].out.is_none() {
        let _ = proxy.ask().await;
    }
    let held = proxy.ask().await.1.unwrap();
    let waiting = [ask(&proxy).await, ask(&proxy).await];
    assert!(waiting.iter().all(|waits| !waits.is_finished()));
    drop(held);
    for waits in waiting {
        assert_eq!(waits.await.unwrap().1.unwrap().status(), 500);
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_tier_is_asked_when_the_first_is_full_and_no_longer() {
    let mut backends = with_room(&[1, 1, 5]);
    backends[2].tier = 1;
    let proxy = Proxy::new(pool_of(&backends, &RoutingConfig::default()), |target| {
        Reply::Answer(answer(200, &target.backend.name))
    });
    let mut held = Vec::new();
    for expected in ["a", "b", "c", "c"] {
        let (exchange, response) = proxy.ask().await;
        assert_eq!(asked(&exchange), [expected]);
        held.push(response);
    }
    held.remove(0).unwrap();
    assert_eq!(asked(&proxy.ask().await.0), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn tokens_bound_what_is_there_and_the_largest_goes_alone() {
    let mut backends = with_room(&[100]);
    backends[0].max_tokens = Some(1000);
    let proxy = Proxy::new(pool_of(&backends, &RoutingConfig::default()), |target| {
        Reply::Answer(answer(200, &target.backend.name))
    });
    // Each is expected to have an answer of 300 tokens.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(proxy.ask().await.1.unwrap());
    }
    let fourth = ask(&proxy).await;
    assert!(!fourth.is_finished());
    held.pop();
    let fourth = fourth.await.unwrap().1.unwrap();
    drop((held, fourth));
    let large = proxy.ask_sized(Some("m"), RequestBody::whole("{}"), 1_000_000).await.1.unwrap();
    let next = ask(&proxy).await;
    assert!(!next.is_finished());
    drop(large);
    assert_eq!(name(next).await, "a");
}

/// Asks for a model by this name, and lets it come as far as it can.
async fn ask_for(proxy: &Proxy, model: &str, prompt: u64) -> Asking {
    let (proxy, model) = (proxy.clone(), model.to_owned());
    let asking = tokio::spawn(async move { proxy.ask_sized(Some(&model), RequestBody::whole("{}"), prompt).await });
    settle().await;
    asking
}

#[tokio::test(start_paused = true)]
async fn names_that_clients_make_up_share_one_place_in_the_line() {
    let mut backends = with_room(&[1, 1]);
    // It takes every name; the other one has its own model.
    backends[0].models.clear();
    backends[1].models = vec!["own".into()];
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    apply(&balancer, &backends, QueueConfig::default());
    settle().await;
    let proxy = named(&balancer);
    let held = proxy.ask_with(Some("x"), RequestBody::whole("{}")).await.1.unwrap();
    let mut waiting = VecDeque::new();
    for number in 0..300 {
        waiting.push_back(ask_for(&proxy, &format!("made-up-{number}"), 0).await);
    }
    assert_eq!(proxy.pool.waiting(), 300);
    // Others are served as though nobody waited.
    assert_eq!(name(ask_for(&proxy, "own", 0).await).await, "b");
    drop(held);
    for asking in waiting {
        assert_eq!(name(asking).await, "a", "in the order in which they came");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_one_that_takes_every_name_rests_while_another_has_not_told_what_it_serves() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let queue = QueueConfig { timeout: Duration::from_secs(10), ..QueueConfig::default() };
    let mut all = backends(&[1, 1, 1]);
    all[0].max_concurrent = Some(1);
    apply(&balancer, &all[..2], queue);
    let proxy = named(&balancer);
    let _held = proxy.ask().await.1.unwrap();
    let waits = ask(&proxy).await;
    advance(Duration::from_secs(1)).await;
    apply(&balancer, &all, queue);
    // It has waited long enough to learn what they serve, and the third has not told.
    advance(Duration::from_secs(1)).await;
    settle().await;
    assert_eq!((waits.is_finished(), proxy.pool.waiting()), (false, 1));
    advance(Duration::from_secs(8)).await;
    settle().await;
    assert!(waits.is_finished());
    assert!(matches!(refusal(&waits.await.unwrap().1), BalanceError::QueueTimeout { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_large_request_is_not_passed_by_small_ones() {
    let mut backends = with_room(&[100]);
    backends[0].max_tokens = Some(2000);
    backends[0].models.push("other".into());
    let balancer = balancer();
    apply(&balancer, &backends, QueueConfig::default());
    let proxy = named(&balancer);
    let held = proxy.ask_sized(Some("m"), RequestBody::whole("{}"), 1500).await.1.unwrap();
    let large = ask_for(&proxy, "m", 1500).await;
    let small = [ask_for(&proxy, "m", 10).await, ask_for(&proxy, "other", 10).await];
    assert!(small.iter().all(|asking| !asking.is_finished()), "there would be room for them");
    drop(held);
    settle().await;
    assert!(large.is_finished());
    assert_eq!(name(large).await, "a");
    for small in small {
        assert_eq!(name(small).await, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_those_in_the_line_would_not_be_given_is_free_for_others() {
    for status in [429, 500] {
        let mut backends = with_room(&[1, 8]);
        backends[1].models.push("other".into());
        let mut routing = RoutingConfig::default();
        routing.retry.enabled = false;
        let balancer = balancer();
        let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
        balancer.apply(&backends, &routing, &health, &QueueConfig::default());
        let refuses = Arc::new(AtomicBool::new(true));
        let script = refuses.clone();
        let proxy = Proxy::new(balancer.pool().clone(), move |target| {
            let status = if script.load(Ordering::Relaxed) { status } else { 200 };
            let mut answer = answer(status, &target.backend.name);
            answer.headers_mut().insert("retry-after", HeaderValue::from_static("40"));
            Reply::Answer(answer)
        });
        balancer.set_draining("a", true).unwrap();
        for _ in 0..20 {
            let _ = proxy.ask().await;
        }
        let state = proxy.pool.snapshot()[1].state;
        assert!(matches!(state, BackendState::Pressured | BackendState::Ejected), "{state:?}");
        balancer.set_draining("a", false).unwrap();
        refuses.store(false, Ordering::Relaxed);
        let held = proxy.ask().await.1.unwrap();
        let waiting = [ask(&proxy).await, ask(&proxy).await];
        assert_eq!((proxy.in_flight(), proxy.pool.waiting()), (vec![1, 0], 2), "{state:?}, for the later one too");
        assert_eq!(name(ask_for(&proxy, "other", 0).await).await, "b");
        drop(held);
        for asking in waiting {
            assert!(asking.await.unwrap().1.is_ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_fallback_gets_its_first_choice_when_that_is_back() {
    let mut backends = with_room(&[1, 1]);
    backends[1].models = vec!["spare".into()];
    let routing: RoutingConfig =
        serde_json::from_str(r#"{"models": {"chat": {"to": "m", "fallbacks": ["spare"]}}}"#).unwrap();
    let balancer = balancer();
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(&backends, &routing, &health, &QueueConfig::default());
    let proxy = named(&balancer);
    balancer.set_draining("a", true).unwrap();
    let _held = proxy.ask_with(Some("chat"), RequestBody::whole("{}")).await.1.unwrap();
    let waits = ask_for(&proxy, "chat", 0).await;
    assert!(!waits.is_finished());
    balancer.set_draining("a", false).unwrap();
    assert_eq!(name(waits).await, "a");
}

#[tokio::test(start_paused = true)]
async fn those_who_turn_to_a_fallback_keep_their_order_and_nobody_comes_in_between() {
    let mut backends = with_room(&[1, 1]);
    backends[1].models = vec!["spare".into()];
    let routing: RoutingConfig =
        serde_json::from_str(r#"{"models": {"chat": {"to": "m", "fallbacks": ["spare"]}}}"#).unwrap();
    let balancer = balancer();
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(&backends, &routing, &health, &QueueConfig::default());
    let proxy = named(&balancer);
    let _held = proxy.ask_with(Some("chat"), RequestBody::whole("{}")).await.1.unwrap();
    let mut waiting = VecDeque::new();
    for _ in 0..5 {
        waiting.push_back(ask_for(&proxy, "chat", 0).await);
    }
    balancer.set_draining("a", true).unwrap();
    // Before any of them can look for itself.
    let mut later = Box::pin(proxy.ask_with(Some("spare"), RequestBody::whole("{}")));
    assert!(later.as_mut().now_or_never().is_none());
    while let Some(first) = waiting.pop_front() {
        settle().await;
        assert!(first.is_finished() && waiting.iter().all(|other| !other.is_finished()));
        assert_eq!(name(first).await, "b");
    }
    assert!(later.await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn whoever_has_to_look_again_has_its_old_place() {
    let routing = |to: &str| RoutingConfig {
        model_mapping: [("gpt".to_owned(), to.to_owned())].into(),
        ..RoutingConfig::default()
    };
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let balancer = balancer();
    let mut backends = with_room(&[1]);
    // All places are taken, which is not held against who has one.
    let queue = QueueConfig { max_waiting: 1, ..QueueConfig::default() };
    balancer.apply(&backends, &routing("m"), &health, &queue);
    let proxy = named(&balancer);
    let held = proxy.ask_with(Some("gpt"), RequestBody::whole("{}")).await.1.unwrap();
    let first = ask_for(&proxy, "gpt", 0).await;
    backends[0].models = vec!["n".into()];
    balancer.apply(&backends, &routing("n"), &health, &queue);
    let mut later = Box::pin(proxy.ask_with(Some("gpt"), RequestBody::whole("{}")));
    assert!(later.as_mut().now_or_never().is_none());
    settle().await;
    assert_eq!((first.is_finished(), proxy.pool.waiting()), (false, 2));
    drop(held);
    settle().await;
    assert!(first.is_finished() && later.as_mut().now_or_never().is_none());
    drop(first.await.unwrap().1.unwrap());
    assert!(later.await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_means_something_else_now_is_served_by_that() {
    let routing = |to: &str| RoutingConfig {
        model_mapping: [("gpt".to_owned(), to.to_owned())].into(),
        ..RoutingConfig::default()
    };
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let balancer = balancer();
    let mut backends = with_room(&[1]);
    balancer.apply(&backends, &routing("m"), &health, &QueueConfig::default());
    let proxy = named(&balancer);
    let held = proxy.ask_with(Some("gpt"), RequestBody::whole("{}")).await.1.unwrap();
    let waits = ask_for(&proxy, "gpt", 0).await;
    backends[0].models = vec!["n".into()];
    balancer.apply(&backends, &routing("n"), &health, &QueueConfig::default());
    settle().await;
    drop(held);
    let (exchange, result) = waits.await.unwrap();
    assert!(result.is_ok(), "{}", result.unwrap_err());
    assert_eq!(exchange.served().unwrap().model.as_deref(), Some("n"));
}

#[tokio::test(start_paused = true)]
async fn the_question_for_usage_keeps_its_place() {
    let balancer = balancer();
    apply(&balancer, &with_room(&[1]), QueueConfig::default());
    let pool = balancer.pool().clone();
    let most = pool.clone();
    let proxy = Proxy::new(pool, move |target| {
        assert_eq!(most.snapshot()[0].in_flight, 1, "one at a time");
        let status = if target.inject_usage { 400 } else { 200 };
        Reply::Answer(answer(status, &target.backend.name))
    });
    let all: Vec<Asking> = (0..3)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { proxy.ask_with(Some("m"), common::editable()).await })
        })
        .collect();
    for asking in all {
        assert_eq!(name(asking).await, "a");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Comes,
    /// The oldest that is still there ends.
    Ends,
    /// One that waits leaves.
    Leaves(usize),
    /// The rooms are others.
    Reload(usize, usize),
    Drain(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Comes),
        3 => Just(Event::Ends),
        1 => (0..8_usize).prop_map(Event::Leaves),
        1 => (1..4_usize, 1..4_usize).prop_map(|(a, b)| Event::Reload(a, b)),
        1 => any::<bool>().prop_map(Event::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn nobody_waits_while_there_is_room_and_nobody_overtakes(events in proptest::collection::vec(event(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let balancer = balancer();
            let mut room = [2, 1];
            let mut drained = false;
            apply(&balancer, &with_room(&room), QueueConfig { max_waiting: 100, timeout: Duration::from_secs(3600) });
            let proxy = named(&balancer);
            let mut waiting: VecDeque<Asking> = VecDeque::new();
            let mut there: VecDeque<Answer> = VecDeque::new();
            let mut most = room;
            for event in events {
                match event {
                    Event::Comes => waiting.push_back(ask(&proxy).await),
                    Event::Ends => drop(there.pop_front()),
                    Event::Leaves(at) => if let Some(asking) = waiting.remove(at) {
                        asking.abort();
                    }
                    Event::Reload(a, b) => {
                        room = [a, b];
                        apply(&balancer, &with_room(&room), QueueConfig { max_waiting: 100, timeout: Duration::from_secs(3600) });
                    }
                    Event::Drain(drain) => {
                        drained = drain;
                        balancer.set_draining("b", drain).unwrap();
                    }
                }
                settle().await;
                // Served in the order in which they came.
                while waiting.front().is_some_and(|first| first.is_finished()) {
                    there.push_back(waiting.pop_front().unwrap().await.unwrap().1.unwrap());
                }
                prop_assert!(waiting.iter().all(|asking| !asking.is_finished()), "somebody overtook");
                let at = proxy.in_flight();
                prop_assert_eq!(at.iter().sum::<usize>(), there.len());
                prop_assert_eq!(proxy.pool.waiting(), waiting.len());
                for (index, at) in at.iter().enumerate() {
                    // A smaller room does not send away who is there.
                    most[index] = room[index].max(*at.min(&most[index]));
                    prop_assert!(*at <= most[index], "{at} of {}", room[index]);
                    let takes = index == 0 || !drained;
                    prop_assert!(waiting.is_empty() || !takes || *at >= room[index], "somebody waits while there is room");
                }
            }
            Ok(())
        })?;
    }
}
