//! What a backend does not tell of an answer is asked of it afterwards, where it can be asked.

use std::{collections::BTreeSet, time::Duration};

use llmproxy_testkit::{Backend, Client, Receiver, Seen, Wire};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    counting::{CHAT, ask, counts, yaml},
    harness::Proxy,
};

/// vLLM's `/tokenize`: a token for each letter of a text, 40 for each chat.
fn counting_backend(seen: Seen, wire: Wire) -> impl Future<Output = std::io::Result<()>> {
    let answer = match &*seen.path {
        "/tokenize" => {
            let asked = seen.json();
            let count = asked["prompt"].as_str().map_or(40, str::len);
            json!({"count": count, "max_model_len": 1000, "tokens": vec![1; count]})
        }
        _ => json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "letters"}}]}),
    };
    async move { wire.json(200, &answer).await }
}

/// The record of one question, of a proxy that asks `backend` what it did not say.
async fn asking(backend: &Backend) -> (Proxy, Value) {
    let receiver = Receiver::start().await;
    let mut yaml = yaml(backend, &receiver);
    yaml["metering"] = json!({"ask_backend": true});
    let proxy = Proxy::start(&yaml.to_string()).await;
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(client.post_json(CHAT, &ask(false)).await.status, 200);
    (proxy, receiver.wait_for(1).await.remove(0))
}

#[tokio::test]
async fn a_backend_is_asked_what_it_did_not_say_where_there_is_no_tokenizer() {
    let backend = Backend::start(counting_backend).await;
    let (proxy, record) = asking(&backend).await;
    assert_eq!(counts(&record), json!([40, "counted", 7, "counted"]), "{record}");
    let asked = backend.seen().iter().filter(|seen| seen.path == "/tokenize").count();
    assert_eq!(asked, 3, "what it is, the prompt, and the text");
    assert_eq!(proxy.metrics().await.sum("llmproxy_usage_count_asked_total", &["result=\"counted\""]), 2.0);
}

#[tokio::test]
async fn a_backend_that_can_not_be_asked_costs_an_estimate_and_nothing_else() {
    let backend = Backend::start(|seen: Seen, wire: Wire| async move {
        let content = json!({"choices": [{"message": {"content": "eight by"}}]});
        let status = if seen.path == "/tokenize" { 404 } else { 200 };
        wire.json(status, &content).await
    })
    .await;
    let (_, record) = asking(&backend).await;
    assert_eq!((&record["usage_source"], &record["completion_tokens"]), (&json!("estimated"), &json!(2)), "{record}");
}

#[tokio::test]
async fn a_stop_loses_no_record_that_waits_for_a_backend_to_be_asked() {
    // It answers, but so slowly that the time is over before the last question.
    let backend = Backend::start(|seen: Seen, wire: Wire| async move {
        if seen.path == "/tokenize" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        counting_backend(seen, wire).await
    })
    .await;
    let receiver = Receiver::start().await;
    let mut yaml = yaml(&backend, &receiver);
    yaml["metering"] = json!({"ask_backend": true});
    let mut proxy = Proxy::start(&yaml.to_string()).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..20 {
        assert_eq!(client.post_json(CHAT, &ask(false)).await.status, 200);
    }
    client.leave();
    proxy.signal(Signal::TERM);
    proxy.logged("their records are estimates").await;
    assert!(proxy.exit().await.success());
    let records = receiver.wait_for(20).await;
    let ids: BTreeSet<_> = records.iter().map(|record| record["request_id"].to_string()).collect();
    assert_eq!((records.len(), ids.len()), (20, 20));
    // What had its answer keeps it.
    assert!(records.iter().any(|record| record["prompt_usage_source"] == "counted"));
    assert!(records.iter().any(|record| record["usage_source"] == "estimated"));
}
