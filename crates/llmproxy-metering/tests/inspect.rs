//! Which bodies are read, within which limits, and what goes on.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use llmproxy_core::{BoxError, End, Ended, Exchange, RequestBody, cause_ref};
use llmproxy_metering::{BodyBudget, Inspect, InspectConfig, InspectError, InspectLayer};
use support::{Script, Step, call, data};
use tower::{Layer, Service, service_fn};

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"a","stream":true,"messages":[]}"#;

fn config() -> InspectConfig {
    InspectConfig {
        max_body_size: 1000,
        max_upload_size: 1000,
        max_buffered_bytes: 1500,
        body_gap_timeout: Duration::from_secs(30),
    }
}

/// A service that gives back the request as the layers further in get it.
fn inspect(
    config: &InspectConfig,
    budget: &BodyBudget,
) -> impl Service<Request<Script>, Response = Request<RequestBody>, Error = BoxError> {
    let echo = service_fn(async |request: Request<RequestBody>| Ok::<_, BoxError>(request));
    InspectLayer::new(config, budget.clone()).layer(echo)
}

async fn send(request: Request<Script>) -> Result<Request<RequestBody>, BoxError> {
    let config = config();
    call(&mut inspect(&config, &BodyBudget::new(config.max_buffered_bytes)), request).await
}

fn post(path: &str, kind: &str, body: Script) -> Request<Script> {
    Request::post(path).header("content-type", kind).body(body).unwrap()
}

fn json(body: Script) -> Request<Script> {
    post(CHAT, "application/json", body)
}

fn refusal(result: Result<Request<RequestBody>, BoxError>) -> StatusCode {
    cause_ref::<InspectError>(&*result.unwrap_err()).unwrap().status()
}

fn whole(request: &Request<RequestBody>) -> &Bytes {
    match request.body() {
        RequestBody::Replay(bytes, _) => bytes,
        RequestBody::Stream(_) | RequestBody::Form(_) => panic!("the body was not read whole"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_json_body_is_read_and_its_facts_are_left_in_the_exchange() {
    for pieces in [vec![BODY], BODY.split_inclusive(',').collect()] {
        let mut request = send(json(Script::chunks(pieces))).await.unwrap();
        assert_eq!(whole(&request), BODY);
        let exchange = Exchange::of(request.extensions_mut());
        let call = exchange.call().unwrap();
        assert_eq!((call.model.as_deref(), call.stream, call.body_bytes), (Some("a"), true, BODY.len() as u64));
        let RequestBody::Replay(bytes, edits) = request.into_body() else { panic!("read") };
        assert!(
            edits
                .apply(&bytes, Some("b"), true)
                .starts_with(br#"{"stream_options":{"include_usage":true},"model":"b""#)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_one_piece_is_not_copied() {
    let piece = Bytes::from_static(BODY.as_bytes());
    let request = send(json(Script::new([Step::Data(piece.clone())]))).await.unwrap();
    assert_eq!(whole(&request).as_ptr(), piece.as_ptr());
}

#[tokio::test(start_paused = true)]
async fn json_is_recognized_by_its_type_or_by_its_beginning() {
    let check = async |path, kind: Option<&str>, body: &str, read: bool| {
        let mut request = Request::post(path).body(Script::chunks([body])).unwrap();
        if let Some(kind) = kind {
            request.headers_mut().insert("content-type", kind.parse().unwrap());
        }
        let request = send(request).await.unwrap();
        assert_eq!(matches!(request.body(), RequestBody::Replay(..)), read, "{path} {kind:?} {body}");
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), body);
    };
    check(CHAT, Some("application/json; charset=utf-8"), BODY, true).await;
    check(CHAT, Some("Application/Vnd.Api+JSON"), BODY, true).await;
    check(CHAT, Some("application/x-www-form-urlencoded"), BODY, true).await;
    check(CHAT, Some("multipart/form-data; boundary=x"), BODY, true).await;
    check(CHAT, Some("multipart/form-data; boundary=x"), "--x\r\n", false).await;
    check(CHAT, None, " \r\n\t{}", true).await;
    check(CHAT, None, "hello", false).await;
    check("/v1/audio/transcriptions", Some("multipart/form-data; boundary=x"), "--x\r\n{}", false).await;
    check("/v1/anything", Some("text/plain"), BODY, false).await;
    check("/v1/anything", Some("application/json"), "not at all", true).await;
    check("/v1/anything", None, BODY, true).await;
}

#[tokio::test(start_paused = true)]
async fn white_space_in_pieces_of_its_own_hides_nothing() {
    let request = Request::post(CHAT).body(Script::chunks([" ", "\n", BODY])).unwrap();
    assert_eq!(whole(&send(request).await.unwrap()), &format!(" \n{BODY}"));
    let request = Request::post(CHAT).body(Script::chunks([" ", "hello ", "you"])).unwrap();
    let body = send(request).await.unwrap().into_body();
    assert_eq!(body.collect().await.unwrap().to_bytes(), " hello you");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_body_is_whole() {
    for method in [Method::GET, Method::HEAD, Method::DELETE] {
        let request = Request::builder().method(method).uri("/v1/models").body(Script::new([]).exact()).unwrap();
        assert!(whole(&send(request).await.unwrap()).is_empty());
    }
    let request = post("/v1/anything", "application/json", Script::new([]).exact());
    assert!(whole(&send(request).await.unwrap()).is_empty());
    assert_eq!(refusal(send(json(Script::new([]).exact())).await), 400);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_to_an_unknown_path_may_be_work_for_a_model() {
    let check = async |request: Request<Script>, expected: (bool, Option<&str>)| {
        let place = format!("{} {}", request.method(), request.uri());
        let mut request = send(request).await.unwrap();
        let exchange = Exchange::of(request.extensions_mut());
        let call = exchange.call().unwrap();
        assert_eq!((call.takes_model, call.model.as_deref()), expected, "{place}");
    };
    let json = |path: &str, body: &'static str| post(path, "application/json", Script::chunks([body]));
    for path in ["/v1/pooling", "/infill", "/v2/rerank", "/v1/filesystem", "/v1/responses/r/cancel", CHAT] {
        check(json(path, r#"{"model":"a"}"#), (true, Some("a"))).await;
        check(json(path, "{}"), (true, None)).await;
    }
    // What can't be read names none, whatever the method.
    check(post("/infill", "text/plain", Script::chunks([BODY])), (true, None)).await;
    check(Request::get("/infill").body(Script::chunks([BODY])).unwrap(), (true, None)).await;
    let form = field("model", "a") + FILE + "\r\n--b--\r\n";
    check(post("/v1/voices", FORM, Script::chunks([form])), (true, Some("a"))).await;
    check(post("/v1/voices", FORM, Script::chunks([FILE])), (true, None)).await;
    // Where there is no body nothing is asked of a model, and where things are kept neither.
    check(Request::get("/v1/pooling").body(Script::new([]).exact()).unwrap(), (false, None)).await;
    check(post("/v1/responses/r/cancel", "application/json", Script::new([]).exact()), (false, None)).await;
    for path in ["/v1/files", "/v1/files/f", "/v1/uploads/u/parts", "/v1/batches", "/v1/conversations/c/items"] {
        check(json(path, "{}"), (false, None)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_clear_is_refused_before_a_backend_is_asked() {
    assert_eq!(refusal(send(json(Script::chunks([r#"{"model":"a","model":"b"}"#]))).await), 400);
    assert_eq!(refusal(send(json(Script::chunks(["{"]))).await), 400);
    let marked = post(CHAT, "text/plain", Script::chunks([format!("\u{feff}{BODY}")]));
    assert_eq!(refusal(send(marked).await), 400);
    let mut request = json(Script::chunks([[0x1f, 0x8b]]));
    request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(refusal(send(request).await), 415);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_announced_too_large_is_not_read() {
    // Reading it would be an error of another kind.
    let big = Script::new([data(vec![b' '; 1001]), Step::Error("read".into())]).exact();
    assert_eq!(refusal(send(json(big)).await), 413);
    let big = Script::new([data(vec![b' '; 1001])]).exact();
    assert_eq!(refusal(send(post("/v1/audio/transcriptions", "multipart/form-data", big)).await), 413);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_grows_too_large_is_refused() {
    let pieces = || Script::chunks([vec![b' '; 600], vec![b' '; 600]]);
    assert_eq!(refusal(send(json(pieces())).await), 413);
    let passing = send(post("/v1/audio/transcriptions", "multipart/form-data", pieces())).await.unwrap();
    let error = passing.into_body().collect().await.unwrap_err();
    assert_eq!(cause_ref::<InspectError>(&*error).unwrap().status(), 413);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_sending_is_given_up() {
    let hanging = || Script::new([data("{"), Step::Hang]);
    let before = tokio::time::Instant::now();
    assert_eq!(refusal(send(json(hanging())).await), 408);
    assert_eq!(before.elapsed(), Duration::from_secs(30));

    let passing = send(post("/v1/audio/transcriptions", "multipart/form-data", hanging())).await.unwrap();
    let error = passing.into_body().collect().await.unwrap_err();
    assert_eq!(cause_ref::<InspectError>(&*error).unwrap().status(), 408);
    assert_eq!(Ended::of(&*error), End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_told_from_other_failures() {
    let result = send(json(Script::new([data("{"), Step::Error("reset".into())]))).await;
    let error = result.unwrap_err();
    assert!(matches!(cause_ref(&*error), Some(InspectError::ClientGone { .. })));
}

const FORM: &str = "multipart/form-data; boundary=b";
const FILE: &str =
    "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF";

fn field(name: &str, value: &str) -> String {
    format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

fn upload(body: Script) -> Request<Script> {
    post("/v1/audio/transcriptions", FORM, body)
}

#[tokio::test(start_paused = true)]
async fn of_a_form_only_what_is_before_the_file_is_waited_for() {
    let head = field("model", "whisper") + &field("stream", "true") + FILE;
    for size in [1, 7, 1000] {
        let pieces = head.as_bytes().chunks(size).map(data).chain([Step::Hang]);
        let mut request = send(upload(Script::new(pieces))).await.unwrap();
        let exchange = Exchange::of(request.extensions_mut());
        let call = exchange.call().unwrap();
        assert_eq!((call.model.as_deref(), call.stream), (Some("whisper"), true));
        let RequestBody::Form(form) = request.into_body() else { panic!("it passes through") };
        let form = form.with_model(Some("other"));
        let expected = field("model", "other") + &field("stream", "true") + FILE;
        assert!(expected.as_bytes().starts_with(&form.head) && form.head.len() >= expected.len() - 4, "{form:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_form_passes_byte_for_byte_with_its_exact_length() {
    let whole = field("model", "whisper") + FILE + "\r\n--b--\r\n";
    let request = send(upload(Script::chunks(whole.as_bytes().chunks(10)).exact())).await.unwrap();
    let body = request.into_body();
    assert!(matches!(body, RequestBody::Form(_)) && body.replay().is_none());
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(whole.len() as u64));
    assert_eq!(body.collect().await.unwrap().to_bytes(), whole);
}

#[tokio::test(start_paused = true)]
async fn a_model_behind_the_file_or_far_away_is_not_known() {
    let behind = FILE.to_owned() + "\r\n" + &field("model", "whisper") + "--b--\r\n";
    let far = field("prompt", &"x".repeat(70_000)) + &field("model", "whisper") + "--b--\r\n";
    let preamble = "Dear server,\r\n".to_owned() + &field("model", "whisper") + FILE;
    let config = InspectConfig { max_body_size: 10, max_upload_size: 200_000, max_buffered_bytes: 200_000, ..config() };
    for whole in [behind, far, preamble] {
        let budget = BodyBudget::new(config.max_buffered_bytes);
        let pieces = Script::chunks(whole.as_bytes().chunks(1000));
        let mut request = call(&mut inspect(&config, &budget), upload(pieces)).await.unwrap();
        assert_eq!(Exchange::of(request.extensions_mut()).call().unwrap().model, None);
        assert!((1..=128 << 10).contains(&budget.used()), "what was read counts, and is bounded: {}", budget.used());
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), whole);
        assert_eq!(budget.used(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_form_that_names_another_model_behind_its_file_is_broken_off() {
    let twice = field("model", "a") + &field("model", "b") + "--b--";
    assert_eq!(refusal(send(upload(Script::chunks([twice]))).await), 400);
    let model = field("model", "b");
    for behind in [model.clone(), model.replace("\r\n", "\n"), model.replace("name", "name*0")] {
        let pieces = [field("model", "a") + FILE, "\r\n".into(), behind];
        let request = send(upload(Script::chunks(pieces))).await.unwrap();
        let error = request.into_body().collect().await.unwrap_err();
        assert_eq!(cause_ref::<InspectError>(&*error).unwrap().status(), 400);
        assert_eq!(Ended::of(&*error), End::ClientGone);
    }
}

#[tokio::test(start_paused = true)]
async fn a_form_that_can_be_read_in_two_ways_is_refused_with_and_without_a_model() {
    let good = field("model", "a");
    for unclear in [good.replace("\r\n", "\n"), good.replace("\"model\"", "<model>"), good.replace("name", "x=y; name")]
    {
        for whole in [unclear.clone() + FILE, good.clone() + &unclear + FILE] {
            for pieces in [vec![&whole[..]], whole.split_inclusive('m').collect()] {
                assert_eq!(refusal(send(upload(Script::chunks(pieces))).await), 400, "{whole:?}");
            }
        }
    }
    for kind in ["; boundary=b; charset=utf-7", "; boundary=b; x=y", "; boundary=<b>", "; boundary=b; boundary=b"] {
        let kind = format!("multipart/form-data{kind}");
        let body = Script::chunks([good.clone() + FILE]);
        assert_eq!(refusal(send(post("/v1/audio/transcriptions", &kind, body)).await), 400, "{kind}");
    }
    let mut twice = upload(Script::chunks([good + FILE]));
    twice.headers_mut().append("content-type", "multipart/form-data; boundary=c".parse().unwrap());
    assert_eq!(refusal(send(twice).await), 400);
}

#[tokio::test(start_paused = true)]
async fn the_bodies_of_all_requests_share_a_budget() {
    let config = config();
    let budget = BodyBudget::new(config.max_buffered_bytes);
    let mut service = inspect(&config, &budget);
    let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(900));
    let first = call(&mut service, json(Script::chunks([&body]))).await.unwrap();
    assert_eq!(budget.used(), body.len() as u64);
    assert_eq!(refusal(call(&mut service, json(Script::chunks([&body]))).await), 503);
    // Reserved as it grew, given back when it came to nothing.
    assert_eq!(budget.used(), body.len() as u64);

    // A layer that was built anew goes on with the same budget.
    let mut service = inspect(&config, &budget);
    let replay = first.body().replay();
    drop(first);
    assert_eq!(refusal(call(&mut service, json(Script::chunks(body.as_bytes().chunks(100)))).await), 503);
    drop(replay);
    assert_eq!(budget.used(), 0);
    assert!(call(&mut service, json(Script::chunks(body.as_bytes().chunks(100)))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_while_it_is_read_gives_all_back() {
    let config = config();
    let budget = BodyBudget::new(config.max_buffered_bytes);
    let mut service = inspect(&config, &budget);
    let mut reading = Box::pin(call(&mut service, json(Script::new([data("{"), data("\"a\":"), Step::Hang]))));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut reading).await.is_err());
    assert!(budget.used() > 0);
    drop(reading);
    assert_eq!(budget.used(), 0);
}

#[test]
fn everything_can_be_shared() {
    fn check<T: Send + Sync + Clone>() {}
    check::<InspectLayer>();
    check::<Inspect<()>>();
    check::<BodyBudget>();
    let _: Arc<dyn std::error::Error + Send + Sync> = Arc::new(InspectError::Busy);
}
