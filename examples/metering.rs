//! The meter alone, in front of a model server of one's own: every answer ends in one record, however it ends.
//!
//! ```sh
//! cargo run -p llmproxy-examples --bin metering
//! curl -N http://127.0.0.1:8101/v1/chat/completions -H 'content-type: application/json' -d '{"max_tokens": 5}'
//! ```
//!
//! Leave one with Ctrl-C while it runs (`"max_tokens": 500`): its record says `client_gone`, and how many tokens went out.

use std::{convert::Infallible, env, sync::Arc, time::Duration};

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    error_handling::HandleErrorLayer,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::{StreamExt, stream};
use llmproxy_core::{Exchange, UsageRecord, UsageSink};
use llmproxy_metering::MeterLayer;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc};
use tower::{ServiceBuilder, util::MapRequestLayer};

/// Hands records to a task. A sink runs inside the end of an answer, which may be a drop: it must not wait.
struct Ledger(mpsc::Sender<Arc<UsageRecord>>);

impl UsageSink for Ledger {
    fn record(&self, record: &Arc<UsageRecord>) {
        if let Err(error) = self.0.try_send(record.clone()) {
            eprintln!("a record was lost: {error}");
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (sender, mut records) = mpsc::channel(1024);
    let sink: Arc<dyn UsageSink> = Arc::new(Ledger(sender));
    tokio::spawn(async move {
        while let Some(record) = records.recv().await {
            let (usage, source) = (record.usage.unwrap_or_default(), record.source().map(|source| source.as_str()));
            println!(
                "record end={} status={} stream={} completion={} source={}",
                record.end.as_str(),
                record.status,
                record.stream,
                usage.completion,
                source.unwrap_or("none")
            );
        }
    });

    let metered = ServiceBuilder::new()
        // The meter's error type is a box; the handlers below it do not fail, so this is never called.
        .layer(HandleErrorLayer::new(async |error: BoxError| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
        // Whoever wants the record of an exchange says so before the meter sees the request.
        .layer(MapRequestLayer::new(move |mut request: Request| {
            Exchange::of(request.extensions_mut()).add_sink(sink.clone());
            request
        }))
        .layer(MeterLayer::new());
    let app = Router::new().route("/v1/chat/completions", post(complete)).layer(metered);

    let listener = TcpListener::bind(env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8101")).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

#[derive(serde::Deserialize)]
struct Ask {
    max_tokens: u64,
}

/// The model: a word now and then, at the end what it came to.
async fn complete(body: Bytes) -> Response {
    let Ask { max_tokens } = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let words = stream::iter(0..max_tokens).then(async |n| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        json!({"choices": [{"index": 0, "delta": {"content": format!("word {n} ")}}]}).to_string()
    });
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": max_tokens}}).to_string();
    let events = words.chain(stream::iter([usage, "[DONE]".to_owned()]));
    let body = events.map(|data| Ok::<_, Infallible>(Bytes::from(format!("data: {data}\n\n"))));
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}
