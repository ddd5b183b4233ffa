//! Paths that some servers read as another one, and a log that nobody reads.

use std::process::Stdio;

use llmproxy_testkit::{Backend, Client, Response, script};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Folder, Proxy, command, within};

const KEY: &str = "sk-test-0123456789abcdef";

fn config(backend: &str) -> String {
    // JSON is YAML.
    json!({
        "backends": [{"url": backend, "models": ["org/small", "org/large"]}],
        "health_check": {"enabled": false},
        "routing": {"retry": {"initial_wait": "10ms"}},
        "auth": {"enabled": true, "pipeline": [{"type": "static", "static": {"keys": [
            {"key": KEY, "name": "k", "allowed_models": ["org/small"]}
        ]}}]},
    })
    .to_string()
}

async fn send(proxy: &Proxy, method: &str, path: &str, body: &str) -> Response {
    let mut client = Client::connect(proxy.address()).await;
    // What curl calls a body; servers that do not look at the type read it as JSON.
    let form = ("content-type", "application/x-www-form-urlencoded");
    client.send(method, path, &[("authorization", &format!("Bearer {KEY}")), form], body.as_bytes()).await;
    client.read_to_end().await
}

#[tokio::test]
async fn another_spelling_of_an_operation_gets_past_nothing_and_harms_nobody() {
    let backend = Backend::start(script::json(200, json!({"choices": [], "data": [{"id": "org/large"}]}))).await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let chat = |model: &str| json!({"model": model, "stream": true, "messages": []}).to_string();
    for path in ["/v1/%63hat/completions", "/v1/chat%2fcompletions", "/v1//chat/completions", "/v1/chat/completions/"] {
        let answer = send(&proxy, "POST", path, &chat("org/large")).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("bad_path")), "{path}");
    }
    for path in ["/v1/models/", "/v1/%6dodels", "/v1//models"] {
        assert_eq!(send(&proxy, "GET", path, "").await.status, 400, "{path}");
    }
    for _ in 0..4 {
        assert_eq!(send(&proxy, "POST", "/v1/a\\b", &chat("org/small")).await.status, 400);
    }
    for path in [
        "load_lora_adapter",
        "/load_lora_adapter",
        "%2fload_lora_adapter",
        "load_lora_adapter;x",
        "load_lora_adapter%3b/",
    ] {
        assert_eq!(send(&proxy, "POST", &format!("/v1/{path}"), "{}").await.status, 404, "{path}");
    }
    assert_eq!(send(&proxy, "POST", "/v1/chat/completions;x", &chat("org/large")).await.status, 400);
    assert_eq!(backend.counts().requests, 0);
    assert_eq!(send(&proxy, "POST", "/v1/chat/completions", &chat("org/large")).await.status, 403);
    let answer = send(&proxy, "POST", "/v1/chat/completions", &chat("org/small")).await;
    assert_eq!(answer.status, 200, "the backend is still up: {}", answer.text());
}

#[tokio::test]
async fn a_model_is_found_by_its_id_with_and_without_encoded_slashes() {
    let backend = Backend::start(script::hang()).await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    for (path, status) in [
        ("/v1/models/org/small", 200),
        ("/v1/models/org%2Fsmall", 200),
        ("/v1/models/org%2Flarge", 404),
        ("/v1/models/%zz", 404),
    ] {
        let answer = send(&proxy, "GET", path, "").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_log_that_nobody_reads() {
    let backend = Backend::start(script::hang()).await;
    let folder = Folder::new();
    std::fs::write(folder.join("config.yaml"), config(&backend.url())).expect("the folder is ours");
    let mut child = command(&folder)
        .env("LLMPROXY_SERVER__LISTEN", "127.0.0.1:0")
        .env("LLMPROXY_LOG__OUTPUT", "stderr")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let address = loop {
        let line = within("the proxy to listen", log.next_line()).await.expect("text").expect("the proxy went on");
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(address) = line["address"].as_str() {
            break address.parse().expect("an address");
        }
    };
    // More lines than a pipe holds, and nobody reads them.
    let mut client = Client::connect(address).await;
    for _ in 0..1000 {
        client.send("GET", "/v1/models", &[], b"").await;
        assert_eq!(client.read_to_end().await.status, 401);
    }
    let pid = rustix::process::Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("not zero");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    let status = within("the proxy to exit", child.wait()).await.expect("a status");
    assert!(status.success());
}
