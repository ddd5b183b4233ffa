//! Backends that are full, and who waits for them.

use std::time::Duration;

use llmproxy_testkit::{Backend, Client, DONE, Wire};
use serde_json::{Value, json};

use crate::harness::Proxy;

fn ask() -> Value {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]})
}

/// A proxy before a backend with room for one, with `more` in its configuration.
async fn with_room_for_one(backend: &Backend, more: &str) -> Proxy {
    let backends = format!("backends: [{{url: '{}', models: [m], max_concurrent: 1}}]\n", backend.url());
    Proxy::start(&format!("{backends}health_check: {{enabled: false}}\n{more}")).await
}

/// A client that has asked.
async fn asking(proxy: &Proxy) -> Client {
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    client
}

/// The same, once it is in the line, in which it is the first.
async fn queued(proxy: &Proxy) -> Client {
    let client = asking(proxy).await;
    in_line(proxy).await;
    client
}

/// Waits until somebody waits.
async fn in_line(proxy: &Proxy) {
    while proxy.metrics().await.sum("llmproxy_queue_waiting", &[]) < 1.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A whole stream.
async fn answer(mut wire: Wire) {
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
}

#[tokio::test]
async fn the_next_stream_waits_for_the_last_byte_of_the_one_before() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = with_room_for_one(&backend, "").await;
    let mut first = asking(&proxy).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    assert_eq!(first.head().await.status, 200);
    let mut second = queued(&proxy).await;
    assert_eq!(backend.counts().in_progress, 1);
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let (_, wire) = requests.next().await;
    answer(wire).await;
    assert_eq!(second.read_to_end().await.status, 200);
    proxy.ended().await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_queue_waiting", &[]), 0.0);
}

#[tokio::test]
async fn several_answers_take_the_room_of_so_many() {
    const CHAT: &str = "/v1/chat/completions";
    const TEXT: &str = "/v1/completions";
    let messages = json!([{"role": "user", "content": "hi"}]);
    let bounded = |mut ask: Value| {
        ask["model"] = "m".into();
        ask["stream"] = true.into();
        ask["max_tokens"] = 40.into();
        ask
    };
    for (path, one, several) in [
        (CHAT, json!({"messages": messages}), json!({"messages": messages, "n": 2})),
        (TEXT, json!({"prompt": "hi"}), json!({"prompt": ["hi", "hi"]})),
    ] {
        let (backend, mut requests) = Backend::stepped().await;
        let backends = format!("backends: [{{url: '{}', models: [m], max_tokens: 120}}]\n", backend.url());
        let proxy = Proxy::start(&format!("{backends}health_check: {{enabled: false}}\n")).await;
        let ask = async |body: Value| {
            let mut client = Client::connect(proxy.address()).await;
            client.send_json(path, &[], &bounded(body)).await;
            client
        };
        let mut clients = vec![ask(one.clone()).await];
        let (_, first) = requests.next().await;
        clients.push(ask(one).await);
        let (_, second) = requests.next().await;
        answer(second).await;
        clients[1].read_to_end().await;
        clients.push(ask(several).await);
        in_line(&proxy).await;
        assert_eq!(backend.counts().requests, 2, "{path}");
        answer(first).await;
        let (_, third) = requests.next().await;
        answer(third).await;
        for client in [0, 2] {
            assert_eq!(clients[client].read_to_end().await.status, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn whoever_finds_no_place_is_told_when_to_come_back() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = with_room_for_one(&backend, "queue: {max_waiting: 1, timeout: 300ms}\n").await;
    let _first = asking(&proxy).await;
    let _held = requests.next().await;
    let mut second = queued(&proxy).await;
    let third = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask()).await;
    let second = second.read_to_end().await;
    for (answer, code) in [(third, "queue_full"), (second, "queue_timeout")] {
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!(code)));
        let after: u64 = answer.header("retry-after").expect("it says when").parse().expect("seconds");
        assert!((1..=60).contains(&after), "{after}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_queue_refused_total", &["full"]), 1.0);
    assert_eq!(metrics.sum("llmproxy_queue_refused_total", &["timeout"]), 1.0);
}

#[tokio::test]
async fn a_client_that_leaves_the_line_asks_no_backend() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = with_room_for_one(&backend, "").await;
    let mut first = asking(&proxy).await;
    let (_, wire) = requests.next().await;
    let leaves = queued(&proxy).await;
    drop(leaves);
    proxy.ended().await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_queue_waiting", &[]), 0.0);
    answer(wire).await;
    assert_eq!(first.read_to_end().await.status, 200);
    proxy.ended().await;
    assert_eq!(backend.counts().requests, 1, "the one that left was never sent");
}

#[tokio::test]
async fn an_upload_whose_client_has_left_gives_its_place_up() {
    const HEAD: &str = "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\n\
        content-type: multipart/form-data; boundary=b\r\ncontent-length: 100000000\r\n\r\n\
        --b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n\
        --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = with_room_for_one(&backend, "server: {max_upload_size: 1GiB}\n").await;
    let mut first = asking(&proxy).await;
    let (_, wire) = requests.next().await;
    // More than is read while it waits; for an end that comes behind it, no more than the sockets hold.
    for (size, leave) in [(60_000, Client::leave as fn(Client)), (2_000_000, Client::reset)] {
        let mut client = Client::connect(proxy.address()).await;
        client.send_raw(HEAD).await.expect("the proxy reads");
        let _ = tokio::time::timeout(Duration::from_millis(500), client.send_raw(vec![b'x'; size])).await;
        in_line(&proxy).await;
        leave(client);
        assert_eq!(proxy.ended().await["end"], "client_gone");
        assert_eq!(proxy.metrics().await.sum("llmproxy_queue_waiting", &[]), 0.0);
    }
    answer(wire).await;
    assert_eq!(first.read_to_end().await.status, 200);
    assert_eq!(backend.counts().requests, 1, "those that left were never sent");
}
