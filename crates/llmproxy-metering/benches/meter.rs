//! What it costs to meter: one chunk of a stream through the layer, and long inputs through what scans them.
//!
//! ```text
//! cargo bench -p llmproxy-metering --bench meter
//! cargo bench -p llmproxy-metering --features tokenizers --bench meter -- tokenizer.json
//! ```
//!
//! With a tokenizer, what the request's own task does for it is measured as well; the counting itself is the other bench's.

use std::{
    convert::Infallible,
    hint::black_box,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use llmproxy_core::{Call, Endpoint, Exchange, RequestBody, UsageRecord, sink_fn};
use llmproxy_metering::{Counters, MeterLayer, MeteringConfig, TokenizerConfig, tokens::Tokenizers};
use llmproxy_sse::Scanner;
use tokio::time::{Duration, Instant};
use tower::{Layer, ServiceExt, service_fn};

const CHAT: &str = "/v1/chat/completions";
/// As vLLM writes it, 195 bytes.
const CHUNK: &str = "data: {\"id\":\"chatcmpl-0d9c4f6e8a7b4c3d\",\"object\":\"chat.completion.chunk\",\"created\":1764400000,\
                     \"model\":\"qwen\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\
                     \"finish_reason\":null}]}\n\n";
/// The same with running totals.
const USAGE: &str = "data: {\"id\":\"chatcmpl-0d9c4f6e8a7b4c3d\",\"object\":\"chat.completion.chunk\",\"created\":1764400000,\
                     \"model\":\"qwen\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\
                     \"finish_reason\":null}],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":40,\"completion_tokens\":28}}\n\n";
const CHUNKS: usize = 100_000;
/// Of a long input, in bytes, and of the pieces that it comes in.
const LONG: usize = 64 << 20;
const PIECE: usize = 64 << 10;

/// A body of these pieces.
struct Pieces(std::vec::IntoIter<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // What cargo says to a bench begins with a dash.
    let file = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let layer = MeterLayer::new().with_counters(Counters::new(&MeteringConfig::default()));
    row("a chunk without usage", &layer, CHUNK).await;
    row("a chunk with running totals", &layer, USAGE).await;
    if let Some(file) = file {
        let tokenizers = vec![TokenizerConfig { models: vec!["*".into()], file, config: None }];
        let tokenizers = Tokenizers::load(tokenizers, Tokenizers::default()).await.expect("a tokenizer");
        // So much may wait that nothing is refused.
        let config = MeteringConfig { count_queue: 1 << 20, count_queue_bytes: 1 << 32, ..MeteringConfig::default() };
        let layer = MeterLayer::new().with_counters(Counters::new(&config).with_tokenizers(tokenizers));
        row("a chunk whose text is counted", &layer, CHUNK).await;
    }

    let text = CHUNK.repeat(LONG / CHUNK.len());
    let mut scanner = Scanner::new();
    rate("events, scanned for their ends", text.len(), || {
        text.as_bytes().chunks(PIECE).for_each(|piece| {
            scanner.feed(piece, |event| {
                black_box(event.data);
            });
        });
    });
    let usage = r#""usage":{"prompt_tokens":1,"completion_tokens":2}"#;
    let answer = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}],{usage}}}"#, "word ".repeat(LONG / 5));
    long("a plain answer of one long text", &layer, CHAT, answer).await;
    let vectors = format!(r#"{{"data":[{{"embedding":[{}0]}}],{usage}}}"#, "-0.01234567,".repeat(LONG / 12));
    long("vectors of numbers", &layer, "/v1/embeddings", vectors).await;
}

/// What one chunk takes to be passed on, beyond what it takes by itself.
async fn row(name: &str, layer: &MeterLayer, chunk: &'static str) {
    let pieces = || vec![Bytes::from_static(chunk.as_bytes()); CHUNKS];
    let bare = read(Pieces(pieces().into_iter()));
    let took = read(metered(layer, CHAT, "text/event-stream", pieces()).await);
    println!("{name:>34}: {:.0?}", took.saturating_sub(bare) / CHUNKS as u32);
}

/// A long plain answer through the layer.
async fn long(name: &str, layer: &MeterLayer, path: &'static str, answer: String) {
    let answer = Bytes::from(answer);
    let starts = (0..answer.len()).step_by(PIECE);
    let pieces = starts.map(|at| answer.slice(at..(at + PIECE).min(answer.len()))).collect();
    let body = metered(layer, path, "application/json", pieces).await;
    rate(name, answer.len(), || {
        read(body);
    });
}

async fn metered(
    layer: &MeterLayer,
    path: &'static str,
    kind: &'static str,
    pieces: Vec<Bytes>,
) -> impl Body<Data = Bytes> + Unpin + use<> {
    let mut body = Some(Pieces(pieces.into_iter()));
    let service = layer.layer(service_fn(move |_: Request<RequestBody>| {
        let body = body.take().expect("one request");
        std::future::ready(Response::builder().header("content-type", kind).body(body))
    }));
    let ask = Bytes::from_static(br#"{"model":"qwen","messages":[{"role":"user","content":"hi"}]}"#);
    let mut request = Request::post(path).body(RequestBody::whole(ask)).expect("a request");
    let exchange = Exchange::of(request.extensions_mut());
    exchange.set_call(Call { model: Some("qwen".into()), ..Call::new(Endpoint::of(path)) });
    exchange.add_sink(Arc::new(sink_fn(|record: &Arc<UsageRecord>| {
        black_box(record);
    })));
    service.oneshot(request).await.expect("an answer").into_body()
}

/// How long it takes to read all of it.
fn read(mut body: impl Body<Data = Bytes> + Unpin) -> Duration {
    let mut cx = Context::from_waker(Waker::noop());
    let began = Instant::now();
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) {
        black_box(frame);
    }
    began.elapsed()
}

fn rate(name: &str, bytes: usize, run: impl FnOnce()) {
    let began = Instant::now();
    run();
    println!("{name:>34}: {:.2} GB/s", bytes as f64 / began.elapsed().as_secs_f64() / 1e9);
}
