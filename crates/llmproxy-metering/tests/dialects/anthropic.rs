//! Anthropic's messages, as Anthropic, vLLM, llama.cpp and Ollama send them.

use super::*;

const PATH: &str = "/v1/messages";
const STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

fn start(usage: &str) -> String {
    format!(
        "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"id\":\"msg\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"m\",\"content\":[],\"stop_reason\":null,\"usage\":{usage}}}}}\n\n"
    )
}

fn text(text: &str) -> String {
    format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"
    )
}

fn delta(usage: &str) -> String {
    format!(
        "event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\",\"stop_sequence\":null}},\"usage\":{usage}}}\n\n"
    )
}

#[tokio::test(start_paused = true)]
async fn totals_are_those_of_the_last_delta_and_the_start_is_a_placeholder() {
    let start = start(r#"{"input_tokens":5,"output_tokens":1}"#);
    let texts = [text("a \\\"usage\\\":{"), text("b")];
    let deltas = [delta(r#"{"output_tokens":4}"#), delta(r#"{"output_tokens":7}"#)];
    let record = check(
        PATH,
        EVENTS,
        &[
            (&start, (5, 0, Estimated)),
            ("event: ping\ndata: {\"type\":\"ping\"}\n\n", (5, 0, Estimated)),
            ("event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n", (5, 0, Estimated)),
            (&texts[0], (5, 1, Estimated)),
            (&texts[1], (5, 2, Estimated)),
            (&deltas[0], (5, 4, Backend)),
            ("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm\"}}\n\n", (5, 5, Estimated)),
            ("event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\",\"input\":{}}}\n\n", (5, 6, Estimated)),
            ("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\"}}\n\n", (5, 7, Estimated)),
            (&deltas[1], (5, 7, Backend)),
            (STOP, (5, 7, Backend)),
        ],
        true,
    )
    .await;
    assert_eq!((record.served_model.as_deref(), record.upstream_id.as_deref()), (Some("m"), Some("msg")));
    assert_eq!(record.usage.unwrap().cached, None);
}

#[tokio::test(start_paused = true)]
async fn what_was_cached_is_not_among_the_input_tokens_and_is_added() {
    // llama.cpp: the cache is named at the start alone. vLLM and Anthropic: with each delta, nulls among them.
    for (first, last, expected, cached) in [
        (r#"{"input_tokens":1,"cache_read_input_tokens":23,"output_tokens":0}"#, r#"{"output_tokens":7}"#, (24, 7), 23),
        (
            r#"{"input_tokens":3,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"output_tokens":1}"#,
            r#"{"input_tokens":2,"cache_read_input_tokens":20,"cache_creation_input_tokens":100,"output_tokens":7}"#,
            (122, 7),
            20,
        ),
        (
            r#"{"input_tokens":2,"cache_read_input_tokens":20,"cache_creation_input_tokens":100,"output_tokens":1}"#,
            r#"{"input_tokens":null,"cache_read_input_tokens":null,"output_tokens":0}"#,
            (122, 0),
            20,
        ),
    ] {
        let stream = [start(first), text("a"), delta(last), STOP.to_owned()].concat();
        let record = replay(PATH, EVENTS, &stream).await;
        assert_eq!(tokens(&record), Some((expected.0, expected.1, Backend)), "{first} {last}");
        assert_eq!(record.usage.unwrap().cached, Some(cached));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_name_is_the_end_too() {
    let stream = [start(r#"{"input_tokens":5}"#), delta(r#"{"output_tokens":7}"#), STOP.to_owned()].concat();
    let unnamed: String = stream.split_inclusive('\n').filter(|line| !line.starts_with("event:")).collect();
    assert_eq!(tokens(&*replay(PATH, EVENTS, &unnamed).await), Some((5, 7, Backend)));
    assert_eq!(cut(PATH, EVENTS, &unnamed).await.end, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_is_the_message() {
    let json = r#"{"id":"msg","type":"message","model":"m","content":[{"type":"text","text":"a","usage":{}}],
        "usage":{"input_tokens":1,"cache_creation_input_tokens":null,"cache_read_input_tokens":23,"output_tokens":7}}"#;
    let record = check_json(PATH, json, (24, 7, Backend)).await;
    assert_eq!(record.usage.unwrap().cached, Some(23));
    assert_eq!((record.served_model.as_deref(), record.upstream_id.as_deref()), (Some("m"), Some("msg")));
}

#[tokio::test(start_paused = true)]
async fn an_error_is_a_failure() {
    let begun = [start(r#"{"input_tokens":5,"output_tokens":1}"#), text("a")].concat();
    for error in [
        r#"{"type":"error","error":{"type":"overloaded_error","message":"gone"}}"#,
        r#"{"error":{"message":"gone","code":500}}"#,
        r#"{"error":"gone"}"#,
    ] {
        check_error(PATH, EVENTS, &format!("{begun}event: error\ndata: {error}\n\n"), "gone").await;
        check_error(PATH, EVENTS, &format!("{begun}data: {error}\n\n"), "gone").await;
        check_error(PATH, JSON, error, "gone").await;
    }
    check_error(PATH, JSON, r#"{"detail":"gone"}"#, "gone").await;
    let record = replay(PATH, EVENTS, &format!("{begun}event: error\ndata: {{}}\n\n")).await;
    assert_eq!((record.end, tokens(&record)), (End::BackendFailed, Some((5, 1, Estimated))));
}

#[tokio::test(start_paused = true)]
async fn to_count_tokens_is_no_generation() {
    let record = replay("/v1/messages/count_tokens", JSON, r#"{"input_tokens":2095}"#).await;
    assert_eq!((record.usage, record.end), (None, End::Complete));
}

#[tokio::test(start_paused = true)]
async fn usage_in_an_event_that_is_too_large_to_be_kept_is_read_while_it_passes() {
    let large = "x".repeat(100_000);
    let start = start(&format!("{{\"input_tokens\":5,\"output_tokens\":1}},\"x\":\"{large}\""));
    let delta = delta(&format!("{{\"output_tokens\":7}},\"x\":\"{large}\""));
    let stream = [&*start, &text("a"), &delta, STOP].concat();
    let (out, record) = pass(PATH, EVENTS, stream.as_bytes().chunks(1460).collect()).await;
    assert_eq!(out, stream.as_bytes());
    assert_eq!((tokens(&record), record.upstream_id.as_deref()), (Some((5, 7, Backend)), Some("msg")));
}
