//! The layer over a scripted service: what passes, what it holds and when it lets go.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::{
    convert::Infallible,
    future::{pending, ready},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody, channel::Channel};
use llmproxy_core::{Backend, BoxError, Call, Caller, Endpoint, Exchange, Target, TokenUsage, UsageRecord};
use llmproxy_ratelimit::{
    LimitedError, LimitsConfig, RateLimit, RateLimitConfig, RateLimitError, RateLimitLayer, RateLimiter,
};
use tower::{Layer, Service, ServiceExt, service_fn};

const BUDGET: u64 = 1000;

/// One request at a time, and a budget of tokens.
fn limiter() -> Arc<RateLimiter> {
    RateLimiter::new(&RateLimitConfig {
        enabled: true,
        per_key: LimitsConfig { max_concurrent: 1, tokens_per_minute: BUDGET, ..LimitsConfig::default() },
        ..RateLimitConfig::default()
    })
}

/// A request of Alice that reserves 300 tokens.
fn request() -> (Request<()>, Arc<Exchange>) {
    let mut request = Request::post("/v1/chat/completions").body(()).unwrap();
    let exchange = Exchange::of(request.extensions_mut());
    exchange.set_caller(Caller::named("alice").with_fingerprint("alice"));
    exchange.set_call(Call {
        model: Some("m".into()),
        prompt_estimate: 100,
        max_output: Some(200),
        ..Call::new(Endpoint::of("/v1/chat/completions"))
    });
    (request, exchange)
}

/// How many of Alice's tokens are used, by the headers that she would see.
async fn tokens_used(limiter: &Arc<RateLimiter>) -> u64 {
    let models = Call::new(Endpoint::of("/v1/models"));
    let permit = limiter.check(Some(&Caller::anonymous().with_fingerprint("alice")), Some(&models), None).unwrap();
    BUDGET - permit.standing().tokens.unwrap().remaining
}

fn record(exchange: &Exchange, usage: TokenUsage) -> Arc<UsageRecord> {
    Arc::new(UsageRecord {
        request_id: exchange.id(),
        timestamp: exchange.timestamp(),
        model: Some("m".into()),
        usage: Some(usage),
        ..UsageRecord::new(Endpoint::of("/v1/chat/completions"))
    })
}

async fn answer<B>(limiter: &Arc<RateLimiter>, body: B) -> Response<impl Body<Data = Bytes, Error = BoxError>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let body = Mutex::new(Some(body));
    let inner = service_fn(|_| ready(Ok::<_, BoxError>(Response::new(body.lock().unwrap().take().unwrap()))));
    RateLimitLayer::new(limiter.clone()).layer(inner).oneshot(request().0).await.unwrap()
}

#[test]
fn the_service_can_be_shared() {
    fn check<T: Clone + Send + Sync>(_: &T) {}
    check(
        &RateLimitLayer::new(limiter())
            .layer(service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))))),
    );
}

#[tokio::test(start_paused = true)]
async fn permit_is_held_until_the_stream_ends() {
    let limiter = limiter();
    let (mut sender, body) = Channel::<Bytes>::new(1);
    let mut body = answer(&limiter, body).await.into_body();
    sender.send_data(Bytes::from("piece")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    assert_eq!(limiter.in_flight(), 1);
    drop(sender);
    assert!(body.frame().await.is_none());
    assert_eq!(limiter.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn every_end_lets_the_permit_go() {
    type Frames = Vec<Result<Frame<Bytes>, BoxError>>;
    async fn check(story: &str, frames: Frames, read: usize) {
        let limiter = limiter();
        let mut body = Box::pin(answer(&limiter, StreamBody::new(stream::iter(frames))).await.into_body());
        for _ in 0..read {
            assert_eq!(limiter.in_flight(), 1, "{story}");
            let _ = body.frame().await;
        }
        if story.starts_with("dropped") {
            assert_eq!(limiter.in_flight(), 1, "{story}");
            drop(body);
        }
        assert_eq!(limiter.in_flight(), 0, "{story}");
    }
    let data = || Ok(Frame::data(Bytes::from("piece")));
    check("empty", vec![], 1).await;
    check("chunks", vec![data(), data()], 3).await;
    check("trailers", vec![data(), Ok(Frame::trailers(HeaderMap::new()))], 2).await;
    check("error", vec![data(), Err("reset".into())], 2).await;
    check("dropped before the first piece", vec![data()], 0).await;
    check("dropped in the middle", vec![data(), data()], 1).await;

    // Bodies whose end is seen without asking for it.
    let limiter = limiter();
    let _ended = answer(&limiter, Empty::<Bytes>::new()).await;
    assert_eq!(limiter.in_flight(), 0, "at its end when it came");
    let mut exact = answer(&limiter, Full::new(Bytes::from("all of it"))).await.into_body();
    assert_eq!(limiter.in_flight(), 1);
    exact.frame().await.unwrap().unwrap();
    assert_eq!(limiter.in_flight(), 0, "exact length");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_head_frees_the_permit() {
    let limiter = limiter();
    let inner = service_fn(|_| pending::<Result<Response<Empty<Bytes>>, BoxError>>());
    let mut service = RateLimitLayer::new(limiter.clone()).layer(inner);
    let future = service.call(request().0);
    let mut future = Box::pin(future);
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut future).await.is_err());
    assert_eq!(limiter.in_flight(), 1);
    drop(future);
    assert_eq!(limiter.in_flight(), 0);
    assert_eq!(tokens_used(&limiter).await, 300, "a backend may be working on it: the estimate stays");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_frees_the_permit() {
    let limiter = limiter();
    let inner = service_fn(|_| ready(Err::<Response<Empty<Bytes>>, BoxError>("broken".into())));
    let error = RateLimitLayer::new(limiter.clone()).layer(inner).oneshot(request().0).await.unwrap_err();
    assert_eq!(error.to_string(), "broken");
    let standing = error.downcast_ref::<LimitedError>().expect("it says how the caller stands").standing;
    assert!(standing.headers().any(|(name, _)| name == "x-ratelimit-remaining"));
    assert_eq!(limiter.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_does_not_reach_the_service() {
    let limiter = limiter();
    let (mut service, mut handle) = tower_test::mock::spawn_with(|inner| RateLimit::new(inner, limiter.clone()));
    handle.allow(2);
    assert!(service.poll_ready().is_ready());
    let (first, exchange) = request();
    let first = service.call(first);
    let (_, respond) = handle.next_request().await.unwrap();
    assert!(service.poll_ready().is_ready());
    let error = service.call(request().0).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(RateLimitError::Limited { .. })), "{error}");
    assert!(tokio::time::timeout(Duration::from_secs(1), handle.next_request()).await.is_err());
    assert_eq!(exchange.take_sinks().len(), 1);

    let mut response = Response::new(Full::new(Bytes::from("x")));
    *response.status_mut() = StatusCode::IM_A_TEAPOT;
    respond.send_response(response);
    assert_eq!(first.await.unwrap().status(), StatusCode::IM_A_TEAPOT);
}

#[tokio::test(start_paused = true)]
async fn the_record_settles_the_tokens() {
    let limiter = limiter();
    let (request, exchange) = request();
    let inner = service_fn(|_| ready(Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("x"))))));
    let response = RateLimitLayer::new(limiter.clone()).layer(inner).oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    let usage = TokenUsage { prompt: 40, completion: 2, ..TokenUsage::default() };
    for sink in exchange.take_sinks() {
        sink.record(&record(&exchange, usage));
    }
    assert_eq!(tokens_used(&limiter).await, 42);
}

#[tokio::test(start_paused = true)]
async fn what_is_only_looked_up_takes_a_request_and_no_tokens() {
    let limiter = RateLimiter::new(&RateLimitConfig {
        enabled: true,
        per_key: LimitsConfig { requests_per_minute: 60, tokens_per_minute: BUDGET, ..LimitsConfig::default() },
        ..RateLimitConfig::default()
    });
    let inner = service_fn(|_| ready(Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()))));
    let service = RateLimitLayer::new(limiter.clone()).layer(inner);
    let ask = async |method: Method| {
        let (mut request, exchange) = request();
        *request.method_mut() = method;
        let response = service.clone().oneshot(request).await?;
        let left = |name| response.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
        let left = (left("x-ratelimit-remaining-requests"), left("x-ratelimit-remaining-tokens"));
        Ok::<_, BoxError>((left, exchange.take_sinks().len()))
    };
    assert_eq!(ask(Method::GET).await.unwrap(), ((59, BUDGET), 0));
    assert_eq!(ask(Method::DELETE).await.unwrap(), ((58, BUDGET), 0));
    assert_eq!(ask(Method::POST).await.unwrap(), ((57, BUDGET - 300), 1));
    // Nobody who has no tokens left is kept from it.
    while ask(Method::POST).await.is_ok() {}
    assert!(ask(Method::GET).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn tokens_come_back_when_the_balancer_asked_no_backend() {
    let limiter = limiter();
    let inner = service_fn(|request: Request<()>| {
        request.extensions().get::<Arc<Exchange>>().unwrap().expect_attempts();
        ready(Err::<Response<Empty<Bytes>>, BoxError>("no backend".into()))
    });
    let (request, exchange) = request();
    let result = RateLimitLayer::new(limiter.clone()).layer(inner).oneshot(request).await;
    assert!(result.is_err());
    assert_eq!(tokens_used(&limiter).await, 0);
    drop(exchange);
}

#[tokio::test(start_paused = true)]
async fn tokens_stay_used_when_a_backend_was_asked_and_no_record_comes() {
    let limiter = limiter();
    let inner = service_fn(|request: Request<()>| {
        let exchange = request.extensions().get::<Arc<Exchange>>().unwrap();
        exchange.expect_attempts();
        let backend = Arc::new(Backend::new("http://a").unwrap());
        exchange.begin_attempt(&Target { backend, model: None, inject_usage: false }, "least busy".into());
        ready(Err::<Response<Empty<Bytes>>, BoxError>("died".into()))
    });
    let result = RateLimitLayer::new(limiter.clone()).layer(inner).oneshot(request().0).await;
    assert!(result.is_err());
    assert_eq!(tokens_used(&limiter).await, 300);
}

#[tokio::test(start_paused = true)]
async fn the_exchange_is_gone_when_the_answer_is() {
    let limiter = limiter();
    let (request, exchange) = request();
    let exchange = {
        let held = exchange;
        Arc::downgrade(&held)
    };
    let inner = service_fn(|_| ready(Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("x"))))));
    let response = RateLimitLayer::new(limiter.clone()).layer(inner).oneshot(request).await.unwrap();
    assert!(exchange.upgrade().is_some());
    drop(response);
    assert!(exchange.upgrade().is_none(), "a sink must not keep its exchange alive");
}

#[tokio::test(start_paused = true)]
async fn answers_say_what_is_left_and_not_what_the_backend_says() {
    let limiter = RateLimiter::new(&RateLimitConfig {
        enabled: true,
        global: LimitsConfig { requests_per_minute: 1000, ..LimitsConfig::default() },
        per_key: LimitsConfig { requests_per_minute: 60, tokens_per_minute: BUDGET, ..LimitsConfig::default() },
        ..RateLimitConfig::default()
    });
    let inner = service_fn(|_| {
        let response = Response::builder().header("x-ratelimit-limit-requests", "7").header("x-other", "kept");
        ready(Ok::<_, BoxError>(response.body(Empty::<Bytes>::new()).unwrap()))
    });
    let response = RateLimitLayer::new(limiter).layer(inner).oneshot(request().0).await.unwrap();
    let check = |name: &str, expected: &str| {
        let values: Vec<_> = response.headers().get_all(name).iter().collect();
        assert_eq!(values, [expected], "{name}");
    };
    check("x-ratelimit-limit", "60");
    check("x-ratelimit-remaining", "59");
    check("x-ratelimit-limit-requests", "60");
    check("x-ratelimit-remaining-requests", "59");
    check("x-ratelimit-reset-requests", "1s");
    check("x-ratelimit-limit-tokens", "1000");
    check("x-ratelimit-remaining-tokens", "700");
    check("x-ratelimit-reset-tokens", "18s");
    check("x-other", "kept");
}

#[tokio::test(start_paused = true)]
async fn without_limits_an_answer_passes_as_it_is() {
    let limiter = RateLimiter::new(&RateLimitConfig::default());
    assert!(answer(&limiter, Empty::<Bytes>::new()).await.headers().is_empty());
}

#[tokio::test]
async fn whoever_routes_is_told_what_the_key_says_and_no_more() {
    async fn check(limiter: Arc<RateLimiter>, caller: Option<Caller>, expected: Option<&str>) {
        let mut request = Request::post("/v1/chat/completions").body(()).unwrap();
        let exchange = Exchange::of(request.extensions_mut());
        if let Some(caller) = caller {
            exchange.set_caller(caller);
        }
        let service = RateLimitLayer::new(limiter).layer(service_fn(async |request: Request<()>| {
            let exchange = request.extensions().get::<Arc<Exchange>>().unwrap();
            let tag = exchange.flow().and_then(|flow| flow.tag.clone());
            Ok::<_, BoxError>(
                Response::builder().header("seen", tag.as_deref().unwrap_or("-")).body(Full::<Bytes>::default())?,
            )
        }));
        let answer = service.oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["seen"], expected.unwrap_or("-"));
    }
    let off = || RateLimiter::new(&RateLimitConfig::default());
    let batch = || Some(Caller::named("alice").with_tag(Some("batch".into())));
    check(off(), batch(), Some("batch")).await;
    check(limiter(), batch(), Some("batch")).await;
    check(off(), Some(Caller::named("alice")), None).await;
    check(off(), None, None).await;
}
