//! The Responses API, as vLLM, llama.cpp and Ollama offer it.

use super::*;

const PATH: &str = "/v1/responses";
const CREATED: &str = "event: response.created\ndata: {\"response\":{\"id\":\"r\",\"created_at\":1,\"instructions\":null,\"model\":\"m\",\"error\":null,\"usage\":null,\"status\":\"in_progress\",\"tools\":[]},\"sequence_number\":0,\"type\":\"response.created\"}\n\n";
const DELTA: &str = "event: response.output_text.delta\ndata: {\"content_index\":0,\"delta\":\"a \\\"usage\\\":{\",\"item_id\":\"i\",\"logprobs\":[],\"output_index\":0,\"sequence_number\":4,\"type\":\"response.output_text.delta\"}\n\n";

/// An event with the whole response and its usage.
fn last(kind: &str, error: &str) -> String {
    format!(
        "event: {kind}\ndata: {{\"response\":{{\"id\":\"r\",\"error\":{error},\"output\":[{{\"type\":\"message\",\"content\":[{{\"text\":\"x}}\"}}]}}],\"usage\":{{\"input_tokens\":5,\"input_tokens_details\":{{\"cached_tokens\":4}},\"output_tokens\":7,\"output_tokens_details\":{{\"reasoning_tokens\":3}},\"total_tokens\":12}},\"user\":null}},\"sequence_number\":9,\"type\":\"{kind}\"}}\n\n"
    )
}

/// Without the names of the events: their JSON says the same.
fn unnamed(events: &str) -> String {
    events.split_inclusive('\n').filter(|line| !line.starts_with("event:")).collect()
}

#[tokio::test(start_paused = true)]
async fn usage_stands_in_the_last_event_of_either_type() {
    for kind in ["response.completed", "response.incomplete"] {
        let last = last(kind, "null");
        let record = check(
            PATH,
            EVENTS,
            &[
                (CREATED, (GUESS, 0, Estimated)),
                (DELTA, (GUESS, 1, Estimated)),
                ("event: response.reasoning_text.delta\ndata: {\"delta\":\"b\",\"type\":\"response.reasoning_text.delta\"}\n\n", (GUESS, 2, Estimated)),
                ("event: response.function_call_arguments.delta\ndata: {\"delta\":\"{}\",\"type\":\"response.function_call_arguments.delta\"}\n\n", (GUESS, 3, Estimated)),
                ("event: response.output_text.done\ndata: {\"text\":\"ab\",\"type\":\"response.output_text.done\"}\n\n", (GUESS, 3, Estimated)),
                (&last, (5, 7, Backend)),
            ],
            true,
        )
        .await;
        assert_eq!(record.usage.map(|usage| (usage.cached, usage.reasoning)), Some((Some(4), Some(3))));
        assert_eq!((record.served_model.as_deref(), record.upstream_id.as_deref()), (Some("m"), Some("r")));
        let pieces = [unnamed(CREATED), unnamed(DELTA), unnamed(&last)];
        let tokens = [(GUESS, 0, Estimated), (GUESS, 1, Estimated), (5, 7, Backend)];
        check(PATH, EVENTS, &[0, 1, 2].map(|at| (&*pieces[at], tokens[at])), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_one_however_it_is_told() {
    let failed = last("response.failed", r#"{"code":"server_error","message":"gone"}"#);
    let record = cut(PATH, EVENTS, &format!("{CREATED}{DELTA}{failed}")).await;
    assert_eq!((record.end, tokens(&record)), (End::BackendFailed, Some((5, 7, Backend))));
    check_error(PATH, EVENTS, &format!("{CREATED}{DELTA}{failed}"), "gone").await;
    for event in [
        "event: error\ndata: {\"type\":\"error\",\"code\":\"x\",\"message\":\"gone\",\"param\":null}\n\n",
        "data: {\"type\":\"error\",\"code\":null,\"message\":\"gone\"}\n\n",
        "data: {\"error\":{\"message\":\"gone\",\"code\":500}}\n\n",
        "data: {\"error\":\"gone\"}\n\n",
    ] {
        check_error(PATH, EVENTS, &format!("{CREATED}{DELTA}{event}"), "gone").await;
    }
    check_error(PATH, JSON, r#"{"id":"r","status":"failed","error":{"message":"gone"},"usage":null}"#, "gone").await;
    check_error(PATH, JSON, r#"{"error":"gone"}"#, "gone").await;
    check_error(PATH, JSON, r#"{"detail":"gone"}"#, "gone").await;
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_is_the_response() {
    let json = r#"{"id":"r","model":"m","error":null,"output":[{"usage":{"input_tokens":99}}],"metadata":{"response":{}},
        "usage":{"input_tokens":5,"output_tokens":0,"total_tokens":5},"status":"incomplete"}"#;
    let record = check_json(PATH, json, (5, 0, Backend)).await;
    assert_eq!((record.served_model.as_deref(), record.upstream_id.as_deref()), (Some("m"), Some("r")));
}

#[tokio::test(start_paused = true)]
async fn a_last_event_that_is_too_large_to_be_kept_is_read_while_it_passes() {
    let large =
        last("response.completed", "null").replace("x}", &"x} \\\"usage\\\":{\\\"input_tokens\\\":1}, ".repeat(10_000));
    for names in [str::to_owned, unnamed] {
        let stream = names(&format!("{CREATED}{DELTA}{large}"));
        let (out, record) = pass(PATH, EVENTS, stream.as_bytes().chunks(1460).collect()).await;
        assert_eq!(out, stream.as_bytes());
        assert_eq!((tokens(&record), record.end), (Some((5, 7, Backend)), End::Complete));
        // As far as it goes, an event that does not end says nothing.
        let record = cut(PATH, EVENTS, stream.trim_end()).await;
        assert_eq!((tokens(&record), record.end), (Some((GUESS, 1, Estimated)), End::ClientGone));
    }
}
