//! Where a request went and why: what answers and records say of it, and where its attempts end.

use llmproxy_testkit::{Backend, Client, Receiver, Refused, Response, script};
use serde_json::{Value, json};

use crate::harness::Proxy;

/// A proxy before these backends, `a` and `b`, whose records go to `receiver`.
fn config(urls: [String; 2], receiver: &Receiver, routing: &Value) -> String {
    let [a, b] = urls;
    json!({
        "backends": [{"name": "a", "url": a, "models": ["m"]}, {"name": "b", "url": b, "models": ["m"]}],
        "health_check": {"enabled": false},
        "routing": routing,
        "usage": {"enabled": true, "reporters": [{"name": "r", "type": "webhook", "webhook": {"url": receiver.url()}}]},
    })
    .to_string()
}

async fn ask(proxy: &Proxy, model: &str) -> Response {
    Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &json!({"model": model})).await
}

/// Who gave the answer, and how many were asked, as its head says it.
fn told(answer: &Response) -> (Option<&str>, Option<&str>) {
    (answer.header("x-llmproxy-backend"), answer.header("x-llmproxy-attempts"))
}

/// Says in its head that it is another one.
async fn liar() -> Backend {
    Backend::start(|_, wire| async move {
        let forged = [("x-llmproxy-backend", "forged"), ("X-LLMProxy-Attempts", "99"), ("x-mine", "yes")];
        wire.respond(200, &forged, r#"{"from":"b"}"#).await
    })
    .await
}

#[tokio::test]
async fn answers_and_records_say_where_a_request_went() {
    let busy = Backend::start(script::json(404, json!({"error": {"message": "not here"}}))).await;
    let (good, receiver) = (liar().await, Receiver::start().await);
    let routing = json!({"explain": true, "retry": {"retry_on": ["404"]}});
    let proxy = Proxy::start(&config([busy.url(), good.url()], &receiver, &routing)).await;

    let answer = ask(&proxy, "m").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"from":"b"}"#));
    assert_eq!((told(&answer), answer.header("x-mine")), ((Some("b"), Some("2")), Some("yes")));

    let record = receiver.wait_for(1).await.remove(0);
    let route = record["route"].as_array().expect("the attempts");
    assert_eq!(record["attempts"], 2, "{record}");
    assert_eq!((&route[0]["backend"], &route[0]["status"]), (&json!("a"), &json!(404)), "{record}");
    assert_eq!((&route[1]["backend"], &route[1]["status"]), (&json!("b"), &json!(200)), "{record}");
    assert!(route.iter().all(|step| step["reason"].as_str().is_some_and(|reason| !reason.is_empty())), "{record}");
    assert!(route.len() == 2 && route.iter().all(|step| step.get("error").is_none()), "{record}");

    // Nobody was asked.
    let unknown = ask(&proxy, "unheard-of").await;
    assert_eq!((unknown.status, told(&unknown)), (404, (None, None)));
    let health = Client::connect(proxy.address()).await.get("/health").await;
    assert_eq!(told(&health), (None, None));
}

#[tokio::test]
async fn errors_of_our_own_say_it_too() {
    let (dead, deader, receiver) = (Refused::new(), Refused::new(), Receiver::start().await);
    let routing = json!({"explain": true, "retry": {"max_retries": 1}});
    let proxy = Proxy::start(&config([dead.url(), deader.url()], &receiver, &routing)).await;
    let answer = ask(&proxy, "m").await;
    assert_eq!((answer.status, told(&answer)), (502, (Some("b"), Some("2"))));
    let record = receiver.wait_for(1).await.remove(0);
    for (step, name) in record["route"].as_array().expect("the attempts").iter().zip(["a", "b"]) {
        assert_eq!(step["backend"], name, "{record}");
        assert!(step["error"].is_string() && step.get("status").is_none(), "{record}");
    }
}

#[tokio::test]
async fn nothing_is_said_unless_it_is_asked_for() {
    let (one, other, receiver) = (liar().await, liar().await, Receiver::start().await);
    let yaml = |explain: bool| config([one.url(), other.url()], &receiver, &json!({"explain": explain}));
    let mut proxy = Proxy::start(&yaml(false)).await;
    let answer = ask(&proxy, "m").await;
    assert_eq!((answer.status, told(&answer), answer.header("x-mine")), (200, (None, None), Some("yes")));
    proxy.reload(&yaml(true), "reloaded").await;
    assert_eq!(told(&ask(&proxy, "m").await).1, Some("1"));
}

#[tokio::test]
async fn when_the_budget_of_retries_is_spent_the_client_gets_the_answer_that_there_is() {
    let busy = || async {
        Backend::start(|_, wire| async move { wire.respond(404, &[("retry-after", "7")], "come back later").await })
            .await
    };
    let (one, other, receiver) = (busy().await, busy().await, Receiver::start().await);
    let routing = json!({"explain": true, "retry": {"retry_on": ["404"], "max_retries": 1, "budget": 0}});
    let proxy = Proxy::start(&config([one.url(), other.url()], &receiver, &routing)).await;
    // Three a second always may, over ten seconds.
    for number in 0..31 {
        let answer = ask(&proxy, "m").await;
        assert_eq!((answer.status, answer.text().as_str()), (404, "come back later"));
        assert_eq!(answer.header("retry-after"), Some("7"));
        assert_eq!(told(&answer).1, Some(if number < 30 { "2" } else { "1" }), "{number}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_retries_refused_total", &["reason=\"status\""]), 1.0);
    assert_eq!(metrics.sum("llmproxy_retries_total", &[]), 30.0);
}

#[tokio::test]
async fn a_key_may_have_a_tag_in_the_file_and_works_as_any_other() {
    let (one, other, receiver) = (liar().await, liar().await, Receiver::start().await);
    let mut yaml: Value = serde_json::from_str(&config([one.url(), other.url()], &receiver, &json!({}))).expect("JSON");
    yaml["api_keys"] = json!([{"key": "sk-batch", "name": "nightly", "tag": "batch"}]);
    let proxy = Proxy::start(&yaml.to_string()).await;
    let mut client = Client::connect(proxy.address()).await;
    let key = [("authorization", "Bearer sk-batch")];
    client.send_json("/v1/chat/completions", &key, &json!({"model": "m"})).await;
    assert_eq!(client.read_to_end().await.status, 200);
    assert_eq!(receiver.wait_for(1).await[0]["key_name"], "nightly");
}
