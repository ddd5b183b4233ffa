//! Uploads that pass through: who is waited for, whose fault it is when one breaks off, and what is left of one after its
//! answer.

use llmproxy_testkit::Client;
use serde_json::{Value, json};

use crate::{
    harness::Proxy,
    http2_backend::Http2Backend,
    raw::{Raw, RawBackend},
};

/// A body that passes as it comes, from its first byte on.
const UPLOAD: &str = "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n";
/// A backend's head and the first event of its stream.
const BEGUN: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
const REFUSED: &str = "HTTP/1.1 413 Too Large\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

fn config(backend: &RawBackend, server: &str, routing: &str) -> String {
    backend.config("") + &format!("server: {{{server}}}\nrouting: {{retry: {{enabled: false}}{routing}}}\n")
}

async fn begin(proxy: &Proxy, framing: &str) -> Client {
    let mut client = Client::connect(proxy.address()).await;
    client.send_raw(format!("{UPLOAD}{framing}\r\n\r\n")).await.expect("the proxy reads");
    client
}

async fn is_up(proxy: &Proxy) -> bool {
    proxy.metrics().await.sum("llmproxy_backend_up", &[]) == 1.0
}

/// A request of somebody else's is served, so nothing that came before was held against the backend.
async fn innocent(proxy: &mut Proxy, backend: &RawBackend) {
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"model": "m"})).await;
    let mut conn = backend.accept().await;
    conn.request().await;
    conn.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    assert_eq!(client.read_to_end().await.status, 200);
    assert_eq!(proxy.ended().await["end"], "complete");
    assert!(is_up(proxy).await);
}

#[tokio::test]
async fn a_client_that_stalls_its_upload_is_no_timeout_of_the_backend() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&config(&backend, "read_timeout: 2s", ", timeout: 500ms")).await;
    let mut conns = Vec::new();
    for _ in 0..4 {
        let mut client = begin(&proxy, "content-length: 50000").await;
        client.send_raw("abc").await.expect("the proxy reads");
        let mut conn = backend.accept().await;
        conn.read_until("abc").await;
        conns.push(conn);
        let answer = client.read_to_end().await;
        assert_eq!(answer.status, 408, "{}", answer.text());
        let line = proxy.ended().await;
        assert_eq!((&line["end"], &line["status_code"]), (&json!("client_gone"), &json!(408)), "{line}");
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_upstream_timeouts_total", &[]), 0.0);
    innocent(&mut proxy, &backend).await;
}

#[tokio::test]
async fn a_backend_that_does_not_take_an_upload_has_its_timeout() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&config(&backend, "read_timeout: 60s, max_upload_size: 1GiB", ", timeout: 1s")).await;
    let mut client = begin(&proxy, "content-length: 100000000").await;
    let sending = tokio::spawn(async move { while client.send_raw([b'x'; 100_000]).await.is_ok() {} });
    let _conn = backend.accept().await;
    let line = proxy.ended().await;
    assert_eq!((&line["end"], &line["status_code"]), (&json!("timeout"), &json!(504)), "{line}");
    sending.abort();
}

/// What becomes of an upload that breaks off in `how`'s way when its answer has begun.
async fn broken_off(server: &str, framing: &str, how: impl AsyncFnOnce(Raw) -> String) -> (String, Value) {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&config(&backend, server, "")).await;
    let mut client = Raw::connect(proxy.address()).await;
    client.write(format!("{UPLOAD}{framing}\r\n\r\n5\r\nhello\r\n")).await;
    let mut conn = backend.accept().await;
    conn.read_until("hello").await;
    conn.write(BEGUN).await;
    client.read_until("data: 1\n\n").await;
    let (told, line) = (how(client).await, proxy.ended().await);
    // The backend sees that it will not have all of it.
    conn.read_to_end().await;
    innocent(&mut proxy, &backend).await;
    (told, line)
}

#[tokio::test]
async fn an_upload_that_breaks_off_after_its_answer_began_is_the_clients_doing() {
    let gone = async |client: Raw| {
        drop(client);
        String::new()
    };
    let reset = async |client: Raw| {
        client.reset();
        String::new()
    };
    let stall = async |mut client: Raw| client.read_to_end().await;
    let nonsense = async |mut client: Raw| {
        client.write("zz\r\n").await;
        client.read_to_end().await
    };
    let large = async |mut client: Raw| {
        client.try_write(format!("{:x}\r\n{}\r\n", 4096, "x".repeat(4096))).await;
        client.read_to_end().await
    };
    let chunked = "transfer-encoding: chunked";
    let whole = "read_timeout: 30s, max_upload_size: 1KiB";
    for (name, (told, line)) in [
        ("FIN", broken_off(whole, "content-length: 500", gone).await),
        ("RST", broken_off(whole, chunked, reset).await),
        ("stall", broken_off("read_timeout: 1s", chunked, stall).await),
        ("nonsense", broken_off(whole, chunked, nonsense).await),
        ("large", broken_off(whole, chunked, large).await),
    ] {
        assert_eq!(line["end"], "client_gone", "{name}: {line}");
        assert!(!told.contains("the backend"), "{name}: {told}");
        if name == "stall" || name == "large" {
            assert!(told.contains("incomplete_request") && told.contains("body"), "{name}: {told}");
        }
    }
}

#[tokio::test]
async fn what_is_left_of_an_upload_after_its_answer_has_a_limit_of_time() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&config(&backend, "max_upload_size: 1GiB", "")).await;
    let mut client = Raw::connect(proxy.address()).await;
    client.write(format!("{UPLOAD}content-length: 500000000\r\n\r\n")).await;
    let mut conn = backend.accept().await;
    conn.read_until("\r\n\r\n").await;
    // It answers, keeps its connection open and reads no more.
    conn.write(REFUSED).await;
    assert!(client.read_until("\r\n\r\n{}").await.starts_with("HTTP/1.1 413 "));
    assert_eq!(proxy.ended().await["end"], "complete");
    client.write_until_closed().await;
    innocent(&mut proxy, &backend).await;
}

#[tokio::test]
async fn nor_has_a_backend_of_http2_that_gives_no_window_the_client_for_ever() {
    let mut backend = Http2Backend::start().await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [m], http2: true}}]\nhealth_check: {{enabled: false}}\n\
         server: {{max_upload_size: 1GiB}}\n",
        backend.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Raw::connect(proxy.address()).await;
    client.write(format!("{UPLOAD}content-length: 500000000\r\n\r\n")).await;
    let _unread = backend.asked().await.answer_and_stop_reading(413);
    assert!(client.read_until("{}").await.starts_with("HTTP/1.1 413 "));
    assert_eq!(proxy.ended().await["end"], "complete");
    client.write_until_closed().await;
}

#[tokio::test]
async fn an_upload_that_is_read_on_after_its_answer_passes_to_its_end() {
    let backend = RawBackend::bind().await;
    let proxy = Proxy::start(&config(&backend, "", "")).await;
    let mut client = Raw::connect(proxy.address()).await;
    client.write(format!("{UPLOAD}content-length: 10\r\n\r\nhello")).await;
    let mut conn = backend.accept().await;
    conn.read_until("hello").await;
    conn.write(REFUSED).await;
    client.read_until("\r\n\r\n{}").await;
    client.write("world").await;
    conn.read_until("world").await;
    client.write("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(client.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_backend_that_refuses_uploads_by_a_reset_is_not_taken_out() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&config(&backend, "max_upload_size: 1GiB", "")).await;
    for _ in 0..6 {
        let mut client = Raw::connect(proxy.address()).await;
        client.write(format!("{UPLOAD}content-length: 500000000\r\n\r\n")).await;
        client.try_write(vec![b'x'; 100_000]).await;
        let mut conn = backend.accept().await;
        conn.read_until("\r\n\r\n").await;
        // With bytes unread behind it a close is a reset; its answer is lost when it meets one of our writes.
        conn.reset();
        let told = client.read_to_end().await;
        assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
        assert_eq!(proxy.ended().await["end"], "backend_failed");
    }
    innocent(&mut proxy, &backend).await;
}
