//! Clients and backends that mean harm: too much of everything, and words that try to be something else.

use std::{collections::BTreeSet, time::Duration};

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Receiver, Wire, event, script};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::harness::{Proxy, get};

const CHAT: &str = "/v1/chat/completions";
/// What a flood may make of the proxy's memory, in KiB.
const MEMORY: u64 = 16 * 1024;

fn config(backend: &Backend, more: &str) -> String {
    format!("backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n{more}", backend.url())
}

/// Answers with a small JSON.
async fn plain() -> Backend {
    Backend::start(script::json(200, json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})))
        .await
}

/// A request with this body and its length.
fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn too_much_of_anything_is_refused_or_passes_and_the_proxy_goes_on() {
    let backend = plain().await;
    let more = "server: {max_header_bytes: 16KiB, max_body_size: 4MiB, max_buffered_bytes: 8MiB, read_timeout: 2s}\n";
    let proxy = Proxy::start(&config(&backend, more)).await;
    let question = r#"{"model":"m","messages":[]}"#;
    let long = "x".repeat(1 << 20);
    let many_headers: String = (0..10_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let few_headers: String = (0..2_000).map(|n| format!("x{n}:\r\n")).collect();
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let deep_object = "{\"a\":".repeat(100_000) + "1" + &"}".repeat(100_000);
    let keys: String = (0..100_000).map(|n| format!("\"k{n}\":{n},")).collect();
    let ask = |body: &str| post(CHAT, "", body);
    let members = |members: &str| ask(&format!("{{\"model\":\"m\",{members}}}"));
    let raw = |rest: &str| {
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{rest}").into_bytes()
    };
    let endless = format!("transfer-encoding: chunked\r\n\r\n1;{long}\r\n{{");
    let cases: &[(&str, Vec<u8>, &[u16])] = &[
        ("a header of a mebibyte", post(CHAT, &format!("x-long: {long}\r\n"), question), &[431]),
        ("a header's name of a mebibyte", post(CHAT, &format!("x-{long}: 1\r\n"), question), &[431]),
        ("ten thousand headers", post(CHAT, &many_headers, question), &[431]),
        ("two thousand empty headers", post(CHAT, &few_headers, question), &[431]),
        ("a path of a mebibyte", post(&format!("/v1/{long}"), "", question), &[414, 431]),
        ("a query of ten kilobytes", post(&format!("{CHAT}?{}", &long[..10_000]), "", question), &[200]),
        ("a method of a mebibyte", format!("{long} / HTTP/1.1\r\n\r\n").into_bytes(), &[400, 431]),
        ("a length beyond all numbers", raw(&format!("content-length: {}\r\n\r\n", "9".repeat(40))), &[400]),
        ("a length of an exabyte", raw("content-length: 1000000000000000000\r\n\r\n{"), &[413]),
        ("an extension of a chunk of a mebibyte", raw(&endless), &[400]),
        ("a body that is too long", members(&format!("\"x\":\"{}\"", long.repeat(5))), &[413]),
        ("a list in lists, a hundred thousand deep", members(&format!("\"messages\":{deep}")), &[200]),
        ("a model like that", ask(&format!("{{\"model\":{deep}}}")), &[400]),
        ("options like that", members(&format!("\"stream\":true,\"stream_options\":{{\"x\":{deep}}}")), &[200]),
        ("objects in objects", members(&format!("\"messages\":{deep_object}")), &[200]),
        ("nothing but lists", ask(&deep), &[400]),
        ("lists without an end", ask(&deep[..100_000]), &[400]),
        ("a hundred thousand members", members(keys.trim_end_matches(',')), &[200]),
        ("a member's name of a mebibyte", members(&format!("\"{long}\":1")), &[200]),
        ("a model's name of a mebibyte", ask(&format!("{{\"model\":\"{long}\"}}")), &[400]),
        ("an escaped one", ask(&format!("{{\"model\":\"{}\"}}", "\\u0061".repeat(80_000))), &[400]),
        ("numbers beyond all numbers", members("\"max_tokens\":1e400,\"n\":99999999999999999999"), &[200]),
    ];
    for (case, request, allowed) in cases {
        let mut client = Client::connect(proxy.address()).await;
        // A proxy that refuses by the head closes while the rest is being sent.
        let _ = client.send_raw(request).await;
        match client.try_head().await {
            Ok(head) => assert!(allowed.contains(&head.status), "{case}: {}", head.status),
            // What was still being sent may have cost us the answer: that is a reset, and no other way to end.
            Err(error) => assert!(
                !allowed.contains(&200) && error.kind() == std::io::ErrorKind::ConnectionReset,
                "{case}: {error}"
            ),
        }
        assert_eq!(get(proxy.address(), "/health").await.0, 200, "{case}");
    }
    let metrics = proxy.metrics().await;
    let left = ["llmproxy_in_flight", "llmproxy_inspect_buffered_bytes"].map(|name| metrics.sum(name, &[]));
    assert_eq!(left, [0.0, 0.0]);
}

/// Texts that would be something else in a log, a terminal or a head.
const EVIL: &[&str] = &[
    "a\r\nx-evil: 1",
    "a\n{\"timestamp\":\"2026-01-01T00:00:00Z\",\"path\":\"/forged\"}",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{9b}2J\u{85}next\u{7f}",
    "a\" 200 0ms \"-\" model=forged",
    "\u{2028}\u{202e}\u{0}",
];

#[tokio::test]
async fn what_a_client_writes_makes_no_second_line_and_no_header() {
    for format in ["json", "combined"] {
        let backend = plain().await;
        let mut proxy = Proxy::start(&config(&backend, &format!("logging: {{access: {{format: {format}}}}}\n"))).await;
        for evil in EVIL {
            let escaped: String = evil.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let asks = [
                // As a model that nobody has, in a path that the proxy knows, and in one that it does not.
                post(CHAT, "", &json!({"model": evil, "messages": []}).to_string()),
                post(&format!("/v1/models/{escaped}"), "", "{}"),
                post(&format!("/{escaped}"), &format!("user-agent: {escaped}\r\nx-request-id: {escaped}\r\n"), "{}"),
            ];
            for ask in asks {
                let mut client = Client::connect(proxy.address()).await;
                client.send_raw(&ask).await.expect("the proxy reads");
                let answer = client.read_to_end().await;
                assert!((400..500).contains(&answer.status), "{evil:?}: {}", answer.status);
                assert!(answer.header("x-evil").is_none());
                assert!(answer.json()["error"]["message"].is_string(), "{evil:?}: {}", answer.text());
                // The next line of the log is this exchange's, whole, and fit for a terminal.
                let line = proxy.ended().await;
                let text = match &line {
                    Value::String(text) => text.clone(),
                    line => line.to_string(),
                };
                assert_eq!(line.is_string(), format == "combined", "{text}");
                assert!(text.contains(&answer.status.to_string()), "{text}");
                // Of a line of JSON the escapes have been read already.
                assert!(!line.is_string() || !text.contains(char::is_control), "{text:?}");
            }
        }
        // Bytes that no header may have are refused by the server, or seen by nobody.
        for evil in ["\u{1b}[2J", "a\u{0}b", "\u{7f}"] {
            for header in ["user-agent", "x-request-id", "authorization"] {
                let mut client = Client::connect(proxy.address()).await;
                client.send_raw(post(CHAT, &format!("{header}: {evil}\r\n"), "{}")).await.expect("the proxy reads");
                assert_eq!(client.head().await.status, 400, "{header}: {evil:?}");
            }
        }
        assert_eq!(backend.counts().requests, 0);
    }
}

#[tokio::test]
async fn a_request_s_own_id_comes_back_only_where_it_is_one() {
    let backend = plain().await;
    let proxy = Proxy::start(&config(&backend, "")).await;
    let question = r#"{"model":"m","messages":[]}"#;
    for (id, comes_back) in [("mine-1", true), (&"x".repeat(2000), false), ("\u{fc}\u{9b}", false)] {
        let mut client = Client::connect(proxy.address()).await;
        client.send_raw(post(CHAT, &format!("x-request-id: {id}\r\n"), question)).await.expect("the proxy reads");
        let answer = client.read_to_end().await;
        assert_eq!((answer.status, answer.header("x-request-id") == Some(id)), (200, comes_back), "{id}");
        // The backend is told ours.
        let seen = backend.seen().pop().expect("asked");
        assert_eq!(seen.header("x-request-id").map(str::len), Some(36));
    }
}

#[tokio::test]
async fn strangers_make_no_series_of_metrics() {
    let backend = plain().await;
    let proxy = Proxy::start(&config(&backend, "")).await;
    let ask = async |path: &str, model: &str| {
        let mut client = Client::connect(proxy.address()).await;
        client.send_json(path, &[], &json!({"model": model, "messages": []})).await;
        client.read_to_end().await.status
    };
    let series = async || {
        let all = get(proxy.address(), "/metrics").await.1;
        let lines = all.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        lines.map(|(series, _)| series.to_owned()).collect::<BTreeSet<String>>()
    };
    // One of each kind, so that what is shown at all is shown; the metrics' own are.
    series().await;
    let kinds = ["m", "unknown"];
    let paths = [CHAT, "/v1/unknown", "/unknown", "/v1/models/x", "/v1/files/x"];
    for (path, model) in paths.iter().flat_map(|path| kinds.map(|model| (path, model))) {
        ask(path, model).await;
    }
    let before = series().await;
    for n in 0..100 {
        let random = format!("{:x}", fastrand::u64(..));
        assert_eq!(ask(CHAT, &random).await, 404);
        for path in
            [format!("/v1/{random}"), format!("/{random}"), format!("/v1/models/{random}"), format!("/v1/files/{n}")]
        {
            ask(&path, "m").await;
        }
    }
    let after = series().await;
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:#?}");
}

/// An answer that begins, goes on with as many megabytes of the same, and ends.
#[derive(Clone, Copy)]
struct Flood {
    headers: &'static [(&'static str, &'static str)],
    begin: &'static str,
    byte: u8,
    megabytes: usize,
    end: &'static str,
}

impl Flood {
    async fn pour(self, mut wire: Wire) -> std::io::Result<()> {
        let piece = vec![self.byte; 100_000];
        wire.head(200, self.headers).await?;
        wire.chunk(self.begin).await?;
        for _ in 0..10 * self.megabytes {
            wire.chunk(&piece).await?;
        }
        wire.chunk(self.end).await?;
        wire.finish().await
    }
}

#[tokio::test]
async fn an_answer_without_an_end_takes_no_memory() {
    const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];
    const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
    // The bytes of a bomb: whatever is in it, nobody unpacks it.
    const PACKED: &[(&str, &str)] = &[("content-type", "text/event-stream"), ("content-encoding", "gzip")];
    const LAST: &str = "\n\ndata: [DONE]\n\n";
    let backend = plain().await;
    let proxy = Proxy::start(&config(&backend, "")).await;
    for (case, megabytes, headers, begin, byte, end) in [
        ("a comment", 100, EVENTS, ": ", b'x', LAST),
        ("a line of data", 20, EVENTS, "data: ", b'x', LAST),
        ("an event's name", 20, EVENTS, "event: ", b'x', LAST),
        ("a field without a name", 20, EVENTS, "", b'x', LAST),
        ("blank lines", 20, EVENTS, "", b'\n', LAST),
        ("what could be the usage event", 20, EVENTS, "data: {\"choices\":[],\"usage\":{\"a\":\"", b'x', "\"}}\n\n"),
        ("a plain answer's usage", 20, JSON, "{\"usage\":{\"a\":\"", b'x', "\"}}"),
        ("a plain answer's id", 20, JSON, "{\"id\":\"", b'x', "\"}"),
        ("a plain answer's key", 20, JSON, "{\"", b'x', "\":1}"),
        ("lists in lists", 20, JSON, "{\"usage\":", b'[', "}"),
        ("a compressed stream", 20, PACKED, "\u{1f}\u{8b}", 0, "\0"),
    ] {
        let flood = Flood { headers, begin, byte, megabytes, end };
        backend.set_script(move |_, wire| flood.pour(wire));
        let mut client = Client::connect(proxy.address()).await;
        client.send_json(CHAT, &[], &json!({"model": "m", "stream": true, "messages": []})).await;
        assert_eq!(client.head().await.status, 200);
        let (before, mut most, mut size, mut looked) = (proxy.memory(), 0, 0, 0);
        while let Some(piece) = client.piece().await {
            size += piece.len();
            if size - looked > 1_000_000 {
                looked = size;
                most = most.max(proxy.memory());
            }
        }
        assert_eq!(
            (client.end(), size),
            (Some(BodyEnd::Complete), begin.len() + megabytes * 1_000_000 + end.len()),
            "{case}"
        );
        let memory = most.saturating_sub(before);
        assert!(memory < MEMORY, "{case} took {memory} KiB");
    }
}

#[tokio::test]
async fn a_line_of_a_mebibyte_passes_as_it_is() {
    let big = event(&json!({"choices": [{"delta": {"content": "x".repeat(1 << 20)}}]}));
    let backend = Backend::start(script::sse([big.clone(), DONE.to_owned()])).await;
    let proxy = Proxy::start(&config(&backend, "")).await;
    let mut client = Client::connect(proxy.address()).await;
    let answer = client.post_json(CHAT, &json!({"model": "m", "stream": true, "messages": []})).await;
    assert_eq!((answer.status, answer.end), (200, BodyEnd::Complete));
    assert!(answer.body() == (big + DONE).into_bytes());
}

#[tokio::test]
async fn a_head_or_an_end_that_goes_on_for_ever_is_a_failure() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    // Few in many bytes: hyper reads all that are there before anything else has its turn.
    let hint = format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n", "x".repeat(800));
    for (case, begin, piece, status, end) in [
        ("interim answers", "", &*hint, 504, BodyEnd::Complete),
        ("headers", "HTTP/1.1 200 OK\r\n", "x-more: of this\r\n", 502, BodyEnd::Complete),
        ("a header", "HTTP/1.1 200 OK\r\nx-long: ", "and longer ", 502, BodyEnd::Complete),
        ("a reason", "HTTP/1.1 200 ", "because ", 502, BodyEnd::Complete),
        ("trailers", &format!("{OK}2\r\n{{}}\r\n0\r\n"), "x-more: of this\r\n", 200, BodyEnd::Truncated),
        ("an extension of a chunk", &format!("{OK}2;"), "and longer ", 200, BodyEnd::Truncated),
    ] {
        let (begin, piece) = (begin.to_owned(), piece.repeat(16_000 / piece.len()));
        let backend = Backend::start(move |_, mut wire| {
            let (begin, piece) = (begin.clone(), piece.clone());
            async move {
                wire.raw(begin).await?;
                loop {
                    wire.raw(&piece).await?;
                    // Nothing is gained by the last byte per second that the machine can do.
                    sleep(Duration::from_millis(5)).await;
                }
            }
        })
        .await;
        let more = "routing: {timeout: 2s, gap_timeout: 2s, retry: {enabled: false}}\n";
        let mut proxy = Proxy::start(&config(&backend, more)).await;
        let before = proxy.memory();
        // Shown where the test fails.
        println!("{case}");
        let mut client = Client::connect(proxy.address()).await;
        let answer = client.post_json(CHAT, &json!({"model": "m", "messages": []})).await;
        assert_eq!((answer.status, answer.end), (status, end), "{case}: {}", answer.text());
        proxy.ended().await;
        let memory = proxy.memory().saturating_sub(before);
        assert!(memory < MEMORY, "{case} took {memory} KiB");
        backend.when(|counts| counts.open_connections == 0).await;
        assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0, "{case}");
    }
}

#[tokio::test]
async fn what_a_backend_counts_beyond_all_numbers_is_a_record_all_the_same() {
    let receiver = Receiver::start().await;
    let most = u64::MAX;
    for (number, usage) in [
        json!({"prompt_tokens": most, "completion_tokens": most, "total_tokens": most}),
        json!({"prompt_tokens": -1, "completion_tokens": 1.5, "total_tokens": "many"}),
        json!({"prompt_tokens": [1], "completion_tokens": {"a": 1}, "prompt_tokens_details": 7}),
        json!([[[]]]),
    ]
    .into_iter()
    .enumerate()
    {
        let backend =
            Backend::start(script::json(200, json!({"id": "\u{1b}[2J\r\n", "model": "\n", "usage": usage}))).await;
        let more = format!(
            "rate_limit: {{enabled: true, global: {{tokens_per_minute: 100000}}}}
usage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
            receiver.url()
        );
        let proxy = Proxy::start(&config(&backend, &more)).await;
        let mut client = Client::connect(proxy.address()).await;
        let answer = client.post_json(CHAT, &json!({"model": "m", "messages": [], "max_tokens": 5})).await;
        assert_eq!(answer.status, 200, "{usage}");
        let records = receiver.wait_for(number + 1).await;
        assert_eq!(records.len(), number + 1, "{usage}");
        assert_eq!(records[number]["end"], "complete", "{usage}");
        assert_eq!(get(proxy.address(), "/health").await.0, 200, "{usage}");
    }
}
