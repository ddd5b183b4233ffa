//! How many clients may come, what each may cost, and what they are told that never had a request.

use llmproxy_testkit::{Backend, Client, script};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Folder, Proxy, get, within};

const PATH: &str = "/v1/chat/completions";

fn config(backend: &str, server: &str) -> String {
    format!("server: {{{server}}}\nbackends: [{{url: '{backend}', models: [m]}}]\nhealth_check: {{enabled: false}}\n")
}

async fn backend() -> Backend {
    Backend::start(script::json(200, json!({}))).await
}

/// Sends these bytes over a connection of its own and reads until it is closed.
async fn told(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
    // The proxy may close before all was sent.
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    let _ = within("the proxy to close", stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn one_more_than_may_be_open_is_refused_until_another_leaves() {
    let backend = backend().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "max_connections: 3")).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(proxy.address()).await;
        assert_eq!(client.get("/health").await.status, 200);
        open.push(client);
    }
    for _ in 0..100 {
        // Also one that has sent its request before it reads.
        let answer = told(&proxy, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
    }
    let line = proxy.logged("connections are refused").await;
    assert_eq!((&line["level"], &line["most"]), (&json!("WARN"), &json!(3)));
    // Those that are open go on, and one that leaves makes room.
    let mut kept = open.pop().expect("three");
    assert_eq!(kept.get("/health").await.status, 200);
    open.pop().expect("two").leave();
    within("a place", async {
        while !told(&proxy, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.contains(" 200 ") {}
    })
    .await;
    let metrics = kept.get("/metrics").await.text();
    let counted = metrics.lines().find_map(|line| line.strip_prefix("llmproxy_connections_refused_total "));
    assert!(counted.and_then(|count| count.parse::<f64>().ok()) >= Some(100.0), "{metrics}");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_have_asked_nothing() {
    let backend = backend().await;
    let proxy = Proxy::start(&config(&backend.url(), "shutdown_timeout: 5m, read_timeout: 5m")).await;
    let mut open = Vec::new();
    for begun in ["", "GET /health HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0"] {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
        stream.write_all(begun.as_bytes()).await.expect("the proxy reads");
        open.push(stream);
    }
    // All of them are there.
    let connected = async { while proxy.metrics().await.sum("llmproxy_connections", &[]) < 4.0 {} };
    within("the connections", connected).await;
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.exit().await.success());
}

#[tokio::test]
async fn those_that_are_over_leave_room_at_once() {
    let backend = backend().await;
    let proxy = Proxy::start(&config(&backend.url(), "max_connections: 1")).await;
    let mut refused = 0;
    for _ in 0..200 {
        // The server is the first to close. A thread that is interrupted right there may still hold the place.
        let answer = told(&proxy, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        refused += usize::from(answer.starts_with("HTTP/1.1 503 "));
    }
    assert!(refused < 20, "{refused} of 200");
}

#[tokio::test]
async fn any_number_may_come_where_the_limit_is_0() {
    let backend = backend().await;
    let proxy = Proxy::start(&config(&backend.url(), "max_connections: 0")).await;
    let mut open = Vec::new();
    for _ in 0..50 {
        let mut client = Client::connect(proxy.address()).await;
        assert_eq!(client.get("/health").await.status, 200);
        open.push(client);
    }
}

#[tokio::test]
async fn only_the_listeners_that_are_named_are_there() {
    let (backend, folder) = (backend().await, Folder::new());
    let yaml =
        format!("server: {{listeners: [{{listen: '127.0.0.1:0'}}]}}\nbackends: [{{url: '{}'}}]\n", backend.url());
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    let mut command = crate::harness::command(&folder);
    let child = command.arg("--config").arg(folder.join("config.yaml")).env("LLMPROXY_LOG__OUTPUT", "stderr");
    let mut child =
        child.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().expect("starts");
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().expect("piped")));
    let mut listening = Vec::new();
    within("the backend to be up, which is later", async {
        while let Ok(Some(line)) = lines.next_line().await {
            let line: Value = serde_json::from_str(&line).expect("JSON");
            match line["message"].as_str() {
                Some("listening") => {
                    let address = line["address"].as_str().expect("an address").to_owned();
                    assert_eq!(get(address.parse().expect("an address"), "/health").await.0, 200);
                    listening.push(address);
                    rustix::process::kill_process(
                        rustix::process::Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("not zero"),
                        rustix::process::Signal::TERM,
                    )
                    .expect("it runs");
                }
                Some("stopped") => break,
                _ => {}
            }
        }
    })
    .await;
    assert!(listening.len() == 1 && !listening[0].ends_with(":8000"), "{listening:?}");
}

#[tokio::test]
async fn what_never_was_a_request_is_in_the_access_log_and_counted() {
    let backend = backend().await;
    let mut proxy =
        Proxy::start(&config(&backend.url(), "read_timeout: 1s, max_header_bytes: 8192, max_headers: 10")).await;
    let many: String = (0..20).map(|index| format!("x-{index}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "x".repeat(20_000));
    let head = |rest: &str| format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{rest}\r\n");
    let cases = [
        (head(&large), 431, "too large"),
        (head(&many), 431, "too many headers"),
        ("GET /\x01 HTTP/1.1\r\n\r\n".to_owned(), 400, "invalid"),
        ("\u{16}\u{3}\u{1} this is TLS".to_owned() + "\r\n\r\n", 400, "invalid"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)), 431, "too large"),
        ("GET /v1/models HTTP/1.1\r\nhost: ".to_owned(), 408, "server.read_timeout"),
    ];
    for (sent, status, why) in &cases {
        let answer = told(&proxy, sent.as_bytes()).await;
        let line = proxy.ended().await;
        assert_eq!(line["status_code"], *status, "{line}");
        assert!(line["error"].as_str().is_some_and(|error| error.contains(why)), "{line}");
        assert_eq!(
            (&line["client_ip"], &line["method"], &line["path"]),
            (&json!("127.0.0.1"), &json!("-"), &json!("-"))
        );
        // It may be broken before it is read, where there was more to send.
        if answer.is_empty() && sent.len() > 1000 {
            continue;
        }
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let id = line["request_id"].as_str().expect("an id");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(head.contains(&format!("\r\nx-request-id: {id}\r\n")) || head.ends_with(id), "{answer}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert!(body["error"]["message"].as_str().is_some_and(|message| message.contains(why)), "{body}");
    }
    // Behind a request that was good: at once, and later.
    let good = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = told(&proxy, format!("{good}GET /\x01 HTTP/1.1\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 400 "), "{answer}");
    assert_eq!(proxy.ended().await["status_code"], 400);
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(client.get("/health").await.status, 200);
    client.send_raw("GET /\x01 HTTP/1.1\r\n\r\n").await.expect("the proxy reads");
    let answer = client.read_to_end().await;
    let line = proxy.ended().await;
    assert_eq!((answer.status, answer.header("x-request-id")), (400, line["request_id"].as_str()));
    client.closed().await;
    // A connection that sent nothing at all is none of them.
    assert_eq!(told(&proxy, b"").await, "");
    let metrics = proxy.metrics().await;
    let count = |status: &str| metrics.sum("llmproxy_requests_total", &["path=\"other\"", status]);
    assert_eq!((count("status=\"431\""), count("status=\"400\""), count("status=\"408\"")), (3.0, 4.0, 1.0));
    assert_eq!(metrics.sum("llmproxy_client_timeouts_total", &["kind=\"head\""]), 1.0);
    assert_eq!(backend.counts().requests, 0);
}

#[tokio::test]
async fn many_slow_clients_cost_kilobytes_each_and_are_closed() {
    const CLIENTS: u64 = 300;
    let backend = backend().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "read_timeout: 6s")).await;
    // One of each before, so that what is made once is not counted.
    assert_eq!(get(proxy.address(), "/health").await.0, 200);
    let before = proxy.memory();
    let mut slow = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(proxy.address()).await;
        client.send_raw("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ").await.expect("the proxy reads");
        slow.push(client);
    }
    // Each trickles on, so that all were read of before they are counted.
    for client in &mut slow {
        client.send_raw("x").await.expect("the proxy reads");
    }
    within("the proxy to have all of them", async {
        while proxy.metrics().await.sum("llmproxy_connections", &[]) < CLIENTS as f64 {}
    })
    .await;
    let each = proxy.memory().saturating_sub(before) / CLIENTS;
    assert!(each < 32, "{each} KiB for each slow client");
    for mut client in slow {
        assert_eq!(client.head().await.status, 408);
        client.closed().await;
        assert_eq!(proxy.ended().await["status_code"], 408);
    }
    assert_eq!(backend.counts().requests, 0);
}

#[tokio::test]
async fn an_upload_may_take_longer_than_the_limit_for_each_of_its_pieces() {
    let backend = backend().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "read_timeout: 1500ms")).await;
    let body = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(20));
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = Client::connect(proxy.address()).await;
    client.send_raw(&head).await.expect("the proxy reads");
    let start = tokio::time::Instant::now();
    for byte in body.as_bytes().chunks(1) {
        tokio::time::sleep(std::time::Duration::from_millis(45)).await;
        client.send_raw(byte).await.expect("the proxy reads");
    }
    assert_eq!(client.read_to_end().await.status, 200);
    assert!(start.elapsed() > std::time::Duration::from_millis(1500));
    proxy.ended().await;

    // What is read whole, and what passes through.
    for head in [head.clone(), head.replace("application/json", "application/octet-stream")] {
        let mut client = Client::connect(proxy.address()).await;
        client.send_raw(format!("{head}{{")).await.expect("the proxy reads");
        assert_eq!(client.read_to_end().await.status, 408);
        assert_eq!(proxy.ended().await["status_code"], 408);
    }
}

#[tokio::test]
async fn a_client_that_has_said_its_last_word_has_left() {
    let backend = Backend::start(script::hang()).await;
    let mut proxy = Proxy::start(&config(&backend.url(), "")).await;
    let body = r#"{"model":"m"}"#;
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // Whatever stands behind the request: what is only odd, and the next one.
    for (before, behind) in ["", "\r\n", "G", &request, &request.repeat(5)].into_iter().enumerate() {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
        stream.write_all(format!("{request}{behind}").as_bytes()).await.expect("the proxy reads");
        backend.when(|counts| counts.requests == before + 1).await;
        // Half a close: it could still read.
        stream.shutdown().await.expect("the system does it");
        backend.when(|counts| counts.abandoned == before + 1).await;
        let line = proxy.ended().await;
        assert_eq!((&line["status_code"], &line["end"]), (&json!(499), &json!("client_gone")), "{behind}");
        assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
    }
}
