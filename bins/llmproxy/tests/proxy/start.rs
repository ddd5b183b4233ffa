//! Starts that fail, or succeed with something amiss: each says what happened, where, and what to do.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use llmproxy_testkit::{Backend, Client, script};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{Folder, Proxy, command, within};

/// Nothing listens there: the discard service, which nobody runs.
const NOBODY: &str = "http://127.0.0.1:9";

async fn run(folder: &Path, args: &[&str]) -> Output {
    let child = command(folder)
        .args(args)
        .env("LLMPROXY_SERVER__LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    within("the command to end", child.wait_with_output()).await.expect("output")
}

/// Runs `args` in a folder with these files; it ends with `code` and says each of `parts`.
async fn check(files: &[(&str, &str)], args: &[&str], code: i32, parts: &[&str]) {
    let folder = Folder::new();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("the folder is ours");
    }
    std::fs::create_dir(folder.join("folder")).expect("the folder is ours");
    let output = run(&folder, args).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
    for part in parts {
        assert!(told.contains(part), "{args:?}: {part} is not in:\n{told}");
    }
    assert!(!told.contains("panicked") && !told.contains("RUST_BACKTRACE"), "{told}");
}

fn with(rest: &str) -> String {
    format!("backends: [{{url: '{NOBODY}'}}]\n{rest}\n")
}

#[tokio::test]
async fn a_file_that_is_not_there() {
    let advice = ["no configuration file", "--config FILE", "config/config.yaml.example", "llmproxy demo"];
    check(&[], &[], 64, &advice).await;
    // The whole path says where it was looked for.
    check(&[], &["serve", "--config", "nope/x.yaml"], 64, &["nope/x.yaml", "/llmproxy-test-", "llmproxy demo"]).await;
    check(&[], &["check", "--config", "nope/x.yaml"], 64, &["nope/x.yaml", "--config FILE"]).await;
    check(&[], &["keys", "list", "--config", "x.yaml"], 1, &["x.yaml", "--db FILE"]).await;
}

#[tokio::test]
async fn a_file_that_is_none() {
    check(&[], &["--config", "folder"], 64, &["folder is a folder", "folder/config.yaml"]).await;
    // As from a shell that writes UTF-16.
    let folder = Folder::new();
    std::fs::write(folder.join("config.yaml"), b"\xff\xfeb\0").expect("the folder is ours");
    let output = run(&folder, &[]).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(64) && told.contains("UTF-8"), "{told}");
}

#[tokio::test]
async fn yaml_that_is_none_names_line_and_column() {
    let bad = "server:\n  listen: ':1'\n backends: [\n";
    check(&[("config.yaml", bad)], &[], 64, &["config.yaml", "line 3 column 2", "the same column"]).await;
    let twice = "backends: [{url: 'http://a'}]\nauth: {enabled: true}\nauth: {enabled: false}\n";
    check(&[("config.yaml", twice)], &[], 64, &["config.yaml", "line 3", "auth"]).await;
}

#[tokio::test]
async fn a_file_without_backends_is_shown_one() {
    let backends = "backends:\n  - url: http://localhost:11434";
    for text in ["", "server: {listen: ':8000'}\n", "backends: []\n"] {
        check(&[("config.yaml", text)], &[], 64, &["config.yaml", "backends: at least one", backends]).await;
    }
}

#[tokio::test]
async fn an_address_that_can_t_be_listened_on() {
    let taken = Backend::start(script::hang()).await;
    for (listen, parts) in [
        (taken.addr().to_string(), &["Address already in use", "ss -ltnp", "server.listen"][..]),
        // Of the block for documentation (RFC 5737), so no machine has it.
        ("192.0.2.5:8000".to_owned(), &["192.0.2.5:8000", "does not have that address", "server.listen"]),
    ] {
        let folder = Folder::new();
        std::fs::write(folder.join("config.yaml"), with("")).expect("the folder is ours");
        let child = command(&folder)
            .env("LLMPROXY_SERVER__LISTEN", &listen)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let output = within("the command to end", child.wait_with_output()).await.expect("output");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        for part in parts {
            assert!(told.contains(part), "{part} is not in:\n{told}");
        }
        assert!(told.contains(&listen), "{told}");
    }
}

#[tokio::test]
async fn a_key_store_that_does_not_open() {
    let garbage = ("garbage.db", "this is no database, but it is long enough to be looked at as if it were one\n");
    let of = |path: &str| with(&format!("auth: {{enabled: true}}\nadmin: {{db_path: '{path}'}}"));
    let yaml = of("garbage.db");
    check(&[garbage, ("config.yaml", &yaml)], &[], 1, &["garbage.db", "admin.db_path", "move it away"]).await;
    let keys = ["keys", "create", "--name", "a", "--db", "garbage.db"];
    check(&[garbage], &keys, 1, &["garbage.db", "move it away"]).await;
    let yaml = of("folder");
    check(&[("config.yaml", &yaml)], &[], 1, &["the key store folder", "admin.db_path", "write the file"]).await;
    let yaml = of("garbage.db/keys.db");
    check(&[garbage, ("config.yaml", &yaml)], &[], 1, &["garbage.db/keys.db", "admin.db_path", "write the file"]).await;
}

#[tokio::test]
async fn a_log_that_does_not_open() {
    let check = async |rest: &str, parts: &[&str]| check(&[("config.yaml", &with(rest))], &[], 1, parts).await;
    check("log: {output: folder}", &["the log folder (log.output)", "may write", "stdout"]).await;
    check("log: {output: config.yaml/x.log}", &["log.output", "its folder config.yaml can't be made"]).await;
    check("logging: {access: {output: folder}}", &["the access log folder", "logging.access.output to stdout"]).await;
    let parts = ["the access log config.yaml/x.log", "its folder config.yaml can't be made"];
    check("logging: {access: {output: config.yaml/x.log}}", &parts).await;
}

#[tokio::test]
async fn a_key_that_can_t_be_revoked() {
    let empty = ("k.db", "");
    let parts = ["k.db", "that name, fingerprint or value", "nothing was revoked", "llmproxy keys list --db k.db"];
    check(&[empty], &["keys", "revoke", "nobody", "--db", "k.db"], 1, &parts).await;
    check(&[empty], &["keys", "list", "--db", "k.db"], 0, &["k.db has no keys", "keys create --name NAME --db k.db"])
        .await;
    for command in [&["keys", "list", "--db", "slip.db"][..], &["keys", "revoke", "nobody", "--db", "slip.db"]] {
        check(&[], command, 1, &["there is no key store slip.db", "admin.db_path"]).await;
    }
    let parts = ["tomorrow", "2027-01-01T00:00:00Z"];
    check(&[], &["keys", "create", "--name", "a", "--expires-at", "tomorrow"], 1, &parts).await;
}

/// A server to which a TLS handshake is a bad request, at a URL that says https.
async fn clear_text_only() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 1024];
            // Whoever comes may have left again.
            let _ = stream.read(&mut hello).await;
            let _ =
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
    });
    url
}

/// The line that says that the only backend is out.
async fn out(proxy: &mut Proxy) -> Value {
    proxy.logged("the backend is out").await
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_named_and_the_proxy_starts() {
    let not_tls = clear_text_only().await;
    let hanging = Backend::start(script::hang()).await;
    let failing = Backend::start(script::json(500, json!({}))).await;
    for (url, problem, advice) in [
        (NOBODY, "refused", "see that it runs"),
        ("http://no-such-host.invalid:8000", "can't be resolved", "`url` is right"),
        (&not_tls, "no TLS connection", "a certificate that this machine trusts"),
        (&hanging.url(), "not answered within 300ms", "see its own log"),
        (&failing.url(), "500", "see its own log"),
    ] {
        let yaml = format!("backends: [{{name: gpu-1, url: '{url}'}}]\nhealth_check: {{timeout: 300ms}}\n");
        let mut proxy = Proxy::start(&yaml).await;
        let line = out(&mut proxy).await;
        assert_eq!(
            (&line["level"], &line["backend"], &line["url"]),
            (&json!("WARN"), &json!("gpu-1"), &json!(url)),
            "{line}"
        );
        assert!(line["problem"].as_str().is_some_and(|text| text.contains(problem)), "{problem}: {line}");
        assert!(line["advice"].as_str().is_some_and(|text| text.contains(advice)), "{advice}: {line}");
    }
}

#[tokio::test]
async fn credentials_that_a_backend_refuses_are_named() {
    let backend = Backend::start(script::json(401, json!({"error": "Unauthorized"}))).await;
    let yaml = format!(
        "backends: [{{name: gpu-1, url: '{}', models: [m], headers: {{Authorization: Bearer old}}}}]\n\
         routing: {{retry: {{enabled: false}}}}\n",
        backend.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "messages": []})).await;
    assert_eq!(client.read_to_end().await.status, 502);
    let line = out(&mut proxy).await;
    assert!(line["advice"].as_str().is_some_and(|text| text.contains("`headers`")), "{line}");
}

#[tokio::test]
async fn authentication_without_keys_says_how_to_make_one() {
    let backend = Backend::start(script::json(200, json!({"data": []}))).await;
    let of = |rest: &str| format!("backends: [{{url: '{}'}}]\n{rest}\n", backend.url());
    for (rest, db) in [
        ("auth: {enabled: true}", "./data/keys.db"),
        ("auth: {enabled: true}\nadmin: {db_path: other/k.db}", "other/k.db"),
        ("auth: {enabled: true, pipeline: [{type: static, static: {keys: []}}]}", "./data/keys.db"),
    ] {
        let mut proxy = Proxy::start(&of(rest)).await;
        let line = proxy.logged("every request is refused").await;
        let told = line["message"].as_str().unwrap_or_default().to_owned();
        let said = format!("llmproxy keys create --name NAME --db {db}");
        assert!(line["level"] == "WARN" && told.ends_with(&said), "{told}");
        if rest.contains("static") {
            continue;
        }
        // The command does what the line says.
        let words: Vec<&str> = said.split(' ').skip(1).collect();
        let output = run(proxy.folder(), &words).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let key = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        proxy.logged("read again").await;
        let mut client = Client::connect(proxy.address()).await;
        client.send("GET", "/v1/models", &[("authorization", &format!("Bearer {key}"))], b"").await;
        assert_eq!(client.read_to_end().await.status, 200);
    }
}
