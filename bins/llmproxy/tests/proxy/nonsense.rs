//! Backends that answer nonsense: it never reaches a client as an answer, and never the next one.

use llmproxy_testkit::{BodyEnd, Client};
use serde_json::json;

use crate::{
    harness::Proxy,
    raw::{Raw, RawBackend},
};

/// What the client gets.
#[derive(Clone, Copy)]
enum Gets {
    /// 502 in the API's shape.
    BadGateway,
    /// The status of the backend, this much of a body, and an end that can be seen to be none.
    Broken(&'static str),
    /// This body, under another framing.
    Whole(&'static str),
}
use Gets::*;

struct Setup {
    backend: RawBackend,
    proxy: Proxy,
}

impl Setup {
    async fn start() -> Self {
        let backend = RawBackend::bind().await;
        let yaml = format!(
            "{}routing: {{retry: {{enabled: false}}}}\n",
            backend.config("").replace("enabled: false", "enabled: false, unhealthy_threshold: 100000")
        );
        Self { proxy: Proxy::start(&yaml).await, backend }
    }

    /// The connection that the backend has with a request on it, and the client that waits for its answer.
    async fn asked(&self) -> (Client, Raw) {
        let mut client = Client::connect(self.proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "messages": []})).await;
        let mut conn = self.backend.accept().await;
        conn.request().await;
        (client, conn)
    }

    /// `closes` says whether the backend ends the connection after what it wrote, or leaves that to the proxy.
    async fn check(&mut self, answer: impl AsRef<[u8]>, closes: bool, gets: Gets) {
        let answer = answer.as_ref();
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        let (mut client, mut conn) = self.asked().await;
        conn.try_write(answer).await;
        let held = if closes {
            drop(conn);
            None
        } else {
            Some(conn)
        };
        let got = client.read_to_end().await;
        let text = got.text();
        let end = match gets {
            BadGateway => {
                assert_eq!((got.status, got.end), (502, BodyEnd::Complete), "{shown}: {text}");
                assert!(got.json()["error"]["message"].is_string(), "{shown}: {text}");
                "backend_failed"
            }
            Broken(body) => {
                assert_eq!((got.status, got.end, text.as_str()), (200, BodyEnd::Truncated, body), "{shown}");
                "backend_failed"
            }
            Whole(body) => {
                assert_eq!((got.status, got.end, text.as_str()), (200, BodyEnd::Complete, body), "{shown}");
                "complete"
            }
        };
        let line = self.proxy.ended().await;
        assert_eq!(line["end"], end, "{shown}: {line}");
        if let (Some(mut conn), "backend_failed") = (held, end) {
            // The proxy wants nothing more of it.
            conn.read_to_end().await;
        }
    }
}

const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";

#[tokio::test]
async fn a_head_that_is_none_is_a_502() {
    let mut setup = Setup::start().await;
    let many: String = (0..101).map(|i| format!("x-{i}: a\r\n")).collect();
    let megabyte = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 2\r\n\r\n{{}}", "a".repeat(1 << 20));
    for answer in [
        "hello\r\n\r\n",
        "<html>HTTP/0.9</html>\n",
        "\0\0\0\0",
        "SSH-2.0-OpenSSH_9.0\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 OK 200\r\n\r\n",
        "HTTP/1.1 99 Low\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 1000 High\r\n\r\n",
        "HTTP/1.1 999999 High\r\n\r\n",
        "HTTP/1.1 -200 OK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.5 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx a: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: b\0c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: b\rset-cookie: c\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 5x\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        &format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        &megabyte,
    ] {
        setup.check(answer, false, BadGateway).await;
    }
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5", "HTTP/1.1 100 Continue\r\n\r\n"] {
        setup.check(answer, true, BadGateway).await;
    }
    assert_eq!(setup.proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_body_that_is_none_is_broken_off_where_it_goes_wrong() {
    let mut setup = Setup::start().await;
    let chunked = format!("{JSON}transfer-encoding: chunked\r\n\r\n");
    for (rest, got) in [
        ("x\r\nhello\r\n0\r\n\r\n", ""),
        ("5\r\nhello\r\n-1\r\n", "hello"),
        ("5\r\nhello\r\nfffffffffffffffff1\r\n", "hello"),
        ("5\r\nhelloworld\r\n0\r\n\r\n", "hello"),
        ("5\nhello\n0\n\n", ""),
        ("5\r\nhello\r\n0\r\nno trailer\r\n\r\n", "hello"),
    ] {
        setup.check(format!("{chunked}{rest}"), false, Broken(got)).await;
    }
    for (rest, got) in [("", ""), ("5\r\nhel", "hel"), ("5\r\nhello\r\n", "hello"), ("5\r\nhello\r\n0\r\n", "hello")] {
        setup.check(format!("{chunked}{rest}"), true, Broken(got)).await;
    }
    for (length, got) in [("5", "hell"), ("5", "")] {
        setup.check(format!("{JSON}content-length: {length}\r\n\r\n{got}"), true, Broken(got)).await;
    }
    assert_eq!(setup.proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn what_is_only_odd_passes_under_a_framing_of_our_own() {
    let mut setup = Setup::start().await;
    for answer in [
        // A bare LF may end a line (RFC 9112, section 2.2).
        "HTTP/1.1 200 OK\ncontent-length: 5\nx-a: b\n\nhello",
        "HTTP/1.1 200\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 Fine, thanks\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nhe\r\n03\r\nllo\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\nhello",
    ] {
        setup.check(answer, true, Whole("hello")).await;
    }
}

#[tokio::test]
async fn what_nobody_asked_for_is_nobody_s_answer() {
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let mut setup = Setup::start().await;
    for (answer, status) in [
        (format!("{JSON}content-length: 2\r\n\r\n{{}}"), 200),
        (format!("{JSON}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"), 200),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 204),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\n".to_owned(), 304),
    ] {
        // More than was said, or a body where there can be none; with the answer, or a moment later.
        for rest in [poison, "poison", "\r\n\r\npoison"] {
            for at_once in [true, false] {
                let (mut client, mut conn) = setup.asked().await;
                conn.write(if at_once { format!("{answer}{rest}") } else { answer.clone() }).await;
                let got = client.read_to_end().await;
                assert_eq!((got.status, got.end), (status, BodyEnd::Complete), "{answer}");
                assert!(!got.text().contains("poison"), "{answer}");
                assert_eq!(setup.proxy.ended().await["end"], "complete");
                if !at_once {
                    conn.try_write(rest).await;
                    // Before that it is an answer that came early, as good as any.
                    assert_eq!(conn.read_to_end().await, "", "{answer}");
                }
                // It is asked over another connection.
                setup
                    .check(format!("{JSON}content-length: 2\r\nconnection: close\r\n\r\n{{}}"), true, Whole("{}"))
                    .await;
            }
        }
    }
}
