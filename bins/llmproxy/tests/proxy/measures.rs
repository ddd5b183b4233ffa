//! What exchanges come to in the metrics, what they cost, and that no client can multiply series.

use llmproxy_testkit::{Backend, Client, Receiver, Seen, Wire, script};
use serde_json::json;

use crate::harness::{Proxy, within};

const CHAT: &str = "/v1/chat/completions";
const PRICES: &str = "pricing: {currency: EUR, models: [{models: ['big*'], input: 2, cached_input: 0.5, output: 8}, {models: [free], input: 0}]}";
const KEYS: &str = "auth: {enabled: true, pipeline: [{name: k, type: static, static: {keys: [{key: sk-alice, name: alice, user_id: u-1}, \
                    {key: sk-bob, name: bob}]}}]}";

fn config(backend: &str, receiver: &str, more: &str) -> String {
    format!(
        "backends: [{{name: gpu, url: '{backend}', models: [big-model, free, unpriced]}}]\nhealth_check: {{enabled: \
         false}}\nrouting: {{model_mapping: {{alias: big-model}}}}\nusage: {{enabled: true, reporters: [{{name: test, type: \
         webhook, webhook: {{url: '{receiver}'}}}}]}}\n{more}\n"
    )
}

fn usage() -> serde_json::Value {
    json!({"choices": [], "usage": {
        "prompt_tokens": 1000, "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 400}, "completion_tokens_details": {"reasoning_tokens": 30}
    }})
}

#[tokio::test]
async fn a_record_says_what_it_cost_and_the_metrics_add_it_up() {
    let backend = Backend::start(script::json(200, usage())).await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&config(&backend.url(), &receiver.url(), PRICES)).await;
    let mut client = Client::connect(proxy.address()).await;
    for model in ["big-model", "alias", "free", "unpriced"] {
        assert_eq!(client.post_json(CHAT, &json!({"model": model, "messages": []})).await.status, 200);
    }
    let mut records = receiver.wait_for(4).await;
    records.sort_by_key(|record| record["model"].to_string());
    let costs: Vec<_> = records.iter().map(|record| (&record["model"], &record["cost"], &record["currency"])).collect();
    // 600 at 2, 400 at 0.5 and 100 at 8 for a million: the alias by the name of the model behind it.
    let (cost, eur, none) = (json!(0.0022), json!("EUR"), json!(null));
    assert_eq!(
        costs,
        [
            (&json!("alias"), &cost, &eur),
            (&json!("big-model"), &cost, &eur),
            (&json!("free"), &json!(0.0), &eur),
            (&json!("unpriced"), &none, &none),
        ]
    );
    let metrics = proxy.metrics().await;
    let cost = |labels: &[&str]| metrics.sum("llmproxy_cost_millionths_total", labels);
    assert_eq!((cost(&[]), cost(&["model=\"big-model\"", "currency=\"EUR\""])), (4400.0, 2200.0));
    let tokens = |kind: &str| metrics.sum("llmproxy_tokens_total", &[kind, "model=\"big-model\"", "backend=\"gpu\""]);
    let kinds = ["type=\"prompt\"", "type=\"completion\"", "type=\"cached\"", "type=\"reasoning\""];
    assert_eq!(kinds.map(tokens), [1000.0, 100.0, 400.0, 30.0]);
    // As they have always been.
    assert_eq!(metrics.sum("llmproxy_usage_tokens_total", &["type=\"prompt\""]), 4000.0);
}

#[tokio::test]
async fn what_costs_less_than_a_millionth_is_not_lost() {
    let answer = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 0}});
    let backend = Backend::start(script::json(200, answer)).await;
    let receiver = Receiver::start().await;
    let prices = "pricing: {models: [{models: ['*'], input: 0.3}]}";
    let proxy = Proxy::start(&config(&backend.url(), &receiver.url(), prices)).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..10 {
        client.post_json(CHAT, &json!({"model": "big-model", "messages": []})).await;
    }
    receiver.wait_for(10).await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_cost_millionths_total", &["currency=\"USD\""]), 3.0);
}

#[tokio::test]
async fn a_stream_is_measured_in_every_way() {
    let (backend, mut requests) = Backend::stepped().await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&config(&backend.url(), &receiver.url(), "")).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json(CHAT, &[], &json!({"model": "big-model", "messages": [], "stream": true})).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    let piece = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for _ in 0..3 {
        wire.chunk(piece).await.expect("the proxy reads");
        client.expect_piece(piece).await;
    }
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n";
    wire.chunk([usage, "data: [DONE]\n\n"].concat()).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    client.read_to_end().await;
    let record = receiver.wait_for(1).await.pop().expect("one");
    for key in ["longest_gap_ms", "time_per_output_token_ms", "proxy_time_ms", "tokens_per_second"] {
        assert!(record[key].as_f64().is_some_and(|value| value > 0.0), "{key} {record}");
    }
    assert_eq!(record["queue_time_ms"], 0.0, "{record}");
    let metrics = proxy.metrics().await;
    let theirs = ["gen_ai_operation_name=\"chat\"", "gen_ai_request_model=\"big-model\"", "backend=\"gpu\""];
    for name in ["request_duration", "time_to_first_token", "time_per_output_token"] {
        assert_eq!(metrics.sum(&format!("gen_ai_server_{name}_seconds_count"), &theirs), 1.0, "{name}");
    }
    for (kind, tokens) in [("input", 7.0), ("output", 3.0)] {
        let label = format!("gen_ai_token_type=\"{kind}\"");
        assert_eq!(metrics.sum("gen_ai_client_token_usage_sum", &[theirs[1], &label]), tokens);
    }
    assert_eq!(metrics.sum("gen_ai_server_request_duration_seconds_count", &["error_type"]), 0.0);
    for name in [
        "longest_gap_seconds",
        "time_to_first_byte_seconds",
        "tokens_per_second",
        "queue_time_seconds",
        "proxy_time_seconds",
        "attempts",
    ] {
        let series = format!("llmproxy_{name}_count");
        assert_eq!(metrics.sum(&series, &["model=\"big-model\"", "backend=\"gpu\""]), 1.0, "{name}");
    }
}

#[tokio::test]
async fn an_exchange_that_failed_says_how() {
    let backend = Backend::start(script::json(500, json!({"error": {"message": "no"}}))).await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&config(&backend.url(), &receiver.url(), "")).await;
    Client::connect(proxy.address()).await.post_json(CHAT, &json!({"model": "big-model", "messages": []})).await;
    receiver.wait_for(1).await;
    let metrics = proxy.metrics().await;
    let failed = ["error_type=\"backend_failed\"", "gen_ai_request_model=\"big-model\""];
    assert_eq!(metrics.sum("gen_ai_server_request_duration_seconds_count", &failed), 1.0);
}

#[tokio::test]
async fn names_that_clients_make_up_are_one_series() {
    // llama-server: it lists one model, and takes every name.
    let models = json!({"data": [{"id": "big-model", "owned_by": "llamacpp"}]});
    let backend = Backend::start(move |seen: Seen, wire: Wire| {
        let answer = if seen.path == "/v1/models" { models.clone() } else { usage() };
        async move { wire.json(200, &answer).await }
    })
    .await;
    let receiver = Receiver::start().await;
    let yaml = config(&backend.url(), &receiver.url(), "").replace(", models: [big-model, free, unpriced]", "");
    let mut proxy = Proxy::start(&yaml.replace("enabled: false", "enabled: true")).await;
    proxy.up("gpu").await;
    let mut client = Client::connect(proxy.address()).await;
    for index in 0..150 {
        client.post_json(CHAT, &json!({"model": format!("made-up-{index}"), "messages": []})).await;
    }
    client.post_json(CHAT, &json!({"model": "big-model", "messages": []})).await;
    receiver.wait_for(151).await;
    let metrics = proxy.metrics().await;
    let prompts = |label: &str| metrics.sum("llmproxy_tokens_total", &["type=\"prompt\"", label]);
    assert_eq!(prompts("made-up"), 0.0);
    assert_eq!((prompts("model=\"other\""), prompts("model=\"big-model\"")), (150_000.0, 1000.0));
}

#[tokio::test]
async fn callers_are_told_apart_only_where_that_is_asked_for_and_a_reload_may_ask() {
    let backend = Backend::start(script::json(200, usage())).await;
    let receiver = Receiver::start().await;
    let plain = config(&backend.url(), &receiver.url(), KEYS);
    let mut proxy = Proxy::start(&plain).await;
    let ask = async |proxy: &Proxy, key: &str| {
        let mut client = Client::connect(proxy.address()).await;
        let bearer = format!("Bearer {key}");
        client.send_json(CHAT, &[("authorization", &bearer)], &json!({"model": "big-model", "messages": []})).await;
        assert_eq!(client.read_to_end().await.status, 200);
    };
    ask(&proxy, "sk-alice").await;
    receiver.wait_for(1).await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_tokens_total", &["key_name"]), 0.0);
    let labels = "metrics: {custom_labels: [key_name, user_id]}";
    proxy.reload(&format!("{plain}{labels}\n"), "reloaded").await;
    ask(&proxy, "sk-alice").await;
    ask(&proxy, "sk-bob").await;
    receiver.wait_for(3).await;
    let metrics = proxy.metrics().await;
    let prompts = |labels: &[&str]| metrics.sum("llmproxy_tokens_total", &[&["type=\"prompt\""], labels].concat());
    assert_eq!(prompts(&["key_name=\"alice\"", "user_id=\"u-1\""]), 1000.0);
    assert_eq!(prompts(&["key_name=\"bob\"", "user_id=\"\""]), 1000.0);
    assert_eq!(prompts(&[]), 3000.0);
}

#[tokio::test]
async fn prices_and_labels_that_are_none_are_refused_with_their_place() {
    let check = async |more: &str, expected: &[&str]| {
        let folder = crate::harness::Folder::new();
        let file = folder.join("config.yaml");
        std::fs::write(&file, format!("backends: [{{url: 'http://localhost:1'}}]\n{more}\n"))
            .expect("the folder is ours");
        let output = crate::harness::command(&folder).arg("check").arg("--config").arg(&file).output();
        let output = within("the check", output).await.expect("the binary starts");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        for part in expected {
            assert!(said.contains(part), "{part}: {said}");
        }
    };
    check("pricing: {models: [{input: 1}]}", &["pricing.models[0].models", "must list the models"]).await;
    check("pricing: {models: [{models: [m], output: -1}]}", &["pricing.models[0].output", "price of a million tokens"])
        .await;
    check("metrics: {custom_labels: [prompt]}", &["metrics.custom_labels", "key_name, user_id"]).await;
}
