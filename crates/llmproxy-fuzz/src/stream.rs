//! Answers: what a client gets is what the backend sent, but for the event that we have asked for ourselves.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use llmproxy_core::{Backend, BoxError, Call, Endpoint, Exchange, Target, sink_fn};
use llmproxy_metering::MeterLayer;
use serde_json::Value;
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    cut::{cuts, owned},
    scanner::read,
};

const PATH: &str = "/v1/chat/completions";
const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";
/// One path of each dialect.
const PATHS: [&str; 6] = [PATH, "/v1/responses", "/v1/messages", "/api/generate", "/generate_stream", "/completion"];

/// An answer with the body `data` comes out of the meter as it went in, in any pieces and of any kind, and is recorded
/// once, whatever API it is of. Where the proxy has asked for the usage event, whole events that are nothing but that may be missing.
///
/// ```
/// llmproxy_fuzz::stream(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE]\n\n");
/// ```
///
/// # Panics
///
/// If it does not, or is not.
pub fn stream(data: &[u8]) {
    let plain = |path, kind, encoding, pieces: &[&[u8]]| {
        let passed = metered(path, kind, encoding, false, pieces);
        assert!(passed == data, "an answer of {kind}, {encoding}, at {path} was changed");
    };
    plain(PATH, "text/plain", "identity", &[data]);
    for pieces in cuts(data) {
        for path in PATHS {
            for kind in [EVENTS, LINES, "application/json"] {
                plain(path, kind, "identity", &pieces);
            }
            plain(path, EVENTS, "gzip", &pieces);
        }
        let left = metered(PATH, EVENTS, "identity", true, &pieces);
        assert!(is_without_usage(data, &left), "of {} only {} was left", data.escape_ascii(), left.escape_ascii());
    }
}

/// The body as it comes out of the meter.
fn metered(path: &str, kind: &str, encoding: &str, inject_usage: bool, pieces: &[&[u8]]) -> Vec<u8> {
    let exchange = Exchange::new();
    let mut call = Call::new(Endpoint::of(path));
    call.stream = true;
    exchange.set_call(call);
    exchange.expect_attempts();
    let backend = Arc::new(Backend::new("http://backend:8000").expect("a good URL"));
    let target = Target { backend, model: None, inject_usage };
    exchange.begin_attempt(&target, "least busy".into());
    exchange.set_served(Arc::new(target));
    let records = Arc::new(AtomicUsize::new(0));
    let count = records.clone();
    exchange.add_sink(Arc::new(sink_fn(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    })));

    let frames = owned(pieces).into_iter().map(|piece| Ok::<_, BoxError>(http_body::Frame::data(piece)));
    let mut body = Some(StreamBody::new(stream::iter(frames)));
    let service = MeterLayer::new().layer(service_fn(move |_: Request<()>| {
        let body = body.take().expect("asked once");
        let answer = Response::builder().header("content-type", kind).header("content-encoding", encoding).body(body);
        std::future::ready(Ok::<_, BoxError>(answer.expect("a good head")))
    }));
    let mut request = Request::post(path).body(()).expect("a good request");
    request.extensions_mut().insert(exchange);
    let answer = service.oneshot(request).now_or_never().expect("nothing is waited for").expect("nothing fails");
    let body: Bytes =
        answer.into_body().collect().now_or_never().expect("all is there").expect("nothing fails").to_bytes();
    assert_eq!(records.load(Ordering::Relaxed), 1, "records");
    body.to_vec()
}

/// Whether `left` is `sent` without some of its usage events, and nothing else is missing.
fn is_without_usage(sent: &[u8], left: &[u8]) -> bool {
    let (events, unfinished) = read(sent);
    // Where in `left` one can be after each event: two events may begin alike, so more than one place is possible.
    let mut places = vec![0];
    let mut step = |segment: &[u8], is_usage: bool| {
        let mut next = Vec::new();
        for place in &places {
            if left[*place..].starts_with(segment) {
                next.push(place + segment.len());
            }
            if is_usage {
                next.push(*place);
            }
        }
        next.sort_unstable();
        next.dedup();
        places = next;
    };
    let mut begin = 0;
    for event in &events {
        step(&sent[begin..event.end], is_usage(&event.data));
        begin = event.end;
    }
    step(&sent[begin..], unfinished.is_some_and(|event| is_usage(&event.data)));
    places.contains(&left.len())
}

/// Whether an event says what the answer came to and nothing of it.
fn is_usage(data: &[u8]) -> bool {
    let Ok(Value::Object(members)) = serde_json::from_slice(data) else { return false };
    let no_choices = members.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
    no_choices && members.get("usage").is_some_and(Value::is_object)
}
