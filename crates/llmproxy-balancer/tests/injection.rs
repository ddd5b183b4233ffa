//! Asking a backend for usage that its client did not ask for: who is asked, who is asked once more, what is remembered.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Checks, Proxy, Reply, answer, asked, backends, editable, events, pool_of, text, unchecked};
use http::StatusCode;
use llmproxy_balancer::{
    BackendConfig, Balancer, Cause, HealthCheckConfig, InjectUsage, Pool, RetryConfig, RoutingConfig,
};
use llmproxy_core::{Exchange, Target};

/// Of each attempt, whether usage was asked for.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<bool>>>);

impl Seen {
    fn take(&self) -> Vec<bool> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn routing() -> RoutingConfig {
    RoutingConfig::default()
}

/// One backend that is not checked.
fn pool(inject_usage: InjectUsage, routing: &RoutingConfig) -> Arc<Pool> {
    let mut backends = backends(&[1]);
    backends[0].models.push("m".into());
    backends[0].inject_usage = inject_usage;
    pool_of(&backends, routing)
}

fn script(pool: Arc<Pool>, mut reply: impl FnMut(&Target) -> Reply + Send + 'static) -> (Proxy, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let proxy = Proxy::new(pool, move |target| {
        noted.0.lock().unwrap().push(target.inject_usage);
        reply(target)
    });
    (proxy, seen)
}

/// A server that knows no `stream_options`.
fn strict(status: u16) -> impl FnMut(&Target) -> Reply + Send {
    move |target| {
        Reply::Answer(match target.inject_usage {
            true => answer(status, "no such field: stream_options"),
            false => events([Ok("data: 1\n\n")]),
        })
    }
}

async fn ask(proxy: &Proxy) -> (Arc<Exchange>, StatusCode, String) {
    let (exchange, response) = proxy.ask_with(Some("m"), editable()).await;
    let response = response.unwrap();
    let status = response.status();
    (exchange, status, text(response).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_refuses_it_is_asked_without_at_once_and_from_then_on() {
    for status in [400, 422] {
        // It costs no retry, so that it does not matter that there is none.
        let once = RoutingConfig { retry: RetryConfig { enabled: false, ..RetryConfig::default() }, ..routing() };
        let (proxy, seen) = script(pool(InjectUsage::Auto, &once), strict(status));
        let (exchange, last, body) = ask(&proxy).await;
        assert_eq!((last.as_u16(), &*body), (200, "data: 1\n\n"));
        assert_eq!(asked(&exchange), ["a", "a"]);
        assert_eq!(exchange.attempts()[0].status.unwrap().as_u16(), status);
        assert!(!exchange.served().unwrap().inject_usage, "what was served was not asked for usage");
        assert_eq!(seen.take(), [true, false]);
        let (exchange, ..) = ask(&proxy).await;
        assert_eq!((asked(&exchange).len(), seen.take()), (1, vec![false]));
        tokio::time::advance(Duration::from_secs(3600)).await;
        ask(&proxy).await;
        assert_eq!(seen.take(), [true, false], "after an hour it may be another");
        assert_eq!((proxy.in_flight(), proxy.pool.snapshot()[0].out), (vec![0], None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_is_the_clients_and_teaches_nothing() {
    let mut attempts = 0;
    let (proxy, seen) = script(pool(InjectUsage::Auto, &routing()), move |_| {
        attempts += 1;
        Reply::Answer(answer(400, &format!("bad request {attempts}")))
    });
    for expected in ["bad request 2", "bad request 4"] {
        let (exchange, status, body) = ask(&proxy).await;
        assert_eq!((status.as_u16(), &*body), (400, expected));
        assert_eq!((asked(&exchange).len(), seen.take()), (2, vec![true, false]));
    }
    assert_eq!((proxy.in_flight(), proxy.pool.snapshot()[0].out), (vec![0], None));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_took_it_is_not_asked_twice_for_a_bad_request() {
    let mut attempts = 0;
    let (proxy, seen) = script(pool(InjectUsage::Auto, &routing()), move |_| {
        attempts += 1;
        Reply::Answer(if attempts == 1 { events([Ok("data: 1\n\n")]) } else { answer(400, "bad request") })
    });
    assert_eq!(ask(&proxy).await.1, 200);
    assert_eq!(ask(&proxy).await.1, 400);
    assert_eq!(seen.take(), [true, true]);
}

#[tokio::test(start_paused = true)]
async fn always_asks_and_never_does_not_whatever_comes() {
    for (mode, expected, status) in [(InjectUsage::Always, true, 400), (InjectUsage::Never, false, 200)] {
        let (proxy, seen) = script(pool(mode, &routing()), strict(400));
        for _ in 0..2 {
            assert_eq!(ask(&proxy).await.1, status, "{mode:?}");
            assert_eq!(seen.take(), [expected]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_place_for_it_is_sent_once() {
    let (proxy, seen) = script(pool(InjectUsage::Auto, &routing()), |_| Reply::Answer(answer(400, "bad request")));
    assert_eq!(proxy.ask().await.1.unwrap().status(), 400);
    assert_eq!(seen.take(), [false]);
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_withdrawn_question_is_judged_as_any_attempt_is() {
    // Its second attempt fails, so another backend is asked, with usage: of that one nothing is known.
    let mut attempts = 0;
    let (proxy, seen) = script(unchecked(&[1, 1], &routing()), move |target| {
        attempts += 1;
        match (&*target.backend.name, attempts) {
            ("a", 1) => Reply::Answer(answer(400, "bad request")),
            ("a", _) => Reply::Answer(answer(503, "busy")),
            _ => Reply::Answer(answer(200, "b")),
        }
    });
    let (exchange, status, _) = ask(&proxy).await;
    assert_eq!((status.as_u16(), asked(&exchange)), (200, ["a", "a", "b"].map(String::from).to_vec()));
    assert_eq!(seen.take(), [true, false, true]);

    // And if it breaks, the client is not told that its request was bad.
    let mut attempts = 0;
    let once = RoutingConfig { retry: RetryConfig { enabled: false, ..RetryConfig::default() }, ..routing() };
    let (proxy, _) = script(pool(InjectUsage::Auto, &once), move |_| {
        attempts += 1;
        if attempts == 1 { Reply::Answer(answer(400, "bad request")) } else { Reply::Reset }
    });
    let (exchange, response) = proxy.ask_with(Some("m"), editable()).await;
    assert!(response.is_err());
    assert_eq!(asked(&exchange), ["a", "a"], "the trial is no licence to retry");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_outlives_a_reload_and_is_forgotten_when_the_backend_goes_out() {
    let balancer = Balancer::new(Checks::default().client());
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let backend = BackendConfig { name: Some("a".into()), models: vec!["m".into()], ..BackendConfig::new("http://a") };
    let apply = |backend: &BackendConfig| {
        balancer.apply(std::slice::from_ref(backend), &routing(), &health, &Default::default())
    };
    let (before, seen) = script(apply(&backend), strict(400));
    ask(&before).await;
    assert_eq!(seen.take(), [true, false]);

    let renamed = BackendConfig { name: Some("other".into()), ..backend.clone() };
    let (after, seen) = script(apply(&renamed), strict(400));
    ask(&after).await;
    assert_eq!(seen.take(), [false]);

    let (gone, _) = script(apply(&renamed), |_| Reply::Refused);
    assert!(gone.ask().await.1.is_err());
    assert_eq!(gone.pool.snapshot()[0].out, Some(Cause::Refused));
    tokio::time::advance(Duration::from_secs(5)).await;
    let (back, seen) = script(apply(&renamed), strict(400));
    ask(&back).await;
    assert_eq!(seen.take(), [true, false]);
}
