//! What backends and clients do to one exchange that is not by the book: odd answers, large uploads, slow readers.

use std::time::Duration;

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, script};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::harness::{Proxy, within};

const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];

fn config(backends: &[&Backend], routing: &str) -> String {
    let backends: Vec<String> =
        backends.iter().map(|backend| format!("{{url: '{}', models: [m]}}", backend.url())).collect();
    format!("backends: [{}]\nhealth_check: {{enabled: false}}\nrouting: {{{routing}}}\n", backends.join(", "))
}

fn ask() -> Value {
    json!({"model": "m", "stream": true, "messages": []})
}

#[tokio::test]
async fn with_commit_first_byte_a_stream_that_dies_before_its_first_byte_is_asked_of_another_backend() {
    let (dying, mut dying_requests) = Backend::stepped().await;
    let (good, mut good_requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&[&dying, &good], "commit: first_byte, commit_after: 10s")).await;
    for die_by_reset in [true, false] {
        let mut client = Client::connect(proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &ask()).await;
        let (_, mut wire) = tokio::select! {
            request = dying_requests.next() => request,
            request = good_requests.next() => {
                // Its turn: not what is asked for here.
                request.1.json(200, &json!({})).await.expect("the proxy reads");
                client.read_to_end().await;
                client.send_json("/v1/chat/completions", &[], &ask()).await;
                dying_requests.next().await
            }
        };
        wire.head(200, EVENTS).await.expect("the proxy reads");
        if die_by_reset {
            wire.reset()
        } else {
            wire.close().await
        }
        let (_, mut wire) = good_requests.next().await;
        wire.head(200, EVENTS).await.expect("the proxy reads");
        wire.chunk("data: 1\n\n").await.expect("the proxy reads");
        client.expect_piece("data: 1\n\n").await;
        wire.chunk(DONE).await.expect("the proxy reads");
        wire.finish().await.expect("the proxy reads");
        let answer = client.read_to_end().await;
        assert_eq!((answer.status, answer.end, answer.text().as_str()), (200, BodyEnd::Complete, DONE));
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn with_commit_first_byte_a_client_that_leaves_before_it_is_seen_by_the_backend() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&[&backend], "commit: first_byte, commit_after: 10s")).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, EVENTS).await.expect("the proxy reads");
    client.leave();
    within("the backend to see it", wire.client_gone()).await;
}

#[tokio::test]
async fn with_commit_first_byte_the_head_passes_after_commit_after() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&[&backend], "commit: first_byte, commit_after: 100ms")).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, EVENTS).await.expect("the proxy reads");
    assert_eq!(client.head().await.status, 200);
    wire.chunk("data: 1\n\n").await.expect("the proxy reads");
    client.expect_piece("data: 1\n\n").await;
    wire.finish().await.expect("the proxy reads");
    assert_eq!(client.read_to_end().await.end, BodyEnd::Complete);
}

#[tokio::test]
async fn an_answer_kept_over_a_long_second_attempt_is_still_whole() {
    // The one says that it can't, in pieces; the other never says anything.
    let full = Backend::start(|_, mut wire| async move {
        wire.head(503, &[("content-type", "application/json"), ("retry-after", "7")]).await?;
        wire.chunk("{\"error\":").await?;
        sleep(Duration::from_millis(50)).await;
        wire.chunk("\"busy\"}").await?;
        wire.finish().await
    })
    .await;
    let silent = Backend::start(script::hang()).await;
    let yaml = config(&[&full, &silent], "timeout: 1s, retry: {max_retries: 1}");
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let answer = client.post_json("/v1/chat/completions", &ask()).await;
    assert_eq!((answer.status, answer.end, answer.text().as_str()), (503, BodyEnd::Complete, "{\"error\":\"busy\"}"));
    assert_eq!(silent.counts().requests, 1);
}

#[tokio::test]
async fn an_upload_that_takes_longer_than_the_backend_s_timeout_is_no_timeout_of_the_backend() {
    let backend = Backend::start(script::json(200, json!({"text": "hello"}))).await;
    let proxy = Proxy::start(&config(&[&backend], "timeout: 1s")).await;
    let mut client = Client::connect(proxy.address()).await;
    client
        .send_raw("POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 80\r\n\r\n")
        .await
        .expect("the proxy reads");
    for _ in 0..8 {
        sleep(Duration::from_millis(300)).await;
        client.send_raw("0123456789").await.expect("the proxy reads");
    }
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(backend.seen()[0].body.len(), 80);
}

/// A body that passes through and can't be sent twice.
async fn upload(client: &mut Client) {
    client
        .send(
            "POST",
            "/v1/audio/transcriptions",
            &[("content-type", "multipart/form-data; boundary=b")],
            &[b'x'; 100_000],
        )
        .await;
}

#[tokio::test]
async fn after_an_upload_the_backend_has_its_timeout_and_no_more() {
    let backend = Backend::start(script::hang()).await;
    let proxy = Proxy::start(&config(&[&backend], "timeout: 1s")).await;
    let mut client = Client::connect(proxy.address()).await;
    let began = Instant::now();
    upload(&mut client).await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_upload_passes_as_it_comes_and_is_never_sent_twice() {
    let backend = Backend::start(script::json(503, json!({"error": "busy"}))).await;
    let other = Backend::start(script::json(503, json!({"error": "busy"}))).await;
    let proxy = Proxy::start(&config(&[&backend, &other], "retry: {max_retries: 3, initial_wait: 1ms}")).await;
    let mut client = Client::connect(proxy.address()).await;
    upload(&mut client).await;
    let answer = client.read_to_end().await;
    assert_eq!((answer.status, answer.json()), (503, json!({"error": "busy"})));
    assert_eq!(backend.counts().requests + other.counts().requests, 1);
}

#[tokio::test]
async fn an_early_answer_to_a_large_upload_reaches_the_client() {
    // A server that looks at the head only: it answers, and closes with most of the upload unread.
    for close in [false, true] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let mut buf = [0; 4096];
                let _ = stream.read(&mut buf).await;
                let body = r#"{"error":"too large"}"#;
                let _ = stream
                    .write_all(format!("HTTP/1.1 413 Too Large\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())
                    .await;
                if close {
                    let _ = stream.shutdown().await;
                    sleep(Duration::from_millis(200)).await;
                } else {
                    open.push(stream);
                }
            }
        });
        let yaml = format!("backends: [{{url: '{url}', models: [m]}}]\nhealth_check: {{enabled: false}}\n");
        let proxy = Proxy::start(&yaml).await;
        for round in 0..5 {
            let mut client = Client::connect(proxy.address()).await;
            client
                .send_raw("POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 8000000\r\n\r\n")
                .await
                .expect("the proxy reads");
            for _ in 0..80 {
                // The proxy may stop reading: what counts is the answer.
                let piece = [b'x'; 100_000];
                let sent = tokio::time::timeout(Duration::from_millis(500), client.send_raw(piece)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    break;
                }
            }
            let head = client.try_head().await;
            assert_eq!(head.as_ref().map(|head| head.status).ok(), Some(413), "close {close}, round {round}: {head:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_no_silence_of_the_backend() {
    // More than the sockets hold, so that the client sets the pace.
    const SIZE: usize = 24 << 20;
    for kind in ["application/json", "text/event-stream"] {
        let backend = Backend::start(move |_, mut wire| async move {
            wire.head(200, &[("content-type", kind)]).await?;
            let chunk = vec![b' '; 64 << 10];
            for _ in 0..SIZE / chunk.len() {
                wire.chunk(&chunk).await?;
            }
            wire.finish().await
        })
        .await;
        let proxy = Proxy::start(&config(&[&backend], "timeout: 1s, gap_timeout: 1s")).await;
        let mut client = Client::connect(proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &ask()).await;
        assert_eq!(client.head().await.status, 200);
        sleep(Duration::from_millis(2500)).await;
        let answer = client.read_to_end().await;
        assert_eq!((answer.body().len(), answer.end), (SIZE, BodyEnd::Complete), "{kind}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_no_memory() {
    let backend = Backend::start(|_, mut wire| async move {
        wire.head(200, EVENTS).await?;
        let chunk = "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n".repeat(1000);
        loop {
            wire.chunk(&chunk).await?;
        }
    })
    .await;
    let mut proxy = Proxy::start(&config(&[&backend], "")).await;
    let before = rss(&proxy);
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &ask()).await;
        assert_eq!(client.head().await.status, 200);
        clients.push(client);
    }
    sleep(Duration::from_secs(2)).await;
    let first = rss(&proxy);
    sleep(Duration::from_secs(2)).await;
    let second = rss(&proxy);
    assert!(second <= first + 1024, "still growing: {first} -> {second} KiB");
    assert!(second < before + 16 * 2048, "{before} -> {second} KiB");
    drop(clients);
    for _ in 0..16 {
        proxy.ended().await;
    }
}

/// The proxy's memory in KiB.
fn rss(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid().as_raw_nonzero())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// What a client gets of a backend that writes `answer` as it is and closes.
async fn raw(method: &str, answer: &'static str) -> (u16, BodyEnd, String, Vec<(String, String)>, f64) {
    let backend = Backend::start(move |_, mut wire| async move {
        wire.raw(answer).await?;
        wire.close().await;
        Ok(())
    })
    .await;
    let mut proxy = Proxy::start(&config(&[&backend], "retry: {max_retries: 0}")).await;
    let mut client = Client::connect(proxy.address()).await;
    if method == "POST" {
        client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "messages": []})).await;
    } else {
        client.send(method, "/v1/files/x", &[], b"").await;
    }
    let answer = client.read_to_end().await;
    proxy.ended().await;
    let in_flight = proxy.metrics().await.sum("llmproxy_in_flight", &[]);
    (answer.status, answer.end, answer.text(), answer.headers, in_flight)
}

#[tokio::test]
async fn answers_without_a_body_keep_their_heads() {
    for (method, answer, status, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 17\r\netag: x\r\n\r\n", 200, Some("17")),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\netag: x\r\n\r\n", 200, None),
        ("GET", "HTTP/1.1 204 No Content\r\netag: x\r\n\r\n", 204, None),
        // The length of what is not sent may be left out (RFC 9110, section 8.6), and the server does.
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 17\r\netag: x\r\n\r\n", 304, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", 304, None),
    ] {
        let (got, end, text, headers, in_flight) = raw(method, answer).await;
        let header = |name| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
        assert_eq!((got, end, text.as_str()), (status, BodyEnd::Complete, ""), "{answer}");
        assert_eq!((header("content-length"), header("etag")), (length, Some("x")), "{answer}");
        assert_eq!(in_flight, 0.0, "{answer}");
    }
}

#[tokio::test]
async fn an_old_server_s_answer_that_ends_with_its_connection_is_complete() {
    let answer = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\ndata: [DONE]\n\n";
    let (status, end, text, ..) = raw("POST", answer).await;
    assert_eq!((status, end, text.as_str()), (200, BodyEnd::Complete, "data: 1\n\ndata: [DONE]\n\n"));
}

#[tokio::test]
async fn a_backend_that_blames_every_request_at_once_does_not_attract_them_all() {
    let good = Backend::start(|_, mut wire| async move {
        sleep(Duration::from_millis(5)).await;
        wire.head(200, EVENTS).await?;
        wire.chunk(DONE).await?;
        wire.finish().await
    })
    .await;
    let picky = Backend::start(script::json(404, json!({"error": {"message": "no such model"}}))).await;
    let proxy = Proxy::start(&config(&[&good, &picky], "load_balance: latency_based")).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..100 {
        client.post_json("/v1/chat/completions", &ask()).await;
    }
    let picky = picky.counts().requests;
    assert!(picky <= 80, "{picky} of 100 went to the one that refuses fast");
}

#[tokio::test]
async fn a_renamed_backend_leaves_no_series_that_says_it_is_up() {
    let a = Backend::start(script::json(200, json!({}))).await;
    let b = Backend::start(script::json(200, json!({}))).await;
    let yaml = |first: &str, second: &str, a: &Backend, b: &Backend| {
        format!(
            "backends: [{{name: {first}, url: '{}', models: [m]}}, {{name: {second}, url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
            a.url(),
            b.url()
        )
    };
    let mut proxy = Proxy::start(&yaml("one", "two", &a, &b)).await;
    let up = async |proxy: &Proxy| {
        let metrics = proxy.metrics().await;
        ["one", "two", "three"].map(|name| metrics.sum("llmproxy_backend_up", &[&format!("\"{name}\"")]))
    };
    assert_eq!(up(&proxy).await, [1.0, 1.0, 0.0]);
    proxy.reload(&yaml("one", "three", &a, &b), "reloaded").await;
    assert_eq!(up(&proxy).await, [1.0, 0.0, 1.0], "renamed");
    proxy.reload(&yaml("three", "one", &a, &b), "reloaded").await;
    assert_eq!(up(&proxy).await, [1.0, 0.0, 1.0], "swapped");
    let c = Backend::start(script::json(200, json!({}))).await;
    proxy.reload(&yaml("three", "one", &c, &b), "reloaded").await;
    assert_eq!(up(&proxy).await, [1.0, 0.0, 1.0], "moved");
}

const UPLOAD: &str = "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 1000000000\r\n\r\n";

/// A backend that reads the head of each request and no more; gives its URL and its connections.
async fn head_only() -> (String, tokio::sync::mpsc::Receiver<tokio::net::TcpStream>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, connections) = tokio::sync::mpsc::channel(100);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut byte = [0; 64];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut byte).await.expect("a head");
            sender.send(stream).await.expect("the test goes on");
        }
    });
    (url, connections)
}

#[tokio::test]
async fn a_backend_that_does_not_read_an_upload_costs_no_memory() {
    let (url, mut connections) = head_only().await;
    let yaml = format!(
        "backends: [{{url: '{url}', models: [m]}}]\nhealth_check: {{enabled: false}}\nserver: {{max_body_size: 1GiB, max_buffered_bytes: 1GiB}}\n"
    );
    let proxy = Proxy::start(&yaml).await;
    let before = rss(&proxy);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(proxy.address()).await;
        client.send_raw(UPLOAD).await.expect("the proxy reads");
        let task = tokio::spawn(async move { while client.send_raw([b'x'; 100_000]).await.is_ok() {} });
        open.push((task, connections.recv().await.expect("asked")));
    }
    sleep(Duration::from_secs(2)).await;
    let first = rss(&proxy);
    sleep(Duration::from_secs(1)).await;
    let second = rss(&proxy);
    for (task, _) in open {
        task.abort();
    }
    // A connection reads up to `max_header_bytes` at a time, and a few such pieces are on their way.
    assert!(second <= first + 1024 && second < before + 8 * 6144, "{before} -> {first} -> {second} KiB");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_upload_is_seen_by_the_backend() {
    let (url, mut connections) = head_only().await;
    let yaml = format!(
        "backends: [{{url: '{url}', models: [m]}}]\nhealth_check: {{enabled: false}}\nserver: {{max_body_size: 1GiB, max_buffered_bytes: 1GiB}}\n"
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_raw(UPLOAD).await.expect("the proxy reads");
    client.send_raw([b'x'; 1000]).await.expect("the proxy reads");
    let mut stream = connections.recv().await.expect("asked");
    client.leave();
    let mut rest = Vec::new();
    let _ = within("the backend to see it", tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await;
    assert_eq!(proxy.ended().await["end"], "client_gone");
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_between_two_attempts_is_asked_for_no_more() {
    let backend = Backend::start(script::json(503, json!({"error": "busy"}))).await;
    let yaml = config(&[&backend], "retry: {max_retries: 3, initial_wait: 2s, max_wait: 2s}");
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    backend.when(|counts| counts.requests == 1 && counts.in_progress == 0).await;
    client.leave();
    let line = proxy.ended().await;
    assert_eq!((&line["end"], &line["status_code"]), (&json!("client_gone"), &json!(499)), "{line}");
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(backend.counts().requests, 1);
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_compressed_stream_passes_as_it_is_though_usage_was_asked_for() {
    let backend = Backend::start(|_, mut wire| async move {
        wire.head(200, &[("content-type", "text/event-stream"), ("content-encoding", "gzip")]).await?;
        wire.chunk(b"\x1f\x8b\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n").await?;
        wire.chunk(b"\n\n\xff").await?;
        wire.finish().await
    })
    .await;
    let proxy = Proxy::start(&config(&[&backend], "")).await;
    let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask()).await;
    let sent: &[u8] = b"\x1f\x8b\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n\n\n\xff";
    assert_eq!((answer.body().as_slice(), answer.end), (sent, BodyEnd::Complete));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
}
