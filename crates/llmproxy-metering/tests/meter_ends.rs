//! Every way in which an answer can end, and that each is one record.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;

use http::{Response, StatusCode};
use http_body::Body;
use llmproxy_core::{Backend, BoxError, End, Ended, Exchange, StopFlag, Target, TokenUsage, UsageRecord, UsageSource};
use llmproxy_metering::{InspectError, Meter, MeterLayer, MeteredBody};
use support::{Records, Script, Step, call, data, events, exchange, json, metered, next, read, request, typed};
use tower::{Layer, Service, service_fn};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = r#"{"id":"c-1","model":"served","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}"#;
const DELTA: &str = "data: {\"id\":\"c-1\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

fn estimated(record: &UsageRecord) -> (u64, u64) {
    assert_eq!(record.source(), Some(UsageSource::Estimated));
    record.usage.map(|usage| (usage.prompt, usage.completion)).unwrap()
}

/// Reads `answer` to its end and gives the record.
async fn record_of(path: &str, answer: Response<Script>) -> Arc<UsageRecord> {
    let exchange = exchange(path, false);
    let records = Records::of(&exchange);
    read(metered(&exchange, path, answer).await.into_body()).await;
    assert_eq!(exchange.end(), Some(records.one().end));
    records.one()
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_ends_before_it_is_polled() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let answer = metered(&exchange, CHAT, json(Script::new([]).exact())).await;
    assert_eq!(records.one().end, End::Complete);
    assert!(answer.body().is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_known_length_ends_with_its_last_byte() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let (one, two) = JSON.split_at(30);
    let mut body = metered(&exchange, CHAT, json(Script::chunks([one, two]).exact())).await.into_body();
    assert_eq!(body.size_hint().exact(), Some(JSON.len() as u64));
    next(&mut body).await.unwrap().unwrap();
    assert!(records.all().is_empty());
    next(&mut body).await.unwrap().unwrap();
    assert!(body.is_end_stream());
    let record = records.one();
    drop(body);
    assert_eq!(records.one().end, End::Complete);
    assert_eq!(record.usage, Some(TokenUsage { prompt: 5, completion: 7, ..TokenUsage::default() }));
    assert_eq!(record.source(), Some(UsageSource::Backend));
    assert_eq!(record.served_model.as_deref(), Some("served"));
    assert_eq!(record.model.as_deref(), Some("asked"));
    assert_eq!(record.upstream_id.as_deref(), Some("c-1"));
    assert_eq!(record.backend_url.as_deref(), Some("http://backend:8000"));
    // A stream was asked for, whatever came.
    assert_eq!((record.attempts, record.status, record.stream), (1, 200, true));
}

#[tokio::test(start_paused = true)]
async fn a_chunked_answer_ends_where_nothing_more_comes() {
    let record = record_of(CHAT, json(Script::chunks([JSON]))).await;
    assert_eq!(record.end, End::Complete);
    assert_eq!(record.usage.unwrap().completion, 7);
}

#[tokio::test(start_paused = true)]
async fn trailers_are_an_end() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let mut body = metered(&exchange, CHAT, json(Script::new([data(JSON), Step::Trailers]))).await.into_body();
    next(&mut body).await.unwrap().unwrap();
    assert!(next(&mut body).await.is_none());
    assert_eq!(records.one().end, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_an_end_of_its_kind() {
    let check = async |error: BoxError, end| {
        let record = record_of(CHAT, events(Script::new([data(DELTA), Step::Error(error)]))).await;
        assert_eq!(record.end, end);
        assert_eq!(estimated(&record), (11, 1));
        assert!(record.error.is_some());
    };
    check("reset".into(), End::BackendFailed).await;
    check(Ended::new(End::Timeout, "silence").into(), End::Timeout).await;
    check(Ended::new(End::Shutdown, "stopped").into(), End::Shutdown).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_head_is_recorded() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let pending = || std::future::pending::<Result<Response<Script>, BoxError>>();
    let mut service = MeterLayer::new().layer(service_fn(move |_| pending()));
    drop(service.call(request(&exchange, CHAT)));
    let record = records.one();
    assert_eq!((record.end, record.status), (End::ClientGone, 499));
    // The backend was asked: the prompt has cost what it costs.
    assert_eq!(estimated(&record), (11, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_in_the_middle_is_charged_for_what_passed() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let script = Script::new([data(DELTA), data(DELTA), data(DELTA), Step::Hang]);
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    next(&mut body).await.unwrap().unwrap();
    next(&mut body).await.unwrap().unwrap();
    drop(body);
    let record = records.one();
    assert_eq!((record.end, record.status, record.stream), (End::ClientGone, 200, true));
    assert_eq!(estimated(&record), (11, 2));
}

#[tokio::test(start_paused = true)]
async fn running_totals_count_when_the_client_leaves() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let chunk = |total| {
        data(format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"abc\"}}}}],\"usage\":{{\"prompt_tokens\":4,\"completion_tokens\":{total}}}}}\n\n"
        ))
    };
    let script = Script::new([chunk(3), chunk(6), Step::Hang]);
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    next(&mut body).await.unwrap().unwrap();
    next(&mut body).await.unwrap().unwrap();
    drop(body);
    let record = records.one();
    assert_eq!(record.usage.map(|usage| (usage.prompt, usage.completion)), Some((4, 6)));
    assert_eq!(record.source(), Some(UsageSource::Backend));
}

#[tokio::test(start_paused = true)]
async fn totals_that_more_text_followed_are_completed_by_the_count() {
    let early = "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":0}}\n\n";
    let record = record_of(CHAT, events(Script::chunks([early, DELTA, DELTA]))).await;
    assert_eq!(estimated(&record), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_left_after_its_last_event_is_complete() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let script = Script::new([data(DELTA), data("data: [DONE]\n\n"), Step::Hang]);
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    next(&mut body).await.unwrap().unwrap();
    next(&mut body).await.unwrap().unwrap();
    drop(body);
    assert_eq!(records.one().end, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn lines_that_break_behind_the_last_one_have_lost_nothing() {
    const LAST: &str = "{\"done\":true,\"prompt_eval_count\":5,\"eval_count\":7}\n";
    let check = async |text: &str, length: Option<&str>, end| {
        let script = Script::new([data(text), Step::Error(Ended::new(End::Timeout, "silence").into())]);
        let mut answer = typed("application/x-ndjson", script);
        if let Some(length) = length {
            answer.headers_mut().insert("content-length", length.parse().unwrap());
        }
        let exchange = exchange("/api/chat", false);
        let records = Records::of(&exchange);
        let mut body = metered(&exchange, "/api/chat", answer).await.into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), text);
        let is_clean = next(&mut body).await.is_none_or(|rest| rest.is_ok());
        assert_eq!((records.one().end, is_clean), (end, end == End::Complete), "{text} {length:?}");
    };
    check(LAST, None, End::Complete).await;
    check(LAST, Some("1000"), End::Timeout).await;
    check("{\"done\":false}\n", None, End::Timeout).await;
    check(LAST.trim_end(), None, End::Timeout).await;
    check(&(LAST.to_owned() + "{"), None, End::Timeout).await;
    check(&("{\"error\":\"out of memory\"}\n".to_owned() + LAST), None, End::Timeout).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_proxy_drops_when_it_stops_was_not_left_by_the_client() {
    let stop = StopFlag::default();
    let exchange = Exchange::with_stop_flag(stop.clone());
    let records = Records::of(&exchange);
    let mut body = metered(&exchange, CHAT, events(Script::new([data(DELTA), Step::Hang]))).await.into_body();
    next(&mut body).await.unwrap().unwrap();
    stop.set();
    drop(body);
    assert_eq!(records.one().end, End::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn what_a_panic_drops_was_not_left_by_the_client() {
    let exchange = exchange(CHAT, true);
    let records = Records::of(&exchange);
    let body = metered(&exchange, CHAT, events(Script::chunks([DELTA]))).await.into_body();
    let unwinds = move || {
        let _body = body;
        panic!("whoever reads the body fails");
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(unwinds)).unwrap_err();
    assert_eq!(records.one().end, End::ProxyFailed);
    // One that was caught further out says so before it lets go.
    let exchange = support::exchange(CHAT, true);
    let records = Records::of(&exchange);
    let pending = || std::future::pending::<Result<Response<Script>, BoxError>>();
    let waiting = MeterLayer::new().layer(service_fn(move |_| pending())).call(request(&exchange, CHAT));
    exchange.set_panicked();
    drop(waiting);
    assert_eq!((records.one().end, records.one().status), (End::ProxyFailed, 500));
}

#[tokio::test(start_paused = true)]
async fn an_error_event_is_a_failure_even_if_the_stream_ends_well() {
    let error = "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n";
    let record = record_of(CHAT, events(Script::chunks([DELTA, error, "data: [DONE]\n\n"]))).await;
    assert_eq!(record.end, End::BackendFailed);
    assert_eq!(record.error.as_deref(), Some("out of memory"));
    assert_eq!(estimated(&record), (11, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_before_the_head_is_an_end() {
    let check = async |error: fn() -> BoxError, end, status, usage: Option<u64>| {
        let exchange = exchange(CHAT, false);
        let records = Records::of(&exchange);
        let refuse = move |_| std::future::ready(Err::<Response<Script>, BoxError>(error()));
        let mut service = MeterLayer::new().layer(service_fn(refuse));
        assert!(call(&mut service, request(&exchange, CHAT)).await.is_err());
        let record = records.one();
        assert_eq!((record.end, record.status), (end, status));
        assert_eq!(record.usage.map(|usage| usage.prompt), usage);
    };
    check(|| "refused".into(), End::BackendFailed, 502, None).await;
    check(|| Ended::new(End::Timeout, "no head").into(), End::Timeout, 504, Some(11)).await;
    // An upload that grew too large while it passed: the client is told so, and the record tells the same.
    let too_large = || Ended::new(End::ClientGone, InspectError::TooLarge { limit: 1 }).into();
    check(too_large, End::ClientGone, 413, Some(11)).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_for_which_no_backend_was_asked_has_no_record() {
    let exchange = Exchange::new();
    exchange.expect_attempts();
    let records = Records::of(&exchange);
    let refuse = |_| std::future::ready(Err::<Response<Script>, BoxError>("no such model".into()));
    let mut service = MeterLayer::new().layer(service_fn(refuse));
    assert!(call(&mut service, request(&exchange, CHAT)).await.is_err());
    assert!(records.all().is_empty());
    assert_eq!(exchange.end(), None);
    assert!(exchange.take_sinks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_backends_own_error_passes_and_costs_nothing() {
    let check = async |status, end| {
        let mut answer = json(Script::chunks([r#"{"error":{"message":"no"}}"#]));
        *answer.status_mut() = status;
        let record = record_of(CHAT, answer).await;
        assert_eq!((record.end, record.status, record.usage), (end, status.as_u16(), None));
        assert_eq!(record.error.is_some(), end == End::BackendFailed);
    };
    check(StatusCode::BAD_REQUEST, End::Complete).await;
    check(StatusCode::TOO_MANY_REQUESTS, End::Complete).await;
    check(StatusCode::INTERNAL_SERVER_ERROR, End::BackendFailed).await;
    check(StatusCode::SERVICE_UNAVAILABLE, End::BackendFailed).await;
}

/// As an HTTP/2 backend may end it, whose last piece does not say that it is the last: hyper knows by the length.
#[tokio::test(start_paused = true)]
async fn an_answer_is_complete_when_all_has_gone_that_was_promised() {
    let check = async |length: usize, end: End| {
        let exchange = exchange(CHAT, false);
        let records = Records::of(&exchange);
        let mut answer = json(Script::chunks([&JSON[..9], &JSON[9..]]));
        answer.headers_mut().insert("content-length", length.into());
        let mut body = metered(&exchange, CHAT, answer).await.into_body();
        for _ in 0..2 {
            next(&mut body).await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!(records.one().end, end);
    };
    check(JSON.len(), End::Complete).await;
    check(JSON.len() + 1, End::ClientGone).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_usage_is_estimated_by_its_size() {
    let text = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "x".repeat(400));
    let record = record_of(CHAT, json(Script::chunks([&text]))).await;
    assert_eq!(estimated(&record), (11, text.len() as u64 / 4));
}

#[tokio::test(start_paused = true)]
async fn embeddings_have_no_completion() {
    let record = record_of("/v1/embeddings", json(Script::chunks([r#"{"data":[{"embedding":[0.1,0.2]}]}"#]))).await;
    assert_eq!(estimated(&record), (11, 0));
    let usage = r#"{"data":[],"usage":{"prompt_tokens":3}}"#;
    let record = record_of("/v1/embeddings", json(Script::chunks([usage]))).await;
    assert_eq!(record.usage.map(|usage| (usage.prompt, usage.completion)), Some((3, 0)));
    assert_eq!(record.source(), Some(UsageSource::Backend));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_generation_has_usage_only_if_the_backend_says_so() {
    let record = record_of("/v1/models", json(Script::chunks([r#"{"data":[]}"#]))).await;
    assert_eq!(record.usage, None);
    let record =
        record_of("/v1/rerank", json(Script::chunks([r#"{"usage":{"prompt_tokens":9,"total_tokens":9}}"#]))).await;
    assert_eq!(record.usage.map(|usage| usage.total()), Some(9));
}

#[tokio::test(start_paused = true)]
async fn what_is_looked_up_again_is_not_counted_again() {
    for (method, path) in [
        ("GET", "/v1/responses"),
        ("GET", "/v1/responses/resp_1"),
        ("GET", "/v1/batches/b1"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ] {
        let exchange = exchange(path, false);
        let records = Records::of(&exchange);
        let answer = json(Script::chunks([JSON]).exact());
        let mut request = request(&exchange, path);
        *request.method_mut() = method.parse().unwrap();
        let mut answer = Some(answer);
        let mut service = MeterLayer::new().layer(service_fn(move |_: http::Request<_>| {
            let answer = answer.take().unwrap();
            async move { Ok::<_, BoxError>(answer) }
        }));
        read(call(&mut service, request).await.unwrap().into_body()).await;
        assert_eq!((records.one().end, records.one().usage), (End::Complete, None), "{method} {path}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_unpacked_is_estimated_by_its_size() {
    // The second says that it is what it is not.
    for encoding in ["br", "gzip"] {
        let mut answer = json(Script::chunks([JSON]));
        answer.headers_mut().insert("content-encoding", encoding.parse().unwrap());
        assert_eq!(estimated(&*record_of(CHAT, answer).await), (11, JSON.len() as u64 / 4));
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_taken_by_what_passes() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    let script = Script::chunks([": ping\n\n", ": pi", "ng\n\n", role, DELTA]);
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    let millis = std::time::Duration::from_millis;
    for (first_byte, first_token) in [(None, None), (None, None), (None, None), (Some(30), None), (Some(30), Some(40))]
    {
        next(&mut body).await.unwrap().unwrap();
        assert_eq!(exchange.time_to_first_byte(), first_byte.map(millis));
        assert_eq!(exchange.time_to_first_token(), first_token.map(millis));
        tokio::time::advance(millis(10)).await;
    }
    read(body).await;
    assert_eq!(records.one().latency, millis(50));
    assert_eq!(records.one().time_to_first_token, Some(millis(40)));
}

#[test]
fn everything_can_be_shared() {
    fn check<T: Send + Sync + Clone>() {}
    fn check_body<T: Send>() {}
    check::<MeterLayer>();
    check::<Meter<()>>();
    check_body::<MeteredBody<Script>>();
}

#[tokio::test(start_paused = true)]
async fn used_alone_it_still_counts() {
    let exchange = Exchange::new();
    let records = Records::of(&exchange);
    read(metered(&exchange, CHAT, events(Script::chunks([DELTA, DELTA]))).await.into_body()).await;
    let record = records.one();
    assert_eq!(estimated(&record), (0, 2));
    assert_eq!((record.backend.as_ref(), record.attempts), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_backend_that_was_asked_is_named_when_none_has_served() {
    let exchange = Exchange::new();
    exchange.expect_attempts();
    for url in ["http://a", "http://b"] {
        let backend = Arc::new(Backend::new(url).unwrap());
        exchange.begin_attempt(&Target { backend, model: None, inject_usage: false }, "least busy".into());
    }
    let records = Records::of(&exchange);
    let pending = || std::future::pending::<Result<Response<Script>, BoxError>>();
    drop(MeterLayer::new().layer(service_fn(move |_| pending())).call(request(&exchange, CHAT)));
    assert_eq!((records.one().backend.as_deref(), records.one().attempts), (Some("http://b"), 2));
}
