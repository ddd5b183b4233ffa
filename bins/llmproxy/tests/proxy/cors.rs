//! Pages of other origins, as their browsers ask.

use llmproxy_testkit::{Backend, Client, Response};
use serde_json::json;

use crate::harness::Proxy;

const PAGE: &str = "https://chat.example.com";
const PREFLIGHT: &[(&str, &str)] = &[
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
];

fn config(backend: &Backend, cors: &str) -> String {
    format!(
        "server: {{cors: {{{cors}}}}}\n\
         backends: [{{url: '{}', models: [m]}}]\n\
         health_check: {{enabled: false}}\n\
         auth: {{enabled: true, pipeline: [{{type: static, static: {{keys: [{{key: sk-a}}]}}}}]}}\n",
        backend.url()
    )
}

/// As llama-server says it of every answer: with a header that is there and allows nothing.
async fn backend() -> Backend {
    Backend::start(|_, wire| async move {
        let headers = [("content-type", "application/json"), ("access-control-allow-origin", "")];
        wire.respond(200, &headers, "{\"choices\":[]}").await
    })
    .await
}

async fn preflight(proxy: &Proxy, origin: &str) -> Response {
    let headers = [&[("origin", origin)], PREFLIGHT].concat();
    let mut client = Client::connect(proxy.address()).await;
    client.send("OPTIONS", "/v1/chat/completions", &headers, b"").await;
    client.read_to_end().await
}

async fn ask(proxy: &Proxy, headers: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", headers, &json!({"model": "m", "messages": []})).await;
    client.read_to_end().await
}

fn all<'a>(answer: &'a Response, name: &str) -> Vec<&'a str> {
    let same = |(header, _): &&(String, String)| header.eq_ignore_ascii_case(name);
    answer.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_ask_and_read_errors_too() {
    let backend = backend().await;
    let cors = "allowed_origins: ['https://*.example.com'], max_age: 10m";
    let mut proxy = Proxy::start(&config(&backend, cors)).await;

    let answer = preflight(&proxy, PAGE).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization,content-type,x-stainless-lang"));
    assert_eq!(answer.header("access-control-max-age"), Some("600"));
    let line = proxy.ended().await;
    assert_eq!((&line["method"], &line["status_code"]), (&json!("OPTIONS"), &json!(200)), "{line}");
    assert_eq!(backend.counts().requests, 0, "it is the proxy's to answer");

    let refused = ask(&proxy, &[("origin", PAGE)]).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some(PAGE)));
    assert!(refused.header("access-control-expose-headers").is_some_and(|names| names.contains("x-request-id")));

    let answer = ask(&proxy, &[("origin", PAGE), ("authorization", "Bearer sk-a")]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(all(&answer, "access-control-allow-origin"), [PAGE], "the backend's word is not there beside ours");
    assert_eq!(all(&answer, "access-control-allow-credentials"), [""; 0]);

    let mut client = Client::connect(proxy.address()).await;
    client.send("GET", "/v1/models", &[("origin", PAGE), ("authorization", "Bearer sk-a")], b"").await;
    assert_eq!(client.read_to_end().await.header("access-control-allow-origin"), Some(PAGE), "our own routes, too");
    client.send("GET", "/metrics", &[("origin", PAGE)], b"").await;
    assert_eq!(client.read_to_end().await.header("access-control-allow-origin"), None, "but not what operators read");
}

#[tokio::test]
async fn a_page_of_another_origin_is_told_nothing() {
    let backend = backend().await;
    let mut proxy = Proxy::start(&config(&backend, "allowed_origins: ['https://*.example.com']")).await;
    for origin in ["https://example.com.evil.net", "https://example.com", "null"] {
        let answer = preflight(&proxy, origin).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, None), "{origin}");
        assert!(answer.text().contains("server.cors.allowed_origins"), "{}", answer.text());
        assert_eq!(proxy.ended().await["status_code"], 403);
        let answer = ask(&proxy, &[("origin", origin), ("authorization", "Bearer sk-a")]).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None), "{origin}");
        proxy.ended().await;
    }
    // One that no browser sends is what any other request without a key is.
    let mut client = Client::connect(proxy.address()).await;
    client.send("OPTIONS", "/v1/chat/completions", &[], b"").await;
    assert_eq!(client.read_to_end().await.status, 401);
}

#[tokio::test]
async fn a_reload_changes_who_may_ask() {
    let backend = backend().await;
    let mut proxy = Proxy::start(&config(&backend, "")).await;
    assert_eq!(preflight(&proxy, PAGE).await.status, 401, "without the block it is a request like any other");
    proxy.reload(&config(&backend, "allowed_origins: ['*']"), "reloaded").await;
    let answer = preflight(&proxy, PAGE).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    for harmful in [
        "allowed_origins: ['*'], allow_credentials: true",
        "allowed_origins: ['null'], allow_credentials: true",
        "allowed_origins: ['null']",
        "allowed_origins: ['http*://a.example']",
    ] {
        proxy.reload(&config(&backend, harmful), "nothing was changed").await;
    }
    assert_eq!(preflight(&proxy, PAGE).await.status, 200);
    proxy.reload(&config(&backend, "enabled: false, allowed_origins: ['*']"), "reloaded").await;
    assert_eq!(preflight(&proxy, PAGE).await.status, 401);
}
