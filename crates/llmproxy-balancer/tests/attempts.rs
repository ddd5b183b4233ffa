//! The attempts of one request: who is asked, when another is asked, and what the client gets.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Checks, Proxy, Reply, answer, asked, backends, body, code, editable, events, pool_of, text, unchecked};
use http::StatusCode;
use http_body_util::BodyExt;
use llmproxy_balancer::{
    BackendConfig, Balance, BalanceError, Balancer, Cause, Commit, HealthCheckConfig, LoadBalance, QueueConfig,
    RetryConfig, RetryOn, RoutingConfig,
};
use llmproxy_core::{End, Ended, RequestBody, cause_ref};
use tokio::time::Instant;

fn routing() -> RoutingConfig {
    RoutingConfig::default()
}

fn retry(retry: RetryConfig) -> RoutingConfig {
    RoutingConfig { retry, ..RoutingConfig::default() }
}

fn first_byte() -> RoutingConfig {
    RoutingConfig { commit: Commit::FirstByte, ..RoutingConfig::default() }
}

/// Backend `a` does as `first` says, each other one answers 200 with its name.
fn a_fails(mut first: impl FnMut() -> Reply + Send + 'static) -> impl FnMut(&llmproxy_core::Target) -> Reply + Send {
    move |target| match &*target.backend.name {
        "a" => first(),
        name => Reply::Answer(answer(200, name)),
    }
}

#[test]
fn the_service_can_be_shared() {
    fn check<T: Clone + Send + Sync>() {}
    check::<llmproxy_balancer::BalanceLayer>();
    check::<Balance<()>>();
}

#[tokio::test(start_paused = true)]
async fn requests_take_turns() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), |target| Reply::Answer(answer(200, &target.backend.name)));
    let mut names = Vec::new();
    for _ in 0..4 {
        let (exchange, response) = proxy.ask().await;
        names.push(text(response.unwrap()).await.unwrap());
        assert_eq!(exchange.served().unwrap().backend.name.as_ref(), names.last().unwrap());
    }
    assert_eq!(names, ["a", "b", "a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_retried_at_once_elsewhere_and_takes_the_backend_out() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), a_fails(|| Reply::Refused));
    let before = Instant::now();
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "b");
    assert_eq!(asked(&exchange), ["a", "b"]);
    assert!(exchange.attempts()[0].error.is_some());
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(proxy.pool.snapshot()[0].out, Some(Cause::Refused));
    for _ in 0..4 {
        assert_eq!(asked(&proxy.ask().await.0), ["b"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_died_before_the_head_is_replaced() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), a_fails(|| Reply::Reset));
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "b");
    assert_eq!(asked(&exchange), ["a", "b"]);
    assert_eq!(proxy.pool.snapshot()[0].out, None, "once is no habit");
    assert_eq!(proxy.in_flight(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_kills_two_backends_kills_no_third() {
    let proxy = Proxy::new(unchecked(&[1; 5], &routing()), |_| Reply::Reset);
    let (exchange, response) = proxy.ask().await;
    assert_eq!(asked(&exchange), ["a", "b"]);
    let error = response.unwrap_err();
    assert_eq!(cause_ref::<BalanceError>(&*error).unwrap().status(), StatusCode::BAD_GATEWAY);
    // One that answers is alive, whatever it says.
    let proxy = Proxy::new(unchecked(&[1; 5], &routing()), |target| match &*target.backend.name {
        "a" | "c" => Reply::Reset,
        _ => Reply::Answer(answer(503, "busy")),
    });
    let (exchange, response) = proxy.ask().await;
    assert_eq!(
        (asked(&exchange), response.unwrap().status().as_u16()),
        (["a", "b", "c"].map(String::from).to_vec(), 503)
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_two_backends_died_with_goes_to_no_third_and_both_are_down() {
    for word in ["connect", "reset"] {
        let retry = retry(RetryConfig { retry_on: vec![RetryOn::new(word)], ..RetryConfig::default() });
        let proxy = Proxy::new(unchecked(&[1; 3], &retry), |_| Reply::Died);
        let (exchange, response) = proxy.ask().await;
        assert_eq!(asked(&exchange), ["a", "b"]);
        assert_eq!(code(&response.unwrap_err()), (502, "backend_error"));
        let out: Vec<_> = proxy.pool.snapshot().iter().map(|status| status.out).collect();
        assert_eq!(out, [Some(Cause::Refused), Some(Cause::Refused), None]);
    }
}

#[tokio::test(start_paused = true)]
async fn backends_that_were_gone_before_are_no_sign_of_a_deadly_request() {
    let proxy = Proxy::new(unchecked(&[1; 4], &routing()), |target| match &*target.backend.name {
        "a" | "b" => Reply::Refused,
        "c" => Reply::Died,
        _ => Reply::Answer(answer(200, "d")),
    });
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "d");
    assert_eq!(asked(&exchange), ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn what_talks_nonsense_was_not_killed_and_a_third_is_asked() {
    let proxy = Proxy::new(unchecked(&[1; 3], &routing()), |target| match &*target.backend.name {
        "a" | "b" => Reply::Nonsense,
        _ => Reply::Answer(answer(200, "c")),
    });
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "c");
    assert_eq!(asked(&exchange), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn the_backend_that_failed_last_is_not_asked_while_another_is_there() {
    let many = retry(RetryConfig { max_retries: 9, ..RetryConfig::default() });
    // By its weight the second would be asked three times in a row.
    let proxy = Proxy::new(unchecked(&[1, 5], &many), |_| Reply::Answer(answer(429, "busy")));
    assert_eq!(asked(&proxy.ask().await.0).len(), 1, "not asked for");
    let many = retry(RetryConfig { max_retries: 9, retry_on: vec![RetryOn::new("429")], ..RetryConfig::default() });
    let proxy = Proxy::new(unchecked(&[1, 5], &many), |_| Reply::Answer(answer(429, "busy")));
    let (exchange, response) = proxy.ask().await;
    assert_eq!(response.unwrap().status(), 429);
    assert_eq!(asked(&exchange), ["b", "a"].repeat(5));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_can_not_be_replayed_is_sent_once() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), a_fails(|| Reply::Reset));
    let (exchange, response) = proxy.ask_with(Some("m"), RequestBody::stream(body([Ok("form")]))).await;
    let error = response.unwrap_err();
    assert_eq!(cause_ref::<BalanceError>(&*error).unwrap().status(), StatusCode::BAD_GATEWAY);
    assert_eq!(asked(&exchange), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_upload_breaks_is_no_failure_of_the_backend() {
    let proxy = Proxy::new(unchecked(&[1], &routing()), |_| Reply::Answer(answer(200, "")));
    for _ in 0..5 {
        let upload = RequestBody::stream(body([Ok("form"), Err("the client left")]));
        let (_, response) = proxy.ask_with(Some("m"), upload).await;
        assert_eq!(response.unwrap_err().to_string(), "the client left");
    }
    let status = &proxy.pool.snapshot()[0];
    assert_eq!((status.out, status.latency), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_falls_silent_or_breaks_is_no_failure_of_the_backend() {
    for (status, end, is_out) in [
        (101, End::Timeout, false),
        (101, End::BackendFailed, false),
        (200, End::Timeout, true),
        (200, End::BackendFailed, true),
    ] {
        let proxy = Proxy::new(unchecked(&[1], &routing()), move |_| {
            let broken: llmproxy_core::BoxError = Ended::new(end, "broken").into();
            let frames = futures_util::stream::iter([Err::<http_body::Frame<bytes::Bytes>, _>(broken)]);
            let body = http_body_util::StreamBody::new(frames).boxed_unsync();
            Reply::Answer(http::Response::builder().status(status).body(body).unwrap())
        });
        for _ in 0..3 {
            let (_, response) = proxy.ask_with(Some("m"), RequestBody::whole("")).await;
            assert!(response.unwrap().into_body().collect().await.is_err());
        }
        assert_eq!(proxy.pool.snapshot()[0].out.is_some(), is_out, "{status} {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_that_an_upload_takes_makes_no_backend_slow() {
    let pool = unchecked(&[1], &routing());
    let backend = tower::service_fn(|request: http::Request<RequestBody>| async move {
        request.into_body().collect().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok::<_, llmproxy_core::BoxError>(answer(200, "text"))
    });
    // Twice: the first answer that ends well is also what brings an unknown backend up, and what was before is forgotten.
    for _ in 0..2 {
        let upload = http_body_util::StreamBody::new(futures_util::stream::unfold(0, |piece| async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let frame = http_body::Frame::data(bytes::Bytes::from_static(b"piece"));
            (piece < 3).then_some((Ok::<_, llmproxy_core::BoxError>(frame), piece + 1))
        }));
        let service = tower::Layer::layer(&llmproxy_balancer::BalanceLayer::new(pool.clone()), backend);
        let request = http::Request::post("/v1/audio/transcriptions").body(RequestBody::stream(upload)).unwrap();
        let response = tower::ServiceExt::oneshot(service, request).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    let latency = pool.snapshot()[0].latency.unwrap();
    assert!(latency < Duration::from_secs(63), "{latency:?}");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_not_retried_unless_it_is_asked_for() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), a_fails(|| Reply::Timeout));
    let (exchange, response) = proxy.ask().await;
    let error = response.unwrap_err();
    assert_eq!(cause_ref::<BalanceError>(&*error).unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(asked(&exchange), ["a"]);

    let asked_for = retry(RetryConfig { retry_on: vec![RetryOn::new("timeout")], ..RetryConfig::default() });
    let proxy = Proxy::new(unchecked(&[1, 1], &asked_for), a_fails(|| Reply::Timeout));
    assert_eq!(asked(&proxy.ask().await.0), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_4xx_is_the_clients_and_never_the_backends_fault() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), a_fails(|| Reply::Answer(answer(401, "no key"))));
    for _ in 0..10 {
        let (exchange, response) = proxy.ask().await;
        assert_eq!(exchange.attempts().len(), 1);
        response.unwrap().into_body().collect().await.unwrap();
    }
    let status = &proxy.pool.snapshot()[0];
    assert_eq!((status.out, status.latency), (None, None), "and says nothing about its speed");
}

#[tokio::test(start_paused = true)]
async fn the_last_backend_answer_is_what_the_client_gets() {
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), |target| match &*target.backend.name {
        "a" => {
            let mut busy = answer(503, "busy");
            busy.headers_mut().insert("retry-after", "2".parse().unwrap());
            Reply::Answer(busy)
        }
        _ => Reply::Refused,
    });
    let (exchange, response) = proxy.ask().await;
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(&*exchange.served().unwrap().backend.name, "a");
    assert_eq!(text(response).await.unwrap(), "busy");
    assert_eq!(exchange.attempts().len(), 4, "one and three retries");
    assert_eq!(proxy.in_flight(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_same_backend_is_asked_again_only_after_a_wait() {
    let mut asked_before = 0;
    let proxy = Proxy::new(unchecked(&[1], &routing()), move |_| {
        asked_before += 1;
        Reply::Answer(if asked_before < 3 { answer(503, "busy") } else { answer(200, "done") })
    });
    let before = Instant::now();
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "done");
    assert_eq!(exchange.attempts().len(), 3);
    // One wait of up to a second, one of up to two; each at least half of that.
    assert!((1500..=3000).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_at_least_as_long_as_the_backend_asks() {
    let mut asked_before = 0;
    let proxy = Proxy::new(unchecked(&[1], &routing()), move |_| {
        asked_before += 1;
        let mut busy = answer(503, "busy");
        busy.headers_mut().insert("retry-after", "7".parse().unwrap());
        Reply::Answer(if asked_before == 1 { busy } else { answer(200, "done") })
    });
    let before = Instant::now();
    proxy.ask().await.1.unwrap();
    assert_eq!(before.elapsed().as_secs(), 7);
}

/// An answer that asks for patience.
fn busy(seconds: &str) -> Reply {
    let mut busy = answer(503, "busy");
    busy.headers_mut().insert("retry-after", seconds.parse().expect("a good value"));
    Reply::Answer(busy)
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_asks_for_more_patience_than_there_is_is_not_asked_again() {
    let proxy = Proxy::new(unchecked(&[1], &routing()), |_| busy("60"));
    let before = Instant::now();
    let (exchange, response) = proxy.ask().await;
    let response = response.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"60".parse().unwrap()));
    assert_eq!(text(response).await.unwrap(), "busy");
    assert_eq!((asked(&exchange).len(), before.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_we_wait_ends_it() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let proxy = Proxy::new(unchecked(&[1], &routing()), move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        busy("5")
    });
    let (_, takes_no_place) = tokio::join!(tokio::time::timeout(Duration::from_secs(1), proxy.ask()), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.in_flight() == [0]
    });
    assert!(takes_no_place, "an answer that is kept until there is a better one is no work");
    assert_eq!(proxy.in_flight(), [0]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn each_backend_is_given_the_time_that_it_asks_for() {
    let mut first = ["a", "b"].to_vec();
    let proxy = Proxy::new(unchecked(&[1, 1], &routing()), move |target| {
        let name = &*target.backend.name;
        match first.iter().position(|waiting| *waiting == name) {
            Some(at) => busy(if first.remove(at) == "a" { "9" } else { "2" }),
            None => Reply::Answer(answer(200, name)),
        }
    });
    let before = Instant::now();
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "b");
    // The first one failed longer ago, and would be asked before the other one had it not asked for so long.
    assert_eq!(asked(&exchange), ["a", "b", "b"]);
    assert_eq!(before.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_a_share_of_the_requests_is_sent_again_and_no_more() {
    let config =
        RetryConfig { max_retries: 1, budget: 0.2, retry_on: vec![RetryOn::new("429")], ..RetryConfig::default() };
    let proxy =
        Proxy::new(unchecked(&[1, 1], &retry(config)), |target| Reply::Answer(answer(429, &target.backend.name)));
    let mut attempts = Vec::new();
    for _ in 0..100 {
        let (exchange, response) = proxy.ask().await;
        let last = asked(&exchange).pop().unwrap();
        assert_eq!(text(response.unwrap()).await.unwrap(), last, "the last answer is the client's");
        attempts.push(asked(&exchange).len());
    }
    assert_eq!(attempts[..30], [2; 30], "who is alone may always");
    assert_eq!(attempts.iter().sum::<usize>(), 100 + 30 + 100 / 5);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(asked(&proxy.ask().await.0).len(), 2, "and later again");
}

/// No share, so that what is always allowed is soon spent.
fn no_share() -> RoutingConfig {
    let on_429 = vec![RetryOn::new("429")];
    retry(RetryConfig { max_retries: 1, budget: 0.0, retry_on: on_429, ..RetryConfig::default() })
}

/// How many retries so many requests come to.
async fn retried(proxy: &Proxy, requests: usize) -> usize {
    let mut retried = 0;
    for _ in 0..requests {
        retried += asked(&proxy.ask_with(None, RequestBody::whole("{}")).await.0).len() - 1;
    }
    retried
}

#[tokio::test(start_paused = true)]
async fn a_configuration_put_in_force_makes_no_budget_anew() {
    let (backends, health) = (backends(&[1, 1]), HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() });
    let balancer = Balancer::new(Checks::default().client());
    let apply = || balancer.apply(&backends, &no_share(), &health, &QueueConfig::default());
    let proxy = Proxy::new(apply(), |_| Reply::Answer(answer(429, "busy")));
    assert_eq!(retried(&proxy, 40).await, 30);
    apply();
    assert_eq!(retried(&proxy, 40).await, 0);
}

#[tokio::test(start_paused = true)]
async fn neither_credentials_of_ours_nor_the_question_for_usage_are_charged() {
    let mut backends = backends(&[1, 1]);
    backends[0].headers.insert("authorization".into(), "Bearer ours".into());
    let mut requests = 0;
    let proxy = Proxy::new(pool_of(&backends, &no_share()), move |target| {
        requests += 1;
        match &*target.backend.name {
            _ if requests <= 70 => Reply::Answer(answer(429, "busy")),
            "a" => Reply::Answer(answer(401, "who?")),
            _ if target.inject_usage => Reply::Answer(answer(400, "what is that?")),
            name => Reply::Answer(answer(200, name)),
        }
    });
    assert_eq!(retried(&proxy, 40).await, 30, "from here on none is left");
    let (exchange, response) = proxy.ask_with(None, editable()).await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "b");
    assert_eq!(asked(&exchange), ["a", "b", "b"]);
}

#[tokio::test(start_paused = true)]
async fn without_retries_the_first_failure_is_the_last() {
    let off = retry(RetryConfig { enabled: false, ..RetryConfig::default() });
    let proxy = Proxy::new(unchecked(&[1, 1], &off), a_fails(|| Reply::Refused));
    let (exchange, response) = proxy.ask().await;
    assert_eq!(response.unwrap_err().to_string(), "the backend `a` can't be reached");
    assert_eq!(asked(&exchange), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn when_every_backend_is_out_the_client_hears_when_to_come_back() {
    let off = retry(RetryConfig { enabled: false, ..RetryConfig::default() });
    let proxy = Proxy::new(unchecked(&[1], &off), |_| Reply::Refused);
    proxy.ask().await.1.unwrap_err();
    let (exchange, response) = proxy.ask().await;
    assert!(exchange.is_unasked());
    let error = response.unwrap_err();
    let error = cause_ref::<BalanceError>(&*error).unwrap();
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
    // Nobody checks here: after the pause it is tried again.
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(asked(&proxy.ask().await.0), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn credentials_of_ours_that_a_backend_refuses_are_not_the_clients_fault() {
    let backend = |name: &str| BackendConfig {
        name: Some(name.into()),
        headers: [("Authorization".into(), "Bearer ours".into())].into(),
        models: vec!["m".into()],
        ..BackendConfig::new(format!("http://{name}"))
    };
    let pool = pool_of(&[backend("a"), backend("b")], &routing());
    let proxy = Proxy::new(pool, a_fails(|| Reply::Answer(answer(401, "who are you"))));
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "b");
    assert_eq!(asked(&exchange), ["a", "b"]);
    assert_eq!(proxy.pool.snapshot()[0].out, Some(Cause::Credentials));

    let proxy = Proxy::new(pool_of(&[backend("a")], &routing()), |_| Reply::Answer(answer(403, "go away")));
    let before = Instant::now();
    let error = proxy.ask().await.1.unwrap_err();
    let error = cause_ref::<BalanceError>(&*error).unwrap();
    assert_eq!((error.status(), error.code()), (StatusCode::BAD_GATEWAY, "backend_misconfigured"));
    assert_eq!(before.elapsed(), Duration::ZERO, "waiting mends no key");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_in_flight_until_its_last_byte_or_its_drop() {
    let proxy = Proxy::new(unchecked(&[1], &routing()), |_| Reply::Answer(events([Ok("1"), Ok("2")])));
    let mut response = proxy.ask().await.1.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(proxy.in_flight(), [1]);
    drop(response);
    assert_eq!(proxy.in_flight(), [0]);
    let response = proxy.ask().await.1.unwrap();
    assert_eq!(proxy.in_flight(), [1]);
    assert_eq!(text(response).await.unwrap(), "12");
    assert_eq!(proxy.in_flight(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_head_is_in_flight_no_more() {
    let proxy = Proxy::new(unchecked(&[1], &routing()), |_| Reply::Stall);
    for _ in 0..5 {
        let waiting = tokio::time::timeout(Duration::from_secs(3), proxy.ask());
        assert!(waiting.await.is_err());
        assert_eq!(proxy.in_flight(), [0]);
    }
    assert_eq!(proxy.pool.snapshot()[0].out, None, "a client that leaves is no failure");
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_in_the_middle_take_a_backend_out_when_it_is_a_habit() {
    let proxy = Proxy::new(unchecked(&[1], &routing()), |_| Reply::Answer(events([Ok("1"), Err("reset")])));
    for out in [None, None, Some(Cause::Failures)] {
        let (exchange, response) = proxy.ask().await;
        assert!(text(response.unwrap()).await.is_err());
        assert_eq!(exchange.attempts().len(), 1, "the head was the client's already");
        assert_eq!(proxy.pool.snapshot()[0].out, out);
    }
}

#[tokio::test(start_paused = true)]
async fn with_commit_first_byte_a_stream_that_dies_at_once_is_replaced() {
    let proxy = Proxy::new(unchecked(&[1, 1], &first_byte()), |target| {
        Reply::Answer(match &*target.backend.name {
            "a" => events([Err("reset")]),
            _ => events([Ok("data: 1\n\n"), Ok("data: 2\n\n")]),
        })
    });
    let (exchange, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "data: 1\n\ndata: 2\n\n");
    assert_eq!(asked(&exchange), ["a", "b"]);
    assert_eq!(proxy.in_flight(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn with_commit_first_byte_a_head_waits_no_longer_than_it_may() {
    let proxy = Proxy::new(unchecked(&[1], &first_byte()), |_| {
        let mut response = events([]);
        let silence =
            futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, llmproxy_core::BoxError>>();
        *response.body_mut() = http_body_util::StreamBody::new(silence).boxed_unsync();
        Reply::Answer(response)
    });
    let before = Instant::now();
    proxy.ask().await.1.unwrap();
    assert_eq!(before.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_alias_is_replaced_and_usage_is_asked_for_where_there_is_a_place() {
    let mut routing = routing();
    routing.model_mapping.insert("gpt-4".into(), "m".into());
    let proxy = Proxy::new(unchecked(&[1], &routing), |target| {
        let (model, usage) = (target.model.as_deref().unwrap_or("as it is"), target.inject_usage);
        Reply::Answer(answer(200, &format!("{model} {usage}")))
    });
    let (_, response) = proxy.ask_with(Some("gpt-4"), editable()).await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "m true");
    let (_, response) = proxy.ask().await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "as it is false");
}

#[tokio::test(start_paused = true)]
async fn twenty_long_streams_are_spread_by_weight_within_one() {
    let routing = RoutingConfig { load_balance: LoadBalance::LeastConnections, ..routing() };
    let proxy = Proxy::new(unchecked(&[5, 3, 2], &routing), |_| Reply::Answer(events([Ok("1"), Ok("2")])));
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(proxy.ask().await.1.unwrap());
    }
    for (got, share) in proxy.in_flight().into_iter().zip([10_i64, 6, 4]) {
        assert!((got as i64 - share).abs() <= 1, "{:?}", proxy.in_flight());
    }
    drop(open);
    assert_eq!(proxy.in_flight(), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_fails_fast_gets_less_than_one_in_twenty() {
    let mut routing = RoutingConfig { load_balance: LoadBalance::LatencyBased, ..routing() };
    routing.retry.enabled = false;
    // 500 is no reason to take it out, so that only the strategy keeps requests away.
    let proxy = Proxy::new(unchecked(&[1, 1, 1], &routing), a_fails(|| Reply::Answer(answer(500, "bug"))));
    let mut failed = 0;
    for _ in 0..1000 {
        let response = proxy.ask().await.1.unwrap();
        failed += usize::from(response.status() == StatusCode::INTERNAL_SERVER_ERROR);
        tokio::time::advance(Duration::from_millis(100)).await;
        response.into_body().collect().await.unwrap();
    }
    assert!(failed < 50, "{failed} of 1000");
}
