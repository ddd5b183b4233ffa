//! The document that the project started from: each of its examples works.

use llmproxy_testkit::{Client, ModelServer, Receiver, Response};
use serde_json::json;

use crate::harness::{Proxy, command, get, within};

const CONFIG: &str = r#"
server:
  listen: ":8000"

backends:
  - url: "http://vllm:8000"
    weight: 5
  - url: "http://ollama:11434"
    weight: 3

# Optional: API Key authentication
auth:
  enabled: true
  header_names: ["Authorization", "X-API-Key"]
  skip_paths: ["/health", "/metrics"]

# Optional: Usage reporting (for billing/monitoring)
usage:
  enabled: true
  reporters:
    - name: billing
      type: webhook
      enabled: true
      webhook:
        url: "https://your-billing.com/llm-usage"
        timeout: 3s

# Optional: Rate limiting
rate_limit:
  enabled: true
  per_key:
    requests_per_minute: 60
    max_concurrent: 3
"#;

const BALANCED: &str = r#"
backends:
  - url: "http://vllm-1:8000"
    weight: 10
  - url: "http://vllm-2:8000"
    weight: 10
  - url: "http://ollama:11434"
    weight: 5

routing:
  load_balance: least_connections  # or: round_robin, latency_based
"#;

async fn server(model: &str) -> ModelServer {
    ModelServer::builder().model(model).words_per_second(f64::INFINITY).start().await.expect("a free port")
}

/// As the document's curl line asks.
async fn curl(proxy: &Proxy, key: Option<&str>) -> Response {
    let mut client = Client::connect(proxy.address()).await;
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = bearer.iter().map(|value| ("Authorization", &**value)).collect();
    let body = json!({"model": "qwen-coder", "messages": [{"role": "user", "content": "Hello"}], "stream": true});
    client.send_json("/v1/chat/completions", &headers, &body).await;
    client.read_to_end().await
}

#[tokio::test]
async fn its_configuration_authenticates_limits_and_reports() {
    let (vllm, ollama, receiver) = (server("qwen-coder").await, server("qwen-coder").await, Receiver::start().await);
    // Only the hosts are others.
    let yaml = CONFIG
        .replace("http://vllm:8000", &vllm.url())
        .replace("http://ollama:11434", &ollama.url())
        .replace("https://your-billing.com/llm-usage", &receiver.url());
    let mut proxy = Proxy::start(&yaml).await;

    assert_eq!(curl(&proxy, None).await.status, 401);
    let output =
        command(proxy.folder()).args(["keys", "create", "--name", "user_alice", "--user-id", "user_alice"]).output();
    let output = within("the key", output).await.expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key = String::from_utf8(output.stdout).expect("text").trim().to_owned();
    proxy.logged("read again").await;

    let answer = curl(&proxy, Some(&key)).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, Some("60")), "{}", answer.text());
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    let record = &receiver.wait_for(1).await[0];
    assert_eq!(
        (&record["user_id"], &record["model"], &record["is_stream"]),
        (&json!("user_alice"), &json!("qwen-coder"), &json!(true))
    );
    let (prompt, completion) = (record["prompt_tokens"].as_u64(), record["completion_tokens"].as_u64());
    assert!(prompt > Some(0) && completion > Some(0), "{record}");
    assert_eq!(record["total_tokens"].as_u64(), prompt.zip(completion).map(|(prompt, completion)| prompt + completion));
    for field in ["request_id", "timestamp", "api_key_fingerprint_is_not_a_field"] {
        assert_eq!(record[field].is_string(), field != "api_key_fingerprint_is_not_a_field", "{field}: {record}");
    }

    let metrics = get(proxy.address(), "/metrics").await;
    assert_eq!(metrics.0, 200);
    for name in ["llmproxy_requests_total", "llmproxy_latency_ms", "llmproxy_usage_tokens_total"] {
        assert!(metrics.1.contains(name), "{name}");
    }
    assert_eq!(get(proxy.address(), "/health").await, (200, "OK".into()));
}

#[tokio::test]
async fn its_backends_are_balanced_by_weight() {
    let servers = [server("qwen-coder").await, server("qwen-coder").await, server("qwen-coder").await];
    let yaml = BALANCED
        .replace("http://vllm-1:8000", &servers[0].url())
        .replace("http://vllm-2:8000", &servers[1].url())
        .replace("http://ollama:11434", &servers[2].url());
    for strategy in ["least_connections", "round_robin", "latency_based"] {
        let mut proxy = Proxy::start(&yaml.replace("least_connections", strategy)).await;
        // Before its models are known a backend is not asked, so its share would be short of one.
        for _ in &servers {
            proxy.logged("the backend's models are known").await;
        }
        for _ in 0..25 {
            let answer = curl(&proxy, None).await;
            assert_eq!(answer.status, 200, "{strategy}: {}", answer.text());
        }
        let metrics = proxy.metrics().await;
        let shares = servers.each_ref().map(|server| metrics.sum("llmproxy_requests_total", &[&server.url(), "chat"]));
        assert_eq!(shares.iter().sum::<f64>(), 25.0, "{strategy}: {shares:?}");
        assert!(shares.iter().all(|share| *share > 0.0), "{strategy}: {shares:?}");
        if strategy != "latency_based" {
            assert_eq!(shares, [10.0, 10.0, 5.0], "{strategy}");
        }
    }
}

#[tokio::test]
async fn its_openclaw_provider_block_works() {
    // What OpenClaw sends with `api: "openai-completions"`: a base URL with /v1, a key that nobody checks, a stream that
    // asks for usage, max_completion_tokens.
    let vllm = server("qwen-coder-32b").await;
    let proxy = Proxy::start(&format!("backends: [{{url: '{}'}}]\n", vllm.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    let body = json!({
        "model": "qwen-coder-32b", "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 8192, "store": false,
        "messages": [{"role": "system", "content": "You are OpenClaw."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "tools": [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]
    });
    let headers = [
        ("Authorization", "Bearer optional-key"),
        ("Accept", "application/json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    client.send_json("/v1/chat/completions", &headers, &body).await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("content-type").is_some_and(|value| value.starts_with("text/event-stream")));
    let events = answer.events();
    assert!(
        events.iter().any(|event| event["usage"]["completion_tokens"].as_u64() > Some(0)),
        "it asked for usage and gets it"
    );
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
}
