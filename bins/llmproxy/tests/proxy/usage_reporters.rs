//! Several reporters at once: each gets what it wants, in its own form.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use llmproxy_testkit::{Behaviour, Client, ModelServer, Receiver, Seen};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Folder, Proxy};

const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Asks as `key` and gives the request's id.
async fn ask(proxy: &Proxy, key: &str) -> String {
    let mut client = Client::connect(proxy.address()).await;
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", &*authorization)];
    let ask = json!({"model": "demo", "messages": [{"role": "user", "content": "hello"}]});
    client.send_json("/v1/chat/completions", &headers, &ask).await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 200);
    answer.header("x-request-id").expect("every answer has one").to_owned()
}

async fn model() -> ModelServer {
    ModelServer::builder().model("demo").words_per_second(f64::INFINITY).start().await.expect("a free port")
}

fn yaml(model: &ModelServer, reporters: Value) -> String {
    let keys = json!([{"key": "sk-alice", "name": "alice"}, {"key": "sk-bob", "name": "bob"}]);
    json!({
        "backends": [{"url": model.url(), "models": ["demo"]}],
        "auth": {"enabled": true, "pipeline": [{"name": "s", "type": "static", "static": {"keys": keys}}]},
        "usage": {"enabled": true, "reporters": reporters},
    })
    .to_string()
}

/// What docs/usage.md tells receivers to do, done by Python; `None` where there is no Python.
fn is_ours(seen: &Seen, secret: &str) -> Option<bool> {
    let docs =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/usage.md")).expect("docs");
    let mut blocks = docs.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next());
    let snippet = blocks.find(|block| block.contains("def is_ours")).expect("the docs say how");
    let script = format!(
        "{snippet}\nimport json, sys\n\
         headers, body, secret = json.load(sys.stdin)\n\
         print(is_ours(headers, body.encode(), secret))\n"
    );
    let headers: BTreeMap<_, _> = seen.headers.iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
    let body = std::str::from_utf8(&seen.body).expect("JSON is text");
    let mut python =
        match Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
            Ok(python) => python,
            Err(error) => {
                println!("skipped: python3 does not start: {error}");
                return None;
            }
        };
    let mut stdin = python.stdin.take().expect("piped");
    stdin.write_all(json!([headers, body, secret]).to_string().as_bytes()).expect("it reads");
    drop(stdin);
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success());
    Some(output.stdout.starts_with(b"True"))
}

#[tokio::test]
async fn a_signed_webhook_a_file_and_a_filter_at_once() {
    let (model, receiver, folder) = (model().await, Receiver::start().await, Folder::new());
    receiver.behave_for(1, Behaviour::Status(503));
    let path = folder.join("data/usage.jsonl");
    let proxy = Proxy::start(&yaml(
        &model,
        json!([
            {
                "name": "billing", "webhook": {"url": receiver.url(), "secret": SECRET},
                "filter": {"models": ["de*"], "keys": ["alice"]}, "fields": ["key_name", "total_tokens"],
            },
            {"type": "file", "file": {"path": path}},
        ]),
    ))
    .await;
    let mut ids = Vec::new();
    for key in ["sk-alice", "sk-bob", "sk-alice"] {
        ids.push(ask(&proxy, key).await);
    }
    // At a stop, all that was promised is delivered.
    proxy.signal(Signal::TERM);
    assert!(proxy.exit().await.success());

    let text = std::fs::read_to_string(&path).expect("it was made");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |line: &Value| (line["request_id"].as_str().expect("an id").to_owned(), line["key_name"].clone());
    let expected = [(0, "alice"), (1, "bob"), (2, "alice")].map(|(index, name)| (ids[index].clone(), json!(name)));
    assert_eq!(lines.iter().map(of).collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|line| line["schema"] == 1 && line["end"] == "complete"), "{text}");

    let mut bodies = receiver.wait_for(2).await;
    bodies.sort_by_key(|body| ids.iter().position(|id| body["request_id"] == **id));
    let chosen = |index: usize| {
        let tokens = &lines[index]["total_tokens"];
        json!({"key_name": "alice", "request_id": ids[index], "schema": 1, "total_tokens": tokens})
    };
    assert_eq!(bodies, [chosen(0), chosen(2)]);

    let seen = receiver.backend().seen();
    assert_eq!(seen.len(), 3, "one was refused first");
    for mut seen in seen {
        assert_eq!(seen.header("webhook-id"), seen.json()["request_id"].as_str());
        let Some(ours) = is_ours(&seen, SECRET) else { return };
        assert!(ours, "{:?}", seen.headers);
        assert_eq!(is_ours(&seen, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), Some(false));
        seen.body = [&*seen.body, b" "].concat().into();
        assert_eq!(is_ours(&seen, SECRET), Some(false), "a body that was tampered with");
    }
}

#[tokio::test]
async fn records_on_standard_output_are_lines_among_the_access_log() {
    let model = model().await;
    let mut proxy = Proxy::start(&yaml(&model, json!([{"type": "stdout", "fields": ["model", "status_code"]}]))).await;
    let id = ask(&proxy, "sk-bob").await;
    let mut lines = [proxy.ended().await, proxy.ended().await];
    lines.sort_by_key(|line| line["schema"] == 1);
    assert_eq!(lines[1], json!({"model": "demo", "request_id": id, "schema": 1, "status_code": 200}));
    assert_eq!(lines[0]["request_id"], json!(id), "the access line");
}
