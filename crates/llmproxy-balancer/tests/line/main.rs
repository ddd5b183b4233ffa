//! Backends that are full, and the line in which requests wait for them.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

#[path = "../common/mod.rs"]
mod common;
mod order;
mod property;

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
