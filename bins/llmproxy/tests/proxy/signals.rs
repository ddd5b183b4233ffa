//! What backends say of their own load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use llmproxy_testkit::{Backend, Client, DONE};
use serde_json::json;
use tokio::time::sleep;

use crate::harness::{Proxy, within};

/// A vLLM at which so many requests of others wait, and with whom the first tokens come at once all the same.
async fn vllm(name: &'static str, waiting: Arc<AtomicU64>) -> Backend {
    Backend::start(move |seen, mut wire| {
        let waiting = waiting.load(Ordering::Relaxed);
        async move {
            if seen.path == "/metrics" {
                let labels = r#"{engine="0",model_name="m"}"#;
                let page = format!(
                    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} 7.0\n\
                     vllm:num_requests_waiting{labels} {waiting}.0\nvllm:kv_cache_usage_perc{labels} 0.25\n"
                );
                return wire.respond(200, &[("content-type", "text/plain; version=0.0.4")], page).await;
            }
            wire.head(200, &[("content-type", "text/event-stream")]).await?;
            wire.chunk(format!("data: {{\"from\":\"{name}\"}}\n\n")).await?;
            wire.chunk(DONE).await?;
            wire.finish().await
        }
    })
    .await
}

/// Until the proxy's metrics say so.
async fn known(proxy: &Proxy, name: &str, labels: &[&str], value: f64) {
    within("the load to be known", async {
        while proxy.metrics().await.sum(name, labels) != value {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_others_have_filled_spills_into_the_next_tier_until_it_has_room() {
    let waiting = Arc::new(AtomicU64::new(0));
    let near = vllm("near", waiting.clone()).await;
    let far = vllm("far", Arc::default()).await;
    let proxy = Proxy::start(&format!(
        "backends: [{{name: near, url: '{}', models: [m]}}, {{name: far, url: '{}', models: [m], tier: 1}}]\n\
         routing: {{load_signals: {{interval: 100ms}}}}\n",
        near.url(),
        far.url()
    ))
    .await;
    let mut client = Client::connect(proxy.address()).await;
    let ask = json!({"model": "m", "stream": true, "messages": []});
    for (queue, expected) in [(0, "near"), (3, "far"), (0, "near")] {
        waiting.store(queue, Ordering::Relaxed);
        known(&proxy, "llmproxy_backend_load", &["near", "waiting"], queue as f64).await;
        known(&proxy, "llmproxy_backend_load", &["near", "running"], 7.0).await;
        for _ in 0..3 {
            let answer = client.post_json("/v1/chat/completions", &ask).await;
            assert_eq!((answer.status, &answer.events()[0]["from"]), (200, &json!(expected)), "{queue}");
        }
    }
    known(&proxy, "llmproxy_backend_kv_usage", &["far"], 0.25).await;
}
