//! What an operator relies on: logs that are where they should be, commands that say what they did, limits that clients see.

use std::process::{Output, Stdio};

use llmproxy_testkit::{Backend, Client, script};
use serde_json::json;

use crate::harness::{Folder, Proxy, command, within};

async fn run(folder: &std::path::Path, args: &[&str], stdout: Stdio) -> Output {
    let child = command(folder).args(args).stdout(stdout).stderr(Stdio::piped()).spawn().expect("the binary starts");
    within("the command to end", child.wait_with_output()).await.expect("output")
}

#[tokio::test]
async fn a_log_s_folder_is_made() {
    let backend = Backend::start(script::hang()).await;
    let folder = Folder::new();
    let listen = backend.addr();
    // The address is taken, so that the program ends by itself, after its log was opened.
    let yaml = format!(
        "server: {{listen: '{listen}'}}\nlog: {{output: deep/er/llmproxy.log}}\nbackends: [{{url: '{}'}}]\n",
        backend.url()
    );
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    let output = run(&folder, &[], Stdio::null()).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("server.listen"), "{told}");
    assert!(folder.join("deep/er/llmproxy.log").exists(), "{told}");
}

#[tokio::test]
async fn keys_are_not_made_in_a_store_that_nobody_meant() {
    let folder = Folder::new();
    let output = run(&folder, &["keys", "create", "--name", "a", "--config", "typo.yaml"], Stdio::null()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("typo.yaml"));
    assert!(!folder.join("data").exists());
    // Without any file the default store is meant.
    assert!(run(&folder, &["keys", "create", "--name", "a"], Stdio::null()).await.status.success());
    assert!(folder.join("data/keys.db").exists());
    assert_eq!(run(&folder, &["keys", "create", "--name", " "], Stdio::null()).await.status.code(), Some(1));
}

#[tokio::test]
async fn a_full_or_closed_standard_output_is_no_panic() {
    let folder = Folder::new();
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there"));
    let output = run(&folder, &["keys", "create", "--name", "a"], full()).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("revoke a"), "{told}");
    assert_eq!(run(&folder, &["keys", "list"], full()).await.status.code(), Some(1));

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(run(&folder, &["keys", "list"], writer.into()).await.status.code(), Some(0));
}

#[tokio::test]
async fn what_is_left_of_a_limit_is_on_answers_that_failed_too() {
    let backend = Backend::start(script::json(200, json!({"choices": []}))).await;
    let url = backend.url();
    for (limit, left) in [("requests_per_minute: 60", "59"), ("tokens_per_minute: 100000", "9")] {
        let yaml =
            format!("backends: [{{url: '{url}', models: [m]}}]\nrate_limit: {{enabled: true, per_key: {{{limit}}}}}\n");
        let proxy = Proxy::start(&yaml).await;
        for (model, status) in [("m", 200), ("unknown", 404)] {
            let mut client = Client::connect(proxy.address()).await;
            let body = json!({"model": model, "max_tokens": 8, "messages": []});
            client.send_json("/v1/chat/completions", &[], &body).await;
            let answer = client.read_to_end().await;
            assert_eq!(answer.status, status, "{}", answer.text());
            let remaining = answer.header("x-ratelimit-remaining").unwrap_or_default();
            let expected = if status == 404 && left == "59" { "58" } else { left };
            assert!(remaining.starts_with(expected), "{limit}, {model}: {remaining}");
        }
    }
}
