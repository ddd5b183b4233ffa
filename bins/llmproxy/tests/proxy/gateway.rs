//! What RFC 9110 and RFC 9112 ask of a gateway, from the client's side: the bytes of a request, and what becomes of them.

use llmproxy_testkit::{Backend, BodyEnd, Client, Seen, script};
use serde_json::json;

use crate::{
    harness::Proxy,
    http2_client::Http2,
    raw::{Raw, RawBackend},
};

/// What becomes of a request.
enum Becomes {
    /// This status of the proxy's own, no word to a backend, and the end of the connection.
    Refused(u16),
    /// This status of the proxy's own, and the connection goes on.
    Answered(u16),
    /// One request at the backend, with this framing and this body, and the connection goes on.
    One(&'static str, &'static str),
    /// The same, and the end of the connection.
    Last(&'static str, &'static str),
}
use Becomes::*;

pub(crate) const CHUNKED: &str = "transfer-encoding: chunked";

pub(crate) struct Gateway {
    pub(crate) proxy: Proxy,
    pub(crate) backend: Backend,
}

impl Gateway {
    pub(crate) async fn start(server: &str) -> Self {
        let backend = Backend::start(script::json(200, json!({"object": "file"}))).await;
        let yaml = format!(
            "backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nserver: {{{server}}}\n",
            backend.url()
        );
        Self { proxy: Proxy::start(&yaml).await, backend }
    }

    async fn client(&self) -> Client {
        Client::connect(self.proxy.address()).await
    }

    /// What the backend saw of the only request that came of these bytes.
    pub(crate) async fn passed(&self, sent: &str) -> Seen {
        let before = self.backend.counts().requests;
        let mut client = self.client().await;
        client.send_raw(sent).await.expect("the proxy reads");
        let answer = client.read_to_end().await;
        assert_eq!(answer.status, 200, "{sent}: {}", answer.text());
        assert_eq!(self.backend.counts().requests, before + 1, "{sent}");
        self.backend.seen().pop().expect("it came")
    }

    async fn check(&self, sent: impl AsRef<[u8]>, becomes: Becomes) {
        let sent = sent.as_ref();
        let shown = String::from_utf8_lossy(sent);
        let before = self.backend.counts().requests;
        let mut client = self.client().await;
        client.send_raw(sent).await.expect("the proxy reads");
        let answer = client.read_to_end().await;
        assert_eq!(answer.end, BodyEnd::Complete, "{shown}");
        let (status, passes, goes_on) = match becomes {
            Refused(status) => (status, None, false),
            Answered(status) => (status, None, true),
            One(framing, body) => (200, Some((framing, body)), true),
            Last(framing, body) => (200, Some((framing, body)), false),
        };
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        if goes_on {
            // Whoever reads the next request where it begins has read this one to its end.
            client.send("GET", "/health", &[], b"").await;
            assert_eq!(client.read_to_end().await.text(), "OK", "{shown}");
        } else {
            client.closed().await;
        }
        let came = self.backend.seen().split_off(before);
        assert_eq!(came.len(), usize::from(passes.is_some()), "{shown}: {came:?}");
        for (seen, (framing, body)) in came.iter().zip(passes) {
            assert_eq!((framings(seen), &seen.body[..]), (framing.to_owned(), body.as_bytes()), "{shown}");
        }
    }
}

/// The lines of a head that say how its body is framed, as the backend got them.
fn framings(seen: &Seen) -> String {
    let head = String::from_utf8_lossy(&seen.head);
    assert!(!head.replace("\r\n", "").contains(['\r', '\n', '\0']), "{head:?}");
    let lines = head.lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        matches!(name.trim(), "content-length" | "transfer-encoding")
    });
    lines.collect::<Vec<_>>().join(", ")
}

fn post(rest: &str) -> String {
    format!("POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n{rest}")
}

#[tokio::test]
async fn ambiguous_framing_is_refused_or_becomes_one_request() {
    let gateway = Gateway::start("").await;
    let hidden = "GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let check = async |head: &str, becomes| gateway.check(post(head), becomes).await;
    // One length, said once.
    check("Content-Length: 5\r\n\r\nhello", One("content-length: 5", "hello")).await;
    check("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", One(CHUNKED, "hello")).await;
    check("Transfer-Encoding:\tCHUNKED \r\n\r\n5\r\nhello\r\n0\r\n\r\n", One(CHUNKED, "hello")).await;
    check("\r\n", One("", "")).await;
    let with_body = post("Content-Length: 5\r\n\r\nhello").replace("POST", "GET");
    gateway.check(with_body, One("content-length: 5", "hello")).await;
    // A JSON body is read whole, so that it has a length then, and no trailers.
    let chat = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let body = r#"{"model":"m","messages":[]}"#;
    let chunks = format!("9\r\n{}\r\n12;a=b\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", &body[..9], &body[9..]);
    let sent = format!("{chat}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n{chunks}");
    gateway.check(sent, One("content-length: 27", r#"{"model":"m","messages":[]}"#)).await;
    // Two ways to say it: the chunks count, and nothing is read after them (RFC 9112, section 6.1).
    for head in ["Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 3"] {
        check(&format!("{head}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{hidden}"), Last(CHUNKED, "hello")).await;
    }
    check("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", One("content-length: 5", "hello")).await;
    for lengths in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 99999999999999999999999",
        "Content-Length:",
        "Content-Length : 5",
        "Content-Length\t: 5",
        " Content-Length: 5",
    ] {
        check(&format!("{lengths}\r\n\r\nhello{hidden}"), Refused(400)).await;
    }
    for coding in ["xchunked", "chunked, identity", "identity", "chunked;q=1", "\"chunked\"", "chunked,", "\x0bchunked"]
    {
        check(&format!("Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{hidden}"), Refused(400)).await;
    }
    // Of two codings only one can be framed again (RFC 9112, section 6.1).
    for codings in ["gzip, chunked", "chunked, chunked", ",chunked", "gzip\r\nTransfer-Encoding: chunked"] {
        check(&format!("Transfer-Encoding: {codings}\r\n\r\n0\r\n\r\n{hidden}"), Refused(501)).await;
    }
}

#[tokio::test]
async fn chunks_are_read_as_the_rfc_has_them_or_the_request_is_broken_off() {
    let gateway = Gateway::start("").await;
    let check = async |body: &str, becomes| {
        gateway.check(post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}")), becomes).await;
    };
    let hello = || One(CHUNKED, "hello");
    check("5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n", hello()).await;
    check("2\r\nhe\r\n03\r\nllo\r\n000;last\r\n\r\n", hello()).await;
    check("A\r\n0123456789\r\n0\r\n\r\n", One(CHUNKED, "0123456789")).await;
    for body in [
        "x\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloworld\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\n0\r\nno trailer\r\n\r\n",
    ] {
        check(&format!("{body}GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"), Refused(400)).await;
    }
}

/// A body that passes as it comes.
pub(crate) const UPLOAD: &str =
    "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n";

#[tokio::test]
async fn an_upload_that_turns_out_to_be_none_is_broken_off_at_the_backend() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&backend.config("")).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_raw(format!("{UPLOAD}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")).await.expect("reads");
    let mut conn = backend.accept().await;
    let came = conn.read_until("5\r\nhello\r\n").await;
    assert!(came.contains("transfer-encoding: chunked\r\n"), "{came}");
    client.send_raw("x\r\nhello\r\n0\r\n\r\n").await.expect("reads");
    assert_eq!(client.head().await.status, 400);
    client.closed().await;
    // No last chunk: the backend can't take what it has for the whole.
    assert_eq!(conn.read_to_end().await, "");
    let line = proxy.ended().await;
    assert_eq!((&line["end"], &line["status_code"]), (&json!("client_gone"), &json!(400)), "{line}");
}

#[tokio::test]
async fn a_head_is_one_that_nobody_can_read_in_two_ways() {
    let gateway = Gateway::start("").await;
    let get = |rest: &str| format!("GET /v1/files HTTP/1.1\r\nHost: x\r\n{rest}\r\n");
    for (sent, becomes) in [
        (get("X-A: b\r\n c\r\n"), Refused(400)),
        (get("X-A: b\r\n\tc\r\n"), Refused(400)),
        (get("X-A: b\0c\r\n"), Refused(400)),
        (get("X-A: b\rc\r\n"), Refused(400)),
        (get("X-A: b\x0bc\r\n"), Refused(400)),
        (get("X A: b\r\n"), Refused(400)),
        (get("X-A\0: b\r\n"), Refused(400)),
        (get(": b\r\n"), Refused(400)),
        (get("X-A\r\n"), Refused(400)),
        // A bare LF may end a line (RFC 9112, section 2.2); what the backend gets has none.
        (get("X-A: b\nX-B: c\n").replace("\r\n", "\n"), One("", "")),
        ("\r\n".to_owned() + &get(""), One("", "")),
        ("GET /v1/files HTTP/1.1\r\n\r\n".into(), Refused(400)),
        (get("Host: x\r\n"), Refused(400)),
        (get("Host: y\r\n"), Refused(400)),
        ("GET /v1/files HTTP/1.1\r\nHost: a b\r\n\r\n".into(), Refused(400)),
        ("GET /v1/files HTTP/1.1\r\nHost: me@a\r\n\r\n".into(), Refused(400)),
        ("GET /v1/files HTTP/1.1\r\nHost:\r\n\r\n".into(), One("", "")),
        ("GET /v1/files HTTP/1.0\r\n\r\n".into(), Last("", "")),
        ("GET /v1/files HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n".into(), Refused(400)),
        ("POST /v1/files HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), Refused(400)),
        ("GET /v1/files HTTP/1.2\r\nHost: x\r\n\r\n".into(), Refused(400)),
        ("GET /v1/files HTTP/2.0\r\nHost: x\r\n\r\n".into(), Refused(400)),
        ("GET /v1/files\r\n\r\n".into(), Refused(400)),
        ("GET  /v1/files HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refused(400)),
        ("GET /v1/ files HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refused(400)),
        ("GE(T /v1/files HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refused(400)),
    ] {
        gateway.check(sent, becomes).await;
    }
}

#[tokio::test]
async fn a_head_has_an_end() {
    let gateway = Gateway::start("max_header_bytes: 16KiB").await;
    let get = |headers: String| format!("GET /v1/files HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let many = |count: usize| get((0..count).map(|i| format!("x-{i}: a\r\n")).collect());
    gateway.check(many(99), One("", "")).await;
    gateway.check(many(100), Refused(431)).await;
    gateway.check(get(format!("x-a: {}\r\n", "a".repeat(15 << 10))), One("", "")).await;
    gateway.check(get(format!("x-a: {}\r\n", "a".repeat(17 << 10))), Refused(431)).await;
    gateway.check(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(17 << 10)), Refused(431)).await;
}

#[tokio::test]
async fn the_target_of_a_request_is_a_path_or_a_url() {
    let gateway = Gateway::start("").await;
    let request = |line: &str| format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n");
    for (line, becomes) in [
        ("CONNECT example.com:443", Refused(501)),
        ("CONNECT /v1/files", Refused(501)),
        ("TRACE /v1/files", Refused(501)),
        ("GET example.com:443", Refused(400)),
        ("GET *", Refused(400)),
        ("GET v1/files", Refused(400)),
        ("OPTIONS *", Answered(204)),
        ("GET /v1/../files", Answered(400)),
        ("GET /v1/%2e%2E/files", Answered(400)),
        ("GET /v1/files/.", Answered(400)),
        ("GET http://x/v1/%2e./files", Answered(400)),
        ("PURGE /v1/files", One("", "")),
    ] {
        gateway.check(request(line), becomes).await;
    }
    for (target, path) in [
        // A URL's host is no way to another server: it is the path that is asked for.
        ("http://example.com/v1/files", "/v1/files"),
        ("https://example.com:8443/v1/files?a=b", "/v1/files?a=b"),
        (
            "/v1/files/a%20b%2Fc%C3%A9%e2%82%ac/~x;y=1,2?q=%20+&r=[1]|^",
            "/v1/files/a%20b%2Fc%C3%A9%e2%82%ac/~x;y=1,2?q=%20+&r=[1]|^",
        ),
        ("/v1/files/a//b/", "/v1/files/a//b/"),
    ] {
        let seen = gateway.passed(&request(&format!("GET {target}"))).await;
        assert_eq!(seen.path, path);
        let host = gateway.backend.addr().to_string();
        assert_eq!(seen.header("host"), Some(&*host), "{target}");
    }
}

#[tokio::test]
async fn the_rest_of_an_upload_that_was_answered_early_is_no_request() {
    let hidden = "GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [format!("Content-Length: {}", 5 + hidden.len()), "Transfer-Encoding: chunked".to_owned()] {
        let backend = RawBackend::bind().await;
        let mut proxy = Proxy::start(&backend.config("")).await;
        let mut client = Raw::connect(proxy.address()).await;
        let is_chunked = framing.ends_with("chunked");
        let begun = if is_chunked { "5\r\nhello\r\n" } else { "hello" };
        client.write(format!("{UPLOAD}{framing}\r\n\r\n{begun}")).await;
        let mut conn = backend.accept().await;
        conn.read_until("hello").await;
        conn.write("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}").await;
        assert!(client.read_until("\r\n\r\n{}").await.starts_with("HTTP/1.1 413 "));
        // The client goes on as it had begun: all of it is read as what it is, or nothing more is.
        client.try_write(format!("{hidden}GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        let more = client.read_to_end().await;
        let is_next = more.starts_with("HTTP/1.1 200 OK\r\n") && more.ends_with("\r\n\r\nOK");
        assert!(
            more.is_empty() || (is_next && !is_chunked && more.matches("HTTP/1.1").count() == 1),
            "{framing}: {more}"
        );
        let line = proxy.ended().await;
        assert_eq!((&line["path"], &line["status_code"]), (&json!("/v1/audio/transcriptions"), &json!(413)), "{line}");
        // Nothing came of the rest: the next exchange that ends is the next one that was begun.
        Client::connect(proxy.address()).await.get("/nowhere").await;
        assert_eq!(proxy.ended().await["path"], "/nowhere");
    }
}

#[tokio::test]
async fn an_upload_over_http2_that_is_given_up_without_an_error_is_none_either() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&backend.config("")).await;
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let mut client = Http2::connect(proxy.address()).await;
        let headers = [("content-type", "multipart/form-data; boundary=b")];
        let mut stream = client.begin("POST", "/v1/audio/transcriptions", &headers, false).await;
        stream.upload.send_data("hello".into(), false).expect("it can be sent");
        let mut conn = backend.accept().await;
        conn.read_until("5\r\nhello\r\n").await;
        stream.upload.send_reset(reason);
        assert_eq!(conn.read_to_end().await, "", "{reason:?}");
        assert_eq!(proxy.ended().await["end"], "client_gone");
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told_when_its_body_is_wanted() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let yaml = json!({
        "backends": [{"url": backend.url(), "models": ["m"]}],
        "health_check": {"enabled": false},
        "auth": {"enabled": true, "pipeline": [{"type": "static", "static": {"keys": [{"key": "sk-good", "name": "k"}]}}]},
    });
    let proxy = Proxy::start(&yaml.to_string()).await;
    let head = |path: &str, version: &str, key: &str| {
        format!(
            "POST {path} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
             Content-Length: 26\r\nExpect: 100-Continue\r\n\r\n"
        )
    };
    let body = "{\"model\":\"m\",\"messages\":[]}";
    let (chat, upload) = ("/v1/chat/completions", "/v1/files/x");
    for path in [chat, upload] {
        let mut client = Raw::connect(proxy.address()).await;
        client.write(head(path, "1.1", "sk-good").replace("26", &body.len().to_string())).await;
        assert_eq!(client.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n", "{path}");
        client.write(body).await;
        assert!(client.read_until("\r\n\r\n{}").await.starts_with("HTTP/1.1 200 OK\r\n"), "{path}");
        let seen = backend.seen().pop().expect("it came");
        assert_eq!((seen.header("expect"), &seen.body[..]), (None, body.as_bytes()), "{path}");
    }
    // Refused by the head alone: the body is not asked for, and as nobody knows whether it comes, that was all.
    for (path, version, key, status) in [
        (chat, "1.1", "sk-bad", 401),
        (upload, "1.1", "sk-bad", 401),
        ("/nowhere", "1.1", "sk-good", 404),
        (chat, "1.0", "sk-bad", 401),
    ] {
        let mut client = Raw::connect(proxy.address()).await;
        client.write(head(path, version, key)).await;
        let got = client.read_to_end().await;
        assert!(got.starts_with(&format!("HTTP/{version} {status} ")) && !got.contains("100 Continue"), "{got}");
    }
    // HTTP/1.0 knows no interim answers.
    let mut client = Raw::connect(proxy.address()).await;
    client.write(head(chat, "1.0", "sk-good").replace("26", &body.len().to_string())).await;
    client.write(body).await;
    let got = client.read_to_end().await;
    assert!(got.starts_with("HTTP/1.0 200 OK\r\n") && !got.contains("100 Continue"), "{got}");
}

#[tokio::test]
async fn requests_that_come_together_are_answered_one_after_the_other() {
    let gateway = Gateway::start("").await;
    let mut client = gateway.client().await;
    let two =
        post("Content-Length: 5\r\n\r\nfirst") + &post("Transfer-Encoding: chunked\r\n\r\n6\r\nsecond\r\n0\r\n\r\n");
    client.send_raw(two).await.expect("the proxy reads");
    assert_eq!(client.read_to_end().await.status, 200);
    client.send_raw("").await.expect("the proxy reads");
    assert_eq!(client.read_to_end().await.status, 200);
    let bodies: Vec<_> = gateway.backend.seen().iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, ["first", "second"]);
}
