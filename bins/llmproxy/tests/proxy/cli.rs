//! The command line: demo, check, keys, and starts that fail.

use std::process::{Output, Stdio};

use llmproxy_testkit::{Backend, Client, script};
use serde_json::{Value, json};

use crate::harness::{Folder, Proxy, command, within};

async fn run(folder: &std::path::Path, args: &[&str]) -> Output {
    let child =
        command(folder).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    within("the command to end", child.wait_with_output()).await.expect("output")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn demo_once_shows_itself_and_agrees() {
    let output = run(&Folder::new(), &["demo", "--once"]).await;
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    for part in ["\"end\": \"complete\"", "llmproxy_usage_tokens_total", "llmproxy_requests_total"] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
    assert!(!shown.contains("FAIL"), "{shown}");
}

#[tokio::test]
async fn check_names_every_mistake_at_once() {
    let folder = Folder::new();
    std::fs::write(
        folder.join("config.yaml"),
        "server: {read_timeout: soon}\nbackends: [{url: nowhere}]\nrouting: {load_balance: best}\nauth: {enabled: true, pipeline: [{type: redis}]}\n",
    )
    .expect("the folder is ours");
    let output = run(&folder, &["check"]).await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    for path in ["server.read_timeout", "backends[0].url", "routing.load_balance", "auth.pipeline[0].type"] {
        assert!(told.contains(path), "{path} is not in:\n{told}");
    }
    std::fs::write(folder.join("good.yaml"), "backends: [{url: 'http://localhost:11434'}]\n")
        .expect("the folder is ours");
    let output = run(&folder, &["check", "--config", "good.yaml"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = run(&folder, &["check", "--config", "absent.yaml"]).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("absent.yaml"));
}

#[tokio::test]
async fn check_loads_the_tokenizers() {
    let folder = Folder::new();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("the folder is ours");
    let checked = async |entries: &str| {
        let yaml = format!("backends: [{{url: 'http://localhost:11434'}}]\nmetering:\n  tokenizers:\n{entries}");
        write("config.yaml", &yaml);
        let output = run(&folder, &["check"]).await;
        (output.status.code(), text(&output.stderr))
    };
    let entry = |file: &str| format!("    - {{models: ['qwen*'], file: {file}}}\n");
    write(
        "words.json",
        r#"{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Whitespace"},"model":{"type":"WordLevel","unk_token":"?","vocab":{"?":0}}}"#,
    );
    assert_eq!(checked(&entry("words.json")).await, (Some(0), String::new()));
    write("other.json", "{\"a\": 1}");
    let (code, told) = checked(&(entry("other.json") + &entry("words.json") + &entry("config.yaml"))).await;
    assert_eq!(code, Some(1), "{told}");
    for part in ["metering.tokenizers: other.json is no tokenizer that can be used", "config.yaml is no tokenizer"] {
        assert!(told.contains(part), "{told}");
    }
    let (code, told) = checked(&entry("none.json")).await;
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("metering.tokenizers[0].file") && told.contains("none.json can't be read"), "{told}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_explained() {
    let backend = Backend::start(script::hang()).await;
    let folder = Folder::new();
    let yaml = format!("server: {{listen: '{}'}}\nbackends: [{{url: '{}'}}]\n", backend.addr(), backend.url());
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    let output = run(&folder, &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains(&backend.addr().to_string()) && told.contains("server.listen"), "{told}");
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_while_the_proxy_runs() {
    let backend = Backend::start(script::json(200, json!({"choices": []}))).await;
    let yaml = format!("backends: [{{url: '{}', models: [m]}}]\nauth: {{enabled: true}}\n", backend.url());
    let mut proxy = Proxy::start(&yaml).await;
    let folder = proxy.folder().to_owned();
    let address = proxy.address();
    let ask = async |key: String| {
        let mut client = Client::connect(address).await;
        let body = json!({"model": "m", "messages": []});
        client.send_json("/v1/chat/completions", &[("authorization", &format!("bearer {key}"))], &body).await;
        client.read_to_end().await
    };
    assert_eq!(ask("sk-unknown".into()).await.status, 401);

    let output = run(&folder, &["keys", "create", "--name", "alice"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let key = text(&output.stdout).trim().to_owned();
    proxy.logged("read again").await;
    assert_eq!(ask(key.clone()).await.status, 200);

    let listed = text(&run(&folder, &["keys", "list"]).await.stdout);
    assert!(listed.contains("alice") && !listed.contains(&key), "{listed}");

    let output = run(&folder, &["keys", "revoke", "alice"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    proxy.logged("read again").await;
    assert_ne!(ask(key).await.status, 200);
}

#[tokio::test]
async fn a_key_may_say_what_is_billed_when_its_holder_leaves_and_where_its_requests_go() {
    let folder = Folder::new();
    assert!(run(&folder, &["keys", "create", "--name", "alice"]).await.status.success());
    let output = run(&folder, &["keys", "create", "--name", "bob", "--on-abort", "drain", "--tag", "batch"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = run(&folder, &["keys", "create", "--name", "carol", "--on-abort", "never"]).await;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("delivered"), "{}", text(&output.stderr));
    let listed = text(&run(&folder, &["keys", "list", "--json"]).await.stdout);
    let mut listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    listed.sort_by_key(|key| key["name"].to_string());
    let told: Vec<_> = listed.iter().map(|key| (&key["name"], &key["on_abort"], &key["tag"])).collect();
    let expected = [(json!("alice"), json!(null), json!(null)), (json!("bob"), json!("drain"), json!("batch"))];
    assert_eq!(told, expected.each_ref().map(|(name, on_abort, tag)| (name, on_abort, tag)));
}
