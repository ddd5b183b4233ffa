//! What passes a gateway and what does not, both ways (RFC 9110, section 7.6), byte for byte.

use llmproxy_testkit::Seen;

use crate::{
    gateway::{CHUNKED, Gateway, UPLOAD},
    harness::Proxy,
    raw::{Raw, RawBackend},
};

/// What the backend gets of the last request of a connection, and the client of its answer, byte for byte.
async fn exchange(request: &str, answer: &str) -> (String, String) {
    let backend = RawBackend::bind().await;
    let proxy = Proxy::start(&backend.config("")).await;
    let mut client = Raw::connect(proxy.address()).await;
    // So that the end of the answer can be seen.
    client.write(request.replacen("\r\n", "\r\nConnection: close\r\n", 1)).await;
    let mut conn = backend.accept().await;
    let seen = conn.request().await;
    conn.write(answer).await;
    drop(conn);
    (seen, client.read_to_end().await)
}

/// The names of a head's lines, sorted.
fn names(message: &str) -> Vec<&str> {
    let head = message.split("\r\n\r\n").next().unwrap_or_default();
    let mut names: Vec<&str> = head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn what_is_meant_for_one_connection_stays_there_both_ways() {
    let request = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
        Connection: x-other\r\nX-Other: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
        Proxy-Authorization: Basic eA==\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Kept: 3\r\n\r\nhello";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
        Connection: x-other\r\nX-Other: 2\r\nKeep-Alive: timeout=5, max=100\r\nProxy-Authenticate: Basic\r\n\
        Proxy-Connection: close\r\nUpgrade: h2c\r\nX-Kept: 3\r\n\r\nhello";
    let (seen, got) = exchange(request, answer).await;
    let expected = [
        "accept",
        "content-length",
        "forwarded",
        "host",
        "http2-settings",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-kept",
        "x-request-id",
    ];
    assert_eq!(names(&seen), expected, "{seen}");
    // Our own: the client had asked for the end of the connection.
    assert_eq!(names(&got), ["connection", "content-length", "date", "x-kept", "x-request-id"], "{got}");
    assert!(got.contains("connection: close\r\n") && got.ends_with("\r\n\r\nhello"), "{got}");
}

#[tokio::test]
async fn trailers_pass_where_they_were_announced_and_asked_for() {
    let upload = format!(
        "{UPLOAD}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: gzip;q=0.5, trailers\r\nConnection: TE\r\n\r\n"
    );
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 8\r\nX-Other: 9\r\n\r\n";
    let sent = format!("{upload}5\r\nhello\r\n0\r\nX-Sum: 7\r\nHost: y\r\nContent-Length: 3\r\n\r\n");
    let (seen, got) = exchange(&sent, answer).await;
    assert!(seen.contains("te: trailers\r\n") && seen.contains("connection: te\r\n"), "{seen}");
    // What frames a message or says where it goes is no trailer (RFC 9110, section 6.5.1).
    assert!(seen.ends_with("5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n"), "{seen}");
    assert!(got.contains("trailer: X-Sum\r\n"), "{got}");
    assert!(got.ends_with("5\r\nhello\r\n0\r\nx-sum: 8\r\n\r\n"), "{got}");
    // A client that did not say that it takes them gets none.
    let (_, got) = exchange("GET /v1/files HTTP/1.1\r\nHost: x\r\n\r\n", answer).await;
    assert!(got.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn interim_answers_of_a_backend_do_not_reach_the_client() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let (_, got) = exchange("GET /v1/files HTTP/1.1\r\nHost: x\r\n\r\n", answer).await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.matches("HTTP/1.1").count() == 1, "{got}");
    assert!(!got.contains("link") && got.ends_with("\r\n\r\nhello"), "{got}");
}

#[tokio::test]
async fn an_answer_has_one_framing_whatever_it_had_before() {
    let get = "GET /v1/files HTTP/1.1\r\nHost: x\r\n\r\n";
    for (answer, framing) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "content-length: 5"),
        ("HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "content-length: 5"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n05;a=b\r\nhello\r\n0\r\n\r\n", CHUNKED),
        ("HTTP/1.0 200 OK\r\n\r\nhello", CHUNKED),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello", CHUNKED),
    ] {
        let (_, got) = exchange(get, answer).await;
        let head = got.split("\r\n\r\n").next().unwrap_or_default();
        let framed = |line: &&str| line.starts_with("content-length") || line.starts_with("transfer-encoding");
        assert_eq!(head.lines().filter(framed).collect::<Vec<_>>(), [framing], "{answer}: {got}");
    }
}

#[tokio::test]
async fn answers_that_have_no_body_end_with_their_heads() {
    for (method, answer, expected) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 17\r\nX-A: b\r\n\r\n",
            &["connection", "content-length", "date", "x-a", "x-request-id"][..],
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &["connection", "date", "x-request-id"]),
        ("GET", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", &["connection", "date", "x-a", "x-request-id"]),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", &["connection", "date", "x-request-id"]),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 17\r\nETag: x\r\n\r\n",
            &["connection", "date", "etag", "x-request-id"],
        ),
        (
            "GET",
            "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
            &["connection", "content-length", "date", "x-request-id"],
        ),
    ] {
        let (_, got) = exchange(&format!("{method} /v1/files HTTP/1.1\r\nHost: x\r\n\r\n"), answer).await;
        assert_eq!(names(&got), expected, "{answer}: {got}");
        assert!(got.ends_with("\r\n\r\n"), "{got}");
    }
}

#[tokio::test]
async fn backends_are_told_where_a_request_came_from_and_strangers_are_not_believed() {
    let said = "X-Forwarded-For: 6.6.6.6:1234\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: other.example\r\n\
        Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nVia: 1.0 cache\r\n";
    let request = format!("GET /v1/files HTTP/1.1\r\nHost: api.example:8000\r\n{said}\r\n");
    let told = |seen: &Seen| {
        let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip"];
        names.map(|name| seen.header(name).unwrap_or_default().to_owned())
    };
    let stranger = Gateway::start("").await;
    let seen = stranger.passed(&request).await;
    let ours = "for=127.0.0.1;host=\"api.example:8000\";proto=http";
    assert_eq!(told(&seen), ["127.0.0.1", "http", "api.example:8000", ours, ""]);
    assert!(String::from_utf8_lossy(&seen.head).contains("via: 1.0 cache\r\nvia: 1.1 llmproxy\r\n"));
    let seen = stranger.passed("GET http://b.example/v1/files HTTP/1.0\r\n\r\n").await;
    assert_eq!((seen.header("x-forwarded-host"), seen.header("via")), (Some("b.example"), Some("1.0 llmproxy")));

    let mut trusting = Gateway::start("trusted_proxies: [127.0.0.1]").await;
    let seen = trusting.passed(&request).await;
    let both = format!("for=6.6.6.6, {ours}");
    assert_eq!(told(&seen), ["6.6.6.6:1234, 127.0.0.1", "https", "other.example", &both, "6.6.6.6"]);
    assert_eq!(trusting.proxy.ended().await["client_ip"], "6.6.6.6");
    trusting.passed("GET /v1/files HTTP/1.1\r\nHost: x\r\nForwarded: for=\"[2001:db8::1]:80\"\r\n\r\n").await;
    assert_eq!(trusting.proxy.ended().await["client_ip"], "2001:db8::1");
    // Both lists name one client, or there is only the one that the proxy before us keeps.
    let seen = trusting.passed("GET /v1/files HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await;
    assert_eq!((seen.header("x-forwarded-for"), seen.header("forwarded")), (Some("6.6.6.6, 127.0.0.1"), None));
}

#[tokio::test]
async fn no_header_that_only_a_proxy_writes_passes_by_an_underscore() {
    let said = "X_Forwarded_For: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nX-Forwarded_Proto: https\r\nX_Api_Key_UserId: root\r\nX_Kept: 1\r\n";
    let request = format!("GET /v1/files HTTP/1.1\r\nHost: x\r\n{said}\r\n");
    for server in ["", "trusted_proxies: [127.0.0.1]"] {
        let seen = Gateway::start(server).await.passed(&request).await;
        let head = String::from_utf8_lossy(&seen.head).to_lowercase();
        let disguised = names(&head).into_iter().filter(|name| name.contains('_'));
        assert_eq!(disguised.collect::<Vec<_>>(), ["x_kept"], "{head}");
    }
}
