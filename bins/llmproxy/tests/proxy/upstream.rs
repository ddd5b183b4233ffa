//! What the connections to backends are like: HTTP/2, TLS, how many, and where they do not go.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use h2::Reason;
use llmproxy_testkit::{Backend, BodyEnd, Client, script};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    harness::{Folder, Proxy, within},
    http2_backend::{self, Asked, Http2Backend},
    raw::{Raw, RawBackend},
};

const CHAT: &str = "/v1/chat/completions";

fn config(url: &str, more: &str) -> String {
    format!(
        "backends: [{{url: '{url}', models: [m], {more}}}]\nhealth_check: {{enabled: false}}\nrouting: {{retry: {{enabled: false}}}}\n"
    )
}

async fn ask(proxy: &Proxy, stream: bool) -> Client {
    let mut client = Client::connect(proxy.address()).await;
    client.send_json(CHAT, &[], &json!({"model": "m", "stream": stream, "messages": []})).await;
    client
}

async fn http2() -> (Http2Backend, Proxy) {
    let backend = Http2Backend::start().await;
    let proxy = Proxy::start(&config(&backend.url(), "http2: true")).await;
    (backend, proxy)
}

#[tokio::test]
async fn a_backend_of_http2_is_asked_over_one_connection_and_answers_pass_piece_by_piece() {
    let (mut backend, mut proxy) = http2().await;
    let (mut one, mut two) = (ask(&proxy, true).await, ask(&proxy, false).await);
    let (mut first, mut second) = (backend.asked().await, backend.asked().await);
    assert_eq!((first.connection, second.connection), (0, 0));
    let body = first.body().await;
    if serde_json::from_str::<Value>(&body).expect("JSON")["stream"] != true {
        std::mem::swap(&mut first, &mut second);
    }
    let head = &first.head;
    assert_eq!((head.version(), head.method().as_str(), head.uri().path()), (http::Version::HTTP_2, "POST", CHAT));
    assert_eq!(head.uri().authority().map(|authority| authority.as_str()), backend.url().strip_prefix("http://"));
    assert_eq!(head.headers()["via"], "1.1 llmproxy");
    for name in ["connection", "host", "transfer-encoding", "keep-alive"] {
        assert!(!head.headers().contains_key(name), "{name}");
    }
    let mut answer = first.answer(200, "text/event-stream");
    for piece in ["data: 1\n\n", "data: 2\n\n"] {
        answer.piece(piece);
        one.expect_piece(piece).await;
    }
    second.json();
    assert_eq!(two.read_to_end().await.text(), "{}");
    assert_eq!(proxy.ended().await["end"], "complete");
    answer.last("data: [DONE]\n\n");
    assert_eq!(one.read_to_end().await.end, BodyEnd::Complete);
    assert_eq!(proxy.ended().await["end"], "complete");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_stream_and_not_the_connection() {
    let (mut backend, mut proxy) = http2().await;
    let mut other = ask(&proxy, true).await;
    let mut stays = backend.asked().await.answer(200, "text/event-stream");
    stays.piece("data: 1\n\n");
    other.expect_piece("data: 1\n\n").await;
    let mut client = ask(&proxy, true).await;
    let mut answer = backend.asked().await.answer(200, "text/event-stream");
    answer.piece("data: 1\n\n");
    client.expect_piece("data: 1\n\n").await;
    client.leave();
    assert_eq!(answer.given_up().await, Reason::CANCEL);
    assert_eq!(proxy.ended().await["end"], "client_gone");
    // Before the head as well.
    let client = ask(&proxy, true).await;
    let asked = backend.asked().await;
    client.leave();
    assert_eq!(proxy.ended().await["end"], "client_gone");
    assert_eq!(asked.connection, 0);
    stays.piece("data: 2\n\n");
    other.expect_piece("data: 2\n\n").await;
    let mut third = ask(&proxy, false).await;
    let asked = backend.asked().await;
    assert_eq!(asked.connection, 0);
    asked.json();
    assert_eq!(third.read_to_end().await.text(), "{}");
}

#[tokio::test]
async fn a_backend_that_breaks_off_in_the_middle_is_seen_to_have_done_so() {
    // A reset without an error is only right after an end: without one it looks complete to those who don't look twice.
    for reset in [Some(Reason::INTERNAL_ERROR), Some(Reason::NO_ERROR), Some(Reason::CANCEL), None] {
        let (mut backend, mut proxy) = http2().await;
        let mut client = ask(&proxy, true).await;
        let mut answer = backend.asked().await.answer(200, "text/event-stream");
        answer.piece("data: 1\n\n");
        client.expect_piece("data: 1\n\n").await;
        match reset {
            Some(reason) => answer.reset(reason),
            None => answer.close_connection(),
        }
        let got = client.read_to_end().await;
        assert_eq!(got.end, BodyEnd::Truncated, "{reset:?}");
        assert!(got.text().starts_with("data: ") && got.text().contains("\"error\""), "{}", got.text());
        let line = proxy.ended().await;
        assert_eq!(line["end"], "backend_failed", "{line}");
        assert!(line["error"].as_str().is_some_and(|error| error.contains("in the middle of its answer")), "{line}");
    }
}

#[tokio::test]
async fn a_stream_that_is_reset_before_its_head_is_a_502_and_one_that_is_refused_is_asked_again() {
    let (mut backend, mut proxy) = http2().await;
    // A connection that is there already, so that it is a reused one.
    let mut first = ask(&proxy, false).await;
    backend.asked().await.json();
    first.read_to_end().await;
    proxy.ended().await;
    let mut client = ask(&proxy, false).await;
    backend.asked().await.reset(Reason::INTERNAL_ERROR);
    assert_eq!(client.read_to_end().await.status, 502);
    assert_eq!(proxy.ended().await["end"], "backend_failed");
    let mut client = ask(&proxy, false).await;
    backend.asked().await.reset(Reason::REFUSED_STREAM);
    let again = backend.asked().await;
    assert_eq!(again.connection, 1);
    again.json();
    assert_eq!(client.read_to_end().await.status, 200);
}

#[tokio::test]
async fn nonsense_over_http2_is_a_502_or_visible() {
    let large = "a".repeat(1 << 20);
    let long: Vec<_> = (0..64).map(|_| ("x-a", &large[..16 << 10])).collect();
    let heads = [&[("content-length", "5"), ("content-length", "6")][..], &[("content-length", "x")], &long];
    for headers in heads {
        let (mut backend, mut proxy) = http2().await;
        let mut client = ask(&proxy, false).await;
        let _answer = backend.asked().await.answer_with(200, headers);
        let head = client.try_head().await.map(|head| head.status);
        assert_eq!(head.ok(), Some(502), "{} of {}", headers.len(), headers[0].0);
        assert_eq!(proxy.ended().await["end"], "backend_failed");
    }
    for length in ["3", "1"] {
        let (mut backend, mut proxy) = http2().await;
        let mut client = ask(&proxy, false).await;
        backend.asked().await.answer_with(200, &[("content-length", length)]).last("{}");
        let got = client.read_to_end().await;
        assert!(got.status == 502 || got.end == BodyEnd::Truncated, "{length}: {} {:?}", got.status, got.end);
        assert_eq!(proxy.ended().await["end"], "backend_failed");
    }
}

#[tokio::test]
async fn a_backend_that_says_goodbye_finishes_its_streams_and_gets_new_ones_over_another_connection() {
    let (mut backend, mut proxy) = http2().await;
    let mut stays = ask(&proxy, true).await;
    let mut answer = backend.asked().await.answer(200, "text/event-stream");
    answer.piece("data: 1\n\n");
    stays.expect_piece("data: 1\n\n").await;
    answer.say_goodbye();
    for _ in 0..3 {
        // Whether it was sent before the goodbye was read or after: no client hears of it.
        let mut client = ask(&proxy, false).await;
        backend.asked().await.json();
        assert_eq!(client.read_to_end().await.status, 200);
        assert_eq!(proxy.ended().await["end"], "complete");
    }
    answer.last("data: [DONE]\n\n");
    assert_eq!(stays.read_to_end().await.end, BodyEnd::Complete);
    assert_eq!(proxy.ended().await["end"], "complete");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_back_its_own_stream_and_no_other() {
    let (mut backend, proxy) = http2().await;
    let mut other = ask(&proxy, true).await;
    let asked = backend.asked().await;
    let shared = asked.connection;
    let mut answer = asked.answer(200, "text/event-stream");
    let mut slow = ask(&proxy, true).await;
    let asked = backend.asked().await;
    assert_eq!(asked.connection, shared);
    let mut endless = asked.answer(200, "text/event-stream");
    assert_eq!(slow.head().await.status, 200);
    let mut sent = 0;
    // What the sockets hold, and the proxy a little: then there is no room any more.
    while let Ok(more) = timeout(Duration::from_millis(500), endless.fill()).await {
        sent += more;
        assert!(sent < 64 << 20, "nothing holds it back");
    }
    for _ in 0..100 {
        answer.piece("data: 1\n\n");
        other.expect_piece("data: 1\n\n").await;
    }
    slow.leave();
    assert_eq!(endless.given_up().await, Reason::CANCEL);
}

#[tokio::test]
async fn an_upload_that_a_backend_of_http2_does_not_want_has_its_answer_all_the_same() {
    let (mut backend, mut proxy) = http2().await;
    for (interim, status) in [(None, 413), (Some(103), 200)] {
        let mut client = Client::connect(proxy.address()).await;
        let head =
            "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n";
        client.send_raw(format!("{head}content-length: 8000000\r\n\r\nhello")).await.expect("the proxy reads");
        let mut asked = backend.asked().await;
        interim.into_iter().for_each(|interim| asked.interim(interim));
        asked.answer(status, "application/json").last("{}");
        let got = client.read_to_end().await;
        assert_eq!((got.status, got.text().as_str()), (status, "{}"));
        assert_eq!(proxy.ended().await["end"], "complete");
    }
}

#[tokio::test]
async fn more_streams_than_a_connection_takes_have_another_one() {
    const STREAMS: usize = 250;
    let (mut backend, mut proxy) = http2().await;
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let mut client = ask(&proxy, true).await;
        let asked = backend.asked().await;
        let connection = asked.connection;
        let mut answer = asked.answer(200, "text/event-stream");
        answer.piece("data: 1\n\n");
        client.expect_piece("data: 1\n\n").await;
        open.push((client, answer, connection));
    }
    let mut connections = BTreeMap::new();
    open.iter().for_each(|(_, _, connection)| *connections.entry(*connection).or_insert(0) += 1);
    assert!(connections.len() >= 3 && connections.values().all(|streams| *streams <= 100), "{connections:?}");
    for (mut client, answer, _) in open {
        answer.last("data: [DONE]\n\n");
        assert_eq!(client.read_to_end().await.end, BodyEnd::Complete);
        proxy.ended().await;
    }
}

#[tokio::test]
async fn a_backend_that_does_not_speak_http2_is_said_not_to() {
    let backend = RawBackend::bind().await;
    let mut proxy = Proxy::start(&config(&format!("http://{}", backend.address()), "http2: true")).await;
    let mut client = ask(&proxy, false).await;
    let mut conn = backend.accept().await;
    conn.read_until("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    conn.write("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    let got = client.read_to_end().await;
    assert_eq!(got.status, 502, "{}", got.text());
    let line = proxy.ended().await;
    assert_eq!(line["end"], "backend_failed", "{line}");
}

#[tokio::test]
async fn backends_of_http2_are_checked_over_it() {
    let mut backend = Http2Backend::start().await;
    let yaml = format!(
        "backends: [{{url: '{}', name: b, http2: true, models: [m]}}]\nhealth_check: {{path: /healthz}}\n",
        backend.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let asked = backend.asked().await;
    assert_eq!(asked.head.uri().path(), "/healthz");
    asked.json();
    proxy.up("b").await;
    let mut client = ask(&proxy, false).await;
    let asked = backend.asked().await;
    assert_eq!(asked.connection, 0);
    asked.json();
    assert_eq!(client.read_to_end().await.status, 200);
}

/// A file of the folder beside this one.
fn made(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/proxy/certificates").join(name)
}

/// A backend that speaks TLS with a certificate of an authority of its own, and what it agrees to in the handshake. Of
/// HTTP/1.1 it answers every request by itself.
async fn encrypted(protocols: &[&str]) -> (String, mpsc::Receiver<Asked>) {
    let certificate = CertificateDer::from_pem_file(made("server.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(made("server.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("fits");
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key).expect("they fit");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
    let (sender, requests) = mpsc::channel(100);
    tokio::spawn(async move {
        for index in 0.. {
            let (stream, _) = listener.accept().await.expect("accepts");
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    return http2_backend::serve(stream, index, sender).await;
                }
                let mut came = Vec::new();
                while stream.read_buf(&mut came).await.is_ok_and(|read| read > 0) {
                    // Requests of these tests end by one of these, and come one at a time.
                    if came.ends_with(b"}") || (came.starts_with(b"GET") && came.ends_with(b"\r\n\r\n")) {
                        came.clear();
                        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{\"a\": 1}";
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                }
            });
        }
    });
    (url, requests)
}

#[tokio::test]
async fn a_backend_with_an_authority_of_its_own_is_believed_by_that_alone() {
    let (url, _requests) = encrypted(&["http/1.1"]).await;
    let folder = Folder::new();
    let file = folder.join("ca.pem");
    let yaml = format!(
        "backends: [{{url: '{url}', name: b, models: [m], ca_file: {}}}]\nhealth_check: {{interval: 1s}}\n",
        file.display()
    );
    // One that did not sign it.
    std::fs::copy(made("stranger.pem"), &file).expect("the folder is ours");
    let mut proxy = Proxy::start(&yaml).await;
    let line = proxy.logged("the backend is out").await;
    assert!(line["problem"].as_str().is_some_and(|problem| problem.contains("no TLS connection to")), "{line}");
    // The file is read again with a reload, though nothing in the configuration has changed.
    std::fs::copy(made("ca.pem"), &file).expect("the folder is ours");
    proxy.reload(&yaml, "reloaded").await;
    proxy.up("b").await;
    let got = ask(&proxy, false).await.read_to_end().await;
    assert_eq!((got.status, got.text().as_str()), (200, "{\"a\": 1}"));
    // One that can't be read changes nothing.
    std::fs::write(&file, "no certificate").expect("the folder is ours");
    proxy.reload(&yaml, "not").await;
    assert_eq!(ask(&proxy, false).await.read_to_end().await.status, 200);
    // Without it the machine would have to know the authority.
    proxy.reload(&yaml.replace(&format!(", ca_file: {}", file.display()), ""), "reloaded").await;
    proxy.logged("the backend is out").await;
}

#[tokio::test]
async fn a_backend_that_was_found_outlives_a_half_written_file_of_its_authority() {
    let (url, _requests) = encrypted(&["http/1.1"]).await;
    let folder = Folder::new();
    let (list, file) = (folder.join("backends.json"), folder.join("ca.pem"));
    let whole = std::fs::read(made("ca.pem")).expect("it was made");
    std::fs::write(&file, &whole).expect("the folder is ours");
    let found = serde_json::json!([{"url": url, "models": ["m"], "ca_file": file}]);
    std::fs::write(&list, found.to_string()).expect("the folder is ours");
    let yaml = format!(
        "health_check: {{enabled: false}}\ndiscovery: {{enabled: true, sources: [{{type: file, name: list, file: {{path: {}}}}}]}}\n",
        list.display()
    );
    let mut proxy = Proxy::start(&yaml).await;
    assert_eq!(ask(&proxy, false).await.read_to_end().await.status, 200);
    for half in [&whole[..whole.len() / 2], b""] {
        std::fs::write(&file, half).expect("the folder is ours");
        proxy.reload(&yaml, "what was read of a file of certificates before is used").await;
        proxy.logged("reloaded").await;
        assert_eq!(ask(&proxy, false).await.read_to_end().await.status, 200);
    }
}

#[tokio::test]
async fn http2_is_agreed_on_in_the_handshake_or_left() {
    let more = format!("http2: true, ca_file: {}", made("ca.pem").display());
    let (url, mut requests) = encrypted(&["h2", "http/1.1"]).await;
    let proxy = Proxy::start(&config(&url, &more)).await;
    let mut client = ask(&proxy, false).await;
    let asked = within("a request", requests.recv()).await.expect("the backend goes on");
    assert_eq!(asked.head.version(), http::Version::HTTP_2);
    asked.json();
    assert_eq!(client.read_to_end().await.text(), "{}");
    for (protocols, more) in
        [(&["http/1.1"][..], &*more), (&[], &more), (&["h2", "http/1.1"], &more.replace("true", "false"))]
    {
        let (url, _requests) = encrypted(protocols).await;
        let proxy = Proxy::start(&config(&url, more)).await;
        let got = ask(&proxy, false).await.read_to_end().await;
        assert_eq!((got.status, got.text().as_str()), (200, "{\"a\": 1}"), "{protocols:?}");
    }
}

#[tokio::test]
async fn a_file_of_certificates_that_has_none_stops_the_start() {
    let (folder, check) = (Folder::new(), async |yaml: String| {
        let folder = Folder::new();
        std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
        let output = crate::harness::command(&folder).arg("check").output().await.expect("the binary starts");
        assert_eq!(output.status.code(), Some(64));
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    });
    let file = folder.join("empty.pem");
    std::fs::write(&file, "").expect("the folder is ours");
    for (path, words) in [(file, "has no certificate in it"), (folder.join("nope.pem"), "can't be read")] {
        let said = check(config("https://localhost:1", &format!("ca_file: {}", path.display()))).await;
        assert!(said.contains("backends[0].ca_file") && said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn a_backend_may_have_the_client_s_host() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let proxy = Proxy::start(&config(&backend.url(), "preserve_host: true")).await;
    for (target, host) in [("/v1/files", "api.example:81"), ("http://other.example/v1/files", "other.example")] {
        let mut client = Client::connect(proxy.address()).await;
        client.send("GET", target, &[("host", "api.example:81")], b"").await;
        assert_eq!(client.read_to_end().await.status, 200);
        let seen = backend.seen().pop().expect("it came");
        assert_eq!(seen.header("host"), Some(host));
    }
}

#[tokio::test]
async fn a_redirect_is_the_client_s_business() {
    let elsewhere = Backend::start(script::json(200, json!({}))).await;
    let location = format!("{}/v1/files", elsewhere.url());
    let backend = Backend::start(move |_, wire| {
        let location = location.clone();
        async move { wire.respond(302, &[("location", &location)], "").await }
    })
    .await;
    let proxy = Proxy::start(&config(&backend.url(), "")).await;
    let got = Client::connect(proxy.address()).await.get("/v1/files").await;
    assert_eq!(got.status, 302);
    assert_eq!(got.header("location"), Some(&*format!("{}/v1/files", elsewhere.url())));
    assert_eq!(elsewhere.counts().connections, 0);
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let other = Backend::start(script::json(502, json!({"error": "wrong way"}))).await;
    let url = other.url();
    let variables = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"].map(|name| (name, &*url));
    let yaml = format!("backends: [{{url: '{}', name: b, models: [m]}}]\n", backend.url());
    let mut proxy = Proxy::start_with(&yaml, &variables).await;
    proxy.up("b").await;
    assert_eq!(ask(&proxy, false).await.read_to_end().await.status, 200);
    assert_eq!(other.counts().connections, 0);
}

#[tokio::test]
async fn connections_are_used_again() {
    const STREAMS: usize = 100;
    let (backend, mut requests) = Backend::stepped().await;
    let mut proxy = Proxy::start(&config(&backend.url(), "")).await;
    for _ in 0..2 {
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            let client = ask(&proxy, false).await;
            open.push((client, requests.next().await.1));
        }
        for (mut client, wire) in open {
            wire.json(200, &json!({})).await.expect("the proxy reads");
            assert_eq!(client.read_to_end().await.status, 200);
            proxy.ended().await;
        }
        assert_eq!(backend.counts().connections, STREAMS);
    }
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_counted() {
    let silent = RawBackend::bind().await;
    // The handshake that never comes is a part of it.
    let url = format!("https://{}", silent.address());
    let mut proxy = Proxy::start(&config(&url, "connect_timeout: 100ms")).await;
    let got = ask(&proxy, false).await.read_to_end().await;
    assert_eq!(got.status, 502, "{}", got.text());
    proxy.ended().await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_upstream_timeouts_total", &["kind=\"connect\""]), 1.0);
}

#[tokio::test]
async fn an_upload_over_http2_ends_when_its_client_does() {
    let (mut backend, mut proxy) = http2().await;
    let mut client = Raw::connect(proxy.address()).await;
    client
        .write(
            "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n\
             content-length: 100\r\n\r\nhello",
        )
        .await;
    let asked = backend.asked().await;
    assert_eq!(asked.head.headers()["content-length"], "100");
    drop(client);
    assert_eq!(proxy.ended().await["end"], "client_gone");
    asked.broken_off().await;
}
