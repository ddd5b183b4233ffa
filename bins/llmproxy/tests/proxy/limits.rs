//! What a client may make the server wait for, and how much it may send.

use llmproxy_testkit::{Backend, Client, Receiver, script};
use serde_json::json;

use crate::harness::{Proxy, within};

fn config(backend: &str, server: &str) -> String {
    format!("server: {{{server}}}\nbackends: [{{url: '{backend}', models: [m]}}]\nhealth_check: {{enabled: false}}\n")
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let backend = Backend::start(script::hang()).await;
    let proxy = Proxy::start(&config(&backend.url(), "read_timeout: 300ms, idle_timeout: 1h")).await;
    let mut silent = Client::connect(proxy.address()).await;
    silent.closed().await;
    let mut slow = Client::connect(proxy.address()).await;
    slow.send_raw("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ").await.expect("the proxy reads");
    assert_eq!(slow.head().await.status, 408);
    slow.closed().await;
    assert_eq!(backend.counts().requests, 0);
}

#[tokio::test]
async fn a_connection_is_kept_between_requests_and_closed_when_idle_for_long() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "read_timeout: 1h, idle_timeout: 300ms")).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..3 {
        assert_eq!(client.post_json("/v1/chat/completions", &json!({"model": "m"})).await.status, 200);
    }
    client.closed().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408_and_one_that_trickles_is_read() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let mut proxy = Proxy::start(&config(&backend.url(), "read_timeout: 500ms")).await;
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n";
    let mut client = Client::connect(proxy.address()).await;
    client.send_raw(format!("{head}{{\"mod")).await.expect("the proxy reads");
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 408, "{}", answer.text());
    assert!(answer.json()["error"]["message"].is_string());
    assert_eq!(proxy.ended().await["status_code"], 408);

    // Each gap is short, though the whole takes longer than the limit.
    let mut client = Client::connect(proxy.address()).await;
    client.send_raw(head).await.expect("the proxy reads");
    for byte in br#"{"model":"m"}"#.chunks(1) {
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        client.send_raw(byte).await.expect("the proxy reads");
    }
    assert_eq!(client.read_to_end().await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_body_is_read_asked_nobody_and_keeps_nothing() {
    let backend = Backend::start(script::json(200, json!({"choices": []}))).await;
    let receiver = Receiver::start().await;
    let yaml = format!(
        "{}rate_limit: {{enabled: true, per_key: {{max_concurrent: 1, requests_per_minute: 5}}}}\nusage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
        config(&backend.url(), ""),
        receiver.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client
        .send_raw("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        .await
        .expect("the proxy reads");
    client.leave();
    let line = proxy.ended().await;
    assert_eq!(line["status_code"], 499, "{line}");
    let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &json!({"model": "m"})).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, Some("4")));
    assert_eq!(receiver.wait_for(1).await.len(), 1);
    assert_eq!(backend.counts().requests, 1);
    assert_eq!(proxy.metrics().await.sum("llmproxy_exchanges_total", &[]), 1.0);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431_and_a_body_413() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "max_header_bytes: 8192, max_body_size: 1000")).await;
    let mut client = Client::connect(proxy.address()).await;
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(20_000));
    // The proxy may answer and close before all of it was sent.
    let _ = client.send_raw(head).await;
    assert_eq!(client.head().await.status, 431);

    let large = json!({"model": "m", "messages": "x".repeat(2000)});
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(client.post_json("/v1/chat/completions", &large).await.status, 413);
    // The same without a length: found out while it is read.
    let mut client = Client::connect(proxy.address()).await;
    let chunk = format!("{{\"model\":\"m\",\"x\":\"{}", "x".repeat(2000));
    client
        .send_raw(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{chunk}\r\n",
            chunk.len()
        ))
        .await
        .expect("the proxy reads");
    assert_eq!(client.head().await.status, 413);
    assert_eq!(backend.counts().requests, 0);
}

#[tokio::test]
async fn a_client_that_stops_reading_slows_its_backend_and_is_given_up() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "write_timeout: 1s")).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "stream": true, "messages": []})).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(64 * 1024));
    let mut sent = 0;
    let stopped = within("the proxy to give the client up", async {
        while wire.chunk(&event).await.is_ok() {
            sent += event.len();
        }
    });
    stopped.await;
    // What was taken is what the sockets hold, not what a buffer without a bound would.
    assert!(sent < 64 << 20, "{sent} bytes were taken for a client that reads nothing");
    assert_eq!(proxy.ended().await["end"], "client_gone");
    drop(client);
}

#[tokio::test]
async fn what_is_only_looked_up_takes_no_tokens() {
    let usage = json!({"input_tokens": 50, "output_tokens": 50, "total_tokens": 100});
    let backend =
        Backend::start(script::json(200, json!({"id": "r", "usage": usage, "data": [{"usage": usage}]}))).await;
    let yaml = format!(
        "{}rate_limit: {{enabled: true, default_completion_tokens: 300, per_key: {{tokens_per_minute: 1000}}}}\n",
        config(&backend.url(), "")
    );
    let proxy = Proxy::start(&yaml).await;
    let left = async |path: &str, body: Option<&serde_json::Value>| {
        let mut client = Client::connect(proxy.address()).await;
        match body {
            Some(body) => client.send_json(path, &[], body).await,
            None => {
                let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
                client.send_raw(head).await.expect("the proxy reads");
            }
        }
        let answer = client.read_to_end().await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.header("x-ratelimit-remaining-tokens").map(|left| left.parse::<u64>().expect("a number"))
    };
    for path in ["/v1/responses", "/v1/responses/r", "/v1/batches/b", "/v1/files"] {
        assert_eq!(left(path, None).await, Some(1000), "{path}");
    }
    let count = json!({"model": "m", "messages": [{"role": "user", "content": "a few words to count"}]});
    assert_eq!(left("/v1/messages/count_tokens", Some(&count)).await, Some(1000));
    let ask = json!({"model": "m", "input": "", "max_output_tokens": 300});
    assert_eq!(left("/v1/responses", Some(&ask)).await, Some(700), "what is generated is reserved for");
    // Of those 100 were used, and some of them have come back since.
    let after = left("/v1/responses/r", None).await.expect("a limit");
    assert!((900..1000).contains(&after), "{after}");
}
