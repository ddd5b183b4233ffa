//! HTTP/2 from clients: many requests on a connection, windows that stay shut, resets, and good-byes. How exchanges end over
//! it is in [`crate::endings`].

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use h2::{Reason, client::Builder};
use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Wire, script};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::{
    harness::{Proxy, within},
    http2_client::{Http2, Stream},
};

const PATH: &str = "/v1/chat/completions";
const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame, and a PING.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";

fn config(backend: &str, server: &str) -> String {
    format!("server: {{{server}}}\nbackends: [{{url: '{backend}', models: [m]}}]\nhealth_check: {{enabled: false}}\n")
}

fn asked(stream: bool) -> Value {
    json!({"model": "m", "stream": stream, "stream_options": {"include_usage": true}, "messages": []})
}

async fn open_stream(wire: &mut Wire) {
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
}

/// A client that may be sent `window` bytes of a stream before it says that it has read them.
fn narrow(window: u32) -> Builder {
    let mut builder = Builder::new();
    builder.initial_window_size(window);
    builder
}

#[tokio::test]
async fn many_requests_share_a_connection_up_to_the_limit_and_nothing_is_held_or_mixed() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url(), "http2: {max_streams: 7}")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let mut streams = Vec::new();
    for index in 0..7 {
        let mut stream = client.post(PATH, &[("x-index", &index.to_string())], &asked(true)).await;
        let (seen, mut wire) = requests.next().await;
        assert_eq!(seen.header("x-index"), Some(&*index.to_string()));
        open_stream(&mut wire).await;
        assert_eq!(stream.head().await, 200);
        assert_eq!(stream.header("content-type"), Some("text/event-stream"));
        streams.push((stream, wire));
    }
    assert_eq!(client.max_streams(), 7);
    for round in 0..3 {
        for (index, (stream, wire)) in streams.iter_mut().enumerate() {
            let event = format!("data: {{\"round\":{round},\"stream\":{index}}}\n\n");
            wire.chunk(event.clone()).await.expect("the proxy reads");
            stream.expect_piece(&event).await;
        }
    }
    for (mut stream, wire) in streams {
        wire.finish().await.expect("the proxy reads");
        assert_eq!(stream.read_to_end().await.end, BodyEnd::Complete);
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_backend_gets_what_http1_has_in_headers() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let headers = [("cookie", "a=1"), ("cookie", "b=2"), ("x-mine", "kept")];
    let answer = client.post(PATH, &headers, &asked(false)).await.read_to_end().await;
    assert_eq!((answer.status, answer.json()), (200, json!({})));
    assert!(answer.header("x-request-id").is_some());
    let seen = &backend.seen()[0];
    assert_eq!((seen.header("cookie"), seen.header("x-mine")), (Some("a=1; b=2"), Some("kept")));
    assert_eq!(seen.header("host"), Some(&*backend.addr().to_string()));
}

#[tokio::test]
async fn where_it_is_off_only_http1_is_spoken() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "http2: {enabled: false}")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let mut stream = client.post(PATH, &[], &asked(false)).await;
    assert!(stream.try_head().await.is_err());
    assert_eq!(Client::connect(proxy.address()).await.post_json(PATH, &asked(false)).await.status, 200);
}

#[tokio::test]
async fn first_bytes_that_come_one_by_one_are_understood_as_what_they_are() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "")).await;
    // Each begins as HTTP/2 does, and is something else.
    for (request, status) in [
        (format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}"), "200"),
        ("PRIx / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404"),
        ("PRI * HTTP/1.1\r\n\r\n".to_owned(), "4"),
    ] {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
        stream.set_nodelay(true).expect("an open socket");
        for byte in request.as_bytes() {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut answer = [0; 512];
        let read = within("an answer", stream.read(&mut answer)).await.expect("reads");
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
    stream.set_nodelay(true).expect("an open socket");
    for byte in PREFACE.iter().chain(SETTINGS) {
        stream.write_all(&[*byte]).await.expect("the proxy reads");
        tokio::task::yield_now().await;
    }
    let mut frame = [0; 9];
    within("the server's settings", stream.read_exact(&mut frame)).await.expect("reads");
    assert_eq!(frame[3], 4, "{frame:?}");
}

#[tokio::test]
async fn all_before_a_failure_arrives_through_a_window_that_opens_late() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "")).await;
    // Room for all of the backend's events and the beginning of the proxy's own: the rest of it waits when the stream fails.
    let window = EVENT.len() * 50 + 10;
    let mut client = Http2::connect_as(proxy.address(), &narrow(u32::try_from(window).expect("small"))).await;
    let mut stream = client.post(PATH, &[], &asked(true)).await;
    let (_, mut wire) = requests.next().await;
    open_stream(&mut wire).await;
    assert_eq!(stream.head().await, 200);
    // A chunk size that is none: the answer breaks right behind the last event, in the same segment.
    let segment = format!("{:x}\r\n{EVENT}\r\n", EVENT.len()).repeat(50);
    wire.raw(format!("{segment}nonsense\r\n")).await.expect("the proxy reads");
    // The stream has failed in the proxy before anything of it is read.
    assert_eq!(proxy.ended().await["end"], "backend_failed");
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
    let answer = stream.read_to_end().await;
    let text = answer.text();
    assert!(text.starts_with(&EVENT.repeat(50)), "{text}");
    let last = &text[EVENT.len() * 50..];
    assert!(last.starts_with("data: {\"error\"") && !last.contains("[DONE]"), "{last}");
    assert_eq!(answer.end, BodyEnd::Truncated);
    let failure = stream.failure.expect("a reset");
    assert!(failure.is_reset() && failure.is_remote(), "{failure}");
}

#[tokio::test]
async fn a_stream_whose_window_stays_shut_slows_its_backend_and_is_given_up_and_the_others_go_on() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "write_timeout: 1s")).await;
    let mut builder = narrow(1 << 20);
    builder.initial_connection_window_size(1 << 24);
    let mut client = Http2::connect_as(proxy.address(), &builder).await;
    let mut stalled = client.post(PATH, &[], &asked(true)).await;
    let (_, mut wire) = requests.next().await;
    open_stream(&mut wire).await;
    assert_eq!(stalled.head().await, 200);
    let mut lively = client.post(PATH, &[], &asked(true)).await;
    let (_, mut other) = requests.next().await;
    open_stream(&mut other).await;
    lively.head().await;

    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(64 * 1024));
    let (mut sent, before, mut most) = (0, proxy.memory(), 0);
    let stopped = within("the proxy to give the client up", async {
        // The last write is into a buffer of the system's; that it fails is the proxy's end of the exchange.
        while wire.chunk(&event).await.is_ok() {
            sent += event.len();
            most = proxy.memory().max(most);
            other.chunk(EVENT).await.expect("the proxy reads");
            lively.expect_piece(EVENT).await;
        }
    });
    stopped.await;
    // Both streams, and what the allocator keeps.
    assert!(most < before + 2048, "{} KiB more for a stream that nobody reads", most - before);
    assert!(sent < 32 << 20, "{sent} bytes were taken for a client that reads nothing");
    assert_eq!(proxy.ended().await["end"], "client_gone");
    // It has what was sent, and then the reset.
    let rest = stalled.read_to_end().await;
    assert_eq!(rest.end, BodyEnd::Truncated);
    assert_eq!(stalled.failure.and_then(|failure| failure.reason()), Some(Reason::CANCEL));

    other.chunk(DONE).await.expect("the proxy reads");
    other.finish().await.expect("the proxy reads");
    assert_eq!(lively.read_to_end().await.end, BodyEnd::Complete);
    assert_eq!(proxy.ended().await["end"], "complete");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_client_timeouts_total", &["kind=\"write\""]), 1.0);
    assert_eq!(metrics.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_short_answer_that_the_client_has_no_window_for_is_given_up_too() {
    let backend = Backend::start(script::json(200, json!({"id": "x"}))).await;
    let mut proxy = Proxy::start(&config(&backend.url(), "write_timeout: 500ms")).await;
    let mut client = Http2::connect_as(proxy.address(), &narrow(0)).await;
    let mut stream = client.post(PATH, &[], &asked(false)).await;
    assert_eq!(stream.head().await, 200);
    assert_eq!(stream.piece().await, None);
    assert_eq!(stream.failure.and_then(|failure| failure.reason()), Some(Reason::CANCEL));
    proxy.ended().await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_given_up() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url(), "write_timeout: 2s")).await;
    let mut client = Http2::connect_as(proxy.address(), &narrow(64)).await;
    let mut stream = client.post(PATH, &[], &asked(true)).await;
    let (_, mut wire) = requests.next().await;
    open_stream(&mut wire).await;
    let event = format!("data: {}\n\n", "x".repeat(1000));
    wire.chunk(&event).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let start = tokio::time::Instant::now();
    let mut read = Vec::new();
    while let Some(piece) = stream.piece().await {
        // Each wait is short enough, though all of them together are longer than the limit.
        tokio::time::sleep(Duration::from_millis(150)).await;
        read.extend_from_slice(&piece);
    }
    assert!(start.elapsed() > Duration::from_millis(2100));
    assert!(stream.failure.is_none() && read == event.as_bytes(), "{:?} {}", stream.failure, read.len());
}

/// A socket whose reader goes deaf when told to.
struct Deaf {
    inner: TcpStream,
    deaf: Arc<AtomicBool>,
}

impl AsyncRead for Deaf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.deaf.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_its_socket_is_given_up_with_all_its_streams() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "write_timeout: 1s")).await;
    let deaf = Arc::<AtomicBool>::default();
    let inner = TcpStream::connect(proxy.address()).await.expect("connects");
    let mut builder = narrow(i32::MAX as u32);
    builder.initial_connection_window_size(i32::MAX as u32);
    let socket = Deaf { inner, deaf: deaf.clone() };
    let mut client = Http2::over(socket, &builder, format!("http://{}", proxy.address())).await;
    let mut streams = Vec::new();
    let mut wires = Vec::new();
    for _ in 0..2 {
        let mut stream = client.post(PATH, &[], &asked(true)).await;
        let (_, mut wire) = requests.next().await;
        open_stream(&mut wire).await;
        assert_eq!(stream.head().await, 200);
        streams.push(stream);
        wires.push(wire);
    }
    deaf.store(true, Ordering::Release);
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(64 * 1024));
    let (mut silent, mut wire) = (wires.remove(0), wires.remove(0));
    let mut sent = 0;
    within("the proxy to give the client up", async {
        while wire.chunk(&event).await.is_ok() {
            sent += event.len();
        }
    })
    .await;
    assert!(sent < 64 << 20, "{sent} bytes were taken for a client that reads nothing");
    within("the other backend to see the client leave", silent.client_gone()).await;
    for _ in 0..2 {
        assert_eq!(proxy.ended().await["end"], "client_gone");
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn pings_without_end_from_a_client_that_does_not_read_are_not_gathered() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "write_timeout: 1s")).await;
    assert_eq!(Client::connect(proxy.address()).await.get("/health").await.status, 200);
    let before = proxy.memory();
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.expect("the proxy reads");
    // Pings and settings, each of which asks for an answer.
    let flood = [PING, SETTINGS].concat().repeat(1000);
    let flooding = within("the proxy to close", async {
        let mut sent = 0;
        while stream.write_all(&flood).await.is_ok() {
            sent += flood.len();
        }
        sent
    });
    let sent = flooding.await;
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB after {sent} bytes of pings");
    assert_eq!(Client::connect(proxy.address()).await.get("/health").await.status, 200);
}

/// Reads what comes until the connection is closed.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // It may be broken rather than closed, which is as good.
    let _ = within("the proxy to close", stream.read_to_end(&mut all)).await;
    all
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_whatever_frames_come() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "read_timeout: 1s, idle_timeout: 1s")).await;
    // Half a preface, a whole one, and one with pings all the time.
    for (sent, pings) in [(&PREFACE[..9], false), (PREFACE, false), (&[PREFACE, SETTINGS].concat(), true)] {
        let stream = TcpStream::connect(proxy.address()).await.expect("connects");
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(sent).await.expect("the proxy reads");
        let pinging = tokio::spawn(async move {
            while !pings || writer.write_all(PING).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut all = Vec::new();
        let _ = within("the proxy to close", reader.read_to_end(&mut all)).await;
        pinging.abort();
        assert!(!has(&all, b"HTTP/1.1"), "{}", String::from_utf8_lossy(&all));
    }
    // After a request, with a good-bye: a frame of type GOAWAY.
    let mut client = Http2::connect(proxy.address()).await;
    assert_eq!(client.post(PATH, &[], &asked(false)).await.read_to_end().await.status, 200);
    client.closed().await.expect("in good order");
    // One that does not answer to it is closed as well.
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.expect("the proxy reads");
    let all = until_closed(&mut stream).await;
    assert!(has(&all, b"\x07\0\0\0\0\0"), "no GOAWAY in {all:?}");
}

#[tokio::test]
async fn a_stream_may_be_silent_for_longer_than_a_connection_may_idle() {
    let (backend, mut requests) = Backend::stepped().await;
    let proxy = Proxy::start(&config(&backend.url(), "read_timeout: 300ms, idle_timeout: 300ms")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let mut stream = client.post(PATH, &[], &asked(true)).await;
    let (_, mut wire) = requests.next().await;
    open_stream(&mut wire).await;
    assert_eq!(stream.head().await, 200);
    tokio::time::sleep(Duration::from_millis(900)).await;
    wire.chunk(EVENT).await.expect("the proxy reads");
    stream.expect_piece(EVENT).await;
    wire.finish().await.expect("the proxy reads");
    assert_eq!(stream.read_to_end().await.end, BodyEnd::Complete);
}

/// Gives a client's stream up: by a reset, or with its whole connection.
fn give_up(client: Http2, stream: Stream, cut: bool) {
    if cut {
        client.cut();
    } else {
        stream.leave();
        // The connection stays.
        tokio::spawn(client.closed());
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_body_is_read_asked_nobody_and_keeps_nothing() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let yaml = config(&backend.url(), "");
    let yaml = format!("{yaml}rate_limit: {{enabled: true, per_key: {{max_concurrent: 1, requests_per_minute: 5}}}}\n");
    let mut proxy = Proxy::start(&yaml).await;
    for cut in [false, true] {
        let mut client = Http2::connect(proxy.address()).await;
        let headers = [("content-type", "application/json"), ("content-length", "100")];
        let mut stream = client.begin("POST", PATH, &headers, false).await;
        stream.upload.send_data("{".into(), false).expect("it can be sent");
        // The proxy has the head when it takes the next request, which is behind it.
        let mut other = client.begin("GET", "/health", &[], true).await;
        assert_eq!(other.read_to_end().await.status, 200);
        give_up(client, stream, cut);
        let line = proxy.ended().await;
        assert_eq!(line["status_code"], 499, "{line}");
    }
    let mut client = Client::connect(proxy.address()).await;
    let answer = client.post_json(PATH, &asked(false)).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, Some("4")));
    assert_eq!(backend.counts().requests, 1);
}

#[tokio::test]
async fn a_connection_that_is_cut_ends_all_its_exchanges() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let mut streams = Vec::new();
    let mut wires = Vec::new();
    for (stream, events) in [(true, 0), (false, 0), (true, 1), (true, 2)] {
        let mut asked = client.post(PATH, &[], &asked(stream)).await;
        let (_, mut wire) = requests.next().await;
        if events > 0 {
            open_stream(&mut wire).await;
        }
        for _ in 0..events {
            wire.chunk(EVENT).await.expect("the proxy reads");
            asked.expect_piece(EVENT).await;
        }
        streams.push(asked);
        wires.push(wire);
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 4.0);
    client.cut();
    for mut wire in wires {
        within("the backend to see the client leave", wire.client_gone()).await;
        assert_eq!(proxy.ended().await["end"], "client_gone");
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_client_that_resets_while_its_backend_talks_is_gone_at_once() {
    let backend = Backend::start(|_, mut wire| async move {
        open_stream(&mut wire).await;
        loop {
            wire.chunk(EVENT).await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut proxy = Proxy::start(&config(&backend.url(), "")).await;
    for cut in [false, true] {
        let mut client = Http2::connect(proxy.address()).await;
        let mut stream = client.post(PATH, &[], &asked(true)).await;
        for _ in 0..10 {
            stream.expect_piece(EVENT).await;
        }
        give_up(client, stream, cut);
        assert_eq!(proxy.ended().await["end"], "client_gone");
        backend.when(|counts| counts.in_progress == 0).await;
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_client_that_opens_and_resets_streams_without_end_is_thrown_out() {
    let backend = Backend::start(script::hang()).await;
    let proxy = Proxy::start(&config(&backend.url(), "")).await;
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connects");
    let mut flood = [PREFACE, SETTINGS].concat();
    for index in 0..5000_u32 {
        let id = (2 * index + 1).to_be_bytes();
        // HEADERS that end head and stream: `:method GET`, `:scheme http`, `:path /` of HPACK's static table.
        flood.extend_from_slice(&[0, 0, 3, 1, 5]);
        flood.extend_from_slice(&id);
        flood.extend_from_slice(&[0x82, 0x86, 0x84]);
        // RST_STREAM with CANCEL.
        flood.extend_from_slice(&[0, 0, 4, 3, 0]);
        flood.extend_from_slice(&id);
        flood.extend_from_slice(&[0, 0, 0, 8]);
    }
    // It may be thrown out before it has sent all.
    let _ = stream.write_all(&flood).await;
    let all = until_closed(&mut stream).await;
    // GOAWAY with ENHANCE_YOUR_CALM, unless the connection was broken before it could be read.
    assert!(all.is_empty() || has(&all, b"\0\0\0\x0b"), "{all:?}");
    assert_eq!(Client::connect(proxy.address()).await.get("/health").await.status, 200);
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn heads_that_are_too_large_or_have_too_many_headers_are_431() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let mut proxy = Proxy::start(&config(&backend.url(), "max_header_bytes: 8192, max_headers: 10")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let many: Vec<(String, String)> = (0..20).map(|index| (format!("x-{index}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    let answer = client.begin("GET", "/v1/models", &many, true).await.read_to_end().await;
    assert_eq!(answer.status, 431);
    assert_eq!(
        (&answer.json()["error"]["code"], answer.header("content-type")),
        (&json!("head_too_large"), Some("application/json"))
    );
    let line = proxy.ended().await;
    assert_eq!((&line["status_code"], line["request_id"].as_str()), (&json!(431), answer.header("x-request-id")));
    let answer = client.begin("POST", "/v1/messages", &many, true).await.read_to_end().await;
    assert_eq!((answer.status, &answer.json()["type"]), (431, &json!("error")), "{}", answer.text());
    let large = "x".repeat(20_000);
    assert_eq!(client.begin("GET", "/v1/models", &[("x-large", &large)], true).await.head().await, 431);
    assert_eq!(client.begin("GET", "/health", &[], true).await.read_to_end().await.status, 200);
}

#[tokio::test]
async fn an_answer_that_does_not_wait_for_the_body_arrives_and_the_connection_stays() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "max_body_size: 1000")).await;
    let mut client = Http2::connect(proxy.address()).await;
    for headers in [
        &[("content-type", "application/json"), ("content-length", "5000000")][..],
        &[("content-type", "application/json")],
    ] {
        let mut stream = client.begin("POST", PATH, headers, false).await;
        stream.upload.send_data(vec![b' '; 20_000].into(), false).expect("it can be sent");
        let answer = stream.read_to_end().await;
        assert_eq!((answer.status, answer.end), (413, BodyEnd::Complete), "{}", answer.text());
        assert!(answer.json()["error"]["message"].is_string());
    }
    assert_eq!(client.post(PATH, &[], &asked(false)).await.read_to_end().await.status, 200);
}

#[tokio::test]
async fn a_shutdown_lets_streams_finish_and_takes_no_more() {
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "shutdown_timeout: 10s")).await;
    let mut client = Http2::connect(proxy.address()).await;
    let mut idle = Http2::connect(proxy.address()).await;
    assert_eq!(idle.begin("GET", "/health", &[], true).await.read_to_end().await.status, 200);
    let mut stream = client.post(PATH, &[], &asked(true)).await;
    let (_, mut wire) = requests.next().await;
    open_stream(&mut wire).await;
    assert_eq!(stream.head().await, 200);

    proxy.signal(Signal::TERM);
    proxy.logged("no longer accepting").await;
    idle.closed().await.expect("in good order");
    wire.chunk(EVENT).await.expect("the proxy reads");
    stream.expect_piece(EVENT).await;
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let rest = stream.read_to_end().await;
    assert_eq!((rest.text().as_str(), rest.end), (DONE, BodyEnd::Complete));
    drop(stream);
    client.closed().await.expect("in good order");
    assert!(proxy.exit().await.success());
}
