//! Limits of time and heartbeats.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

mod scripted;

use std::future::{pending, poll_fn};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use llmproxy_core::{BoxBody, BoxError, End, Ended, RequestBody, Upgrade, cause_ref};
use llmproxy_sse::{SseConfig, SseError, SseLayer};
use llmproxy_testkit::ScriptedBody;
use scripted::{DIED, EVENTS, JSON, config, read, request, response, seconds, texts, through, timed};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

#[track_caller]
fn assert_timeout(error: &Option<BoxError>, expected: SseError) {
    let error = error.as_ref().unwrap();
    assert_eq!(cause_ref::<SseError>(&**error), Some(&expected));
    assert_eq!(Ended::of(&**error), End::Timeout);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_in_time_is_a_timeout() {
    let service = SseLayer::new(&SseConfig::default())
        .layer(service_fn(|_: Request<RequestBody>| pending::<Result<Response<ScriptedBody>, BoxError>>()));
    let begin = Instant::now();
    let error = service.oneshot(request(seconds(30))).await.err();
    assert_timeout(&error, SseError::FirstByte { after: seconds(30) });
    assert_eq!(begin.elapsed().as_secs(), 30);
    assert_eq!(error.unwrap().to_string(), "the backend sent no byte of an answer within 30s");
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_the_first_byte_counts_from_the_call_over_head_and_body() {
    let service = SseLayer::new(&SseConfig::default()).layer(service_fn(|_: Request<RequestBody>| async {
        sleep(seconds(20)).await;
        Ok::<_, BoxError>(response(EVENTS, ScriptedBody::new().stall()))
    }));
    let response = service.oneshot(request(seconds(30))).await.unwrap();
    let (frames, error) = read(response.into_body()).await;
    assert_timeout(&error, SseError::FirstByte { after: seconds(30) });
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].0, 10);
    assert!(
        frames[0].1.contains("no byte of an answer within 30s") && frames[0].1.contains("timeout_error"),
        "{frames:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_target_the_first_byte_may_take_its_time() {
    let service = SseLayer::new(&config(5, None)).layer(service_fn(|_: Request<RequestBody>| async {
        sleep(seconds(10_000)).await;
        Ok::<_, BoxError>(response(EVENTS, timed(&[(10_000, "data: 1\n\n")], false)))
    }));
    let response = service.oneshot(Request::new(RequestBody::whole(""))).await.unwrap();
    let (frames, error) = read(response.into_body()).await;
    assert!(frames.len() == 1 && error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_last_for_ever_as_long_as_it_is_not_silent() {
    let pieces: Vec<_> = (0..1000).map(|_| (59, "data: x\n\n")).collect();
    let layer = SseLayer::new(&config(60, None));
    let (frames, error) = read(through(&layer, response(EVENTS, timed(&pieces, false))).await.into_body()).await;
    assert_eq!(frames.len(), 1000);
    assert!(error.is_none());
}

#[tokio::test(start_paused = true)]
async fn silence_ends_any_body_after_the_gap_timeout() {
    for headers in [EVENTS, JSON, &[("content-type", "audio/mpeg")]] {
        let layer = SseLayer::new(&config(60, None));
        let body = timed(&[(1, "data: 1\n\n"), (50, "data: 2\n\n"), (61, "data: 3\n\n")], false);
        let (frames, error) = read(through(&layer, response(headers, body)).await.into_body()).await;
        assert_timeout(&error, SseError::Gap { after: seconds(60) });
        assert_eq!(frames[1], (51, "data: 2\n\n".into()));
        if headers == EVENTS {
            assert_eq!(frames[2].0, 111);
            assert!(
                frames[2].1.contains("the backend sent nothing more for 1m") && frames[2].1.contains("timeout_error")
            );
        } else {
            assert_eq!(frames.len(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_silence_of_both_sides_ends_a_tunnel() {
    // After a good-bye the silence is the other side's.
    for (heard, leaves, expected) in [(None, false, 60), (Some(50), false, 110), (Some(50), true, 170)] {
        let mut answer = response(&[], ScriptedBody::new().stall());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let upgrade = Upgrade::default();
        upgrade.agree(Box::pin(Vec::new()));
        answer.extensions_mut().insert(upgrade.clone());
        let body = through(&SseLayer::new(&config(60, None)), answer).await.into_body();
        assert!(upgrade.begin(BoxBody::default()));
        let mut to_backend = upgrade.take().unwrap().to_backend;
        let speak = async {
            if let Some(after) = heard {
                sleep(seconds(after)).await;
                poll_fn(|cx| to_backend.as_mut().poll_write(cx, b"x")).await.unwrap();
            }
            if leaves {
                poll_fn(|cx| to_backend.as_mut().poll_shutdown(cx)).await.unwrap();
            }
        };
        let begin = Instant::now();
        let ((_, error), ()) = tokio::join!(read(body), speak);
        assert_timeout(&error, SseError::Idle { after: seconds(60) });
        assert_eq!(begin.elapsed(), seconds(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_in_the_middle_of_an_event_is_an_error_without_an_event() {
    let layer = SseLayer::new(&config(60, None));
    let body = ScriptedBody::new().data("data: {\"half").stall();
    let (frames, error) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
    assert_timeout(&error, SseError::Gap { after: seconds(60) });
    assert_eq!(texts(&frames), ["data: {\"half"]);
}

#[tokio::test(start_paused = true)]
async fn a_gap_timeout_of_zero_is_none() {
    let layer = SseLayer::new(&config(0, None));
    let body = timed(&[(1, "data: 1\n\n"), (100_000, "data: 2\n\n")], false);
    let (frames, error) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
    assert!(frames.len() == 2 && error.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_backends_timeout_bounds_the_whole_of_a_json_answer_only() {
    let layer = SseLayer::new(&config(120, None));
    let pieces: Vec<_> = (0..40).map(|_| (10, "1")).collect();
    let (frames, error) = read(through(&layer, response(JSON, timed(&pieces, false))).await.into_body()).await;
    assert_timeout(&error, SseError::Whole { after: seconds(300) });
    assert!(frames.len() >= 29);
    for headers in [EVENTS, &[("content-type", "application/x-ndjson")]] {
        let (frames, error) = read(through(&layer, response(headers, timed(&pieces, false))).await.into_body()).await;
        assert!(frames.len() == 40 && error.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let layer = SseLayer::new(&config(60, Some(10)));
    let body = timed(&[(25, "data: 1\n\n"), (8, "data: 2\n\n"), (12, "data: 3\n\n")], false);
    let (frames, error) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
    assert!(error.is_none());
    let expected =
        [(10, ":\n\n"), (20, ":\n\n"), (25, "data: 1\n\n"), (33, "data: 2\n\n"), (43, ":\n\n"), (45, "data: 3\n\n")];
    assert_eq!(frames, expected.map(|(at, text)| (at, text.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_make_up_for_a_dead_backend() {
    let layer = SseLayer::new(&config(35, Some(10)));
    let body = ScriptedBody::new().data("data: 1\n\n").stall();
    let (frames, error) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
    assert_timeout(&error, SseError::Gap { after: seconds(35) });
    assert_eq!(frames.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 10, 20, 30, 35]);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_never_stands_in_the_middle_of_an_event() {
    let layer = SseLayer::new(&config(60, Some(10)));
    let body = timed(&[(1, "data: {\"ha"), (45, "lf\"}\n"), (15, "\n"), (15, "data: 2\n\n")], false);
    let (frames, _) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
    assert_eq!(texts(&frames), ["data: {\"ha", "lf\"}\n", "\n", ":\n\n", "data: 2\n\n"]);
}

#[tokio::test(start_paused = true)]
async fn only_a_plain_stream_of_status_200_gets_heartbeats() {
    let layer = SseLayer::new(&config(60, Some(10)));
    let check = async |status: u16, headers: &[(&str, &str)]| {
        let mut response = response(headers, timed(&[(25, "x")], false));
        *response.status_mut() = status.try_into().unwrap();
        let (frames, _) = read(through(&layer, response).await.into_body()).await;
        assert_eq!(texts(&frames), ["x"]);
    };
    check(200, JSON).await;
    check(503, EVENTS).await;
    check(200, &[EVENTS[0], ("content-encoding", "gzip")]).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_quiet_start_nothing_is_put_in_before_the_first_byte() {
    let layer = SseLayer::new(&config(60, Some(10))).with_quiet_start(true);
    let (frames, error) =
        read(through(&layer, response(EVENTS, ScriptedBody::new().error("reset"))).await.into_body()).await;
    assert!(frames.is_empty() && error.is_some());
    let body = timed(&[(25, "data: 1\n\n"), (15, "data: 2\n\n")], true);
    let (frames, _) = read(through(&layer, response(EVENTS, body)).await.into_body()).await;
    assert_eq!(texts(&frames), ["data: 1\n\n", ":\n\n", "data: 2\n\n", DIED]);
}

#[tokio::test(start_paused = true)]
async fn the_time_in_which_nobody_reads_is_not_the_backends() {
    for headers in [EVENTS, JSON] {
        let layer = SseLayer::new(&config(60, None));
        let body = timed(&[(1, "data: 1\n\n"), (1, "data: 2\n\n"), (1, "data: 3\n\n")], false);
        let mut body = Box::pin(through(&layer, response(headers, body)).await.into_body());
        for _ in 0..3 {
            sleep(seconds(1000)).await;
            body.frame().await.unwrap().unwrap();
        }
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn the_pieces_of_a_json_answer_share_one_limit() {
    let layer = SseLayer::new(&config(0, None));
    let body = timed(&[(100, "{"), (100, "\"a\":"), (101, "1}")], false);
    let (frames, error) = read(through(&layer, response(JSON, body)).await.into_body()).await;
    assert_timeout(&error, SseError::Whole { after: seconds(300) });
    assert_eq!(frames.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_time_that_an_upload_takes_is_the_clients() {
    for (wait, is_in_time) in [(29, true), (31, false)] {
        let service =
            SseLayer::new(&SseConfig::default()).layer(service_fn(move |request: Request<RequestBody>| async move {
                request.into_body().collect().await?;
                sleep(seconds(wait)).await;
                Ok::<_, BoxError>(response(JSON, ScriptedBody::new()))
            }));
        let (parts, _) = request(seconds(30)).into_parts();
        let upload = RequestBody::stream(timed(&[(20, "a"), (20, "b"), (20, "c")], false));
        let begin = Instant::now();
        let result = service.oneshot(Request::from_parts(parts, upload)).await;
        assert_eq!((result.is_ok(), begin.elapsed()), (is_in_time, seconds(60 + wait.min(30))));
    }
}
