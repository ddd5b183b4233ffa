//! The wait for the first byte, where the request's body passes through: who is waited for meanwhile.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod scripted;

use std::future::pending;

use http::{Request, Response};
use http_body_util::BodyExt;
use llmproxy_core::{BoxError, RequestBody, cause_ref};
use llmproxy_sse::{SseConfig, SseError, SseLayer};
use llmproxy_testkit::ScriptedBody;
use scripted::{EVENTS, JSON, config, read, request, response, seconds, texts, timed};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

const SLOW: &[(u64, &str)] = &[(100, "a"), (100, "b")];

/// How long it takes until a request with an upload fails, whose backend does as `backend` does.
async fn fails_after<F>(backend: impl FnMut(Request<RequestBody>) -> F) -> u64
where
    F: Future<Output = Result<Response<ScriptedBody>, BoxError>>,
{
    let begin = Instant::now();
    let service = SseLayer::new(&SseConfig::default()).layer(service_fn(backend));
    let upload = request(seconds(30)).map(|_| RequestBody::stream(timed(SLOW, false)));
    let error = service.oneshot(upload).await.err().unwrap();
    assert_eq!(cause_ref::<SseError>(&*error), Some(&SseError::FirstByte { after: seconds(30) }));
    begin.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_its_upload_is_waited_for_and_then_its_backend() {
    let after = fails_after(async |request: Request<RequestBody>| {
        request.into_body().collect().await?;
        pending().await
    });
    assert_eq!(after.await, 230);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_take_an_upload_has_its_timeout() {
    assert_eq!(fails_after(async |_request| pending().await).await, 30);
    let after = fails_after(async |request: Request<RequestBody>| {
        let mut body = request.into_body();
        body.frame().await.unwrap()?;
        pending().await
    });
    assert_eq!(after.await, 130);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_nobody_reads_any_more_is_not_waited_for() {
    let after = fails_after(async |request: Request<RequestBody>| {
        let mut body = request.into_body();
        let _ = tokio::time::timeout(seconds(50), body.frame()).await;
        drop(body);
        pending().await
    });
    assert_eq!(after.await, 80);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_began_early_waits_for_the_upload_as_well() {
    let service = SseLayer::new(&config(20, None)).layer(service_fn(async |request: Request<RequestBody>| {
        tokio::spawn(request.into_body().collect());
        sleep(seconds(1)).await;
        Ok::<_, BoxError>(response(EVENTS, timed(&[(210, "data: 1\n\n"), (21, "data: 2\n\n")], false)))
    }));
    let upload = request(seconds(30)).map(|_| RequestBody::stream(timed(SLOW, false)));
    let (frames, error) = read(service.oneshot(upload).await.unwrap().into_body()).await;
    assert_eq!(cause_ref::<SseError>(&*error.unwrap()), Some(&SseError::Gap { after: seconds(20) }));
    assert_eq!((frames[0].0, &*frames[0].1), (210, "data: 1\n\n"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_done_is_complete_though_its_backend_stays() {
    let check = async |headers: &[(&str, &str)], text: &'static str, is_complete: bool| {
        let layer = SseLayer::new(&config(35, Some(10)));
        let body = ScriptedBody::new().data(text).stall();
        let begin = Instant::now();
        let (frames, error) = read(scripted::through(&layer, response(headers, body)).await.into_body()).await;
        assert_eq!((error.is_none(), begin.elapsed().as_secs()), (is_complete, 35), "{text}");
        if is_complete {
            assert_eq!(texts(&frames), [text]);
        }
    };
    check(EVENTS, "data: 1\n\ndata: [DONE]\n\n", true).await;
    check(EVENTS, "data: 1\n\ndata: [DONE]\r\n\r\n", true).await;
    check(EVENTS, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true).await;
    check(EVENTS, "event: response.incomplete\ndata: {\"response\":{\"a\":\"long one, of many bytes\"}}\n\n", true)
        .await;
    check(EVENTS, "data: 1\n\n", false).await;
    check(EVENTS, "event: response.output_text.done\ndata: {}\n\n", false).await;
    // A line that has not ended may go on.
    check(EVENTS, "data: 1\n\ndata: [DONE]", false).await;
    check(JSON, "data: [DONE]\n\n", false).await;
}

#[tokio::test(start_paused = true)]
async fn a_promised_length_is_kept_or_seen_to_be_broken() {
    let layer = SseLayer::new(&config(35, None));
    let headers = [EVENTS[0], ("content-length", "100")];
    let body = ScriptedBody::new().data("data: [DONE]\n\n").stall();
    let (_, error) = read(scripted::through(&layer, response(&headers, body)).await.into_body()).await;
    assert!(error.is_some());
}
