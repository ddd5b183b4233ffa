//! Records survive what happens to the proxy, to its receivers and to its disk.
//!
//! `LLMPROXY_TEST_LONG=1` plays the long forms: 200 crashes rather than 10, a minute's outage rather than some seconds.

mod books;
mod disk;
mod kill;
mod outage;
mod receivers;
mod start;
mod stop;

use std::path::Path;

use llmproxy_testkit::{Backend, Client, script};
use serde_json::{Value, json};

/// Whether the long forms are asked for.
fn is_long() -> bool {
    std::env::var_os("LLMPROXY_TEST_LONG").is_some_and(|long| long != "0")
}

/// A backend that answers at once and says what it came to.
async fn backend() -> Backend {
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9});
    Backend::start(script::json(200, json!({"choices": [], "usage": usage}))).await
}

/// A configuration with its ledger in `folder`, which outlives each proxy. JSON is YAML.
fn config(backend: &Backend, folder: &Path, reporters: &[Value]) -> Value {
    json!({
        "backends": [{"url": backend.url(), "models": ["m", "poison"]}],
        "health_check": {"enabled": false},
        "usage": {"enabled": true, "ledger": {"path": folder.join("usage.db")}, "reporters": reporters},
    })
}

/// A reporter to `url`, which counts as down after so many failures only that its tries stay close to each other.
fn reporter(name: &str, url: &str, webhook: &Value) -> Value {
    let mut whole = json!({"url": url, "retry": 1000});
    for (key, value) in webhook.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({"name": name, "type": "webhook", "webhook": whole})
}

/// One exchange: the answer's status, and the id that its record has.
async fn ask(client: &mut Client, model: &str) -> (u16, String) {
    let answer = client.post_json("/v1/chat/completions", &json!({"model": model, "messages": []})).await;
    (answer.status, answer.header("x-request-id").expect("every answer has one").to_owned())
}

/// Some exchanges that succeed, one after the other; their ids.
async fn ask_all(client: &mut Client, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let (status, id) = ask(client, "m").await;
        assert_eq!(status, 200);
        ids.push(id);
    }
    ids
}
