//! Clients that leave before the end: what is billed, and what becomes of the backend's work.

use llmproxy_testkit::{Backend, Client, DONE, Receiver, Requests, Wire};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    harness::{Proxy, within},
    http2_client::Http2,
};

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":70}}\n\n";
const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];

/// A proxy before one backend, and who is told of the records.
struct Setting {
    proxy: Proxy,
    backend: Backend,
    requests: Requests,
    receiver: Receiver,
    yaml: Value,
}

impl Setting {
    async fn of(metering: Value) -> Self {
        Self::with(json!({"metering": metering})).await
    }

    /// What `more` says at the top level is added.
    async fn with(more: Value) -> Self {
        let (backend, requests) = Backend::stepped().await;
        let receiver = Receiver::start().await;
        let mut yaml = json!({
            "backends": [{"url": backend.url(), "models": ["m"]}],
            "health_check": {"enabled": false},
            "usage": {"enabled": true, "reporters": [{"name": "r", "type": "webhook", "webhook": {"url": receiver.url()}}]},
        });
        for (key, value) in more.as_object().expect("a map") {
            yaml[key] = value.clone();
        }
        // JSON is YAML.
        let proxy = Proxy::start(&yaml.to_string()).await;
        Self { proxy, backend, requests, receiver, yaml }
    }

    /// A client that has two pieces of a stream, and the backend's side of it.
    async fn stream(&mut self, headers: &[(&str, &str)]) -> (Client, Wire) {
        let mut client = Client::connect(self.proxy.address()).await;
        let ask = json!({"model": "m", "stream": true, "messages": []});
        client.send_json("/v1/chat/completions", headers, &ask).await;
        let (_, mut wire) = self.requests.next().await;
        wire.head(200, EVENTS).await.expect("the proxy reads");
        for _ in 0..2 {
            wire.chunk(EVENT).await.expect("the proxy reads");
            client.expect_piece(EVENT).await;
        }
        (client, wire)
    }

    /// The same, once the client has left and the proxy has seen it.
    async fn left(&mut self, headers: &[(&str, &str)]) -> Wire {
        let (client, wire) = self.stream(headers).await;
        client.leave();
        assert_eq!(self.proxy.ended().await["end"], "client_gone");
        wire
    }

    /// The last of so many records.
    async fn record(&self, count: usize) -> Value {
        let records = self.receiver.wait_for(count).await;
        assert_eq!(records.len(), count);
        records[count - 1].clone()
    }

    async fn drains(&self, result: &str) -> f64 {
        self.proxy.metrics().await.sum("llmproxy_drains_total", &[result])
    }
}

async fn finish(mut wire: Wire) {
    for piece in [EVENT, USAGE, DONE] {
        wire.chunk(piece).await.expect("the proxy reads");
    }
    wire.finish().await.expect("the proxy reads");
}

/// How it ended, the completion's tokens, who counted them, and how many the client was given.
#[track_caller]
fn check(record: &Value, completion: u64, source: &str, delivered: u64) {
    assert_eq!(
        (&record["end"], &record["completion_tokens"], &record["usage_source"], &record["delivered_tokens"]),
        (&json!("client_gone"), &json!(completion), &json!(source), &json!(delivered)),
        "{record}"
    );
}

#[tokio::test]
async fn delivered_stops_the_backend_and_bills_what_the_client_was_given() {
    let mut setting = Setting::of(json!({})).await;
    let mut wire = setting.left(&[]).await;
    within("the backend to see it", wire.client_gone()).await;
    check(&setting.record(1).await, 2, "estimated", 2);
    assert_eq!(setting.proxy.metrics().await.sum("llmproxy_drains_total", &[]), 0.0);
}

#[tokio::test]
async fn drain_lets_the_backend_finish_and_bills_what_it_says() {
    let mut setting = Setting::with(json!({
        "metering": {"on_abort": "drain"},
        "rate_limit": {"enabled": true, "per_key": {"max_concurrent": 1}},
    }))
    .await;
    let wire = setting.left(&[]).await;
    let metrics = setting.proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_in_flight", &[]), 1.0, "the backend is at work");
    assert_eq!(metrics.sum("llmproxy_drains_running", &[]), 1.0);
    // The client's place is its own again.
    let (mut client, mut other) = setting.stream(&[]).await;
    other.chunk(DONE).await.expect("the proxy reads");
    other.finish().await.expect("the proxy reads");
    client.read_to_end().await;
    let complete = setting.record(1).await;
    assert_eq!((&complete["end"], complete.get("delivered_tokens")), (&json!("complete"), None));

    finish(wire).await;
    let record = setting.record(2).await;
    check(&record, 70, "backend", 2);
    assert_eq!((&record["prompt_tokens"], &record["status_code"]), (&json!(5), &json!(200)));
    assert_eq!(setting.backend.counts().abandoned, 0);
    let metrics = setting.proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_in_flight", &[]), 0.0);
    assert_eq!(metrics.sum("llmproxy_drains_running", &[]), 0.0);
    assert_eq!(metrics.sum("llmproxy_drains_total", &["finished"]), 1.0);
}

#[tokio::test]
async fn a_drain_is_bounded_in_time() {
    let mut setting = Setting::of(json!({"on_abort": "drain", "drain_timeout": "200ms"})).await;
    let mut wire = setting.left(&[]).await;
    within("the backend to see it", wire.client_gone()).await;
    check(&setting.record(1).await, 2, "estimated", 2);
    assert_eq!(setting.drains("time").await, 1.0);
}

#[tokio::test]
async fn a_drain_is_bounded_in_tokens() {
    let mut setting = Setting::of(json!({"on_abort": "drain", "drain_max_tokens": 3})).await;
    let mut wire = setting.left(&[]).await;
    for _ in 0..3 {
        wire.chunk(EVENT).await.expect("the proxy reads");
    }
    within("the backend to see it", wire.client_gone()).await;
    check(&setting.record(1).await, 5, "estimated", 2);
    assert_eq!(setting.drains("tokens").await, 1.0);
}

#[tokio::test]
async fn drains_are_bounded_in_number() {
    let mut setting = Setting::of(json!({"on_abort": "drain", "drain_max_streams": 1})).await;
    let first = setting.left(&[]).await;
    let mut second = setting.left(&[]).await;
    within("the backend to see it", second.client_gone()).await;
    check(&setting.record(1).await, 2, "estimated", 2);
    assert_eq!(setting.drains("full").await, 1.0);
    finish(first).await;
    check(&setting.record(2).await, 70, "backend", 2);
    // There is room again.
    let third = setting.left(&[]).await;
    finish(third).await;
    check(&setting.record(3).await, 70, "backend", 2);
}

#[tokio::test]
async fn a_key_says_otherwise() {
    for (configured, own) in [("delivered", "drain"), ("drain", "delivered")] {
        let mut setting = Setting::with(json!({
            "metering": {"on_abort": configured},
            "auth": {"enabled": true, "pipeline": [{"type": "static", "static": {"keys": [
                {"key": "sk-own", "name": "own", "on_abort": own},
                {"key": "sk-any", "name": "any"},
            ]}}]},
        }))
        .await;
        for (count, (key, drained)) in [("sk-own", own == "drain"), ("sk-any", own != "drain")].into_iter().enumerate()
        {
            let mut wire = setting.left(&[("authorization", &*format!("Bearer {key}"))]).await;
            if drained {
                finish(wire).await;
                check(&setting.record(count + 1).await, 70, "backend", 2);
            } else {
                within("the backend to see it", wire.client_gone()).await;
                check(&setting.record(count + 1).await, 2, "estimated", 2);
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_leaves_nothing_to_drain() {
    let mut setting = Setting::of(json!({"on_abort": "drain"})).await;
    let mut client = Client::connect(setting.proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "stream": true, "messages": []})).await;
    let (_, mut wire) = setting.requests.next().await;
    client.leave();
    within("the backend to see it", wire.client_gone()).await;
    check(&setting.record(1).await, 0, "estimated", 0);
}

#[tokio::test]
async fn an_answer_in_json_that_was_left_in_the_middle_is_read_to_its_end() {
    let mut setting = Setting::of(json!({"on_abort": "drain"})).await;
    let parts = ["{\"choices\":[\"some text\"],  ", "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":70}}"];
    let length = parts.concat().len().to_string();
    for (count, framing) in [("content-length", &*length), ("transfer-encoding", "chunked")].into_iter().enumerate() {
        let mut client = Client::connect(setting.proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "messages": []})).await;
        let (_, mut wire) = setting.requests.next().await;
        wire.head(200, &[("content-type", "application/json"), framing]).await.expect("the proxy reads");
        wire.chunk(parts[0]).await.expect("the proxy reads");
        client.expect_piece(parts[0]).await;
        client.leave();
        assert_eq!(setting.proxy.ended().await["end"], "client_gone");
        wire.chunk(parts[1]).await.expect("the proxy reads");
        wire.finish().await.expect("the proxy reads");
        check(&setting.record(count + 1).await, 70, "backend", parts[0].len() as u64 / 4);
    }
}

#[tokio::test]
async fn a_backend_that_dies_or_falls_silent_in_a_drain_is_told_of() {
    let mut setting = Setting::with(json!({"metering": {"on_abort": "drain"}, "routing": {"gap_timeout": "1s"}})).await;
    let mut wire = setting.left(&[]).await;
    wire.chunk(EVENT).await.expect("the proxy reads");
    wire.close().await;
    let died = setting.record(1).await;
    check(&died, 3, "estimated", 2);
    assert!(died["error"].is_string(), "{died}");

    let mut wire = setting.left(&[]).await;
    within("the backend to see it", wire.client_gone()).await;
    let silent = setting.record(2).await;
    check(&silent, 2, "estimated", 2);
    assert!(silent["error"].is_string(), "{silent}");
    assert_eq!(setting.drains("finished").await, 2.0, "none of its own limits did that");
}

#[tokio::test]
async fn drains_survive_a_reload_and_count_after_it() {
    let mut setting = Setting::of(json!({"on_abort": "drain", "drain_max_streams": 1})).await;
    let first = setting.left(&[]).await;
    setting.yaml["metering"]["drain_timeout"] = json!("30s");
    let yaml = setting.yaml.to_string();
    setting.proxy.reload(&yaml, "reloaded").await;
    let mut second = setting.left(&[]).await;
    within("the backend to see it", second.client_gone()).await;
    check(&setting.record(1).await, 2, "estimated", 2);
    finish(first).await;
    check(&setting.record(2).await, 70, "backend", 2);
    // What is to be done is the new file's to say.
    setting.yaml["metering"] = json!({"on_abort": "delivered"});
    let yaml = setting.yaml.to_string();
    setting.proxy.reload(&yaml, "reloaded").await;
    let mut third = setting.left(&[]).await;
    within("the backend to see it", third.client_gone()).await;
    check(&setting.record(3).await, 2, "estimated", 2);
}

#[tokio::test]
async fn over_http2_a_reset_and_a_lost_connection_are_drained_alike() {
    let mut setting = Setting::of(json!({"on_abort": "drain"})).await;
    for (count, cut) in [false, true].into_iter().enumerate() {
        let mut client = Http2::connect(setting.proxy.address()).await;
        let ask = json!({"model": "m", "stream": true, "messages": []});
        let mut stream = client.post("/v1/chat/completions", &[], &ask).await;
        let (_, mut wire) = setting.requests.next().await;
        wire.head(200, EVENTS).await.expect("the proxy reads");
        wire.chunk(EVENT).await.expect("the proxy reads");
        stream.expect_piece(EVENT).await;
        if cut {
            client.cut();
        } else {
            stream.leave();
        }
        assert_eq!(setting.proxy.ended().await["end"], "client_gone");
        finish(wire).await;
        check(&setting.record(count + 1).await, 70, "backend", 1);
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_drained_when_it_is_given_up() {
    let mut setting =
        Setting::with(json!({"metering": {"on_abort": "drain"}, "server": {"write_timeout": "300ms"}})).await;
    let (client, mut wire) = setting.stream(&[]).await;
    // More than the sockets and the proxy hold together; then the backend waits, as the client lets it.
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(64 * 1024));
    let written = async {
        for _ in 0..400 {
            wire.chunk(&event).await?;
        }
        wire.chunk(USAGE).await?;
        wire.finish().await
    };
    within("all to be read, by whom ever", written).await.expect("the proxy reads");
    let record = setting.record(1).await;
    let delivered = record["delivered_tokens"].as_u64().expect("a number");
    check(&record, 70, "backend", delivered);
    // Pieces so long are estimated by their size.
    assert!((2..400 * 64 * 1024 / 4).contains(&delivered), "{delivered}");
    drop(client);
}

#[tokio::test]
async fn a_stop_lets_drains_finish() {
    let mut setting =
        Setting::with(json!({"metering": {"on_abort": "drain"}, "server": {"shutdown_timeout": "60s"}})).await;
    let wire = setting.left(&[]).await;
    // One that is left while the proxy stops is drained, too.
    let (client, other) = setting.stream(&[]).await;
    setting.proxy.signal(Signal::TERM);
    setting.proxy.logged("no longer accepting").await;
    client.leave();
    assert_eq!(setting.proxy.ended().await["end"], "client_gone");
    finish(wire).await;
    check(&setting.record(1).await, 70, "backend", 2);
    finish(other).await;
    check(&setting.record(2).await, 70, "backend", 2);
    assert!(setting.proxy.exit().await.success());
}

#[tokio::test]
async fn a_stop_cuts_drains_after_its_grace_period_and_records_them() {
    let mut setting =
        Setting::with(json!({"metering": {"on_abort": "drain"}, "server": {"shutdown_timeout": "300ms"}})).await;
    let mut wire = setting.left(&[]).await;
    setting.proxy.signal(Signal::TERM);
    setting.proxy.logged("still read after the grace period").await;
    within("the backend to see it", wire.client_gone()).await;
    check(&setting.record(1).await, 2, "estimated", 2);
    assert!(setting.proxy.exit().await.success());
}
