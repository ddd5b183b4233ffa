//! Connections over real sockets: refused ones, those that break, and those that are let go.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod raw;

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use llmproxy_core::{Backend, End, Ended, RequestBody, cause_ref};
use llmproxy_upstream::{Clients, ConnectFailure, Upstream, UpstreamError};
use raw::{PATIENCE, Raw, Sender, answer, post};
use tokio::{net::TcpListener, time::timeout};
use tower::ServiceExt;

#[tokio::test]
async fn a_request_that_dies_on_a_fresh_connection_is_not_sent_again() {
    for by_reset in [false, true] {
        let raw = Raw::bind().await;
        let sender = Sender::to(raw.backend());
        let (result, ()) = tokio::join!(sender.post("once"), async {
            let mut conn = raw.accept().await;
            assert_eq!(conn.request().await.unwrap().1, b"once");
            if by_reset {
                conn.reset();
            }
        });
        let error = result.unwrap_err();
        assert_eq!(Ended::of(&*error), End::BackendFailed);
        let Some(found @ UpstreamError::Closed { .. }) = cause_ref(&*error) else { panic!("{error:?}") };
        assert_eq!(found.to_string(), format!("http://{} closed the connection before it answered", raw.addr));
        // Nothing more has come.
        assert!(timeout(Duration::from_millis(20), raw.accept()).await.is_err());
    }
}

#[tokio::test]
async fn idle_connections_are_reused() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let backend = async {
        let mut conn = raw.accept().await;
        for _ in 0..3 {
            conn.request().await.unwrap();
            conn.write(answer("ok")).await;
        }
    };
    let client = async {
        for _ in 0..3 {
            sender.post("x").await.unwrap().into_body().collect().await.unwrap();
            // A reload that changes nothing of the backend changes nothing of its connections.
            sender.clients.retain(&[Arc::new(raw.backend())]);
        }
    };
    tokio::join!(client, backend);
}

#[tokio::test]
async fn a_body_that_can_be_sent_once_goes_over_a_fresh_connection() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let client = async {
        sender.post("x").await.unwrap().into_body().collect().await.unwrap();
        let body = RequestBody::stream(http_body_util::Full::new(Bytes::from("streamed")));
        sender.send(post(body)).await.unwrap();
    };
    let backend = async {
        let mut first = raw.accept().await;
        first.request().await;
        first.write(answer("ok")).await;
        let mut second = raw.accept().await;
        let (head, body) = second.request().await.unwrap();
        assert_eq!(body, b"streamed");
        assert_eq!(raw::header(&head, "content-length"), Some("8"));
        second.write(answer("ok")).await;
        first
    };
    tokio::join!(client, backend);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_closes_the_connection() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let mut request = post(RequestBody::whole("x"));
    request.extensions_mut().insert(sender.target.clone());
    let waiting = tokio::spawn(Upstream::new(sender.clients.clone()).oneshot(request));
    let mut conn = raw.accept().await;
    conn.request().await.unwrap();
    waiting.abort();
    conn.closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_answer_closes_the_connection() {
    for head in ["transfer-encoding: chunked\r\n\r\n", "content-length: 1000\r\n\r\n"] {
        for begun in ["", "5\r\nhello\r\n"] {
            let raw = Raw::bind().await;
            let sender = Sender::to(raw.backend());
            let (response, mut conn) = tokio::join!(sender.post("x"), async {
                let mut conn = raw.accept().await;
                conn.request().await.unwrap();
                conn.write(format!("HTTP/1.1 200 OK\r\n{head}{begun}")).await;
                conn
            });
            let mut body = response.unwrap().into_body();
            if !begun.is_empty() {
                body.frame().await.unwrap().unwrap();
            }
            drop(body);
            conn.closed().await;
        }
    }
}

#[tokio::test]
async fn a_backend_that_dies_in_the_middle_is_an_error_after_what_it_sent() {
    for (head, by_reset) in
        [("transfer-encoding: chunked", false), ("transfer-encoding: chunked", true), ("content-length: 100", false)]
    {
        let raw = Raw::bind().await;
        let sender = Sender::to(raw.backend());
        let (response, conn) = tokio::join!(sender.post("x"), async {
            let mut conn = raw.accept().await;
            conn.request().await.unwrap();
            conn.write(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n")).await;
            conn
        });
        let mut body = response.unwrap().into_body();
        assert!(body.frame().await.unwrap().unwrap().data_ref().unwrap().starts_with(if head.starts_with('t') {
            b"hello"
        } else {
            b"5\r\n"
        }));
        if by_reset {
            conn.reset();
        } else {
            drop(conn);
        }
        let error = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(Ended::of(&*error), End::BackendFailed);
        assert_eq!(error.to_string(), format!("http://{} closed the connection in the middle of its answer", raw.addr));
    }
}

#[tokio::test]
async fn what_is_no_http_is_said_to_be_none() {
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let (result, ()) = tokio::join!(sender.post("x"), async {
        let mut conn = raw.accept().await;
        conn.request().await.unwrap();
        conn.write("SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
        conn.closed().await;
    });
    let error = result.unwrap_err();
    assert!(matches!(cause_ref(&*error), Some(UpstreamError::Protocol { .. })), "{error:?}");
    assert_eq!(cause_ref::<io::Error>(&*error).map(io::Error::kind), Some(io::ErrorKind::InvalidData));
    assert!(error.to_string().contains("is not an HTTP answer"), "{error}");
}

async fn check_connect(backend: Backend, expected: ConnectFailure, kind: io::ErrorKind, words: &str) {
    let error = Sender::to(backend).post("x").await.unwrap_err();
    let Some(UpstreamError::Connect { failure, .. }) = cause_ref(&*error) else { panic!("{error:?}") };
    assert_eq!(*failure, expected, "{error:?}");
    assert_eq!(cause_ref::<io::Error>(&*error).unwrap().kind(), kind, "{error:?}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_is_told_apart() {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let backend = Backend::new(&format!("http://user:secret@{addr}/secret")).unwrap();
    let words = format!("connection to http://{addr} refused");
    check_connect(backend, ConnectFailure::Refused, io::ErrorKind::ConnectionRefused, &words).await;
}

#[tokio::test]
async fn an_unknown_name_is_told_apart() {
    // RFC 6761: never resolves.
    let backend = Backend::new("http://llmproxy.invalid:8000").unwrap();
    let words = "the name of http://llmproxy.invalid:8000 can't be resolved";
    check_connect(backend, ConnectFailure::Name, io::ErrorKind::NotConnected, words).await;
}

#[tokio::test]
async fn a_failed_tls_handshake_is_told_apart() {
    let raw = Raw::bind().await;
    let backend = Backend::new(&format!("https://{}", raw.addr)).unwrap();
    let plain = tokio::spawn(async move {
        let mut conn = raw.accept().await;
        conn.write("HTTP/1.1 400 Bad Request\r\n\r\n").await;
        conn.closed().await;
    });
    check_connect(backend, ConnectFailure::Tls, io::ErrorKind::NotConnected, "no TLS connection to https://").await;
    plain.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_takes_too_long_is_told_apart() {
    let raw = Raw::bind().await;
    // The handshake that never comes is part of the connection.
    let mut backend = Backend::new(&format!("https://{}", raw.addr)).unwrap();
    backend.connect_timeout = Duration::from_millis(50);
    check_connect(backend, ConnectFailure::Timeout, io::ErrorKind::NotConnected, "within its connect_timeout").await;
}

#[tokio::test]
async fn a_request_whose_own_body_breaks_off_is_the_clients_end() {
    #[derive(Debug, thiserror::Error)]
    #[error("the client is gone")]
    struct Gone;
    let raw = Raw::bind().await;
    let sender = Sender::to(raw.backend());
    let frames = [Ok(http_body::Frame::data(Bytes::from("begin"))), Err(Gone)];
    let body = RequestBody::stream(StreamBody::new(futures_util::stream::iter(frames)));
    let (result, ()) = tokio::join!(sender.send(post(body)), async { raw.accept().await.closed().await });
    let error = result.unwrap_err();
    assert_eq!(Ended::of(&*error), End::ClientGone);
    assert!(cause_ref::<Gone>(&*error).is_some());
}

#[tokio::test]
async fn a_request_without_a_target_is_refused() {
    let error = Upstream::new(Clients::new()).oneshot(post(RequestBody::whole(""))).await.unwrap_err();
    assert!(matches!(cause_ref(&*error), Some(UpstreamError::NoTarget)));
}

#[tokio::test]
async fn small_questions_are_answered_whole_up_to_a_bound() {
    let raw = Raw::bind().await;
    let client = Clients::new().http_client(5);
    let uri = format!("http://{}/health", raw.addr);
    let ask = || client.send(Request::get(&uri).body(Bytes::new()).unwrap());
    let backend = async {
        let mut conn = raw.accept().await;
        assert!(conn.request().await.unwrap().0.starts_with("GET /health HTTP/1.1\r\n"));
        conn.write(answer("12345")).await;
        conn.request().await.unwrap();
        conn.write(answer("123456")).await;
    };
    let questions = async {
        assert_eq!(ask().await.unwrap().into_body(), "12345");
        let error = ask().await.unwrap_err();
        assert!(matches!(cause_ref(&*error), Some(UpstreamError::TooLarge { max: 5, .. })), "{error:?}");
    };
    tokio::join!(questions, backend);
}

#[tokio::test]
async fn for_some_the_status_is_all_of_an_answer() {
    let raw = Raw::bind().await;
    let client = Clients::new().status_client();
    let uri = format!("http://{}/usage", raw.addr);
    let ask = || client.send(Request::post(&uri).body(Bytes::new()).unwrap());
    let begun = |part: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{part}");
    let backend = async {
        let mut conn = raw.accept().await;
        conn.request().await.unwrap();
        conn.write(answer("12345")).await;
        // The next comes over the same connection, which breaks off.
        conn.request().await.unwrap();
        conn.write(begun("123")).await;
        drop(conn);
        // Far too long, and without an end.
        for text in [answer(&"x".repeat(1 << 20)), begun("1234")] {
            let mut conn = raw.accept().await;
            conn.request().await.unwrap();
            // Nobody may take it all.
            tokio::select! {
                () = conn.write(text) => {}
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
            conn.closed().await;
        }
    };
    let questions = async {
        for expected in ["12345", "123", "xxxx", "1234"] {
            let answer = ask().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.body().starts_with(expected.as_bytes()) && answer.body().len() < 200_000, "{expected}");
        }
    };
    tokio::join!(questions, backend);
}

#[tokio::test]
async fn one_client_asks_whatever_it_is_asked_for() {
    let raw = Raw::bind().await;
    let client = Clients::new().http_client(5);
    let paths = ["/a", "/b", "/b?x=1", "/a"];
    let backend = async {
        let mut conn = raw.accept().await;
        for path in paths {
            let head = conn.request().await.unwrap().0;
            assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
            conn.write(answer("ok")).await;
        }
    };
    let questions = async {
        for path in paths {
            let request = Request::get(format!("http://{}{path}", raw.addr)).body(Bytes::new()).unwrap();
            assert_eq!(client.send(request).await.unwrap().into_body(), "ok");
        }
        let nowhere = client.send(Request::get("/no/host").body(Bytes::new()).unwrap());
        assert!(nowhere.await.is_err());
    };
    tokio::join!(questions, backend);
}
