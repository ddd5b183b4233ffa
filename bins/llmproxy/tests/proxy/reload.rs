//! Reload and shutdown while work goes on.

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Receiver, script};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Proxy, get, within};

const KEY: &str = "sk-test-0123456789abcdef";
const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

fn config(backends: &[&str], receiver: &str, concurrent: u32) -> String {
    let backends: Vec<_> = backends.iter().map(|url| json!({"url": url, "models": ["m"]})).collect();
    let yaml = json!({
        "backends": backends,
        "server": {"shutdown_timeout": "10s"},
        "health_check": {"enabled": false},
        "auth": {"enabled": true, "pipeline": [{"type": "static", "static": {"keys": [{"key": KEY, "name": "k"}]}}]},
        "rate_limit": {"enabled": true, "per_key": {"max_concurrent": concurrent, "requests_per_minute": 100}},
        "usage": {"enabled": true, "reporters": [{"name": "r", "type": "webhook", "webhook": {"url": receiver}}]},
    });
    // JSON is YAML.
    yaml.to_string()
}

async fn ask(client: &mut Client) {
    let headers = [("authorization", &*format!("Bearer {KEY}"))];
    client.send_json("/v1/chat/completions", &headers, &json!({"model": "m", "stream": true, "messages": []})).await;
}

#[tokio::test]
async fn permits_buckets_and_streams_survive_a_reload_and_a_bad_file_changes_nothing() {
    let (backend, mut requests) = Backend::stepped().await;
    let receiver = Receiver::start().await;
    let yaml = config(&[&backend.url()], &receiver.url(), 2);
    let mut proxy = Proxy::start(&yaml).await;

    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address()).await;
        ask(&mut client).await;
        let (_, mut wire) = requests.next().await;
        wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
        wire.chunk(EVENT).await.expect("the proxy reads");
        client.expect_piece(EVENT).await;
        streams.push((client, wire));
    }

    for (file, said) in [
        (&*yaml, "reloaded"),
        ("backends: [", "nothing was changed"),
        ("backends: []", "nothing was changed"),
        (&*yaml, "reloaded"),
    ] {
        proxy.reload(file, said).await;
        let metrics = proxy.metrics().await;
        assert_eq!(metrics.sum("llmproxy_in_flight", &[]), 2.0, "after {said}");
        // Both permits are out still, and what was taken from the minute's requests stays taken.
        let mut third = Client::connect(proxy.address()).await;
        ask(&mut third).await;
        let answer = third.read_to_end().await;
        assert_eq!(answer.status, 429, "{}", answer.text());
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_config_reloads_total", &["ok"]), 2.0);
    assert_eq!(proxy.metrics().await.sum("llmproxy_config_reloads_total", &["failed"]), 2.0);

    for (client, wire) in &mut streams {
        wire.chunk(EVENT).await.expect("the proxy reads");
        client.expect_piece(EVENT).await;
    }
    for (mut client, mut wire) in streams {
        wire.chunk(DONE).await.expect("the proxy reads");
        wire.finish().await.expect("the proxy reads");
        let rest = client.read_to_end().await;
        assert_eq!((rest.text().as_str(), rest.end), (DONE, BodyEnd::Complete));
    }
    assert_eq!(receiver.wait_for(2).await.iter().filter(|record| record["end"] == "complete").count(), 2);

    // A place is free again; of a hundred requests a minute two have passed before this one.
    let mut client = Client::connect(proxy.address()).await;
    ask(&mut client).await;
    let (_, wire) = requests.next().await;
    wire.json(200, &json!({"choices": []})).await.expect("the proxy reads");
    let answer = client.read_to_end().await;
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, Some("97")));
}

#[tokio::test]
async fn a_reload_puts_new_settings_in_force_for_new_requests() {
    let old = Backend::start(script::json(200, json!({"from": "old"}))).await;
    let new = Backend::start(script::json(200, json!({"from": "new"}))).await;
    let receiver = Receiver::start().await;
    let mut proxy = Proxy::start(&config(&[&old.url()], &receiver.url(), 2)).await;
    let mut client = Client::connect(proxy.address()).await;
    ask(&mut client).await;
    assert_eq!(client.read_to_end().await.json()["from"], "old");
    proxy.reload(&config(&[&new.url()], &receiver.url(), 2), "reloaded").await;
    // On the same connection: what is kept is the connection, not the stack.
    ask(&mut client).await;
    assert_eq!(client.read_to_end().await.json()["from"], "new");
}

#[tokio::test]
async fn under_load_no_request_notices_reloads() {
    let backend = Backend::start(script::sse([EVENT, EVENT, DONE])).await;
    let receiver = Receiver::start().await;
    let yaml = config(&[&backend.url()], &receiver.url(), 0)
        .replace("\"requests_per_minute\":100", "\"requests_per_minute\":0");
    let mut proxy = Proxy::start(&yaml).await;
    let address = proxy.address();
    let load: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for _ in 0..100 {
                    ask(&mut client).await;
                    let answer = client.read_to_end().await;
                    assert_eq!((answer.status, answer.end), (200, BodyEnd::Complete), "{}", answer.text());
                }
            })
        })
        .collect();
    for _ in 0..5 {
        proxy.reload(&yaml, "reloaded").await;
    }
    for task in load {
        within("the load", task).await.expect("every request was answered");
    }
    // Wait for the last one to have ended in the proxy, too.
    for _ in 0..400 {
        assert_eq!(proxy.ended().await["end"], "complete");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_in_flight", &[]), 0.0);
    assert_eq!(metrics.sum("llmproxy_exchanges_total", &["complete"]), 400.0);
}

#[tokio::test]
async fn a_shutdown_lets_streams_finish_and_writes_their_records() {
    let (backend, mut requests) = Backend::stepped().await;
    let receiver = Receiver::start().await;
    let mut proxy = Proxy::start(&config(&[&backend.url()], &receiver.url(), 2)).await;
    let address = proxy.address();
    assert_eq!(get(address, "/ready").await.0, 200);
    let mut client = Client::connect(address).await;
    ask(&mut client).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    wire.chunk(EVENT).await.expect("the proxy reads");
    client.expect_piece(EVENT).await;

    proxy.signal(Signal::TERM);
    proxy.logged("no longer accepting").await;
    assert!(Client::try_connect(address).await.is_err(), "new connections are refused");
    wire.chunk(EVENT).await.expect("the proxy reads");
    client.expect_piece(EVENT).await;
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let rest = client.read_to_end().await;
    assert_eq!((rest.text().as_str(), rest.end), (DONE, BodyEnd::Complete));
    assert!(proxy.exit().await.success());
    let records = receiver.bodies();
    assert_eq!(records.iter().map(|record| &record["end"]).collect::<Vec<&Value>>(), ["complete"]);
}

#[tokio::test]
async fn a_slow_receiver_still_gets_every_record_of_a_shutdown() {
    let backend = Backend::start(script::sse([EVENT, DONE])).await;
    let receiver = Receiver::start().await;
    let yaml = config(&[&backend.url()], &receiver.url(), 0)
        .replace("\"requests_per_minute\":100", "\"requests_per_minute\":0");
    let proxy = Proxy::start(&yaml).await;
    receiver.behave_for(3, llmproxy_testkit::Behaviour::Status(500));
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..10 {
        ask(&mut client).await;
        assert_eq!(client.read_to_end().await.status, 200);
    }
    proxy.signal(Signal::TERM);
    assert!(proxy.exit().await.success());
    let mut ids: Vec<_> = receiver.bodies().iter().map(|record| record["request_id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 10);
}
