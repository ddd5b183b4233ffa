//! The whole stack under a prefix.

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Receiver, event};
use serde_json::json;

use crate::process::{Example, Folder};

/// A stack with one backend, a key and a webhook, whose clients have this long to finish.
async fn start(folder: &Folder, backend: &Backend, receiver: &Receiver, patience: &str) -> Example {
    let yaml = format!(
        "
server: {{shutdown_timeout: {patience}}}
backends: [{{url: '{}', models: [m]}}]
health_check: {{enabled: false}}
logging: {{access: {{enabled: false}}}}
auth:
  enabled: true
  pipeline: [{{type: static, static: {{keys: [{{key: sk-1, name: alice}}]}}}}]
usage:
  enabled: true
  ledger: {{path: '{}'}}
  reporters: [{{name: billing, webhook: {{url: '{}'}}}}]
",
        backend.url(),
        folder.path().join("usage.db").display(),
        receiver.url()
    );
    Example::start(env!("CARGO_BIN_EXE_nested"), &[&folder.config(&yaml)]).await
}

async fn ask(client: &mut Client, path: &str) {
    client.send_json(path, &[("authorization", "Bearer sk-1")], &json!({"model": "m", "stream": true})).await;
}

#[tokio::test]
async fn the_stack_answers_under_its_prefix_and_the_rest_is_untouched() {
    let (folder, receiver) = (Folder::new(), Receiver::start().await);
    let delta = event(&json!({"choices": [{"index": 0, "delta": {"content": "hi"}}]}));
    let usage = event(&json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}));
    let backend = Backend::start(llmproxy_testkit::script::sse([delta.clone(), usage, DONE.into()])).await;
    let example = start(&folder, &backend, &receiver, "10s").await;
    let mut client = example.connect().await;

    let hello = client.get("/hello").await;
    assert_eq!((hello.status, &*hello.text()), (200, "hello\n"));
    assert_eq!(hello.header("x-request-id"), None, "no layer of the stack has seen it");
    assert_eq!(client.get("/v1/models").await.status, 404, "the stack is under /llm and nowhere else");

    assert_eq!(client.get("/llm/health").await.text(), "OK");
    let refused = client.post_json("/llm/v1/chat/completions", &json!({"model": "m"})).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    client.send("GET", "/llm/v1/models", &[("authorization", "Bearer sk-1")], b"").await;
    assert_eq!(client.read_to_end().await.json()["data"][0]["id"], "m");

    ask(&mut client, "/llm/v1/chat/completions").await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.text(), format!("{delta}{DONE}"), "but for the usage event, which the proxy asked for");
    assert!(answer.header("x-request-id").is_some());
    let seen = backend.seen();
    assert_eq!((seen.len(), seen[0].path.as_str()), (1, "/v1/chat/completions"), "the backend knows of no prefix");
    assert_eq!(seen[0].header("x-forwarded-for"), Some("127.0.0.1"));

    let record = &receiver.wait_for(1).await[0];
    assert_eq!((&record["key_name"], &record["total_tokens"]), (&json!("alice"), &json!(6)));
    assert_eq!(record["path"], "/v1/chat/completions");
    assert_eq!(record["client_ip"], "127.0.0.1");
}

#[tokio::test]
async fn a_stop_lets_streams_finish_and_delivers_their_records() {
    let (folder, receiver) = (Folder::new(), Receiver::start().await);
    let (backend, mut requests) = Backend::stepped().await;
    let mut example = start(&folder, &backend, &receiver, "10s").await;
    let mut client = example.connect().await;
    ask(&mut client, "/llm/v1/chat/completions").await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.unwrap();
    wire.chunk("data: {}\n\n").await.unwrap();
    client.expect_piece("data: {}\n\n").await;
    example.interrupt();
    wire.chunk(DONE).await.unwrap();
    wire.finish().await.unwrap();
    assert_eq!(client.read_to_end().await.end, BodyEnd::Complete);
    assert_eq!(example.says("stopped").await, "stopped, 0 records still waiting");
    example.ended().await;
    assert_eq!(receiver.bodies()[0]["end"], "complete");
}

#[tokio::test]
async fn a_stream_that_outlasts_the_grace_period_is_cut_and_recorded() {
    let (folder, receiver) = (Folder::new(), Receiver::start().await);
    let (backend, mut requests) = Backend::stepped().await;
    let mut example = start(&folder, &backend, &receiver, "100ms").await;
    let mut client = example.connect().await;
    ask(&mut client, "/llm/v1/chat/completions").await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.unwrap();
    wire.chunk("data: {}\n\n").await.unwrap();
    client.expect_piece("data: {}\n\n").await;
    example.interrupt();
    assert_ne!(client.read_to_end().await.end, BodyEnd::Complete);
    assert_eq!(example.says("stopped").await, "stopped, 0 records still waiting");
    example.ended().await;
    assert_eq!(receiver.bodies()[0]["end"], "shutdown");
}
