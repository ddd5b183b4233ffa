//! What it costs to find what a request asks for: whole bodies through the layer.
//!
//! ```text
//! cargo bench -p llmproxy-metering --bench inspect
//! ```

use std::{fmt::Write, hint::black_box};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use llmproxy_core::{BoxError, RequestBody};
use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer};
use tokio::time::{Duration, Instant};
use tower::{Layer, ServiceExt, service_fn};

const CHAT: &str = "/v1/chat/completions";
/// Of the long bodies, about, in bytes.
const LONG: usize = 32 << 10;
/// So often is each body read in a round; the fastest of so many rounds counts.
const TIMES: u32 = 2000;
const ROUNDS: u32 = 7;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let short = r#"{"model":"qwen","stream":true,"messages":[{"role":"user","content":"hello there"}]}"#.to_owned();
    row("a short chat", CHAT, short).await;

    let mut turns = String::from(r#"{"role":"system","content":"You are of help."}"#);
    while turns.len() < LONG {
        let said = "They said \\\"go\\\", and so it went on for a while.\\n".repeat(8);
        write!(turns, r#",{{"role":"user","content":"{said}"}},{{"role":"assistant","content":"{said}"}}"#)
            .expect("it is a string");
    }
    row("a chat of 32 KB", CHAT, format!(r#"{{"model":"qwen","messages":[{turns}]}}"#)).await;

    let mut tools = String::new();
    while tools.len() < LONG {
        let comma = if tools.is_empty() { "" } else { "," };
        let parameters = r#"{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}"#;
        write!(tools, r#"{comma}{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}"#)
            .expect("it is a string");
    }
    let one = r#"[{"role":"user","content":"hello there"}]"#;
    row("tools of 32 KB", CHAT, format!(r#"{{"model":"qwen","tools":[{tools}],"messages":{one}}}"#)).await;

    let calls = tools.replace("function", "tool_use");
    let parts = format!(r#"[{{"role":"user","content":"hello"}},{{"role":"assistant","content":[{calls}]}}]"#);
    row("parts of 32 KB", "/v1/messages", format!(r#"{{"model":"qwen","messages":{parts}}}"#)).await;

    let numbers = "12345,".repeat(LONG / 6);
    row("tokens of 32 KB", "/v1/completions", format!(r#"{{"model":"qwen","prompt":[{numbers}1]}}"#)).await;
}

async fn row(name: &str, path: &'static str, body: String) {
    let config = InspectConfig::default();
    let layer = InspectLayer::new(&config, BodyBudget::new(config.max_buffered_bytes));
    let service = layer
        .layer(service_fn(async |request: Request<RequestBody>| Ok::<_, BoxError>(Response::new(request.into_body()))));
    let body = Bytes::from(body);
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..TIMES {
            let request = Request::post(path).header("content-type", "application/json");
            let request = request.body(Full::new(body.clone())).expect("a request");
            black_box(service.clone().oneshot(request).await.expect("it is a good request"));
        }
        best = best.min(began.elapsed() / TIMES);
    }
    println!("{name:>20} ({} bytes): {best:.1?}", body.len());
}
