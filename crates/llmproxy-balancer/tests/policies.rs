//! What policies read in a request, and what they are told of those before it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod common;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{Checks, answer, asked, backends, events, named, pool_of, settle, text, unchecked};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use llmproxy_balancer::{
    BackendConfig, BalanceLayer, Balancer, Candidate, Choice, HealthCheckConfig, LoadBalance, Policy, Pool,
    RetryConfig, RoutingConfig, Work,
};
use llmproxy_core::{BoxBody, BoxError, Call, Endpoint, Exchange, Prompt, RequestBody, Target};
use tower::{Layer, ServiceExt, service_fn};

fn by_session() -> RoutingConfig {
    RoutingConfig { load_balance: LoadBalance::Session, ..RoutingConfig::default() }
}

/// The backend that a request of this session is answered by.
async fn home(pool: &Arc<Pool>, session: &str) -> String {
    let inner = service_fn(async |request: Request<RequestBody>| {
        let name = request.extensions().get::<Target>().unwrap().backend.name.clone();
        Ok::<_, BoxError>(answer(200, &name))
    });
    let request = Request::post("/v1/chat/completions").header("x-session-id", session);
    let request = request.body(RequestBody::whole("{}")).unwrap();
    text(BalanceLayer::new(pool.clone()).layer(inner).oneshot(request).await.unwrap()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_session_stays_where_it_is_through_restarts_and_in_every_proxy() {
    let one = unchecked(&[1, 1, 1], &by_session());
    let mut turned: Vec<BackendConfig> = backends(&[1, 1, 1]);
    turned.reverse();
    let other = pool_of(&turned, &by_session());
    let mut homes = Vec::new();
    for session in 0..60 {
        let session = session.to_string();
        homes.push(home(&one, &session).await);
        assert_eq!(home(&one, &session).await, homes[homes.len() - 1]);
        assert_eq!(home(&other, &session).await, homes[homes.len() - 1]);
    }
    for name in ["a", "b", "c"] {
        assert!(homes.iter().filter(|home| *home == name).count() > 8, "{homes:?}");
    }
}

/// Takes the first and writes down what is expected.
#[derive(Debug, Default)]
struct Spy(Mutex<Vec<(u64, usize)>>);

impl Policy for Spy {
    fn pick(&self, work: &Work, candidates: &[Candidate<'_>]) -> Choice {
        self.0.lock().unwrap().push((work.output_tokens, candidates[0].waiting));
        Choice::new(0, "spied on")
    }
}

/// Asks for an answer of `model`, with this bound, that is `response`; returns what was expected.
async fn expected(pool: &Arc<Pool>, model: &str, max_output: Option<u64>, response: Response<BoxBody>) -> u64 {
    expected_of(pool, model, 1, max_output, response).await
}

/// The same for so many answers at a time.
async fn expected_of(
    pool: &Arc<Pool>,
    model: &str,
    answers: u32,
    max_output: Option<u64>,
    response: Response<BoxBody>,
) -> u64 {
    let (spy, response) = (Arc::new(Spy::default()), Arc::new(Mutex::new(Some(response))));
    let inner = service_fn(move |_: Request<RequestBody>| {
        let response = response.lock().unwrap().take().unwrap();
        async move { Ok::<_, BoxError>(response) }
    });
    let mut request = Request::new(RequestBody::whole("{}"));
    let endpoint = Endpoint::of("/v1/chat/completions");
    let call = Call { model: Some(model.into()), answers, max_output, ..Call::new(endpoint) };
    Exchange::of(request.extensions_mut()).set_call(call);
    let answer = BalanceLayer::new(pool.clone()).with_policy(spy.clone()).layer(inner).oneshot(request).await;
    // Some of them break.
    let _ = text(answer.unwrap()).await;
    let seen = spy.0.lock().unwrap();
    seen[0].0
}

#[tokio::test(start_paused = true)]
async fn what_streams_came_to_is_expected_of_the_next_one_of_that_model() {
    let mut backends = backends(&[1]);
    backends[0].models = vec!["m".into(), "n".into()];
    let pool = pool_of(&backends, &RoutingConfig::default());
    assert_eq!(
        expected(&pool, "m", None, answer(200, "a JSON answer has one piece and any number of tokens")).await,
        300
    );
    assert_eq!(expected(&pool, "m", None, events([Ok("1"), Err("broken")])).await, 300);
    for _ in 0..200 {
        expected(&pool, "m", None, events([Ok("1"), Ok("2"), Ok("3")])).await;
    }
    let end = || events([Ok("1"), Ok("2"), Ok("3")]);
    assert_eq!(expected(&pool, "m", None, end()).await, 3);
    assert_eq!(expected(&pool, "m", Some(2), end()).await, 2, "as far as the request does not bound it");
    assert_eq!(expected(&pool, "m", Some(4096), end()).await, 3);
    assert_eq!(expected(&pool, "n", Some(50), end()).await, 50, "nothing is known of that one");
}

#[tokio::test(start_paused = true)]
async fn several_answers_at_a_time_are_expected_and_teach_nothing() {
    let mut backends = backends(&[1]);
    backends[0].models = vec!["m".into()];
    let pool = pool_of(&backends, &RoutingConfig::default());
    for _ in 0..200 {
        assert_eq!(expected_of(&pool, "m", 4, None, events([Ok("1")])).await, 1200);
    }
    assert_eq!(expected_of(&pool, "m", 4, Some(100), events([Ok("1")])).await, 100);
    assert_eq!(expected(&pool, "m", None, events([Ok("1")])).await, 300);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_until_its_first_byte() {
    let routing = RoutingConfig { load_balance: LoadBalance::LatencyBased, ..RoutingConfig::default() };
    let pool = unchecked(&[1], &routing);
    let spy = Arc::new(Spy::default());
    let layer = BalanceLayer::new(pool).with_policy(spy.clone());
    let inner = || service_fn(async |_: Request<RequestBody>| Ok::<_, BoxError>(events([Ok("1"), Ok("2")])));
    let ask = || layer.layer(inner()).oneshot(Request::new(RequestBody::whole("{}")));
    let mut first = ask().await.unwrap();
    let second = ask().await.unwrap();
    http_body_util::BodyExt::frame(first.body_mut()).await.unwrap().unwrap();
    let third = ask().await.unwrap();
    drop((first, second, third));
    drop(ask().await.unwrap());
    let waiting: Vec<usize> = spy.0.lock().unwrap().iter().map(|(_, waiting)| *waiting).collect();
    assert_eq!(waiting, [0, 1, 1, 0]);
}

/// Asks one of two backends for an answer to a long prompt, which is `response`; returns why that one.
async fn reason(pool: &Arc<Pool>, prompt: &str, response: Result<Response<BoxBody>, BoxError>) -> String {
    let response = Arc::new(Mutex::new(Some(response)));
    let inner = service_fn(move |_: Request<RequestBody>| {
        let response = response.lock().unwrap().take().unwrap();
        async move { response }
    });
    let mut request = Request::new(RequestBody::whole(prompt.to_owned()));
    let tokens = prompt.len() as u64 / 4;
    let exchange = Exchange::of(request.extensions_mut());
    exchange.set_call(Call {
        model: Some("m".into()),
        prompt: Some(Prompt { text: 0..prompt.len(), ..Prompt::default() }),
        prompt_estimate: tokens,
        ..Call::new(Endpoint::of("/v1/chat/completions"))
    });
    if let Ok(answer) = BalanceLayer::new(pool.clone()).layer(inner).oneshot(request).await {
        let _ = text(answer).await;
    }
    exchange.attempts()[0].reason.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_did_not_answer_has_no_prefix_and_one_that_did_keeps_it() {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let pool = unchecked(&[1, 1], &RoutingConfig { retry, ..RoutingConfig::default() });
    let (first, prompt) = (["once upon a time "; 200].concat(), ["so it was told "; 400].concat());
    let whole = format!("{first}{prompt}");
    let broken = || Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
    assert_eq!(reason(&pool, &first, Ok(answer(400, "no"))).await, "least to compute");
    assert_eq!(reason(&pool, &first, broken()).await, "least to compute");
    assert_eq!(reason(&pool, &first, Ok(events([Err("broken")]))).await, "least to compute");
    assert_eq!(reason(&pool, &first, Ok(answer(200, "yes"))).await, "least to compute");
    assert_eq!(reason(&pool, &whole, Ok(answer(400, "no"))).await, "some of the prompt cached");
    assert_eq!(reason(&pool, &whole, Ok(answer(200, "yes"))).await, "some of the prompt cached", "what it had before");
    assert_eq!(reason(&pool, &whole, Ok(answer(400, "no"))).await, "most of the prompt cached");
    assert_eq!(
        reason(&pool, &whole, Ok(answer(200, "yes"))).await,
        "most of the prompt cached",
        "as long as it has it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_backend_of_weight_zero_gets_nothing() {
    let checks = Checks::default();
    checks.well("a");
    checks.well("b");
    let balancer = Balancer::new(checks.client());
    let proxy =
        named(balancer.apply(&backends(&[0, 1]), &RoutingConfig::default(), &Default::default(), &Default::default()));
    settle().await;
    for _ in 0..5 {
        assert_eq!(asked(&proxy.ask().await.0), ["b"]);
    }
}

/// All of a configuration is in force at once: in between there is no moment in which nobody does the work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_goes_to_another_backend_is_always_with_one_of_them() {
    let balancer = Balancer::new(Checks::default().client());
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let apply = |weights: &[u32]| {
        let mut backends = backends(weights);
        backends.iter_mut().for_each(|backend| backend.models = vec!["m".into()]);
        balancer.apply(&backends, &RoutingConfig::default(), &health, &Default::default())
    };
    let proxy = Arc::new(named(apply(&[1])));
    let is_done = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (proxy, is_done) = (proxy.clone(), is_done.clone());
        async move {
            while !is_done.load(Ordering::Relaxed) {
                assert_eq!(proxy.ask().await.1.unwrap().status(), StatusCode::OK);
            }
        }
    });
    for _ in 0..500 {
        apply(&[0, 1]);
        apply(&[1]);
        tokio::task::yield_now().await;
        // What an administrator has said is over no sooner than that what is configured now holds.
        apply(&[0, 1]);
        balancer.set_weight("a", 1);
        balancer.set_weight("b", 0);
        apply(&[1, 1]);
        tokio::task::yield_now().await;
        // Of the second nothing new was configured.
        balancer.set_weight("b", 1);
    }
    is_done.store(true, Ordering::Relaxed);
    asking.await.unwrap();
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

    for (policy, expected) in [(Last(None), "c"), (Last(Some(1000)), "a"), (Last(Some(0)), "a")] {
        let layer = BalanceLayer::new(unchecked(&[1, 1, 1], &RoutingConfig::default())).with_policy(Arc::new(policy));
        let service = layer.layer(service_fn(async |request: Request<RequestBody>| {
            let target = request.extensions().get::<Target>().unwrap();
            Ok::<_, BoxError>(answer(200, &target.backend.name))
        }));
        let response = service.oneshot(Request::new(RequestBody::whole(""))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected);
    }
}
