//! Backend, client and receiver against each other.

#![allow(clippy::unwrap_used, reason = "a test may")]

use llmproxy_testkit::{Backend, Behaviour, BodyEnd, Client, DONE, Receiver, Refused, event, script};
use serde_json::json;

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let backend = Backend::start(script::json(200, json!({"ok": true}))).await;
    let mut client = Client::connect(backend.addr()).await;
    for _ in 0..3 {
        let answer = client.post_json("/v1/x?a=b", &json!({"n": 1})).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"ok": true})));
    }
    let counts = backend.counts();
    assert_eq!((counts.connections, counts.requests, counts.in_progress), (1, 3, 0));
    assert_eq!(backend.seen()[2].path, "/v1/x?a=b");
}

#[tokio::test]
async fn headers_keep_their_order_and_case() {
    let backend = Backend::start(|_, mut wire| async move {
        wire.head(200, &[("X-B", "1"), ("x-a", "2"), ("Content-Length", "0")]).await?;
        wire.finish().await
    })
    .await;
    let mut client = Client::connect(backend.addr()).await;
    client.send("GET", "/", &[("X-Two", "2"), ("x-one", "1")], b"").await;
    let answer = client.read_to_end().await;
    let names: Vec<_> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["X-B", "x-a", "Content-Length"]);
    let seen = backend.seen().remove(0);
    let names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["host", "X-Two", "x-one"]);
    assert_eq!(seen.header("X-ONE"), Some("1"));
}

#[tokio::test]
async fn a_stream_is_led_piece_by_piece() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut client = Client::connect(backend.addr()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"stream": true})).await;
    let (seen, mut wire) = requests.next().await;
    assert_eq!(seen.json()["stream"], true);
    wire.head(200, &[("content-type", "text/event-stream")]).await.unwrap();
    for n in 0..50 {
        let piece = event(&json!({ "n": n }));
        wire.chunk(&piece).await.unwrap();
        client.expect_piece(&piece).await;
    }
    assert_eq!(backend.counts().in_progress, 1);
    wire.finish_with_trailers(&[("x-sum", "50")]).await.unwrap();
    assert_eq!(client.piece().await, None);
    let answer = client.read_to_end().await;
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "50".to_owned())]);
    backend.when(|counts| counts.in_progress == 0).await;
}

#[tokio::test]
async fn every_end_of_a_stream_is_told_from_the_others() {
    let backend = Backend::start(|seen, mut wire| async move {
        wire.head(200, &[]).await?;
        wire.chunk("whole").await?;
        wire.raw("5\r\nha").await?;
        match &*seen.path {
            "/close" => wire.close().await,
            "/reset" => wire.reset(),
            "/drop" => drop(wire),
            _ => {
                wire.raw("lf!\r\n").await?;
                wire.finish_and_close().await?;
            }
        }
        Ok(())
    })
    .await;
    let check = async |path: &str, end: BodyEnd, last: &str| {
        let mut client = Client::connect(backend.addr()).await;
        client.send("GET", path, &[], b"").await;
        let answer = client.read_to_end().await;
        assert_eq!(answer.end, end, "{path}");
        assert_eq!(answer.pieces, ["whole", last], "{path}");
    };
    check("/close", BodyEnd::Truncated, "ha").await;
    check("/reset", BodyEnd::Reset, "ha").await;
    check("/drop", BodyEnd::Truncated, "ha").await;
    check("/complete", BodyEnd::Complete, "half!").await;
    assert_eq!(backend.when(|counts| counts.in_progress == 0).await.abandoned, 0);
}

#[tokio::test]
async fn a_length_that_is_not_reached_is_truncated() {
    let backend = Backend::start(|_, mut wire| async move {
        wire.head(200, &[("content-length", "10")]).await?;
        wire.chunk("12345").await?;
        wire.close().await;
        Ok(())
    })
    .await;
    let answer = Client::connect(backend.addr()).await.get("/").await;
    assert_eq!((answer.text().as_str(), answer.end), ("12345", BodyEnd::Truncated));
}

#[tokio::test]
async fn a_client_that_leaves_is_seen() {
    let backend = Backend::start(script::hang()).await;
    for reset in [false, true] {
        let mut client = Client::connect(backend.addr()).await;
        client.send("GET", "/", &[], b"").await;
        backend.when(|counts| counts.in_progress == 1).await;
        if reset {
            client.reset()
        } else {
            client.leave()
        }
        backend.when(|counts| counts.in_progress == 0 && counts.open_connections == 0).await;
    }
    assert_eq!(backend.counts().abandoned, 2);
}

#[tokio::test]
async fn a_chunked_request_is_read_like_any_other() {
    let backend = Backend::start(script::sse([DONE])).await;
    let mut client = Client::connect(backend.addr()).await;
    client
        .send_raw("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(client.read_to_end().await.pieces, [DONE]);
    assert_eq!(backend.seen()[0].body, "abcde");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let backend = Backend::start(script::hang()).await;
    let mut client = Client::connect(backend.addr()).await;
    client.send_raw("hello\r\n\r\n").await.unwrap();
    assert_eq!(client.read_to_end().await.status, 400);
    client.closed().await;
}

#[tokio::test]
async fn a_refused_port_becomes_a_backend_and_back() {
    let refused = Refused::new();
    let addr = refused.addr();
    assert!(Client::try_connect(addr).await.is_err());
    let backend = refused.start(script::json(200, json!(1)));
    let mut client = Client::connect(addr).await;
    assert_eq!(client.get("/").await.json(), 1);
    backend.set_script(script::reset());
    client.send("GET", "/", &[], b"").await;
    assert!(client.try_head().await.is_err());
    let refused = backend.stop().await;
    assert!(Client::try_connect(addr).await.is_err());
    let _backend = refused.start(script::json(200, json!(2)));
    assert_eq!(Client::connect(addr).await.get("/").await.json(), 2);
}

#[tokio::test]
async fn a_receiver_keeps_what_it_accepts() {
    let receiver = Receiver::start().await;
    receiver.behave_for(2, Behaviour::Status(500));
    let mut client = Client::connect(receiver.addr()).await;
    for (n, status) in [(0, 500), (1, 500), (2, 200), (3, 200)] {
        assert_eq!(client.post_json("/usage", &json!({ "n": n })).await.status, status);
    }
    receiver.behave(Behaviour::Throttle(7));
    let answer = client.post_json("/usage", &json!({"n": 4})).await;
    assert_eq!((answer.status, answer.header("Retry-After")), (429, Some("7")));
    assert_eq!(receiver.wait_for(2).await, [json!({"n": 2}), json!({"n": 3})]);
    assert_eq!(receiver.backend().counts().requests, 5);
}

#[tokio::test]
async fn what_runs_on_does_not_remember_without_a_bound() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let mut client = Client::connect(backend.addr()).await;
    for _ in 0..=llmproxy_testkit::KEPT {
        client.send("GET", "/", &[], b"").await;
        client.read_to_end().await;
    }
    assert_eq!(backend.counts().requests, llmproxy_testkit::KEPT + 1);
    assert_eq!(backend.seen().len(), llmproxy_testkit::KEPT / 2 + 1);
}
