//! What is refused: in the API's own shape, without a record, without a backend being asked.

use llmproxy_testkit::{Backend, Client, Receiver, Response, script};
use serde_json::{Value, json};

use crate::harness::{Proxy, get};

const KEY: &str = "sk-test-0123456789abcdef";

fn config(backend: &str, receiver: &str) -> String {
    format!(
        r#"
server: {{max_body_size: 4096}}
backends: [{{url: "{backend}", models: [m, other]}}]
auth:
  enabled: true
  pipeline:
    - type: static
      static:
        keys:
          - {{key: "{KEY}", name: good, allowed_models: [m]}}
          - {{key: sk-disabled, name: bad, status: disabled}}
          - {{key: sk-expired, name: old, expires_at: "2020-01-01T00:00:00Z"}}
          - {{key: sk-elsewhere, name: far, allowed_ips: [10.0.0.0/8]}}
rate_limit:
  enabled: true
  per_key: {{requests_per_minute: 3, tokens_per_minute: 5000}}
health_check: {{enabled: false}}
usage:
  enabled: true
  reporters: [{{name: r, type: webhook, webhook: {{url: "{receiver}"}}}}]
"#
    )
}

async fn ask(proxy: &Proxy, path: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    let mut client = Client::connect(proxy.address()).await;
    client.send_json(path, headers, body).await;
    client.read_to_end().await
}

#[tokio::test]
async fn each_refusal_has_its_status_and_code_and_no_record() {
    let backend = Backend::start(script::json(
        200,
        json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
    ))
    .await;
    let receiver = Receiver::start().await;
    let mut proxy = Proxy::start(&config(&backend.url(), &receiver.url())).await;
    let chat = "/v1/chat/completions";
    let body = json!({"model": "m", "messages": []});
    let cases: &[(&str, Option<&str>, Value, u16, &str)] = &[
        (chat, None, body.clone(), 401, "ERROR"),
        (chat, Some("sk-unknown"), body.clone(), 401, "NOT_FOUND"),
        (chat, Some("sk-disabled"), body.clone(), 403, "DISABLED"),
        (chat, Some("sk-expired"), body.clone(), 403, "EXPIRED"),
        (chat, Some("sk-elsewhere"), body.clone(), 403, ""),
        (chat, Some(KEY), json!({"model": "other", "messages": []}), 403, ""),
        (chat, Some(KEY), json!({"model": "m", "messages": [], "stream": "yes"}), 400, ""),
        (chat, Some(KEY), json!({"model": "m", "messages": [], "max_tokens": 100_000}), 400, ""),
        (chat, Some(KEY), json!({"model": "m", "messages": "x".repeat(5000)}), 413, ""),
        ("/v1/load_lora_adapter", Some(KEY), body.clone(), 404, ""),
        ("/v1/../metrics", Some(KEY), body.clone(), 400, ""),
        ("/nowhere", Some(KEY), body.clone(), 404, ""),
    ];
    for (path, key, body, status, code) in cases {
        let bearer = key.map(|key| format!("Bearer {key}"));
        let headers: Vec<_> = bearer.iter().map(|value| ("authorization", &**value)).collect();
        let answer = ask(&proxy, path, &headers, body).await;
        let context = format!("{path} {key:?}: {}", answer.text());
        assert_eq!(answer.status, *status, "{context}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{context}");
        assert!(error["code"].is_string() && error["type"].is_string(), "{context}");
        if !code.is_empty() {
            assert_eq!(error["code"], *code, "{context}");
        }
        assert!(answer.header("x-request-id").is_some(), "{context}");
        let line = proxy.ended().await;
        assert_eq!(line["status_code"], *status, "{line}");
        assert!(!line.to_string().contains(KEY), "a key in the log: {line}");
    }
    assert_eq!(backend.counts().requests, 0);

    // Limits: what refused requests had taken was given back, so all three of this minute are left.
    let bearer = format!("Bearer {KEY}");
    for left in [2, 1, 0] {
        let answer =
            ask(&proxy, chat, &[("authorization", &bearer)], &json!({"model": "m", "messages": [], "max_tokens": 8}))
                .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(&*left.to_string()));
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3"));
    }
    let answer = ask(&proxy, chat, &[("x-api-key", KEY)], &body).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    let after: u64 = answer.header("retry-after").expect("waiting helps").parse().expect("seconds");
    assert!((1..=20).contains(&after), "{after}");
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("0"));

    assert_eq!(receiver.wait_for(3).await.len(), 3);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_exchanges_total", &[]), 3.0);
    assert!(metrics.sum("llmproxy_rate_limited_total", &[]) >= 1.0);
    assert_eq!(metrics.sum("llmproxy_requests_total", &["status=\"401\""]), 2.0);
}

#[tokio::test]
async fn errors_on_anthropic_s_paths_have_its_shape() {
    let backend = Backend::start(script::hang()).await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&config(&backend.url(), &receiver.url())).await;
    let answer = ask(&proxy, "/v1/messages", &[], &json!({"model": "m", "messages": []})).await;
    assert_eq!((answer.status, &answer.json()["type"]), (401, &json!("error")));
    assert_eq!(answer.json()["error"]["type"], "authentication_error");
}

#[tokio::test]
async fn models_are_merged_and_filtered_by_what_the_key_may_use() {
    let backend = Backend::start(script::hang()).await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&config(&backend.url(), &receiver.url())).await;
    let list = |key: &'static str, path: &'static str| {
        let address = proxy.address();
        async move {
            let mut client = Client::connect(address).await;
            client.send("GET", path, &[("authorization", &format!("Bearer {key}"))], b"").await;
            client.read_to_end().await
        }
    };
    let answer = list(KEY, "/v1/models").await;
    let ids: Vec<_> =
        answer.json()["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert_eq!((answer.status, ids), (200, vec![json!("m")]));
    assert_eq!(list(KEY, "/v1/models/m").await.status, 200);
    assert_eq!(list(KEY, "/v1/models/other").await.status, 404);
    assert_eq!(list("sk-unknown", "/v1/models").await.status, 401);
    assert_eq!(backend.counts().requests, 0);
}

#[tokio::test]
async fn an_unknown_model_is_404_and_a_dead_backend_is_no_reason_for_health_to_fail() {
    let refused = llmproxy_testkit::Refused::new();
    let proxy = Proxy::start(&format!("backends: [{{url: '{}', models: [m]}}]\n", refused.url())).await;
    let answer = ask(&proxy, "/v1/chat/completions", &[], &json!({"model": "gpt-9", "messages": []})).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("model_not_found")), "{}", answer.text());
    assert_eq!(get(proxy.address(), "/health").await, (200, "OK".into()));
    let head = {
        let mut client = Client::connect(proxy.address()).await;
        client.send("HEAD", "/health", &[], b"").await;
        client.read_to_end().await
    };
    assert_eq!(head.status, 200);
}
