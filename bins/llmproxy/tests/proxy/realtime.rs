//! WebSockets to `/v1/realtime`: bytes both ways, and everything that is held given back at the end.

use llmproxy_testkit::{Receiver, Seen};
use rustix::process::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Proxy, within};

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: realtime\r\n\r\n";

/// One end of a connection, read byte by byte.
struct End {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// A backend that the test plays itself.
struct Backend(TcpListener);

impl Backend {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().expect("bound"))
    }

    /// The next connection and the head of its request.
    async fn asked(&self) -> (End, String) {
        let (stream, _) = within("the backend to be asked", self.0.accept()).await.expect("accepts");
        let mut end = End { stream, unread: Vec::new() };
        let head = end.head().await;
        (end, head)
    }
}

impl End {
    /// A client that asks for a session with these lines in its head.
    async fn ask(proxy: &Proxy, target: &str, lines: &str) -> Self {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
        let head = format!(
            "GET {target} HTTP/1.1\r\nhost: proxy\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the proxy reads");
        Self { stream, unread: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the other side reads");
    }

    /// Up to the end of a head.
    async fn head(&mut self) -> String {
        let at = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            let read = within("a head", self.stream.read_buf(&mut self.unread)).await.expect("open");
            assert!(read > 0, "closed in the middle of a head: {}", String::from_utf8_lossy(&self.unread));
        };
        let head: Vec<u8> = self.unread.drain(..at).collect();
        String::from_utf8(head).expect("text").to_lowercase()
    }

    async fn expect(&mut self, bytes: &str) {
        while self.unread.len() < bytes.len() {
            let read = within(bytes, self.stream.read_buf(&mut self.unread)).await.expect("open");
            assert!(read > 0, "closed before `{bytes}`");
        }
        let seen: Vec<u8> = self.unread.drain(..bytes.len()).collect();
        assert_eq!(String::from_utf8_lossy(&seen), bytes);
    }

    /// Everything up to the end, whether it is a clean one or not.
    async fn closed(mut self) -> String {
        let _ = within("the end", self.stream.read_to_end(&mut self.unread)).await;
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    fn reset(self) {
        self.stream.set_zero_linger().expect("an open socket takes the option");
    }
}

/// A session under way: client and backend.
async fn session(proxy: &Proxy, backend: &Backend) -> (End, End) {
    let mut client = End::ask(proxy, "/v1/realtime?model=m", "").await;
    let (mut there, _) = backend.asked().await;
    there.send(AGREED).await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    ping(&mut client, &mut there).await;
    (client, there)
}

/// A word each way, in lockstep.
async fn ping(client: &mut End, backend: &mut End) {
    client.send("ping").await;
    backend.expect("ping").await;
    backend.send("pong").await;
    client.expect("pong").await;
}

fn config(backend: &Backend, more: &str) -> String {
    format!("backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n{more}", backend.url())
}

#[tokio::test]
async fn sessions_that_a_backend_breaks_off_do_not_take_it_out_for_others() {
    let backend = Backend::start().await;
    let yaml = config(&backend, "").replace("enabled: false", "enabled: true, interval: 1h, unhealthy_threshold: 1");
    let mut proxy = Proxy::start(&yaml).await;
    // The question whether it is up comes first.
    let (mut there, _) = backend.asked().await;
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await;
    proxy.logged("the backend is up").await;
    for _ in 0..4 {
        let (client, there) = session(&proxy, &backend).await;
        // As servers do with a client that talks nonsense.
        there.reset();
        client.closed().await;
        assert_eq!(proxy.ended().await["end"], "backend_failed");
    }
    let (client, there) = session(&proxy, &backend).await;
    drop((client, there));
}

/// Waits until nothing of any session is held.
async fn all_given_back(proxy: &Proxy) {
    let given_back = async {
        loop {
            let metrics = proxy.metrics().await;
            let held = ["llmproxy_in_flight", "llmproxy_tunnels"].map(|name| metrics.sum(name, &[]));
            if held == [0.0, 0.0] {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    within("everything to be given back", given_back).await;
}

#[tokio::test]
async fn a_session_passes_both_ways_and_is_one_record() {
    let backend = Backend::start().await;
    let receiver = Receiver::start().await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [omni]}}]\n\
         health_check: {{enabled: false}}\n\
         routing: {{model_mapping: {{gpt-realtime: omni}}}}\n\
         rate_limit: {{enabled: true, per_key: {{max_concurrent: 1}}}}\n\
         auth: {{enabled: true, pipeline: [{{type: static, static: {{keys: [{{key: sk-a, name: alice}}]}}}}]}}\n\
         usage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
        backend.url(),
        receiver.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let key = "Authorization: Bearer sk-a\r\n";
    let mut client = End::ask(&proxy, "/v1/realtime?intent=%41&model=gpt-realtime", key).await;
    client.send("early").await;
    let (mut there, asked) = backend.asked().await;
    assert!(asked.starts_with("get /v1/realtime?intent=%41&model=omni http/1.1\r\n"), "{asked}");
    for line in
        ["upgrade: websocket", "connection: upgrade", "sec-websocket-key: dghlihnhbxbszsbub25jzq==", "x-request-id: "]
    {
        assert_eq!(asked.matches(line).count(), 1, "{line} in {asked}");
    }
    assert!(!asked.contains("authorization") && !asked.contains("content-length"), "{asked}");
    there.send(format!("{AGREED}hello")).await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
        "x-request-id: ",
    ] {
        assert_eq!(head.matches(line).count(), 1, "{line} in {head}");
    }
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    client.expect("hello").await;
    there.expect("early").await;
    for _ in 0..3 {
        ping(&mut client, &mut there).await;
    }
    let large = "x".repeat(1_000_000);
    tokio::join!(client.send(&large), there.expect(&large));
    tokio::join!(there.send(&large), client.expect(&large));

    let metrics = proxy.metrics().await;
    assert_eq!((metrics.sum("llmproxy_in_flight", &[]), metrics.sum("llmproxy_tunnels", &[])), (1.0, 1.0));
    let mut second = End::ask(&proxy, "/v1/realtime?model=gpt-realtime", key).await;
    assert!(second.head().await.starts_with("http/1.1 429 "), "its permit is held");
    assert_eq!(proxy.ended().await["status_code"], 429);

    there.send("bye").await;
    drop(there);
    assert_eq!(client.closed().await, "bye");
    let line = proxy.ended().await;
    assert_eq!(
        (&line["status_code"], &line["end"], &line["model"]),
        (&json!(101), &json!("complete"), &json!("gpt-realtime"))
    );
    all_given_back(&proxy).await;
    let metrics = proxy.metrics().await;
    let labels = ["path=\"/v1/realtime\"", "status=\"101\""];
    assert_eq!(metrics.sum("llmproxy_requests_total", &labels), 1.0);
    let records = receiver.wait_for(1).await;
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!(
        (&record["end"], &record["status_code"], &record["model"]),
        (&json!("complete"), &json!(101), &json!("gpt-realtime"))
    );
    assert_eq!((&record["key_name"], &record["usage"]), (&json!("alice"), &json!(null)), "{record}");
}

#[tokio::test]
async fn a_session_needs_a_key_and_a_model_that_it_may_use() {
    let backend = Backend::start().await;
    let auth =
        "auth: {enabled: true, pipeline: [{type: static, static: {keys: [{key: sk-m, allowed_models: [m]}]}}]}\n";
    let proxy = Proxy::start(&config(&backend, auth)).await;
    let check = async |target: &str, lines: &str, status: &str, code: &str| {
        let mut client = End::ask(&proxy, target, &format!("{lines}connection: close\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        let body = client.closed().await;
        assert!(body.contains(code), "{body}");
    };
    let key = "x-api-key: sk-m\r\n";
    check("/v1/realtime?model=m", "", "401", "ERROR").await;
    check(
        "/v1/realtime?model=m",
        "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-x\r\n",
        "401",
        "NOT_FOUND",
    )
    .await;
    check("/v1/realtime?model=other", key, "403", "model_not_allowed").await;
    check("/v1/realtime", key, "403", "model_not_named").await;
    check("/v1/realtime?model=m&model=other", key, "400", "duplicate_parameter").await;

    // As a page has to send it.
    let protocols = "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-m, openai-beta.realtime-v1\r\n";
    let mut client = End::ask(&proxy, "/v1/realtime?model=m", protocols).await;
    let (mut there, asked) = backend.asked().await;
    assert!(asked.contains("sec-websocket-protocol: realtime, openai-beta.realtime-v1\r\n"), "{asked}");
    assert!(!asked.contains("sk-m"), "{asked}");
    there.send(AGREED).await;
    assert!(client.head().await.contains("sec-websocket-protocol: realtime\r\n"));
    ping(&mut client, &mut there).await;
}

#[tokio::test]
async fn a_page_of_another_origin_opens_no_session_unless_it_is_named() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::start(&config(&backend, "")).await;
    let foreign = "Origin: https://chat.example.com\r\n";
    let mut client = End::ask(&proxy, "/v1/realtime?model=m", foreign).await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    assert_eq!(proxy.ended().await["status_code"], 403);
    for (lines, cors) in [
        ("Origin: http://proxy\r\n", ""),
        (foreign, "server: {cors: {allowed_origins: ['https://chat.example.com']}}\n"),
    ] {
        proxy.reload(&config(&backend, cors), "reloaded").await;
        let mut client = End::ask(&proxy, "/v1/realtime?model=m", lines).await;
        let (mut there, _) = backend.asked().await;
        there.send(AGREED).await;
        assert!(client.head().await.starts_with("http/1.1 101 "), "{lines}");
        ping(&mut client, &mut there).await;
        drop((client, there));
        proxy.ended().await;
    }
}

#[tokio::test]
async fn whoever_leaves_ends_it_for_the_other_and_the_record_says_who() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::start(&config(&backend, "")).await;

    let (client, there) = session(&proxy, &backend).await;
    client.reset();
    assert_eq!(there.closed().await, "");
    assert_eq!(proxy.ended().await["end"], "client_gone");
    all_given_back(&proxy).await;

    let (client, there) = session(&proxy, &backend).await;
    there.reset();
    assert_eq!(client.closed().await, "");
    assert_eq!(proxy.ended().await["end"], "backend_failed");
    all_given_back(&proxy).await;

    // A client that closes as it should is answered to the end.
    let (mut client, mut there) = session(&proxy, &backend).await;
    client.stream.shutdown().await.expect("open");
    let mut rest = Vec::new();
    within("the client's end", there.stream.read_to_end(&mut rest)).await.expect("a clean end");
    there.send("good-bye").await;
    drop(there);
    assert_eq!(client.closed().await, "good-bye");
    assert_eq!(proxy.ended().await["end"], "complete");
    all_given_back(&proxy).await;
}

#[tokio::test]
async fn a_client_that_has_said_all_has_left_when_the_backend_has_nothing_more_for_it() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::start(&config(&backend, "routing: {gap_timeout: 1s}\n")).await;
    let (mut client, there) = session(&proxy, &backend).await;
    client.stream.shutdown().await.expect("open");
    let line = proxy.ended().await;
    assert_eq!(line["end"], "client_gone", "{line}");
    assert_eq!((client.closed().await, there.closed().await), (String::new(), String::new()));
    all_given_back(&proxy).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_backend_has_agreed_is_seen_by_it() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::start(&config(&backend, "")).await;
    let client = End::ask(&proxy, "/v1/realtime?model=m", "").await;
    let (there, _) = backend.asked().await;
    drop(client);
    assert_eq!(there.closed().await, "");
    assert_eq!(proxy.ended().await["end"], "client_gone");
    all_given_back(&proxy).await;
}

#[tokio::test]
async fn a_backend_that_does_not_agree_has_the_last_word() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::start(&config(&backend, "routing: {retry: {max_retries: 0}}\n")).await;
    for status in ["401 Unauthorized", "404 Not Found", "200 OK"] {
        let mut client = End::ask(&proxy, "/v1/realtime?model=m", "").await;
        let (mut there, _) = backend.asked().await;
        there.send(format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nnope")).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("http/1.1 {}", status.to_lowercase())), "{head}");
        client.expect("nope").await;
        assert_eq!(proxy.ended().await["end"], "complete");
    }
    let mut client = End::ask(&proxy, "/v1/realtime?model=m", "").await;
    let (mut there, _) = backend.asked().await;
    there.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\nhello").await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 502 "), "{head}");
    assert_eq!(proxy.ended().await["status_code"], 502);
    all_given_back(&proxy).await;
}

#[tokio::test]
async fn a_backend_over_http2_is_asked_over_http1() {
    let backend = Backend::start().await;
    let yaml = config(&backend, "").replace("models: [m]", "models: [m], http2: true");
    let proxy = Proxy::start(&yaml).await;
    let (mut client, mut there) = session(&proxy, &backend).await;
    ping(&mut client, &mut there).await;
}

#[tokio::test]
async fn nothing_else_becomes_a_tunnel() {
    let backend = llmproxy_testkit::Backend::start(llmproxy_testkit::script::json(200, json!({}))).await;
    let yaml = format!("backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n", backend.url());
    let proxy = Proxy::start(&yaml).await;
    for target in ["/v1/files/x", "/v1/realtime/sessions"] {
        let mut client = End::ask(&proxy, target, "").await;
        let head = client.head().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
    }
    let stripped = |seen: &Seen| seen.header("upgrade").is_none() && seen.header("connection").is_none();
    assert!(backend.seen().len() == 2 && backend.seen().iter().all(stripped));
}

#[tokio::test]
async fn a_reload_breaks_no_session() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::start(&config(&backend, "")).await;
    let (mut client, mut there) = session(&proxy, &backend).await;
    proxy.reload(&config(&backend, "routing: {load_balance: least_connections}\n"), "reloaded").await;
    ping(&mut client, &mut there).await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 1.0);
    drop(there);
    assert_eq!(client.closed().await, "");
    assert_eq!(proxy.ended().await["end"], "complete");
    all_given_back(&proxy).await;
}

#[tokio::test]
async fn at_a_stop_a_session_may_end_by_itself_and_is_cut_after_the_grace_period() {
    let backend = Backend::start().await;
    let receiver = Receiver::start().await;
    let yaml = |timeout: &str| {
        let usage = format!(
            "usage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
            receiver.url()
        );
        config(&backend, &format!("server: {{shutdown_timeout: {timeout}}}\n{usage}"))
    };
    let mut proxy = Proxy::start(&yaml("1s")).await;
    let (mut client, mut there) = session(&proxy, &backend).await;
    proxy.signal(Signal::TERM);
    proxy.logged("no longer accepting").await;
    ping(&mut client, &mut there).await;
    assert_eq!(proxy.ended().await["end"], "shutdown");
    assert_eq!((client.closed().await, there.closed().await), (String::new(), String::new()));
    assert!(proxy.exit().await.success());
    assert_eq!(receiver.wait_for(1).await[0]["end"], "shutdown");

    let mut proxy = Proxy::start(&yaml("1h")).await;
    let (mut client, mut there) = session(&proxy, &backend).await;
    proxy.signal(Signal::TERM);
    proxy.logged("no longer accepting").await;
    ping(&mut client, &mut there).await;
    drop(there);
    assert_eq!(client.closed().await, "");
    assert_eq!(proxy.ended().await["end"], "complete");
    assert!(proxy.exit().await.success());
}

#[tokio::test]
async fn only_the_silence_of_both_sides_ends_a_session() {
    let backend = Backend::start().await;
    let impatient = "server: {read_timeout: 300ms, idle_timeout: 300ms, write_timeout: 300ms}\n\
                     routing: {timeout: 500ms, gap_timeout: 1s}\n";
    let mut proxy = Proxy::start(&config(&backend, impatient)).await;
    let (mut client, mut there) = session(&proxy, &backend).await;
    // Longer than any limit, but never silent for as long as that.
    for _ in 0..8 {
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        client.send("noise").await;
        there.expect("noise").await;
    }
    ping(&mut client, &mut there).await;
    assert_eq!((client.closed().await, there.closed().await), (String::new(), String::new()));
    let line = proxy.ended().await;
    assert_eq!(line["end"], "timeout", "{line}");
    all_given_back(&proxy).await;
}
