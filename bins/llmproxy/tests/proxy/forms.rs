//! Forms with files: what they say before the file counts, the file passes as it comes.

use llmproxy_testkit::{Backend, Client, Receiver, Response, script};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Proxy, within};

const FORM: &[(&str, &str)] = &[("content-type", "multipart/form-data; boundary=\"a b\"")];
const END: &str = "\r\n--a b--\r\n";

fn field(name: &str, value: &str) -> String {
    format!("--a b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

/// A file of `size` bytes, as a part.
fn file(size: usize) -> String {
    let head =
        "--a b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n";
    head.to_owned() + &"\r\n--a c".repeat(size / 7)
}

async fn upload(proxy: &Proxy, headers: &[(&str, &str)], form: &str) -> Response {
    send(proxy, &[FORM, headers].concat(), form).await
}

async fn send(proxy: &Proxy, headers: &[(&str, &str)], form: &str) -> Response {
    let mut client = Client::connect(proxy.address()).await;
    client.send("POST", "/v1/audio/transcriptions", headers, form.as_bytes()).await;
    client.read_to_end().await
}

/// A key that may use one of two models.
async fn limited(backend: &Backend) -> Proxy {
    let yaml = format!(
        "backends: [{{url: '{}', models: [whisper, parakeet]}}]\n\
         health_check: {{enabled: false}}\n\
         auth: {{enabled: true, pipeline: [{{type: static, static: {{keys: [{{key: sk-w, allowed_models: [whisper]}}, {{key: sk-all}}]}}}}]}}\n",
        backend.url()
    );
    Proxy::start(&yaml).await
}

async fn transcriber(text: &str) -> Backend {
    Backend::start(script::json(200, json!({"text": text}))).await
}

fn text(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["text"].clone()
}

#[tokio::test]
async fn an_upload_goes_where_its_model_is_and_is_recorded_by_it() {
    let (one, other) = (transcriber("one").await, transcriber("other").await);
    let receiver = Receiver::start().await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [whisper]}}, {{url: '{}', models: [parakeet]}}]\n\
         health_check: {{enabled: false}}\n\
         routing: {{model_mapping: {{whisper-1: parakeet}}}}\n\
         usage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
        one.url(),
        other.url(),
        receiver.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    for (model, backend) in [("whisper", "one"), ("parakeet", "other"), ("whisper-1", "other")] {
        for _ in 0..3 {
            let form = field("language", "en") + &field("model", model) + &file(100_000) + END;
            assert_eq!(text(&upload(&proxy, &[], &form).await), backend);
            let line = proxy.ended().await;
            assert_eq!((&line["model"], &line["end"]), (&json!(model), &json!("complete")), "{line}");
        }
    }
    let unknown = field("model", "gpt-4o-transcribe") + &file(10) + END;
    let answer = upload(&proxy, &[], &unknown).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("model_not_found")));

    // What was sent is what arrives, but for the alias.
    let sent = field("language", "en") + &field("model", "whisper") + &file(100_000) + END;
    assert!(one.seen().iter().all(|seen| seen.body == sent));
    let aliased = sent.replace("\r\nwhisper\r\n", "\r\nparakeet\r\n");
    assert_eq!(
        other.seen().iter().filter(|seen| seen.body == aliased).count(),
        6,
        "three by its name, three by the alias"
    );
    let length = aliased.len().to_string();
    assert!(other.seen().iter().all(|seen| seen.header("content-length") == Some(&length)));
    let records = receiver.wait_for(9).await;
    assert_eq!(records.iter().filter(|record| record["model"] == "whisper-1").count(), 3, "{records:?}");
}

#[tokio::test]
async fn a_key_for_certain_models_must_name_one_before_the_file() {
    let backend = transcriber("hello").await;
    let proxy = limited(&backend).await;
    let key: &[(&str, &str)] = &[("authorization", "Bearer sk-w")];
    let check = async |headers: &[(&str, &str)], form: String, status: u16, code: &str| {
        let answer = upload(&proxy, headers, &(form + END)).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"].as_str().unwrap_or_default(), code);
        answer.text()
    };
    check(key, field("model", "whisper") + &file(100), 200, "").await;
    check(key, field("model", "parakeet") + &file(100), 403, "model_not_allowed").await;
    let told = check(key, file(100) + "\r\n" + &field("model", "whisper"), 403, "model_not_named").await;
    assert!(told.contains("before the file"), "{told}");
    check(key, file(100), 403, "model_not_named").await;
    // Another one behind the file would be the one that the backend takes.
    let late = field("model", "whisper") + &file(1_000_000) + "\r\n" + &field("model", "parakeet");
    check(key, late, 400, "duplicate_parameter").await;
    check(&[("authorization", "Bearer sk-all")], file(100) + "\r\n" + &field("model", "whisper"), 200, "").await;
    let whole = backend.seen();
    assert_eq!(whole.len(), 2, "{whole:?}");
    assert_eq!(proxy.metrics().await.sum("llmproxy_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_form_that_a_backend_could_read_another_model_in_reaches_none() {
    let backend = transcriber("hello").await;
    let proxy = limited(&backend).await;
    let part = |parameters: &str| format!("--a b\r\nContent-Disposition: form-data; {parameters}\r\n\r\nparakeet\r\n");
    let check = async |kind: &str, form: &str| {
        for key in ["Bearer sk-w", "Bearer sk-all"] {
            let answer =
                send(&proxy, &[("content-type", kind), ("authorization", key)], &(form.to_owned() + END)).await;
            assert_eq!(answer.status, 400, "{form}: {}", answer.text());
            assert_eq!(answer.json()["error"]["code"], "invalid_form", "{}", answer.text());
        }
    };
    let (model, file) = (field("model", "whisper"), file(100) + "\r\n");
    let utf7 = format!("{}; charset=utf-7", FORM[0].1);
    check(&utf7, &(model.clone() + &part("name=\"+AG0-odel\"") + &file)).await;
    let alone = "x\r--a b\rContent-Disposition: form-data; name=\"model\"\r\rparakeet";
    check(FORM[0].1, &(field("prompt", alone) + &model + &file)).await;
    let mut bypasses = vec![field("prompt", alone)];
    let escaped = "name=\"foo\"; filename=\"\\\"; name=model; x=\\\"\"";
    for parameters in ["name=<model>", "x=\"\\\\\"; name=\"foo\"; y=\"; name=model; z=\"", "name=\"foo\"; x=y", escaped]
    {
        bypasses.push(part(parameters));
    }
    for bypass in &bypasses {
        check(FORM[0].1, &(model.clone() + bypass + &file)).await;
        check(FORM[0].1, &(bypass.clone() + &model + &file)).await;
        check(FORM[0].1, &(model.clone() + &file + bypass)).await;
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    // Far behind the file the upload has begun: it is broken off.
    let far = model.clone() + &self::file(1_000_000) + "\r\n" + &bypasses[1];
    check(FORM[0].1, &far).await;
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
}

#[tokio::test]
async fn forms_of_ordinary_clients_keep_their_model() {
    let backend = transcriber("hello").await;
    let proxy = limited(&backend).await;
    let head = "Content-Transfer-Encoding: binary\r\nContent-Disposition: form-data; ";
    let part = |parameters: &str, value: &str| format!("--a b\r\n{head}{parameters}\r\n\r\n{value}\r\n");
    let file = part("name=\"file\"; filename=\"a\\\"b.wav\"", "RIFF");
    let headers: &[(&str, &str)] = &[("authorization", "Bearer sk-w")];
    for form in [part("name=\"model\"", "whisper") + &file, file.clone() + &file + &field("language", "en")] {
        let is_named = form.contains("whisper");
        let answer = upload(&proxy, headers, &(form + END)).await;
        assert_eq!(answer.status, if is_named { 200 } else { 403 }, "{}", answer.text());
    }
    let plain = [("content-type", "multipart/form-data; charset=UTF-8; boundary=\"a b\""), headers[0]];
    assert_eq!(send(&proxy, &plain, &(field("model", "whisper") + &file + &file + END)).await.status, 200);
}

#[tokio::test]
async fn a_limit_on_a_body_that_passes_is_counted() {
    let backend = transcriber("hello").await;
    let yaml = format!(
        "server: {{read_timeout: 1500ms, max_upload_size: 1MiB}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
        backend.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let count = async |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        proxy.metrics().await.sum("llmproxy_inspect_refused_total", &[&label])
    };
    let far = field("model", "m") + &file(500_000) + "\r\n";
    assert_eq!(upload(&proxy, &[], &(far.clone() + &field("model", "m") + END)).await.status, 400);
    assert_eq!(count("duplicate_parameter").await, 1.0);
    assert_eq!(
        upload(&proxy, &[], &(far.clone() + &field("x", "m").replace("; name", "; x=y; name"))).await.status,
        400
    );
    assert_eq!(count("invalid_form").await, 1.0);

    // Without a length nobody knows before that it is too large.
    let chunked = async |kind: &str, body: &str, is_whole: bool| {
        let mut client = Client::connect(proxy.address()).await;
        let head = "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n";
        let end = if is_whole { "0\r\n\r\n" } else { "" };
        let request = format!("{head}content-type: {kind}\r\n\r\n{:x}\r\n{body}\r\n{end}", body.len());
        client.send_raw(request).await.expect("the proxy reads");
        client.read_to_end().await.status
    };
    for (kind, times) in [(FORM[0].1, 1.0), ("audio/wav", 2.0)] {
        assert_eq!(chunked(kind, &(far.clone() + &"x".repeat(800_000)), true).await, 413);
        assert_eq!(count("request_too_large").await, times, "{kind}");
        assert_eq!(chunked(kind, &far, false).await, 408);
        assert_eq!(count("request_timeout").await, times, "{kind}");
    }
}

async fn read_until(stream: &mut TcpStream, seen: &mut Vec<u8>, wanted: &[u8]) {
    let until = async {
        while !seen.windows(wanted.len()).any(|window| window == wanted) {
            assert!(stream.read_buf(seen).await.expect("open") > 0, "closed early");
        }
    };
    within("the backend to have it", until).await;
}

#[tokio::test]
async fn an_upload_passes_while_it_comes_with_a_length_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let yaml = format!(
        "backends: [{{url: '{url}', models: [large-v3]}}]\nhealth_check: {{enabled: false}}\n\
         routing: {{model_mapping: {{whisper-1: large-v3}}}}\n"
    );
    let proxy = Proxy::start(&yaml).await;
    let (head, tail) = (field("model", "whisper-1") + &file(70), format!("{}{END}", "y".repeat(50_000)));
    let mut client = Client::connect(proxy.address()).await;
    let request = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
        FORM[0].1,
        head.len() + 4 + tail.len()
    );
    client.send_raw(request + &head).await.expect("the proxy reads");
    let (mut stream, _) = within("the backend to be asked", listener.accept()).await.expect("accepts");
    let mut seen = Vec::new();
    read_until(&mut stream, &mut seen, b"filename=\"a.wav\"").await;
    client.send_raw("LIVE").await.expect("the proxy reads");
    read_until(&mut stream, &mut seen, b"LIVE").await;
    client.send_raw(&tail).await.expect("the proxy reads");
    read_until(&mut stream, &mut seen, tail.as_bytes()).await;
    let seen = String::from_utf8(seen).expect("text");
    let (received, body) = seen.split_once("\r\n\r\n").expect("a head");
    let expected = field("model", "large-v3") + &file(70) + "LIVE" + &tail;
    assert_eq!(body, expected);
    assert!(received.contains(&format!("content-length: {}", expected.len())), "{received}");
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
    assert_eq!(client.read_to_end().await.status, 200);
}

#[tokio::test]
async fn files_have_a_limit_of_their_own() {
    let backend = transcriber("hello").await;
    let yaml = format!(
        "server: {{max_body_size: 10KiB, max_upload_size: 1MiB}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
        backend.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let form = |size| field("model", "m") + &file(size) + END;
    assert_eq!(upload(&proxy, &[], &form(500_000)).await.status, 200);
    assert_eq!(upload(&proxy, &[], &form(2_000_000)).await.status, 413);
    let json = json!({"model": "m", "messages": ["x".repeat(20_000)]});
    assert_eq!(Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &json).await.status, 413);
}

#[tokio::test]
async fn bodies_that_are_read_share_one_budget() {
    let (backend, mut requests) = Backend::stepped().await;
    let yaml = format!(
        "server: {{max_body_size: 60KiB, max_buffered_bytes: 100KiB}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
        backend.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let large = json!({"model": "m", "messages": ["x".repeat(55_000)]});
    // As long as another backend might have to be asked, the body is kept.
    let mut first = Client::connect(proxy.address()).await;
    first.send_json("/v1/chat/completions", &[], &large).await;
    let (_, wire) = requests.next().await;
    let refused = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &large).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("overloaded")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(proxy.ended().await["status_code"], 503);
    wire.json(200, &json!({})).await.expect("the proxy reads");
    assert_eq!(first.read_to_end().await.status, 200);
    proxy.ended().await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_inspect_buffered_bytes", &[]), 0.0);
    let mut again = Client::connect(proxy.address()).await;
    again.send_json("/v1/chat/completions", &[], &large).await;
    let (_, wire) = requests.next().await;
    wire.json(200, &json!({})).await.expect("the proxy reads");
    assert_eq!(again.read_to_end().await.status, 200);
}
