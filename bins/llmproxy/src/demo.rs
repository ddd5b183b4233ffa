//! The whole proxy with nothing else running: a demo backend, a key, limits, a webhook receiver.

use std::{io::Write, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use llmproxy_config::{Config, LoadOptions, load_str};
use llmproxy_core::{TokenUsage, UsageRecord, sink_fn};
use llmproxy_stack::{Options, Runtime, Server};
use llmproxy_testkit::{BodyEnd, Client, ModelServer, Receiver};
use serde_json::{Value, json};

use crate::{exporter, say, serve::Signals};

const KEY: &str = "sk-demo";
const MODEL: &str = "demo";

/// `llmproxy demo`.
pub(crate) async fn run(listen: &str, once: bool) -> Result<ExitCode, String> {
    let backend = ModelServer::builder()
        .model(MODEL)
        .start()
        .await
        .map_err(|error| format!("the demo backend can't be started: {error}"))?;
    let receiver = Receiver::start().await;
    let config = config(if once { "127.0.0.1:0" } else { listen }, &backend.url(), &receiver.url())?;

    let mut options = Options { render_metrics: Some(exporter::install()?), ..Options::default() };
    if !once {
        options.sinks.push(Arc::new(sink_fn(|record| {
            // Nobody may be reading any more; the demo goes on.
            let _ = say(line(record));
        })));
    }
    let render = options.render_metrics.clone().ok_or("no metrics")?;
    let signals = Signals::new().map_err(|error| format!("signals can't be caught: {error}"))?;
    let runtime = Runtime::start(&config, options).await.map_err(|error| error.to_string())?;
    let server = Server::bind(&config.server, runtime.stop_flag())
        .await
        .map_err(|error| format!("{error}; stop what listens there, or choose another with --listen 127.0.0.1:8001"))?;
    let server = server.with_refusals(runtime.refusals());
    let address = server.local_addr().map_err(|error| error.to_string())?;

    if !once {
        introduce(address, &receiver.url());
        server.run(runtime.service(), signals.stop(runtime.clone())).await;
        runtime.shutdown(Duration::from_secs(2)).await;
        return Ok(ExitCode::SUCCESS);
    }

    let service = runtime.service();
    let serving = tokio::spawn(server.run(service, std::future::pending()));
    let agreed = exchange_once(address, &receiver, &*render).await;
    serving.abort();
    runtime.shutdown(Duration::from_secs(2)).await;
    agreed.map(|()| ExitCode::SUCCESS)
}

fn config(listen: &str, backend: &str, receiver: &str) -> Result<Config, String> {
    let yaml = format!(
        r#"
server: {{listen: "{listen}", shutdown_timeout: 2s}}
backends:
  - {{name: demo-backend, url: "{backend}"}}
auth:
  enabled: true
  pipeline:
    - name: demo
      type: static
      static: {{keys: [{{key: {KEY}, name: demo-key, user_id: you}}]}}
rate_limit:
  enabled: true
  per_key: {{requests_per_minute: 60, tokens_per_minute: 100000, max_concurrent: 8}}
usage:
  enabled: true
  reporters:
    - {{name: demo-webhook, type: webhook, webhook: {{url: "{receiver}"}}}}
logging: {{access: {{enabled: false}}}}
"#
    );
    // The surroundings of a demo must not change what it shows.
    let options = LoadOptions { env: false, ..LoadOptions::default() };
    load_str(&yaml, &options).map(|loaded| loaded.config).map_err(|error| error.to_string())
}

fn introduce(address: SocketAddr, receiver: &str) {
    // A terminal that is gone is no reason to stop.
    let _ = say(format_args!(
        r#"llmproxy demo: the proxy listens on http://{address}, in front of a demo backend.
Keys, limits, metering and a webhook (to {receiver}) are on. Paste this into another shell:

  curl -N http://{address}/v1/chat/completions \
    -H "Authorization: Bearer {KEY}" -H "Content-Type: application/json" \
    -d '{{"model": "{MODEL}", "stream": true, "messages": [{{"role": "user", "content": "Tell me about proxies"}}]}}'

Also: http://{address}/metrics, /v1/models (with the key), /ready. Ctrl-C ends it.
Each request is shown here as it ends:
"#
    ));
}

/// One request, as a person reads it.
fn line(record: &UsageRecord) -> String {
    let who = record.user_id.as_deref().or(record.key_name.as_deref()).unwrap_or("anonymous");
    let model = record.model.as_deref().unwrap_or("no model");
    let tokens = record.usage.map_or_else(
        || "no tokens".to_owned(),
        |TokenUsage { prompt, completion, .. }| format!("{prompt} + {completion} tokens"),
    );
    let source = record.source().map_or("", |source| source.as_str());
    let first = record
        .time_to_first_token
        .map_or_else(String::new, |time| format!(", first token after {} ms", time.as_millis()));
    let speed = record.tokens_per_second().map_or_else(String::new, |speed| format!(", {speed:.0} tokens/s"));
    format!(
        "  {who} -> {model}: {tokens} ({source}){first}{speed}, {} after {} ms, status {}",
        record.end.as_str(),
        record.latency.as_millis(),
        record.status
    )
}

/// Sends one streamed request and compares what the client, the webhook and the metrics say of it.
async fn exchange_once(
    address: SocketAddr,
    receiver: &Receiver,
    render: &(dyn Fn() -> String + Send + Sync),
) -> Result<(), String> {
    let mut client = Client::connect(address).await;
    let ask = json!({"model": MODEL, "stream": true, "max_tokens": 24, "messages": [{"role": "user", "content": "Tell me about proxies"}]});
    client.send_json("/v1/chat/completions", &[("authorization", &format!("Bearer {KEY}"))], &ask).await;
    let head = client.head().await;
    if head.status != 200 {
        return Err(format!("the proxy answered {}", head.status));
    }
    say("streamed answer, as it arrives:")?;
    let (mut tokens, mut usage_events) = (0_u64, 0);
    while let Some(piece) = client.piece().await {
        for event in events(&piece) {
            usage_events += usize::from(event["usage"].is_object());
            if let Some(text) = event["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
                tokens += 1;
                // Shown as it comes; a terminal that is gone is no reason to stop.
                let mut shown = std::io::stdout();
                let _ = write!(shown, "{text}").and_then(|()| shown.flush());
            }
        }
    }
    say("\n")?;
    let records = receiver.wait_for(1).await;
    say(format_args!(
        "the usage record that the webhook received:\n{}\n",
        serde_json::to_string_pretty(&records[0]).unwrap_or_default()
    ))?;
    let metrics = render();
    say("the metrics:")?;
    for series in metrics.lines().filter(|line| line.starts_with("llmproxy_")) {
        say(format_args!("  {series}"))?;
    }
    say("")?;

    let record = &records[0];
    let counted = |series: &str| {
        metrics.lines().find_map(|line| line.strip_prefix(series)).and_then(|value| value.trim().parse::<u64>().ok())
    };
    let checks = [
        ("the stream ended as it should", client.end() == Some(BodyEnd::Complete)),
        ("the client was spared the usage event that the proxy asked for", usage_events == 0),
        ("one record came", records.len() == 1),
        (
            "it says complete, by the backend's own count",
            record["end"] == "complete" && record["usage_source"] == "backend",
        ),
        ("its completion tokens are those that the client saw", tokens > 0 && record["completion_tokens"] == tokens),
        (
            "the metrics count the same tokens",
            counted("llmproxy_usage_tokens_total{type=\"completion\"} ") == Some(tokens)
                && counted("llmproxy_usage_tokens_total{type=\"prompt\"} ") == record["prompt_tokens"].as_u64(),
        ),
    ];
    for (what, agreed) in checks {
        say(format_args!("{} {what}", if agreed { "ok  " } else { "FAIL" }))?;
    }
    if checks.iter().all(|(_, agreed)| *agreed) {
        Ok(())
    } else {
        Err("what the client saw, the record and the metrics do not agree".into())
    }
}

/// The JSON of the events in a piece; the demo backend sends whole ones.
fn events(piece: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(piece)
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect()
}
