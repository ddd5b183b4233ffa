//! Rules, aliases and fallbacks: what the backend gets, and what the client.

use llmproxy_testkit::{Backend, Client, Refused, script};
use serde_json::{Value, json};

use crate::harness::Proxy;

/// With spaces, an order and numbers that no serializer would write so.
const BODY: &str = r#"{ "temperature":1.0,  "model" : "gpt-4","messages":[ {"role":"user","content":"caf\u00e9"}] }"#;

/// A backend that answers with its own name for the model, whatever it is asked for.
async fn named(name: &'static str) -> Backend {
    Backend::start(script::json(200, json!({"model": name, "choices": []}))).await
}

/// What was asked of `backend`, checks left out.
fn bodies(backend: &Backend) -> Vec<String> {
    let asked = backend.seen().into_iter().filter(|seen| seen.method == "POST");
    asked.map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).collect()
}

async fn chat(client: &mut Client, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    client
        .send(
            "POST",
            "/v1/chat/completions",
            &[&[("content-type", "application/json")], headers].concat(),
            body.as_bytes(),
        )
        .await;
    let answer = client.read_to_end().await;
    (answer.status, answer.json()["model"].clone())
}

#[tokio::test]
async fn a_model_that_stands_in_is_all_that_changes_in_the_request() {
    let big = Refused::new();
    let small = named("what-the-backend-says").await;
    let yaml = format!(
        "backends: [{{name: gpu, url: '{}', models: [big]}}, {{name: cpu, url: '{}', models: [small]}}]\n\
         routing: {{models: {{gpt-4: {{to: big, fallbacks: [small]}}}}}}\n\
         health_check: {{enabled: false}}\n",
        big.url(),
        small.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(chat(&mut client, &[], BODY).await, (200, json!("what-the-backend-says")));
    assert_eq!(bodies(&small), [BODY.replace("gpt-4", "small")]);
    let line = proxy.ended().await;
    assert_eq!((&line["backend_url"], &line["model"]), (&json!(small.url()), &json!("gpt-4")), "{line}");

    // The first choice again, once it is there.
    let big = big.start(script::json(200, json!({"model": "big"})));
    let yaml = yaml.replace("enabled: false", "interval: 100ms");
    proxy.reload(&yaml, "is up").await;
    proxy.up("gpu").await;
    assert_eq!(chat(&mut client, &[], BODY).await, (200, json!("big")));
    assert_eq!(bodies(&big), [BODY.replace("gpt-4", "big")]);
}

#[tokio::test]
async fn a_backend_that_fails_is_replaced_by_what_stands_in_and_the_last_answer_is_the_client_s() {
    let big = Backend::start(script::json(503, json!({"model": "none, busy"}))).await;
    let small = named("small").await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [big]}}, {{url: '{}', models: [small]}}]\n\
         routing: {{models: {{big: {{fallbacks: [small]}}}}, retry: {{max_retries: 1}}}}\n\
         health_check: {{enabled: false}}\n",
        big.url(),
        small.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let body = r#"{"model":"big","messages":[]}"#;
    assert_eq!(chat(&mut client, &[], body).await, (200, json!("small")));
    assert_eq!((bodies(&big), bodies(&small)), (vec![body.to_owned()], vec![body.replace("big", "small")]));

    small.set_script(script::json(500, json!({"model": "none, broken"})));
    assert_eq!(chat(&mut client, &[], body).await, (500, json!("none, broken")));
}

#[tokio::test]
async fn requests_are_routed_by_what_they_ask_for() {
    let (local, large) = (named("local").await, named("large").await);
    let yaml = format!(
        "backends:\n  - {{name: local, group: cheap, url: '{}', models: [qwen-7b]}}\n  - {{name: large, group: strong, url: '{}', models: [qwen-32b]}}\n\
         routing:\n  rules:\n\
         \x20   - {{name: nightly, match: {{model: auto, header: {{X-Job: 'nightly-*'}}}}, model: qwen-7b}}\n\
         \x20   - {{name: long, match: {{model: auto, min_prompt_tokens: 1000}}, group: strong, model: qwen-32b, fallbacks: [qwen-7b]}}\n\
         \x20   - {{name: simple, match: {{model: auto}}, group: cheap, model: qwen-7b, fallbacks: [qwen-32b]}}\n\
         \x20   - {{name: vectors, match: {{path: /v1/embeddings}}, model: qwen-7b}}\n\
         health_check: {{enabled: false}}\n",
        local.url(),
        large.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let ask = |words: usize| {
        json!({"model": "auto", "messages": [{"role": "user", "content": "word ".repeat(words)}]}).to_string()
    };
    let (short, long) = (ask(5), ask(5000));
    assert_eq!(chat(&mut client, &[], &short).await, (200, json!("local")));
    assert_eq!(chat(&mut client, &[], &long).await, (200, json!("large")));
    assert_eq!(chat(&mut client, &[("x-job", "nightly-42")], &long).await, (200, json!("local")));
    assert_eq!(bodies(&large), [long.replace(r#""auto""#, r#""qwen-32b""#)]);
    assert_eq!(bodies(&local), [&short, &long].map(|body| body.replace(r#""auto""#, r#""qwen-7b""#)));
    // A rule is for what it matches and for nothing else.
    client.send_json("/v1/embeddings", &[], &json!({"model": "qwen-32b", "input": "hi"})).await;
    assert_eq!(client.read_to_end().await.json()["model"], "local");
    assert_eq!(chat(&mut client, &[], r#"{"model":"qwen-32b","messages":[]}"#).await, (200, json!("large")));
    assert_eq!(chat(&mut client, &[], r#"{"model":"other","messages":[]}"#).await.0, 404);

    let list = client.get("/v1/models").await.json();
    let ids: Vec<&str> =
        list["data"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, ["auto", "qwen-32b", "qwen-7b"]);
}

#[tokio::test]
async fn fallbacks_of_the_go_program_count() {
    let (first, second) = (Refused::new(), named("second").await);
    let third = named("third").await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [m]}}, {{url: '{}', models: [m]}}, {{url: '{}', models: [m]}}]\n\
         routing: {{fallback: [{{models: [m], primary: '{}', fallback: ['{}']}}]}}\n\
         health_check: {{enabled: false}}\n",
        third.url(),
        second.url(),
        first.url(),
        first.url(),
        second.url(),
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..4 {
        assert_eq!(chat(&mut client, &[], r#"{"model":"m"}"#).await, (200, json!("second")));
    }
    assert!(bodies(&third).is_empty());
}
