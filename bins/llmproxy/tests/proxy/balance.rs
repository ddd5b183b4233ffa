//! Which backend gets the request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use llmproxy_testkit::{Backend, Client, DONE, Refused, Seen, Wire, script};
use serde_json::{Value, json};

use crate::harness::Proxy;

fn ask() -> Value {
    json!({"model": "m", "stream": true, "messages": []})
}

#[tokio::test]
async fn long_streams_spread_by_weight_within_one() {
    let (heavy, mut heavy_requests) = Backend::stepped().await;
    let (light, mut light_requests) = Backend::stepped().await;
    let yaml = format!(
        "backends: [{{url: '{}', weight: 3, models: [m]}}, {{url: '{}', weight: 1, models: [m]}}]\nrouting: {{load_balance: least_connections}}\nhealth_check: {{enabled: false}}\n",
        heavy.url(),
        light.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(proxy.address()).await;
        client.send_json("/v1/chat/completions", &[], &ask()).await;
        let (_, mut wire) = tokio::select! {
            request = heavy_requests.next() => request,
            request = light_requests.next() => request,
        };
        // In flight beyond the head: the stream is what counts.
        wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
        assert_eq!(client.head().await.status, 200);
        open.push((client, wire));
    }
    let counts = (heavy.counts().in_progress, light.counts().in_progress);
    assert!(counts.0.abs_diff(15) <= 1 && counts.1.abs_diff(5) <= 1, "{counts:?}");
}

#[tokio::test]
async fn a_backend_that_fails_fast_attracts_nothing() {
    let good = Backend::start(script::sse(["data: {}\n\n", DONE])).await;
    let bad = Backend::start(script::json(500, json!({"error": {"message": "out of memory"}}))).await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [m]}}, {{url: '{}', models: [m]}}]\nrouting: {{load_balance: latency_based}}\n",
        good.url(),
        bad.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let mut failed = 0;
    for _ in 0..200 {
        failed += u32::from(client.post_json("/v1/chat/completions", &ask()).await.status != 200);
    }
    assert!(failed < 10, "{failed} of 200 went to the one that fails fast");
}

#[tokio::test]
async fn a_server_whose_engine_died_is_ejected_and_comes_back_by_one_request() {
    let broken = Arc::new(AtomicBool::new(true));
    let good = Backend::start(script::json(200, json!({"from": "good"}))).await;
    let bad = Backend::start({
        let broken = broken.clone();
        move |seen: Seen, wire: Wire| {
            // Its health page says that all is well.
            let fails = broken.load(Ordering::Relaxed) && seen.path == "/v1/chat/completions";
            async move { wire.json(if fails { 500 } else { 200 }, &json!({"from": "bad"})).await }
        }
    })
    .await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [m]}}, {{name: bad, url: '{}', models: [m]}}]\nrouting: {{load_balance: least_connections}}\n\
         health_check: {{passive: {{base_ejection: 200ms}}, slow_start: 0s}}\n",
        good.url(),
        bad.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let mut failed = 0;
    for _ in 0..200 {
        failed += u32::from(client.post_json("/v1/chat/completions", &ask()).await.status != 200);
    }
    assert_eq!(failed, 10, "the next ones went elsewhere, and so did the probes in the end");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_backend_state", &["\"bad\"", "\"ejected\""]), 1.0);
    assert_eq!(metrics.sum("llmproxy_backend_state", &["\"bad\""]), 1.0, "it is in one state");
    broken.store(false, Ordering::Relaxed);
    let back = async {
        let mut seen = 0;
        while seen < 3 {
            let answer = client.post_json("/v1/chat/completions", &ask()).await;
            assert_eq!(answer.status, 200);
            seen += u32::from(answer.json()["from"] == "bad");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("a probe brings it back");
    assert_eq!(proxy.metrics().await.sum("llmproxy_backend_state", &["\"bad\"", "\"up\""]), 1.0);
}

#[tokio::test]
async fn a_dead_backend_costs_no_client_an_error_and_comes_back() {
    let alive = Backend::start(script::json(200, json!({"from": "alive"}))).await;
    let dead = Refused::new();
    let yaml = format!(
        "backends: [{{url: '{}', models: [m]}}, {{name: dead, url: '{}', models: [m]}}]\n",
        alive.url(),
        dead.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..20 {
        let answer = client.post_json("/v1/chat/completions", &ask()).await;
        assert_eq!((answer.status, &answer.json()["from"]), (200, &json!("alive")));
    }
    assert_eq!(proxy.metrics().await.sum("llmproxy_backend_up", &["dead"]), 0.0);
    let back = dead.start(script::json(200, json!({"from": "back"})));
    proxy.up("dead").await;
    let mut seen = 0;
    for _ in 0..4 {
        seen += u32::from(client.post_json("/v1/chat/completions", &ask()).await.json()["from"] == "back");
    }
    assert_eq!(seen, 2, "its share again");
    drop(back);
}

#[tokio::test]
async fn the_last_answer_of_a_backend_is_what_the_client_gets() {
    // One that wants to be left alone for longer than we would wait is asked no more.
    for (retry_after, asked) in [("0", 3), ("7", 1)] {
        the_last_answer_is_passed_on(retry_after, asked).await;
    }
}

async fn the_last_answer_is_passed_on(retry_after: &'static str, asked: usize) {
    let backend = Backend::start(move |_, wire| async move {
        wire.respond(
            503,
            &[("retry-after", retry_after), ("content-type", "application/json"), ("content-length", "13")],
            r#"{"error":"no"}"#[..13].to_owned(),
        )
        .await
    })
    .await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nrouting: {{retry: {{max_retries: 2, initial_wait: 1ms, max_wait: 2ms}}}}\n",
        backend.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask()).await;
    assert_eq!(
        (answer.status, answer.header("retry-after"), answer.text().as_str()),
        (503, Some(retry_after), r#"{"error":"no""#)
    );
    assert_eq!(backend.counts().requests, asked);
}

#[tokio::test]
async fn each_model_goes_where_it_is_served_and_an_alias_is_spliced() {
    let qwen = Backend::start(|seen, wire| async move {
        wire.json(200, &json!({"got": seen.json()["model"], "at": "qwen"})).await
    })
    .await;
    // Its list is learned.
    let llama = Backend::start(|seen, wire| async move {
        match seen.path.as_str() {
            "/v1/models" => {
                wire.json(200, &json!({"object": "list", "data": [{"id": "llama", "object": "model"}]})).await
            }
            "/health" => wire.json(200, &json!({})).await,
            _ => wire.json(200, &json!({"got": seen.json()["model"], "at": "llama"})).await,
        }
    })
    .await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [qwen]}}, {{url: '{}/v1/'}}]\nrouting: {{model_mapping: {{gpt-4: qwen}}}}\n",
        qwen.url(),
        llama.url()
    );
    let proxy = Proxy::start(&yaml).await;
    llama.when(|counts| counts.requests >= 2).await;
    let mut client = Client::connect(proxy.address()).await;
    for (asked, got, at) in [("qwen", "qwen", "qwen"), ("llama", "llama", "llama"), ("gpt-4", "qwen", "qwen")] {
        for _ in 0..3 {
            let answer = client.post_json("/v1/chat/completions", &json!({"model": asked, "messages": []})).await;
            assert_eq!(answer.json(), json!({"got": got, "at": at}), "{asked}");
        }
    }
    let answer = client.post_json("/v1/chat/completions", &json!({"model": "mistral", "messages": []})).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    let ids: Vec<_> = client.get("/v1/models").await.json()["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|model| model["id"].to_string())
        .collect();
    for id in ["\"qwen\"", "\"llama\"", "\"gpt-4\""] {
        assert!(ids.contains(&id.to_owned()), "{id} is not in {ids:?}");
    }
}

#[tokio::test]
async fn the_proxy_s_own_bad_credentials_are_not_the_client_s_fault() {
    let backend = Backend::start(|seen, wire| async move {
        assert_eq!(seen.header("authorization"), Some("Bearer upstream-secret"));
        wire.json(401, &json!({"error": "Unauthorized"})).await
    })
    .await;
    let yaml = format!(
        "backends: [{{url: '{}', models: [m], headers: {{Authorization: 'Bearer upstream-secret'}}}}]\nhealth_check: {{enabled: false}}\n",
        backend.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask()).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(!answer.text().contains("upstream-secret"));
}

#[tokio::test]
async fn without_auth_a_client_s_own_401_is_its_own() {
    let backend = Backend::start(|seen, wire| async move {
        assert_eq!(seen.header("authorization"), Some("Bearer whatever"));
        wire.json(401, &json!({"error": "Unauthorized"})).await
    })
    .await;
    let yaml = format!("backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n", backend.url());
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[("authorization", "Bearer whatever")], &ask()).await;
    let answer = client.read_to_end().await;
    assert_eq!((answer.status, answer.json()), (401, json!({"error": "Unauthorized"})));
}
