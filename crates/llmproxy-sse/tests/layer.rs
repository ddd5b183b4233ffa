//! What passes, how it ends, and what is put in.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod scripted;

use std::{
    future::{Future, pending, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use llmproxy_core::{
    BoxError, Call, End, Ended, Endpoint, Exchange, RequestBody,
    body::{Ending, Observe, Observed, Shaped},
};
use llmproxy_sse::{Sse, SseConfig, SseLayer, Stream};
use llmproxy_testkit::ScriptedBody;
use scripted::{DIED, EVENTS, JSON, config, read, request, response, seconds, texts, through};
use tower::{Layer, ServiceExt, service_fn};

#[tokio::test]
async fn every_chunk_passes_as_the_same_bytes() {
    let chunk = Bytes::from("data: half an ev");
    let body = ScriptedBody::new().data(chunk.clone());
    let mut body = through(&SseLayer::new(&SseConfig::default()), response(EVENTS, body)).await.into_body();
    let passed = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(passed.as_ptr(), chunk.as_ptr());
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn an_event_streams_head_is_completed_where_the_backend_left_it_open() {
    let layer = SseLayer::new(&SseConfig::default());
    let head = |headers: &'static [(&str, &str)]| {
        let layer = layer.clone();
        async move { through(&layer, response(headers, ScriptedBody::new())).await.headers().clone() }
    };
    let streamed = head(EVENTS).await;
    assert_eq!(
        (&streamed["cache-control"], &streamed["x-accel-buffering"]),
        (&"no-cache".parse().unwrap(), &"no".parse().unwrap())
    );
    let set =
        head(&[("content-type", "Text/Event-Stream"), ("cache-control", "no-store"), ("x-accel-buffering", "yes")])
            .await;
    assert_eq!(
        (&set["cache-control"], &set["x-accel-buffering"]),
        (&"no-store".parse().unwrap(), &"yes".parse().unwrap())
    );
    assert_eq!(head(JSON).await.len(), 1);
}

#[tokio::test]
async fn a_known_length_stays_known_unless_heartbeats_may_come() {
    let with_length =
        || response(&[EVENTS[0], ("content-length", "9")], ScriptedBody::with_content_length(["data: a\n\n"]));
    let plain = through(&SseLayer::new(&config(120, None)), with_length()).await;
    assert_eq!(plain.headers()["content-length"], "9");
    assert_eq!(plain.body().size_hint().exact(), Some(9));
    let beating = through(&SseLayer::new(&config(120, Some(15))), with_length()).await;
    assert!(!beating.headers().contains_key("content-length"));
    assert_eq!(beating.body().size_hint().exact(), None);
    let json = response(&[JSON[0], ("content-length", "2")], ScriptedBody::with_content_length(["{}"]));
    let json = through(&SseLayer::new(&config(120, Some(15))), json).await;
    assert_eq!((json.headers()["content-length"].to_str().unwrap(), json.body().size_hint().exact()), ("2", Some(2)));
}

#[derive(Clone, Default)]
struct Ends(Arc<std::sync::Mutex<Vec<&'static str>>>);

impl Observe for Ends {
    fn end(self, ending: Ending<'_>) {
        self.0.lock().unwrap().push(match ending {
            Ending::Complete => "complete",
            Ending::Failed(_) => "failed",
            Ending::Dropped => "dropped",
        });
    }
}

/// As hyper reads: until an end is seen in any of its ways, without asking again after it.
async fn read_as_hyper(body: impl Body<Data = Bytes, Error = BoxError>, at_most: usize) -> String {
    let (mut body, mut text) = (pin!(body), String::new());
    for _ in 0..at_most {
        if body.is_end_stream() {
            break;
        }
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                Err(_) => text.push_str("<trailers>"),
            },
            Some(Err(_)) => {
                text.push_str("<error>");
                break;
            }
            None => break,
        }
    }
    text
}

#[tokio::test]
async fn each_way_to_end_is_told_once_and_looks_like_what_it_is() {
    let check = async |body: ScriptedBody, at_most: usize, expected: &str, end: &str| {
        let (outer, inner) = (Ends::default(), Ends::default());
        let handle = body.handle();
        let body = Observed::new(body, inner.clone());
        let response = through(&SseLayer::new(&SseConfig::default()), response(EVENTS, body)).await;
        let read = read_as_hyper(Observed::new(response.into_body(), outer.clone()), at_most).await;
        assert_eq!(read, expected);
        assert_eq!((&**outer.0.lock().unwrap(), &**inner.0.lock().unwrap()), (&[end][..], &[end][..]), "{expected}");
        assert!(handle.is_dropped() && handle.polls_after_end() == 0, "{expected}");
    };
    let all = usize::MAX;
    check(ScriptedBody::new().with_exact_size().ends_with_last_frame(), all, "", "complete").await;
    check(ScriptedBody::with_content_length(["data: a\n\n"]), all, "data: a\n\n", "complete").await;
    check(ScriptedBody::chunked(["data: a\n\n", "data: b\n\n"]), all, "data: a\n\ndata: b\n\n", "complete").await;
    check(ScriptedBody::new().data("data: a\n\n").trailers([("x", "1")]), all, "data: a\n\n<trailers>", "complete")
        .await;
    check(ScriptedBody::new().data("data: a").error("reset"), all, "data: a<error>", "failed").await;
    check(ScriptedBody::new().data("data: a\n\n").data("data: b\n\n"), 1, "data: a\n\n", "dropped").await;
    check(ScriptedBody::new().data("data: a\n\n"), 0, "", "dropped").await;
}

#[tokio::test]
async fn a_drop_before_the_head_drops_what_is_inside() {
    let alive = Arc::new(());
    let held = alive.clone();
    let service = SseLayer::new(&SseConfig::default()).layer(service_fn(move |_: Request<RequestBody>| {
        let held = held.clone();
        async move {
            let _held = held;
            pending::<Result<Response<ScriptedBody>, BoxError>>().await
        }
    }));
    let mut waiting = Box::pin(service.oneshot(request(seconds(1))));
    assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
    drop(waiting);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[tokio::test]
async fn a_client_has_all_events_then_the_error_event_then_the_error() {
    let layer = SseLayer::new(&SseConfig::default());
    let body = ScriptedBody::chunked(["data: 1\n\n", "data: 2\n\n"]).error("reset");
    let body = through(&layer, response(EVENTS, body)).await.into_body();
    let mut body = pin!(body);
    let mut polls = Vec::new();
    poll_fn(|cx| {
        let frame = body.as_mut().poll_frame(cx).map_ok(|frame| frame.into_data().unwrap());
        polls.push(match &frame {
            Poll::Ready(Some(Ok(data))) => String::from_utf8(data.to_vec()).unwrap(),
            Poll::Ready(Some(Err(error))) => format!("error: {error}"),
            Poll::Ready(None) => "end".into(),
            Poll::Pending => "pending".into(),
        });
        match frame {
            Poll::Ready(None) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    })
    .await;
    // hyper flushes while it is pending, so the client has the last events before the connection breaks.
    assert_eq!(polls, ["data: 1\n\n", "data: 2\n\n", DIED, "pending", "error: reset", "end"]);
}

#[tokio::test]
async fn an_error_event_is_only_put_in_where_it_can_be_read() {
    let layer = SseLayer::new(&SseConfig::default());
    let check = async |headers: &[(&str, &str)], text: &'static str, expected: bool| {
        for at in 0..=text.len() {
            let (before, after) = text.split_at(at);
            let body = ScriptedBody::new().data(before).data(after).error("reset");
            let (frames, error) = read(through(&layer, response(headers, body)).await.into_body()).await;
            let passed = texts(&frames).concat();
            assert_eq!(passed, if expected { format!("{text}{DIED}") } else { text.into() }, "split at {at}");
            assert_eq!(error.unwrap().to_string(), "reset");
        }
    };
    check(EVENTS, "", true).await;
    check(EVENTS, "data: 1\n\n", true).await;
    check(EVENTS, "data: 1\r\n\r\n", true).await;
    check(EVENTS, "data: 1\r\r", true).await;
    check(EVENTS, "data: 1\n\n: comment\n\n", true).await;
    check(EVENTS, "data: 1\n", false).await;
    check(EVENTS, "data: 1\r\n", false).await;
    check(EVENTS, "data: 1\n\ndata: {\"half", false).await;
    check(EVENTS, "data: 1\n\ndata: [DONE]\n", false).await;
    check(JSON, "{\"a\":1}\n\n", false).await;
    check(&[("content-type", "application/x-ndjson")], "{}\n\n", false).await;
    check(&[EVENTS[0], ("content-encoding", "gzip")], "data: 1\n\n", false).await;
    check(&[EVENTS[0], ("content-encoding", "identity")], "data: 1\n\n", true).await;
    // It would be cut off at the promised length and look like a clean end.
    check(&[EVENTS[0], ("content-length", "100")], "data: 1\n\n", false).await;
}

#[tokio::test]
async fn what_breaks_behind_the_last_event_has_lost_nothing() {
    let layer = SseLayer::new(&SseConfig::default());
    let check = async |headers: &[(&str, &str)], text: &'static str, is_complete: bool| {
        for at in 0..=text.len() {
            let (before, after) = text.split_at(at);
            let ends = Ends::default();
            let body = ScriptedBody::new().data(before).data(after).error("reset");
            let body = through(&layer, response(headers, body)).await.into_body();
            let (frames, error) = read(Observed::new(body, ends.clone())).await;
            assert_eq!(texts(&frames).concat(), text, "split at {at}");
            assert_eq!(error.is_none(), is_complete, "{text}, split at {at}");
            assert_eq!(&**ends.0.lock().unwrap(), &[if is_complete { "complete" } else { "failed" }]);
        }
    };
    check(EVENTS, "data: 1\n\ndata: [DONE]\n\n", true).await;
    check(EVENTS, "data:[DONE]\r\n\r\n", true).await;
    check(EVENTS, "event: response.completed\ndata: {\"response\":{}}\n\n", true).await;
    check(EVENTS, "event: message_stop\ndata: {}\n\n: a comment\n\n", true).await;
    check(EVENTS, "event: message_stop\ndata: {}\n", false).await;
    check(&[EVENTS[0], ("content-length", "100")], "data: [DONE]\n\n", false).await;
    check(&[EVENTS[0], ("content-encoding", "gzip")], "data: [DONE]\n\n", false).await;
    check(JSON, "data: [DONE]\n\n", false).await;
}

#[tokio::test]
async fn the_error_event_has_the_shape_of_the_clients_api() {
    let service = SseLayer::new(&SseConfig::default()).layer(service_fn(|_: Request<RequestBody>| async {
        Ok::<_, BoxError>(response(EVENTS, ScriptedBody::new().error("reset")))
    }));
    let mut request = request(seconds(300));
    Exchange::of(request.extensions_mut()).set_call(Call::new(Endpoint::of("/v1/messages")));
    let (frames, _) = read(service.oneshot(request).await.unwrap().into_body()).await;
    assert!(
        frames[0].1.starts_with("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\","),
        "{frames:?}"
    );
}

#[tokio::test]
async fn what_an_inner_error_says_of_the_end_is_kept() {
    let check = async |end: End, code: &str| {
        let body = ScriptedBody::new().data("data: 1\n\n").error(Ended::new(end, "inner"));
        let layer = SseLayer::new(&SseConfig::default());
        let (frames, error) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
        assert_eq!(Ended::of(&*error.unwrap()), end);
        assert!(frames[1].1.contains(code), "{}", frames[1].1);
    };
    check(End::BackendFailed, "backend_error").await;
    check(End::Timeout, "backend_timeout").await;
    check(End::Shutdown, "shutting_down").await;
}

#[test]
fn the_service_is_shared_between_threads() {
    fn check<T: Clone + Send + Sync + 'static>() {}
    check::<Sse<()>>();
    check::<SseLayer>();
    fn check_body<T: Send>() {}
    check_body::<Shaped<ScriptedBody, Box<Stream>>>();
}
