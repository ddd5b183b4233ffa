//! The end of an answer waits until its record is kept, and nothing else does.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    future::{Future, pending, poll_fn},
    io::Write,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use http::{Response, StatusCode};
use http_body::Body;
use llmproxy_core::{BoxError, End, EndHold, Exchange, OnAbort};
use llmproxy_metering::{AbortConfig, Drains, MeterLayer, MeteredBody};
use proptest::prelude::*;
use support::{Records, Script, Step, call, data, events, exchange, json, metered, read, request, typed};
use tokio::sync::oneshot;
use tower::{Layer, service_fn};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const OLLAMA: &str = "/api/chat";
const LLAMA: &str = "/completion";
const TGI: &str = "/generate_stream";

const DELTAS: &str = concat!(
    ": ping\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"data: [DONE]\"}}]}\n\n",
    "event: message\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
);
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n: and a comment\n\n";

/// What can be let go or made to fail.
type Release = oneshot::Sender<Result<(), &'static str>>;

/// How far a body has come.
#[derive(Debug, PartialEq, Eq)]
enum At {
    Pending,
    End,
    Trailers,
    Error(String),
}

/// An exchange whose end is held, and that it was.
fn strict(path: &str, inject_usage: bool) -> (Arc<Exchange>, Records, Release) {
    let exchange = exchange(path, inject_usage);
    let records = Records::of(&exchange);
    let release = hold(&exchange);
    (exchange, records, release)
}

fn hold(exchange: &Exchange) -> Release {
    let (release, released) = oneshot::channel::<Result<(), &'static str>>();
    exchange.hold_end(EndHold::new(async move { released.await?.map_err(Into::into) }));
    release
}

/// All that comes without waiting; as hyper reads it.
fn ready(body: &mut MeteredBody<Script>) -> (String, At) {
    let mut all = Vec::new();
    let at = loop {
        if body.is_end_stream() {
            break At::End;
        }
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => break At::Pending,
            Poll::Ready(None) => break At::End,
            Poll::Ready(Some(Err(error))) => break At::Error(error.to_string()),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => all.extend_from_slice(&data),
                Err(_) => break At::Trailers,
            },
        }
    };
    (String::from_utf8_lossy(&all).into_owned(), at)
}

/// What of an answer comes before the end, and what comes with it.
async fn parts(path: &str, inject_usage: bool, answer: Response<Script>) -> (String, String, At) {
    // What waits on a channel has a budget for each turn of its task.
    tokio::task::yield_now().await;
    let (exchange, records, release) = strict(path, inject_usage);
    let mut body = metered(&exchange, path, answer).await.into_body();
    let (before, at) = ready(&mut body);
    assert_eq!((at, records.all().len()), (At::Pending, 1), "the record is told, and the end waits: {before}");
    assert!(!body.is_end_stream());
    release.send(Ok(())).unwrap();
    let (mut after, mut at) = ready(&mut body);
    if at == At::Pending {
        // Before an error what came before it is flushed.
        let (more, then) = ready(&mut body);
        (after, at) = (after + &more, then);
    }
    assert!(body.is_end_stream() || matches!(at, At::Trailers), "{at:?}");
    assert_eq!(records.all().len(), 1);
    (before, after, at)
}

fn ndjson(body: Script) -> Response<Script> {
    typed("application/x-ndjson", body)
}

fn sized(mut answer: Response<Script>, length: usize) -> Response<Script> {
    answer.headers_mut().insert("content-length", length.into());
    answer
}

/// `before` is what goes on and `held` what waits, in one piece, in two, split anywhere, and in pieces of one byte.
async fn check(path: &str, answer: impl Fn(Script) -> Response<Script>, before: &str, held: &str) {
    let stream = [before, held].concat();
    let splits = (0..=stream.len()).map(|at| {
        let (head, tail) = stream.as_bytes().split_at(at);
        vec![head, b"", tail]
    });
    for chunks in splits.chain([stream.as_bytes().chunks(1).collect()]) {
        for exact in [false, true] {
            let script = Script::chunks(&chunks);
            let script = if exact { script.exact() } else { script };
            let found = parts(path, false, answer(script)).await;
            assert_eq!(found, (before.to_owned(), held.to_owned(), At::End), "{chunks:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_event_waits_and_those_before_it_do_not() {
    check(CHAT, events, DELTAS, DONE).await;
    check(CHAT, events, &[DELTAS, USAGE].concat(), "data: [DONE]").await;
    for line_end in ["\r\n", "\r"] {
        let held = DONE.replace('\n', line_end);
        // Where a piece ends between CR and LF, the event has ended and the LF belongs to what follows.
        if line_end == "\r" {
            check(CHAT, events, &DELTAS.replace('\n', line_end), &held).await;
        }
        let script = Script::chunks([DELTAS.replace('\n', line_end), held.clone()]);
        let found = parts(CHAT, false, events(script)).await;
        assert_eq!(found, (DELTAS.replace('\n', line_end), held, At::End));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_event_of_other_dialects_waits_too() {
    let before = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"event: message_stop\"}}\n\n",
    );
    check(MESSAGES, events, before, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n").await;
    let before =
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    for kind in ["completed", "incomplete", "failed"] {
        let last = format!("event: response.{kind}\ndata: {{\"type\":\"response.{kind}\",\"response\":{{}}}}\n\n");
        check(RESPONSES, events, before, &last).await;
    }
    let before = "{\"message\":{\"content\":\"a\"},\"done\":false}\n{\"message\":{\"content\":\"b\"},\"done\":false}\n";
    check(OLLAMA, ndjson, before, "{\"message\":{\"content\":\"\"},\"done\":true,\"eval_count\":2}\n").await;
    check(OLLAMA, ndjson, before, "{\"message\":{\"content\":\"\"},\"done\":true,\"eval_count\":2}").await;
}

/// Where only the event's JSON says that it is the last, its last piece is held.
#[tokio::test(start_paused = true)]
async fn what_only_its_json_says_to_be_the_last_is_never_whole() {
    let check = async |path: &str, before: &str, last: &str| {
        let stream = [before, last].concat();
        for at in 0..stream.len() {
            let (head, tail) = stream.as_bytes().split_at(at);
            let (found, held, end) = parts(path, false, events(Script::chunks([head, tail]))).await;
            assert_eq!(([found.as_str(), &held].concat(), end), (stream.clone(), At::End));
            assert!(found.starts_with(before) && !held.is_empty(), "{found}");
            assert!(found.len() == before.len().max(at) || found == before, "{found}");
        }
    };
    let delta = "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n";
    check(MESSAGES, delta, "data: {\"type\":\"message_stop\"}\n\n").await;
    check(LLAMA, "data: {\"content\":\"a\",\"stop\":false}\n\n", "data: {\"content\":\"\",\"stop\":true}\n\n").await;
    let token = "data: {\"token\":{\"text\":\"a\"},\"generated_text\":null}\n\n";
    check(TGI, token, "data: {\"token\":{\"text\":\"b\"},\"generated_text\":\"ab\"}\n\n").await;
}

#[tokio::test(start_paused = true)]
async fn the_last_event_of_one_part_holds_back_no_other() {
    let first = "data: {\"index\":0,\"content\":\"\",\"stop\":true}\n\n";
    let more = "data: {\"index\":1,\"content\":\"a\",\"stop\":false}\n\n";
    let last = "data: {\"index\":1,\"content\":\"\",\"stop\":true}\n\n";
    let (exchange, _records, release) = strict(LLAMA, false);
    let script = Script::new([data(first), Step::Wait, data(more), Step::Wait, data(last)]);
    let mut body = metered(&exchange, LLAMA, events(script)).await.into_body();
    assert_eq!(ready(&mut body), (String::new(), At::Pending));
    assert_eq!(ready(&mut body), ([first, more].concat(), At::Pending));
    assert_eq!(ready(&mut body), (String::new(), At::Pending));
    release.send(Ok(())).unwrap();
    assert_eq!(ready(&mut body), (last.to_owned(), At::End));
}

#[tokio::test(start_paused = true)]
async fn the_usage_event_that_we_asked_for_is_taken_out_all_the_same() {
    let stream = [DELTAS, USAGE, DONE].concat();
    let splits = (0..=stream.len()).map(|at| {
        let (head, tail) = stream.as_bytes().split_at(at);
        vec![head, b"", tail]
    });
    for chunks in splits.chain([stream.as_bytes().chunks(1).collect()]) {
        let found = parts(CHAT, true, events(Script::chunks(&chunks))).await;
        assert_eq!(found, (DELTAS.to_owned(), DONE.to_owned(), At::End), "{chunks:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_tells_of_an_error_waits() {
    let error = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n";
    for inject_usage in [false, true] {
        let found = parts(CHAT, inject_usage, events(Script::chunks([[DELTAS, error].concat()]))).await;
        assert_eq!(found, (DELTAS.to_owned(), error.to_owned(), At::End));
        // It was not the end.
        let more = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"c\"}}]}\n\n";
        let before = [error, more].concat();
        let found = parts(CHAT, inject_usage, events(Script::chunks([before.as_str(), DONE]))).await;
        assert_eq!(found, (before, DONE.to_owned(), At::End));
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_compressed_stream_the_piece_waits_that_shows_the_last_event() {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    let mut piece = |text: &str| {
        packer.write_all(text.as_bytes()).unwrap();
        packer.flush().unwrap();
        std::mem::take(packer.get_mut())
    };
    let (first, second) = (piece(DELTAS), piece(DONE));
    let third = packer.finish().unwrap();
    let (exchange, records, release) = strict(CHAT, false);
    let mut answer = events(Script::chunks([&first, &second, &third]));
    answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    let mut body = metered(&exchange, CHAT, answer).await.into_body();
    let lossy = |pieces: &[&[u8]]| String::from_utf8_lossy(&pieces.concat()).into_owned();
    assert_eq!(ready(&mut body), (lossy(&[&first]), At::Pending));
    assert_eq!(records.one().end, End::Complete);
    release.send(Ok(())).unwrap();
    assert_eq!(ready(&mut body), (lossy(&[&second, &third]), At::End));
}

#[tokio::test(start_paused = true)]
async fn plain_answers_wait_with_what_shows_their_end() {
    let chunks = || Script::chunks(["{\"a\":", "1}"]);
    let found = async |answer| {
        let (before, after, at) = parts(CHAT, false, answer).await;
        (before.leak() as &str, after.leak() as &str, at)
    };
    assert_eq!(found(sized(json(chunks().exact()), 7)).await, ("{\"a\":", "1}", At::End));
    // As HTTP/2 may say it: the length in the head, and the end apart from the last piece.
    assert_eq!(found(sized(json(chunks()), 7)).await, ("{\"a\":", "1}", At::End));
    assert_eq!(found(sized(typed("image/png", chunks()), 7)).await, ("{\"a\":", "1}", At::End));
    assert_eq!(found(json(chunks().exact())).await, ("{\"a\":", "1}", At::End));
    assert_eq!(found(json(chunks())).await, ("{\"a\":1}", "", At::End));
    let trailers = Script::new([data("{\"a\":1}"), Step::Trailers]);
    assert_eq!(found(json(trailers)).await, ("{\"a\":1}", "", At::Trailers));
    let stream = [DELTAS, DONE].concat();
    let answer = sized(events(Script::chunks([DELTAS, DONE])), stream.len());
    assert_eq!(found(answer).await, (DELTAS, DONE, At::End));
    // Nothing tells the last of these but the length.
    let answer = sized(events(Script::chunks([DELTAS, DELTAS])), 2 * DELTAS.len());
    assert_eq!(found(answer).await, (DELTAS, DELTAS, At::End));
    let broken = Script::new([data("{\"a\":"), Step::Error("dead".into())]);
    assert_eq!(found(json(broken)).await, ("{\"a\":", "", At::Error("dead".into())));
    let broken = Script::new([data(DELTAS), data(DONE), Step::Error("dead".into())]);
    assert_eq!(found(events(broken)).await, (DELTAS, DONE, At::Error("dead".into())));
}

#[tokio::test(start_paused = true)]
async fn where_the_record_is_not_kept_the_answer_breaks_off() {
    let check = async |answer, before: &str, end, error: &str| {
        let (exchange, records, release) = strict(CHAT, false);
        let mut body = metered(&exchange, CHAT, answer).await.into_body();
        assert_eq!(ready(&mut body), (before.to_owned(), At::Pending));
        release.send(Err("the disk is full")).unwrap();
        assert_eq!(ready(&mut body), (String::new(), At::Error(error.to_owned())));
        assert_eq!(records.one().end, end, "what was told stands");
    };
    let chunks = || Script::chunks(["{\"a\":", "1}"]);
    let full = "the disk is full";
    check(sized(json(chunks()), 7), "{\"a\":", End::Complete, full).await;
    check(json(chunks()), "{\"a\":1}", End::Complete, full).await;
    check(events(Script::chunks([DELTAS, DONE])), DELTAS, End::Complete, full).await;
    check(json(Script::new([data("{\"a\":1}"), Step::Trailers])), "{\"a\":1}", End::Complete, full).await;
    check(json(Script::new([Step::Error("dead".into())])), "", End::BackendFailed, "dead").await;
}

/// What the meter's future comes to: at first, and when the end may pass or not.
async fn waits(
    answer: Result<Response<Script>, BoxError>,
    released: Result<(), &'static str>,
) -> (Result<Response<MeteredBody<Script>>, String>, Records) {
    let (exchange, records, release) = strict(CHAT, false);
    let mut answer = Some(answer);
    let mut service = MeterLayer::new().layer(service_fn(move |_: http::Request<()>| {
        let answer = answer.take().unwrap();
        async move { answer }
    }));
    let mut future = pin!(call(&mut service, request(&exchange, CHAT)));
    assert!(poll_once(future.as_mut()).await.is_pending());
    assert!(poll_once(future.as_mut()).await.is_pending());
    assert_eq!(records.all().len(), 1, "the record is told before it is waited for");
    release.send(released).unwrap();
    (future.await.map_err(|error| error.to_string()), records)
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

#[tokio::test(start_paused = true)]
async fn an_error_before_the_head_waits() {
    for released in [Ok(()), Err("the disk is full")] {
        let (result, records) = waits(Err("refused".into()), released).await;
        assert_eq!(result.err().as_deref(), Some("refused"));
        assert_eq!(records.one().status, 502);
    }
}

#[tokio::test(start_paused = true)]
async fn the_head_of_an_empty_answer_waits() {
    let empty = || Script::chunks([""; 0]);
    // As HTTP/2 may say it: that there is nothing, and later that this was all.
    for body in [empty().exact(), empty()] {
        let (result, records) = waits(Ok(sized(json(body), 0)), Ok(())).await;
        assert_eq!(ready(&mut result.unwrap().into_body()), (String::new(), At::End));
        assert_eq!(records.one().end, End::Complete);
    }
    let (result, records) = waits(Ok(sized(json(empty().exact()), 0)), Err("the disk is full")).await;
    assert_eq!(result.err().as_deref(), Some("the disk is full"));
    assert_eq!(records.one().status, 200, "what was told stands");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_says_that_it_is_empty_is_complete_with_its_head() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    // hyper polls no body of which it knows that nothing comes.
    drop(metered(&exchange, CHAT, sized(json(Script::chunks([""; 0])), 0)).await);
    assert_eq!(records.one().end, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_the_end_is_held_changes_nothing() {
    let config = AbortConfig { on_abort: OnAbort::Drain, ..AbortConfig::default() };
    for layer in [MeterLayer::new(), MeterLayer::new().with_abort(&config, Drains::default())] {
        for answer in [json(Script::chunks(["{\"a\":1}"])), events(Script::chunks([DELTAS, DONE]))] {
            let (exchange, records, release) = strict(CHAT, false);
            let mut answer = Some(answer);
            let mut service = layer.layer(service_fn(move |_: http::Request<()>| {
                let answer = answer.take().unwrap();
                async move { Ok::<_, BoxError>(answer) }
            }));
            let mut body = call(&mut service, request(&exchange, CHAT)).await.unwrap().into_body();
            assert_eq!(ready(&mut body).1, At::Pending);
            drop(body);
            tokio::task::yield_now().await;
            assert_eq!(records.one().end, End::Complete);
            assert!(release.is_closed(), "nobody waits");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_it_was_given_the_last_event_has_left() {
    for inject_usage in [false, true] {
        let (exchange, records, release) = strict(CHAT, inject_usage);
        let script = Script::new([data(DELTAS), data(DONE), Step::Hang]);
        let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
        assert_eq!(ready(&mut body), (DELTAS.to_owned(), At::Pending));
        assert!(records.all().is_empty(), "the backend has not ended");
        drop(body);
        assert_eq!(records.one().end, End::ClientGone);
        assert!(release.is_closed());
    }
    // The frame that completes the length was not given either.
    let (exchange, records, _release) = strict(CHAT, false);
    let answer = sized(json(Script::new([data("{\"a\":"), data("1}"), Step::Hang])), 7);
    let mut body = metered(&exchange, CHAT, answer).await.into_body();
    assert_eq!(ready(&mut body), ("{\"a\":".to_owned(), At::Pending));
    drop(body);
    assert_eq!(records.one().end, End::ClientGone);
    let (exchange, records, release) = strict(CHAT, false);
    let never = service_fn(|_: http::Request<()>| pending::<Result<Response<Script>, BoxError>>());
    drop(call(&mut MeterLayer::new().layer(never), request(&exchange, CHAT)));
    let mut service = MeterLayer::new().layer(never);
    let mut future = Box::pin(call(&mut service, request(&exchange, CHAT)));
    assert!(poll_once(future.as_mut()).await.is_pending());
    drop(future);
    assert_eq!(records.one().end, End::ClientGone);
    assert!(release.is_closed());
}

#[tokio::test(start_paused = true)]
async fn what_is_read_on_for_nobody_is_not_held() {
    let config = AbortConfig { on_abort: OnAbort::Drain, ..AbortConfig::default() };
    let layer = MeterLayer::new().with_abort(&config, Drains::default());
    struct Kept(#[expect(dead_code, reason = "it is counted")] Arc<()>);
    impl AsRef<[u8]> for Kept {
        fn as_ref(&self) -> &[u8] {
            DELTAS.as_bytes()
        }
    }
    let (exchange, records, release) = strict(CHAT, false);
    let kept = Arc::new(());
    let piece = Step::Data(bytes::Bytes::from_owner(Kept(kept.clone())));
    let steps = [data(DELTAS), data("d"), Step::Wait, piece, Step::Hang];
    let mut script = Some(Script::new(steps));
    let mut service = layer.layer(service_fn(move |_: http::Request<()>| {
        let answer = events(script.take().unwrap());
        async move { Ok::<_, BoxError>(answer) }
    }));
    let mut body = call(&mut service, request(&exchange, CHAT)).await.unwrap().into_body();
    assert_eq!(ready(&mut body), (DELTAS.to_owned(), At::Pending));
    drop(body);
    assert!(release.is_closed());
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!((Arc::strong_count(&kept), records.all().len()), (1, 0), "it is read, and not kept");
    tokio::time::sleep(config.drain_timeout).await;
    tokio::task::yield_now().await;
    assert_eq!(records.one().end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_record_there_is_nothing_to_wait_for() {
    let no_sink = exchange(CHAT, false);
    let unasked = Exchange::new();
    unasked.expect_attempts();
    let _records = Records::of(&unasked);
    for exchange in [no_sink, unasked] {
        let release = hold(&exchange);
        let mut body = metered(&exchange, CHAT, events(Script::chunks([DELTAS, DONE]))).await.into_body();
        assert_eq!(ready(&mut body), ([DELTAS, DONE].concat(), At::End));
        assert!(release.is_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_not_held() {
    let (exchange, records, release) = strict("/v1/realtime", false);
    let mut answer = Response::new(Script::chunks(["a frame"]));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let mut body = metered(&exchange, "/v1/realtime", answer).await.into_body();
    assert!(release.is_closed());
    assert_eq!(ready(&mut body), ("a frame".to_owned(), At::End));
    assert_eq!(records.one().status, 101);
}

#[tokio::test(start_paused = true)]
async fn the_record_is_told_before_the_hold_is_asked() {
    let exchange = exchange(CHAT, false);
    let (records, asked) = (Records::of(&exchange), Arc::new(AtomicBool::new(false)));
    let (told, is_asked) = (records.clone(), asked.clone());
    exchange.hold_end(EndHold::new(async move {
        is_asked.store(true, Ordering::Relaxed);
        assert_eq!(told.all().len(), 1);
        Ok(())
    }));
    let mut body = metered(&exchange, CHAT, events(Script::chunks([DELTAS, DONE]))).await.into_body();
    assert_eq!(ready(&mut body), ([DELTAS, DONE].concat(), At::End));
    assert!(asked.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_end_is_woken() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let millis = std::time::Duration::from_millis;
    exchange.hold_end(EndHold::new(async move {
        tokio::time::sleep(millis(50)).await;
        Ok(())
    }));
    let body = metered(&exchange, CHAT, events(Script::chunks([DELTAS, DONE]))).await.into_body();
    let began = tokio::time::Instant::now();
    assert_eq!(read(body).await, [DELTAS, DONE].concat().as_bytes());
    assert_eq!(began.elapsed(), millis(50));
    assert_eq!(records.one().latency, millis(0), "the wait is none of the answer's");
}

/// Pieces behind the last event, many times what is kept of them; and then none.
fn endless() -> impl Iterator<Item = Step> {
    let comment = format!(":{}\n\n", "x".repeat(4000));
    [data(DELTAS), data(DONE)].into_iter().chain((0..1000).map(move |_| data(&comment))).chain([Step::Hang])
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_goes_on_after_the_last_event_is_not_heard_out() {
    let (exchange, records, release) = strict(CHAT, false);
    let mut body = metered(&exchange, CHAT, events(Script::new(endless()))).await.into_body();
    assert_eq!(ready(&mut body), (DELTAS.to_owned(), At::Pending));
    assert_eq!(records.one().end, End::Complete);
    release.send(Ok(())).unwrap();
    let (after, at) = ready(&mut body);
    assert_eq!(at, At::End);
    assert!(after.starts_with(DONE) && after.len() < 70_000, "{}", after.len());

    // Where a length was promised, what is left out would be missed.
    let (exchange, records, release) = strict(CHAT, false);
    let mut body = metered(&exchange, CHAT, sized(events(Script::new(endless())), 10_000_000)).await.into_body();
    assert_eq!(ready(&mut body), (DELTAS.to_owned(), At::Pending));
    assert_eq!(records.one().end, End::Complete);
    release.send(Ok(())).unwrap();
    let (after, at) = ready(&mut body);
    assert!(after.is_empty() && matches!(&at, At::Error(error) if error.contains("after the last event")), "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_keeps_its_stream_open_after_the_last_event_is_not_waited_for() {
    let open = |answer: &str| Script::new([data(answer), Step::Hang]);
    let json_error = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n";
    for (last, end) in [(DONE, End::Complete), (json_error, End::BackendFailed)] {
        let (exchange, records, release) = strict(CHAT, false);
        let mut body = metered(&exchange, CHAT, events(open(&[DELTAS, last].concat()))).await.into_body();
        assert_eq!(ready(&mut body), (DELTAS.to_owned(), At::Pending));
        assert_eq!(records.all().len(), 0, "it may go on");
        tokio::time::advance(Duration::from_millis(251)).await;
        assert_eq!(ready(&mut body), (String::new(), At::Pending));
        assert_eq!(records.one().end, end);
        release.send(Ok(())).unwrap();
        assert_eq!(ready(&mut body), (last.to_owned(), At::End));
    }

    // Where a length was promised, the end can't be given without the rest.
    let (exchange, records, _release) = strict(CHAT, false);
    let mut body = metered(&exchange, CHAT, sized(events(open(&[DELTAS, DONE].concat())), 10_000)).await.into_body();
    assert_eq!(ready(&mut body), (DELTAS.to_owned(), At::Pending));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!((ready(&mut body), records.all().len()), ((String::new(), At::Pending), 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_changed_however_a_stream_comes(
        which in 0..4_usize,
        ends in prop::collection::vec(0..=600_usize, 0..12),
        exact in any::<bool>(),
        is_sized in any::<bool>(),
    ) {
        let named = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
        let line = "{\"message\":{\"content\":\"\"},\"done\":true}\n";
        let (path, before, held) = [
            (CHAT, DELTAS.to_owned(), DONE),
            (MESSAGES, "event: ping\ndata: {\"type\": \"ping\"}\n\n".repeat(3), named),
            (OLLAMA, "{\"message\":{\"content\":\"a\"},\"done\":false}\n".repeat(4), line),
            (CHAT, DELTAS.replace("\"a\"", "\"ab\\ndata: [DONE]\""), "data: [DONE]\n\n\n\n"),
        ][which].clone();
        let stream = [before.as_str(), held].concat();
        let mut ends: Vec<usize> = ends.into_iter().map(|end| end.min(stream.len())).collect();
        ends.push(stream.len());
        ends.sort_unstable();
        let mut begin = 0;
        let chunks: Vec<&[u8]> = ends.iter().map(|end| &stream.as_bytes()[std::mem::replace(&mut begin, *end)..*end]).collect();
        let script = Script::chunks(&chunks);
        let script = if exact { script.exact() } else { script };
        let answer = if path == OLLAMA { ndjson(script) } else { events(script) };
        let answer = if is_sized { sized(answer, stream.len()) } else { answer };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (found, after, at) = runtime.block_on(parts(path, false, answer));
        prop_assert_eq!(([found.as_str(), &after].concat(), at), (stream, At::End));
        if is_sized {
            // The frame that completes the length waits with all that is in it.
            prop_assert!(before.starts_with(&found) && !after.is_empty());
        } else {
            prop_assert_eq!(found, before);
        }
    }
}
