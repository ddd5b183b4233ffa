//! A policy of one's own.

use llmproxy_testkit::{Backend, DONE, Refused, Seen, Wire, event, script, within};
use serde_json::json;
use tokio::sync::mpsc;

use crate::process::Example;

#[tokio::test]
async fn the_second_backend_is_asked_only_when_the_first_is_busy() {
    let (first, mut at_first) = model_server().await;
    let (second, mut at_second) = model_server().await;
    let example = Example::start(env!("CARGO_BIN_EXE_policy"), &[&first.url(), &second.url()]).await;
    let ask = json!({"model": "m"});

    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = example.connect().await;
        client.send_json("/v1/chat/completions", &[], &ask).await;
        let (seen, wire) = next(&mut at_first).await;
        assert_eq!(seen.json(), ask);
        busy.push((client, wire));
    }
    // Two are there, which is as many as it may have.
    let mut third = example.connect().await;
    third.send_json("/v1/chat/completions", &[], &ask).await;
    next(&mut at_second).await.1.json(200, &json!({"from": "second"})).await.unwrap();
    assert_eq!(third.read_to_end().await.json()["from"], "second");

    let (mut client, wire) = busy.remove(0);
    wire.json(200, &json!({"from": "first"})).await.unwrap();
    assert_eq!(client.read_to_end().await.json()["from"], "first");
    client.send_json("/v1/chat/completions", &[], &ask).await;
    next(&mut at_first).await;
}

#[tokio::test]
async fn the_policy_chooses_among_those_that_are_there() {
    let nobody = Refused::new();
    let second = Backend::start(script::json(200, json!({"from": "second"}))).await;
    let example = Example::start(env!("CARGO_BIN_EXE_policy"), &[&nobody.url(), &second.url()]).await;
    let mut client = example.connect().await;
    for _ in 0..3 {
        let answer = client.post_json("/v1/chat/completions", &json!({"model": "m"})).await;
        assert_eq!((answer.status, &answer.json()["from"]), (200, &json!("second")));
    }
}

#[tokio::test]
async fn what_the_layers_ask_for_themselves_does_not_reach_the_client() {
    let delta = event(&json!({"choices": [{"index": 0, "delta": {"content": "hi"}}]}));
    let usage = event(&json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}));
    let backend = Backend::start(script::sse([delta.clone(), usage, DONE.into()])).await;
    let example = Example::start(env!("CARGO_BIN_EXE_policy"), &[&backend.url()]).await;
    let mut client = example.connect().await;
    let answer = client.post_json("/v1/chat/completions", &json!({"model": "m", "stream": true})).await;
    assert_eq!(answer.text(), format!("{delta}{DONE}"));

    let wrong = client.post_json("/v1/chat/completions", &json!({"model": 7})).await;
    assert_eq!((wrong.status, &wrong.json()["error"]["param"]), (400, &json!("model")));
    assert_eq!(client.post_json("/v1/load_lora_adapter", &json!({})).await.status, 404);
}

/// A server with the model `m`, whose requests for a chat are the test's to answer.
async fn model_server() -> (Backend, mpsc::Receiver<(Seen, Wire)>) {
    let (sender, chats) = mpsc::channel(16);
    let backend = Backend::start(move |seen, wire| {
        let sender = sender.clone();
        async move {
            if seen.path == "/v1/chat/completions" {
                sender.send((seen, wire)).await.map_err(std::io::Error::other)
            } else {
                wire.json(200, &json!({"data": [{"id": "m"}]})).await
            }
        }
    });
    (backend.await, chats)
}

async fn next(chats: &mut mpsc::Receiver<(Seen, Wire)>) -> (Seen, Wire) {
    within(chats.recv(), || "no request came to this backend".into()).await.unwrap()
}
