//! Rules, aliases and fallbacks: with which model which backend is asked.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Answer, Checks, Proxy, Reply, answer, asked, editable, pool_of, text};
use http::StatusCode;
use llmproxy_balancer::{
    BackendConfig, BalanceError, Balancer, HealthCheckConfig, Pool, QueueConfig, RoutingConfig, validate_routes,
    validate_routing,
};
use llmproxy_core::{BoxError, Call, Endpoint, Exchange, FlowKey, Needs, RequestBody, Target, cause_ref};
use tokio::time::Instant;

/// Two that have the model `big`, one that has `small`, one that has two models.
fn backends() -> Vec<BackendConfig> {
    let backend = |name: &str, group: &str, models: &[&str]| BackendConfig {
        name: Some(name.into()),
        group: Some(group.into()),
        models: models.iter().map(|model| (*model).to_owned()).collect(),
        ..BackendConfig::new(format!("http://{name}"))
    };
    vec![
        backend("big-1", "gpu", &["big"]),
        backend("big-2", "gpu", &["big"]),
        backend("little", "cpu", &["small"]),
        backend("both", "cpu", &["tiny", "tinier"]),
    ]
}

fn routing(text: &str) -> RoutingConfig {
    let routing: RoutingConfig = serde_json::from_str(text).expect("as an operator writes it");
    let (mistakes, found) = (validate_routing(&routing), validate_routes(&backends(), &routing, true));
    assert!(mistakes.is_empty() && found.mistakes.is_empty(), "{mistakes:?} {found:?}");
    routing
}

fn proxy(text: &str, script: impl FnMut(&Target) -> Reply + Send + 'static) -> Proxy {
    Proxy::new(pool_of(&backends(), &routing(text)), script)
}

/// A backend answers with the name that it gets for the model, unless it is one of `failing`.
fn all_but(failing: &'static [&'static str]) -> impl FnMut(&Target) -> Reply + Send + 'static {
    move |target| match failing.contains(&&*target.backend.name) {
        true => Reply::Answer(answer(500, "broken")),
        false => Reply::Answer(answer(200, target.model.as_deref().unwrap_or("as it came"))),
    }
}

async fn ask(proxy: &Proxy, model: &str) -> (Arc<Exchange>, Result<Answer, BoxError>) {
    proxy.ask_with(Some(model), editable()).await
}

/// Who is asked for `model` with which name, in order, and the client's status.
async fn check(proxy: &Proxy, model: &str, expected: &[&str], status: u16) {
    let (exchange, response) = ask(proxy, model).await;
    assert_eq!(asked(&exchange), expected, "{model}");
    assert_eq!(response.expect("an answer").status(), status, "{model}");
}

const GPT4: &str = r#"{"retry":{"initial_wait":"0s","retry_on":["connect","reset","5xx"]},
    "models":{"gpt-4":{"to":"big","fallbacks":["small","tiny"]},"tiny":{"fallbacks":["tinier"]}}}"#;

#[tokio::test(start_paused = true)]
async fn a_first_choice_that_works_is_the_only_one() {
    let proxy = proxy(GPT4, all_but(&[]));
    for expected in ["big-1", "big-2", "big-1"] {
        let (exchange, response) = ask(&proxy, "gpt-4").await;
        assert_eq!((asked(&exchange), text(response.unwrap()).await.unwrap()), (vec![expected.into()], "big".into()));
    }
    let (exchange, response) = ask(&proxy, "tiny").await;
    assert_eq!(text(response.unwrap()).await.unwrap(), "as it came");
    assert_eq!(exchange.attempts()[0].reason, "the only one");
}

#[tokio::test(start_paused = true)]
async fn attempts_that_fail_go_on_to_what_stands_in() {
    let proxy = proxy(GPT4, all_but(&["big-1", "big-2"]));
    let before = Instant::now();
    let (exchange, response) = ask(&proxy, "gpt-4").await;
    assert_eq!(asked(&exchange), ["big-1", "big-2", "little"]);
    assert_eq!(before.elapsed(), Duration::ZERO, "nobody is waited for while another is left");
    assert_eq!(text(response.unwrap()).await.unwrap(), "small");
    let served = exchange.served().unwrap();
    assert_eq!((served.model.as_deref(), &*served.backend.name), (Some("small"), "little"));
    assert_eq!(exchange.attempts()[2].reason, "fallback for `big`");
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_comes_before_a_first_choice_that_requests_fail_at() {
    let proxy = proxy(GPT4, |target| match &*target.backend.name {
        "little" => Reply::Answer(answer(200, "small")),
        _ => Reply::Answer(answer(502, "broken")),
    });
    while proxy.pool.snapshot()[..2].iter().any(|status| status.out.is_none()) {
        let _ = ask(&proxy, "big").await;
    }
    for _ in 0..50 {
        check(&proxy, "gpt-4", &["little"], 200).await;
    }
    // One shows whether the first choice is back, and its client pays nothing.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let (exchange, response) = ask(&proxy, "gpt-4").await;
    assert_eq!((asked(&exchange)[0].as_str(), response.unwrap().status()), ("big-1", StatusCode::OK));
}

#[tokio::test(start_paused = true)]
async fn where_requests_fail_at_all_that_stand_in_the_first_choice_is_asked() {
    let proxy = proxy(GPT4, |_| Reply::Answer(answer(502, "broken")));
    for model in ["big", "small", "tiny"] {
        let owns = |status: &llmproxy_balancer::BackendStatus| {
            status.out.is_none() && status.models.iter().any(|name| name == model)
        };
        while proxy.pool.snapshot().iter().any(owns) {
            let _ = ask(&proxy, model).await;
        }
    }
    let (exchange, response) = ask(&proxy, "gpt-4").await;
    assert!(asked(&exchange)[0].starts_with("big"), "{:?}", asked(&exchange));
    assert_eq!(response.unwrap().status(), 502);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_first_choice_that_is_full_and_out_while_another_model_is_there() {
    let mut backends = backends();
    backends[0].max_concurrent = Some(1);
    backends[1].max_concurrent = Some(1);
    let proxy = Proxy::new(pool_of(&backends, &routing(GPT4)), |target| match &*target.backend.name {
        "little" => Reply::Answer(answer(200, "small")),
        _ => Reply::Answer(answer(502, "broken")),
    });
    while proxy.pool.snapshot()[..2].iter().any(|status| status.out.is_none()) {
        let _ = ask(&proxy, "big").await;
    }
    // Answers that nobody reads on, and one who waits for nothing else.
    let held = [ask(&proxy, "big").await, ask(&proxy, "big").await];
    let waits = tokio::spawn({
        let proxy = proxy.clone();
        async move { ask(&proxy, "big").await }
    });
    tokio::task::yield_now().await;
    assert_eq!(proxy.pool.waiting(), 1);
    check(&proxy, "gpt-4", &["little"], 200).await;
    drop(held);
    waits.await.unwrap().1.expect("its turn");
}

#[tokio::test(start_paused = true)]
async fn a_first_choice_that_is_out_is_not_asked() {
    let proxy = proxy(GPT4, |target| match &*target.backend.name {
        "big-1" | "big-2" => Reply::Refused,
        _ => Reply::Answer(answer(200, target.model.as_deref().unwrap_or("as it came"))),
    });
    check(&proxy, "gpt-4", &["big-1", "big-2", "little"], 200).await;
    // Both are out now.
    check(&proxy, "gpt-4", &["little"], 200).await;
    let (exchange, response) = ask(&proxy, "big").await;
    assert!(exchange.is_unasked(), "nothing stands in where a client names the model itself");
    let error = response.unwrap_err();
    assert_eq!(cause_ref::<BalanceError>(&*error).unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_failed_with_one_model_is_asked_for_the_other() {
    let proxy = proxy(GPT4, |target| match target.model.as_deref() {
        None => Reply::Answer(answer(500, "out of memory")),
        Some(model) => Reply::Answer(answer(200, model)),
    });
    let (exchange, response) = ask(&proxy, "tiny").await;
    assert_eq!(asked(&exchange), ["both", "both"]);
    assert_eq!(text(response.unwrap()).await.unwrap(), "tinier");
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_counts_against_the_retries() {
    let few = GPT4.replace(r#""initial_wait""#, r#""max_retries":1,"initial_wait""#);
    let proxy_of_few = proxy(&few, all_but(&["big-1", "big-2"]));
    check(&proxy_of_few, "gpt-4", &["big-1", "big-2"], 500).await;
    let off = GPT4.replace(r#""initial_wait""#, r#""enabled":false,"initial_wait""#);
    let without = proxy(&off, |target| match &*target.backend.name {
        "big-1" | "big-2" => Reply::Refused,
        _ => Reply::Answer(answer(200, "")),
    });
    for _ in 0..2 {
        assert!(ask(&without, "gpt-4").await.1.is_err());
    }
    // No attempt has to fail for that.
    check(&without, "gpt-4", &["little"], 200).await;
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_client_gets_the_last_answer() {
    let text_of = |name: &str| format!("{name} is broken");
    let proxy = proxy(GPT4, move |target| match &*target.backend.name {
        "both" => Reply::Reset,
        name => Reply::Answer(answer(503, &text_of(name))),
    });
    let (exchange, response) = ask(&proxy, "gpt-4").await;
    assert_eq!(asked(&exchange), ["big-1", "big-2", "little", "both"]);
    let response = response.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(text(response).await.unwrap(), "little is broken");
}

#[tokio::test(start_paused = true)]
async fn when_nobody_can_be_asked_the_client_hears_of_the_first_choice() {
    let proxy = proxy(
        r#"{"models":{"gpt-4":{"to":"big","fallbacks":["nobody-has-this"]},"o1":{"to":"neither","fallbacks":["nor"]}}}"#,
        |_| Reply::Refused,
    );
    ask(&proxy, "gpt-4").await.1.unwrap_err();
    let (exchange, response) = ask(&proxy, "gpt-4").await;
    assert!(exchange.is_unasked());
    let error = response.unwrap_err();
    let error = cause_ref::<BalanceError>(&*error).unwrap();
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(error.to_string().contains("`big`"), "{error}");
    let error = ask(&proxy, "o1").await.1.unwrap_err();
    let error = cause_ref::<BalanceError>(&*error).unwrap();
    assert_eq!(error.status(), StatusCode::NOT_FOUND);
    assert!(error.to_string().contains("`neither`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn older_fallbacks_name_backends_or_models() {
    let text = r#"{"retry":{"retry_on":["500"]},
        "fallback":[{"models":["big"],"primary":"big-2","fallback":["http://big-1","small"]}]}"#;
    let proxy_of_all = proxy(text, all_but(&[]));
    for _ in 0..3 {
        check(&proxy_of_all, "big", &["big-2"], 200).await;
    }
    let failing = proxy(text, all_but(&["big-1", "big-2"]));
    let (exchange, response) = ask(&failing, "big").await;
    assert_eq!(asked(&exchange), ["big-2", "big-1", "little"]);
    assert_eq!(common::text(response.unwrap()).await.unwrap(), "small");
    let reasons: Vec<String> = exchange.attempts().iter().map(|attempt| attempt.reason.to_string()).collect();
    assert_eq!(reasons, ["the only one", "fallback for `big`", "fallback for `big`"]);
}

/// Sends a request that is like `change` says.
async fn ask_like(pool: &Arc<Pool>, path: &'static str, change: impl FnOnce(&mut Call, &mut FlowKey)) -> Arc<Exchange> {
    let exchange = Exchange::new();
    let (mut call, mut flow) = (Call::new(Endpoint::of(path)), FlowKey::default());
    change(&mut call, &mut flow);
    exchange.set_call(call);
    exchange.set_flow(flow);
    let mut request = http::Request::post(path).header("x-kind", "nightly").body(editable()).expect("a good request");
    request.extensions_mut().insert(exchange.clone());
    let backend = tower::service_fn(async |_: http::Request<RequestBody>| Ok::<_, BoxError>(answer(200, "")));
    let service = tower::Layer::layer(&llmproxy_balancer::BalanceLayer::new(pool.clone()), backend);
    tower::ServiceExt::oneshot(service, request).await.expect("an answer");
    exchange
}

#[tokio::test(start_paused = true)]
async fn a_rule_sends_what_it_matches_to_its_group_or_to_another_model() {
    let pool = pool_of(
        &backends(),
        &routing(
            r#"{"models":{"auto":{"to":"small"}},
                "rules":[{"name":"batch","match":{"tag":"batch"},"model":"tiny"},
                         {"name":"pictures","match":{"images":true},"model":"big"},
                         {"name":"long","match":{"min_prompt_tokens":1000},"group":"gpu","model":"big"},
                         {"name":"vectors","match":{"path":"/v1/embeddings"},"model":"tinier"},
                         {"name":"nightly","match":{"header":{"x-kind":"night*"},"tools":true},"model":"tiny"}]}"#,
        ),
    );
    let check = async |path, change: fn(&mut Call, &mut FlowKey), model: &str, reason: &str| {
        let exchange = ask_like(&pool, path, |call, flow| {
            call.model = Some("auto".into());
            change(call, flow);
        })
        .await;
        let attempt = exchange.attempts().remove(0);
        assert_eq!(exchange.served().unwrap().model.as_deref(), Some(model));
        assert!(attempt.reason.starts_with(reason), "{} is not {reason}", attempt.reason);
    };
    let chat = "/v1/chat/completions";
    check(chat, |_, _| {}, "small", "the only one").await;
    check(chat, |_, flow| flow.tag = Some("batch".into()), "tiny", "rule `batch`").await;
    check(chat, |call, _| call.needs = Needs { images: true, ..Needs::default() }, "big", "rule `pictures`; ").await;
    check(chat, |call, _| call.prompt_estimate = 5000, "big", "rule `long`; ").await;
    check("/v1/embeddings", |_, _| {}, "tinier", "rule `vectors`").await;
    check(chat, |call, _| call.needs = Needs { tools: true, ..Needs::default() }, "tiny", "rule `nightly`").await;
}

#[tokio::test(start_paused = true)]
async fn a_rule_has_a_policy_of_its_own_that_a_reload_leaves_as_it_is() {
    let text = r#"{"rules":[{"name":"ours","match":{"tag":"ours"},"load_balance":"round_robin"}]}"#;
    let balancer = Balancer::new(Checks::default().client());
    let off = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let apply = || balancer.apply(&backends(), &routing(text), &off, &QueueConfig::default());
    let pool = apply();
    let one = async |tag: Option<&str>| {
        let exchange = ask_like(&pool, "/v1/chat/completions", |call, flow| {
            call.model = Some("big".into());
            flow.tag = tag.map(Into::into);
        })
        .await;
        asked(&exchange).remove(0)
    };
    // Those of the rule take turns among themselves, whatever others do between them.
    assert_eq!(one(Some("ours")).await, "big-1");
    assert_eq!(one(None).await, "big-1");
    assert_eq!(one(Some("ours")).await, "big-2");
    assert_eq!(one(Some("ours")).await, "big-1");
    apply();
    assert_eq!(one(Some("ours")).await, "big-2");
    assert_eq!(one(None).await, "big-2");
}

#[tokio::test(start_paused = true)]
async fn a_rule_s_group_is_not_left_for_what_is_said_elsewhere() {
    let text = r#"{"retry":{"initial_wait":"0s","max_retries":2,"retry_on":["500"]},
        "models":{"big":{"fallbacks":["small"]}},
        "rules":[{"match":{"model":"big"},"group":"gpu"},{"match":{"model":"x"},"model":"big","group":"gpu","fallbacks":["small"]}]}"#;
    let proxy = proxy(text, all_but(&["big-1", "big-2"]));
    check(&proxy, "big", &["big-1", "big-2", "big-1"], 500).await;
    let (exchange, response) = ask(&proxy, "x").await;
    assert_eq!(*asked(&exchange).last().unwrap(), "little");
    assert_eq!(response.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_names_of_aliases_and_rules_are_shown_where_anyone_serves_them() {
    let text = r#"{"model_mapping":{"gpt-3":"small","gone":"no-such"},
        "models":{"gpt-4":{"to":"no-such","fallbacks":["nor-this","tiny"]},"big":{"fallbacks":["small"]},"lost":{"to":"no-such"}},
        "fallback":[{"models":["old-*","older"],"fallback":["small"]}],
        "rules":[{"match":{"model":"auto","tools":true},"model":"big","group":"gpu"},
                 {"match":{"model":"auto"},"model":"small"},
                 {"match":{"model":"tiny"},"model":"small"},
                 {"match":{"model":"near"},"model":"big","group":"cpu"}]}"#;
    let pool = pool_of(&backends(), &routing(text));
    let models: Vec<(String, Vec<String>)> = pool
        .models()
        .into_iter()
        .map(|model| (model.id, model.backends.iter().map(ToString::to_string).collect()))
        .collect();
    let expected = [
        ("auto", &["big-1", "big-2"][..]),
        ("big", &["big-1", "big-2"]),
        ("gpt-3", &["little"]),
        ("gpt-4", &["both"]),
        ("near", &["little"]),
        ("older", &["little"]),
        ("small", &["little"]),
        ("tinier", &["both"]),
        ("tiny", &["both"]),
    ];
    let expected = expected.map(|(id, at)| (id.to_owned(), at.iter().map(ToString::to_string).collect::<Vec<_>>()));
    assert_eq!(models, expected);
    for (name, known) in
        [("auto", true), ("gpt-4", true), ("older", true), ("big", true), ("old-1", false), ("x", false)]
    {
        assert_eq!(pool.knows(name), known, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_stands_in_for_a_model_that_may_be_known_in_a_moment() {
    let checks = Checks::default();
    checks.serves("first", &["big"]);
    checks.serves("second", &["other"]);
    let backend =
        |name: &str| BackendConfig { name: Some(name.into()), ..BackendConfig::new(format!("http://{name}")) };
    let mut backends = vec![backend("first"), backend("second"), backend("known")];
    backends[2].models.push("small".into());
    let routing = serde_json::from_str(r#"{"models":{"gpt-4":{"to":"big","fallbacks":["small"]}}}"#).unwrap();
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends, &routing, &HealthCheckConfig::default(), &QueueConfig::default());
    // No check has had time to ask anyone.
    let proxy = Proxy::new(pool, all_but(&[]));
    let before = Instant::now();
    check(&proxy, "gpt-4", &["first"], 200).await;
    assert!(before.elapsed() < Duration::from_secs(2));
}
