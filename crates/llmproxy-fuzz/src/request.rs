//! Questions: what is found in their JSON, and that the edits change what they are for and not a byte more.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::Request;
use http_body_util::StreamBody;
use llmproxy_core::{BoxError, Call, Edits, Exchange, RequestBody};
use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt, service_fn};

use crate::cut::{cuts, owned};

/// What a model is called that must be written with care.
const ALIAS: &str = "another \"model\"\n\\\u{1f600}";

/// A question with the body `data` is refused, or goes on byte for byte; and with its edits applied it says the same
/// but for the model and the wish for usage. What is found in it is what any reader of JSON finds.
///
/// ```
/// llmproxy_fuzz::request(br#"{ "stream" : true, "stream_options":{}, "model":"\u0061" }"#);
/// ```
///
/// # Panics
///
/// If that is not so.
pub fn request(data: &[u8]) {
    for path in ["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/embeddings", "/v1/files"] {
        let mut first = None;
        for pieces in cuts(data) {
            let found = inspected(path, &pieces);
            match &first {
                None => {
                    if let Some((bytes, edits, call)) = &found {
                        assert!(bytes == data, "a question was changed by looking at it");
                        check(data, bytes, edits, call);
                    }
                    first = Some(found);
                }
                Some(first) => {
                    assert_eq!(format!("{first:?}"), format!("{found:?}"), "it matters where the pieces end");
                }
            }
        }
    }
}

/// The body, its edits and what was found; `None` where the question is refused or passes unread.
fn inspected(path: &str, pieces: &[&[u8]]) -> Option<(Bytes, Edits, Call)> {
    let echo = service_fn(|request: Request<RequestBody>| std::future::ready(Ok::<_, BoxError>(request)));
    let config = InspectConfig::default();
    let budget = BodyBudget::new(config.max_buffered_bytes);
    let frames = owned(pieces).into_iter().map(|piece| Ok::<_, BoxError>(http_body::Frame::data(piece)));
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(StreamBody::new(stream::iter(frames))).expect("a good head");
    // The reader sets a timer for each piece.
    let service = InspectLayer::new(&config, budget.clone()).layer(echo);
    let result = crate::heads::runtime().block_on(async { service.oneshot(request).now_or_never() });
    let mut request = result.expect("all is there").ok()?;
    let exchange = Exchange::of(request.extensions_mut());
    // How long it took is of no interest.
    let call = Call { read_time: Duration::ZERO, ..exchange.call().expect("it was inspected").clone() };
    let RequestBody::Replay(bytes, edits) = request.into_body() else { return None };
    let (length, used) = (bytes.len() as u64, budget.used());
    assert!((length..=2 * length + 64).contains(&used), "{used} bytes are counted for {length}");
    let found = (Bytes::copy_from_slice(&bytes), edits, call);
    drop(bytes);
    assert_eq!(budget.used(), 0, "memory that is taken by nobody");
    Some(found)
}

fn check(data: &[u8], bytes: &Bytes, edits: &Edits, call: &Call) {
    assert!(edits.apply(bytes, None, false) == data, "nothing was to be changed");
    // What gives way is the model's name and a null, and not a byte more.
    if let Some(range) = edits.model.clone() {
        let name: Option<String> = serde_json::from_slice(&data[range]).ok();
        assert!(name.is_some() && name.as_deref() == call.model.as_deref(), "{name:?} is no model's name");
    }
    if let Some(insertion) = &edits.include_usage {
        let gives_way = &data[insertion.at.clone()];
        assert!(matches!(gives_way, b"" | b"null"), "{} gives way", gives_way.escape_ascii());
    }
    // What no reader of JSON takes has nothing to edit. (A number may be too large for this reader alone.)
    let Ok(Value::Object(before)) = serde_json::from_slice(data) else { return };
    if let Some(model) = &call.model {
        assert_eq!(before.get("model").and_then(Value::as_str), Some(&**model));
    }
    let stream = before.get("stream").and_then(Value::as_bool);
    assert!(stream.is_none_or(|stream| stream == call.stream), "a stream is {stream:?}");
    for (model, usage) in [(Some(ALIAS), false), (None, true), (Some(ALIAS), true)] {
        let after = edits.apply(bytes, model, usage);
        let mut expected = Value::Object(before.clone());
        if let Some(model) = model.filter(|_| edits.model.is_some()) {
            expected["model"] = json!(model);
        }
        if usage && edits.include_usage.is_some() {
            let options = &mut expected["stream_options"];
            if options.is_null() {
                *options = json!({});
            }
            options["include_usage"] = json!(true);
        }
        let after = serde_json::from_slice::<Value>(&after).expect("JSON stays JSON");
        assert_eq!(after, expected);
    }
}
