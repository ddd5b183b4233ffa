//! Bytes pass as they arrive, the same bytes: in lockstep, so that nothing is proved by waiting.

use llmproxy_testkit::{Backend, BodyEnd, Client, script};
use serde_json::json;

use crate::harness::{Proxy, within};

/// What servers send, and what they might.
const STREAMS: &[(&str, &str)] = &[
    ("LF", "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n"),
    ("CRLF", "data: {\"a\":1}\r\n\r\ndata: [DONE]\r\n\r\n"),
    ("CR", "data: {\"a\":1}\r\rdata: [DONE]\r\r"),
    ("a comment", ": ping\n\ndata: {\"a\":1}\n\n"),
    ("UTF-8", "data: {\"choices\":[{\"delta\":{\"content\":\"ü 漢字 🦀\"}}]}\n\n"),
    ("no final newline", "data: {\"a\":1}\n\ndata: [DONE]"),
    (
        "usage nobody asked for",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
    ),
    ("no event stream at all", "\0\u{1}\u{2}<html>\n\n\n"),
];

fn config(backend: &str) -> String {
    format!("backends: [{{url: '{backend}', models: [m]}}]\nhealth_check: {{enabled: false}}\n")
}

/// A stream that asks for usage itself, so that nothing is to be taken out.
fn ask() -> serde_json::Value {
    json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "messages": []})
}

#[tokio::test]
async fn each_piece_is_with_the_client_before_the_next_is_sent_at_every_split() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    for (name, stream) in STREAMS {
        let bytes = stream.as_bytes();
        for split in 1..bytes.len() {
            client.send_json("/v1/chat/completions", &[], &ask()).await;
            let (_, mut wire) = requests.next().await;
            wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
            for piece in [&bytes[..split], &bytes[split..]] {
                wire.chunk(piece).await.expect("the proxy reads");
                assert_eq!(client.piece().await.as_deref(), Some(piece), "{name} split at {split}");
            }
            wire.finish().await.expect("the proxy reads");
            assert_eq!(client.piece().await, None);
            assert_eq!(client.end(), Some(BodyEnd::Complete), "{name} split at {split}");
        }
    }
}

#[tokio::test]
async fn byte_by_byte_nothing_is_held() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    for byte in STREAMS[0].1.as_bytes().chunks(1) {
        wire.chunk(byte).await.expect("the proxy reads");
        client.expect_piece(byte).await;
    }
    wire.finish().await.expect("the proxy reads");
    assert_eq!(client.read_to_end().await.end, BodyEnd::Complete);
}

#[tokio::test]
async fn where_the_proxy_asked_for_usage_whole_events_pass_at_once_and_only_that_event_is_gone() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    let body = r#"{ "model" : "m", "stream":true,"messages":[],  "extra": 1e3 }"#;
    client
        .send(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json"), ("accept-encoding", "gzip")],
            body.as_bytes(),
        )
        .await;
    let (seen, mut wire) = requests.next().await;
    // Spliced: every byte of the client's is still there.
    let sent = String::from_utf8(seen.body.to_vec()).expect("UTF-8");
    assert_eq!(sent, body.replacen('{', r#"{"stream_options":{"include_usage":true},"#, 1));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    let events = [
        "data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        ": ping\n\n",
        "data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\":{} and data: [DONE]\"}}]}\n\n",
    ];
    for event in events {
        wire.chunk(event).await.expect("the proxy reads");
        client.expect_piece(event).await;
    }
    // Two events and a half in one chunk, as some servers write; the one in the middle is ours.
    wire.chunk(concat!(
        "data: {\"id\":\"1\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"id\":\"1\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n",
        "data: [DO"
    ))
    .await
    .expect("the proxy reads");
    wire.chunk("NE]\n\n").await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let rest = client.read_to_end().await;
    assert_eq!(
        rest.text(),
        "data: {\"id\":\"1\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
    );
    assert_eq!(rest.end, BodyEnd::Complete);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_usage_tokens_total", &["prompt"]), 5.0);
    assert_eq!(metrics.sum("llmproxy_usage_tokens_total", &["completion"]), 2.0);
}

#[tokio::test]
async fn a_line_of_a_megabyte_passes_unchanged() {
    let line = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(1 << 20));
    let backend = Backend::start(script::sse([line.clone(), "data: [DONE]\n\n".to_owned()])).await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    for ask in [ask(), json!({"model": "m", "stream": true, "messages": []})] {
        let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask).await;
        assert_eq!(answer.text(), format!("{line}data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn all_events_before_a_failure_arrive_though_they_came_with_it_in_one_segment() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let mut segment = format!("{:x}\r\n{event}\r\n", event.len()).repeat(50);
    // A chunk size that is none: the backend's answer breaks right behind the last event, in the same segment.
    segment.push_str("nonsense\r\n");
    wire.raw(segment).await.expect("the proxy reads");
    let answer = client.read_to_end().await;
    let text = answer.text();
    assert_eq!(text.matches(event).count(), 50);
    assert!(text[50 * event.len()..].starts_with("data: {\"error\":"), "{}", &text[50 * event.len()..]);
    assert_eq!(answer.end, BodyEnd::Truncated);
    drop(wire);
}

#[tokio::test]
async fn heads_bodies_and_trailers_pass_unchanged() {
    let backend = Backend::start(|seen, mut wire| async move {
        assert_eq!(seen.path, "/v1/anything?a=%20b&c=d%2Fe");
        assert_eq!(seen.header("x-custom"), Some("kept"));
        assert!(seen.header("host").is_some());
        for gone in ["x-hop", "keep-alive", "proxy-authorization", "x-api-key-userid"] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
        wire.head(
            203,
            &[
                ("content-type", "text/weird"),
                ("content-encoding", "gzip"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("keep-alive", "timeout=5"),
                ("x-drop", "1"),
                ("connection", "keep-alive, x-drop"),
                ("trailer", "x-sum"),
            ],
        )
        .await?;
        wire.chunk(b"\x1f\x8bnot really gzip").await?;
        wire.finish_with_trailers(&[("x-sum", "42")]).await
    })
    .await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    client
        .send(
            "POST",
            "/v1/anything?a=%20b&c=d%2Fe",
            &[
                ("content-type", "application/octet-stream"),
                ("x-custom", "kept"),
                ("te", "trailers"),
                ("x-hop", "1"),
                ("keep-alive", "1"),
                ("proxy-authorization", "secret"),
                ("x-api-key-userid", "root"),
                ("connection", "x-hop, te"),
            ],
            b"\x00\x01\x02",
        )
        .await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 203, "{}", answer.text());
    assert_eq!(answer.body(), b"\x1f\x8bnot really gzip");
    assert_eq!((answer.header("content-type"), answer.header("content-encoding")), (Some("text/weird"), Some("gzip")));
    let cookies = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).count();
    assert_eq!(cookies, 2);
    for gone in ["keep-alive", "x-drop"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "42".to_owned())]);
    assert_eq!(backend.seen()[0].body.as_ref(), b"\x00\x01\x02");
}

#[tokio::test]
async fn redirects_are_the_client_s() {
    let backend = Backend::start(|_, wire| async move {
        wire.respond(307, &[("location", "http://127.0.0.1:1/"), ("content-length", "0")], "").await
    })
    .await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask()).await;
    assert_eq!((answer.status, answer.header("location")), (307, Some("http://127.0.0.1:1/")));
    assert_eq!(backend.counts().requests, 1);
}

#[tokio::test]
async fn a_backend_that_closes_after_each_stream_costs_nobody_an_error() {
    // As llama-server does: keep-alive promised, the connection closed all the same.
    let backend = Backend::start(|_, mut wire| async move {
        wire.head(200, &[("content-type", "text/event-stream"), ("keep-alive", "timeout=5, max=100")]).await?;
        wire.chunk("data: [DONE]\n\n").await?;
        wire.finish_and_close().await
    })
    .await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    for round in 0..300 {
        let answer = client.post_json("/v1/chat/completions", &ask()).await;
        assert_eq!((answer.status, answer.end), (200, BodyEnd::Complete), "round {round}: {}", answer.text());
    }
}

#[tokio::test]
async fn ids_are_ours_upstream_and_the_client_s_own_downstream() {
    let backend = Backend::start(script::json(200, json!({"id": "chatcmpl-1"}))).await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[("x-request-id", "mine-1")], &ask()).await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let answer = client.post_json("/v1/chat/completions", &ask()).await;
    let ours = answer.header("x-request-id").expect("always").to_owned();
    let seen = backend.seen();
    assert_eq!(seen[1].header("x-request-id"), Some(&*ours));
    assert_ne!(seen[0].header("x-request-id"), Some("mine-1"));
    // A UUIDv7: some servers refuse any other form.
    assert_eq!((ours.len(), ours.as_bytes()[14]), (36, b'7'));
}

#[tokio::test]
async fn small_writes_are_sent_at_once_both_ways() {
    use rustix::{
        net::sockopt::tcp_nodelay,
        process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
    };
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, wire) = requests.next().await;
    // The proxy's own sockets, asked for the option.
    let pid = proxy.pid();
    let handle = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
    let mut connected = 0;
    for entry in std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("it runs") {
        let number = entry.expect("readable").file_name().to_string_lossy().parse().expect("a number");
        let Ok(fd) = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) else { continue };
        let socket = socket2::SockRef::from(&fd);
        if socket.peer_addr().is_ok_and(|peer| peer.as_socket().is_some()) {
            connected += 1;
            assert!(tcp_nodelay(&fd).expect("a TCP socket"), "{:?} -> {:?}", socket.local_addr(), socket.peer_addr());
        }
    }
    assert_eq!(connected, 2, "the client's and the backend's");
    wire.json(200, &json!({})).await.expect("the proxy reads");
    within("the end", client.read_to_end()).await;
}
