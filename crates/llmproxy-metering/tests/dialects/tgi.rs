//! TGI's own paths, and SGLang's of the same name.

use super::*;

const STREAM: &str = "/generate_stream";
const PLAIN: &str = "/generate";
const TOKEN: &str = "data:{\"index\":1,\"token\":{\"id\":5,\"text\":\" \\\"details\\\":{\",\"logprob\":-0.5,\"special\":false},\"top_tokens\":[{\"id\":5,\"text\":\"x\"}],\"generated_text\":null,\"details\":null}\n\n";

/// The last event; its token has no text.
fn last(details: &str) -> String {
    format!(
        "data: {{\"index\":2,\"token\":{{\"id\":2,\"text\":\"\",\"logprob\":-1.0,\"special\":true}},\"generated_text\":\"a\",\"details\":{details}}}\n\n"
    )
}

#[tokio::test(start_paused = true)]
async fn every_token_is_an_event_and_details_come_with_the_last() {
    let details = r#"{"finish_reason":"eos_token","generated_tokens":7,"seed":null,"input_length":5}"#;
    let asked = last(details);
    check(
        STREAM,
        EVENTS,
        &[(TOKEN, (GUESS, 1, Estimated)), (TOKEN, (GUESS, 2, Estimated)), (&asked, (5, 7, Backend))],
        true,
    )
    .await;
    let not_asked = last("null");
    check(STREAM, EVENTS, &[(TOKEN, (GUESS, 1, Estimated)), (&not_asked, (GUESS, 2, Estimated))], true).await;
}

#[tokio::test(start_paused = true)]
async fn the_head_of_a_plain_answer_has_the_counts() {
    let body = r#"{"generated_text":"a"}"#;
    for (prompt, expected) in [("5", (5, 7, Backend)), ("many", (GUESS, body.len() as u64 / 4, Estimated))] {
        let exchange = exchange(PLAIN, false);
        let records = Records::of(&exchange);
        let mut answer = typed(JSON, Script::chunks([body]));
        answer.headers_mut().insert("x-prompt-tokens", prompt.parse().unwrap());
        answer.headers_mut().insert("x-generated-tokens", "7".parse().unwrap());
        read(metered(&exchange, PLAIN, answer).await.into_body()).await;
        assert_eq!(tokens(&records.one()), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn details_of_a_plain_answer_count_where_the_head_says_nothing() {
    let prefill = r#"{"id":1,"text":"x","logprob":null}"#;
    let tokens = r#"{"id":5,"text":" a","logprob":-0.5,"special":false},"#.repeat(1000);
    let json = format!(
        r#"{{"generated_text":"a","details":{{"finish_reason":"length","generated_tokens":7,"prefill":[{prefill},{prefill}],"seed":null,"tokens":[{}]}}}}"#,
        tokens.trim_end_matches(',')
    );
    let (_, record) = pass(PLAIN, JSON, json.as_bytes().chunks(1000).collect()).await;
    assert_eq!(super::tokens(&record), Some((2, 7, Backend)));
    let without = r#"{"generated_text":"a","details":{"generated_tokens":7,"prefill":[],"tokens":[]}}"#;
    check_json(PLAIN, without, (GUESS, 7, Estimated)).await;
}

#[tokio::test(start_paused = true)]
async fn sglangs_totals_come_with_each_event() {
    check(
        PLAIN,
        EVENTS,
        &[
            ("data: {\"text\":\"a\",\"meta_info\":{\"id\":\"x\",\"finish_reason\":null,\"prompt_tokens\":5,\"completion_tokens\":1}}\n\n", (5, 1, Backend)),
            ("data: {\"text\":\"a b\",\"meta_info\":{\"id\":\"x\",\"finish_reason\":{\"type\":\"stop\"},\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n", (5, 2, Backend)),
            ("data: [DONE]\n\n", (5, 2, Backend)),
        ],
        true,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_error_in_a_stream_is_a_failure() {
    for error in
        [r#"{"error":"gone","error_type":"generation"}"#, r#"{"error":{"message":"gone","http_status_code":422}}"#]
    {
        check_error(STREAM, EVENTS, &format!("{TOKEN}data:{error}\n\n"), "gone").await;
        check_error(STREAM, EVENTS, &format!("data: {error}\n\n"), "gone").await;
        check_error(PLAIN, JSON, error, "gone").await;
    }
    check_error(PLAIN, JSON, r#"{"detail":"gone"}"#, "gone").await;
}

#[tokio::test(start_paused = true)]
async fn the_text_in_the_last_event_may_be_too_large_to_be_kept() {
    let details = r#"{"finish_reason":"length","generated_tokens":7,"input_length":5}"#;
    let last =
        last(details).replace("\"generated_text\":\"a\"", &format!("\"generated_text\":\"{}\"", "a ".repeat(50_000)));
    let stream = format!("{TOKEN}{last}");
    let (_, record) = pass(STREAM, EVENTS, stream.as_bytes().chunks(1460).collect()).await;
    assert_eq!(tokens(&record), Some((5, 7, Backend)));
}

/// An event of SGLang's, of one of several prompts or answers: its index stands behind what it counts.
fn sglang(index: u64, text: &str, prompt: u64, completion: u64) -> String {
    format!(
        "{{\"text\":\"{text}\",\"meta_info\":{{\"id\":\"x\",\"finish_reason\":null,\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\"cached_tokens\":1}},\"index\":{index}}}"
    )
}

#[tokio::test(start_paused = true)]
async fn sglangs_totals_of_each_prompt_are_summed() {
    let events = [
        sglang(1, "a", 9, 1),
        sglang(0, "a", 5, 1),
        sglang(1, "a b", 9, 2),
        sglang(0, "a \\\"index\\\":7", 5, 4),
        sglang(2, "a", 6, 1),
        sglang(1, "a b", 9, 3),
    ]
    .map(|event| format!("data: {event}\n\n"));
    let tokens = [(9, 1), (14, 2), (14, 3), (14, 6), (20, 7), (20, 8)];
    let mut pieces: Vec<(&str, Tokens)> = events
        .iter()
        .zip(tokens)
        .map(|(event, (prompt, completion))| (&**event, (prompt, completion, Backend)))
        .collect();
    pieces.push(("data: [DONE]\n\n", (20, 8, Backend)));
    let record = check(PLAIN, EVENTS, &pieces, true).await;
    assert_eq!(record.usage.unwrap().cached, Some(3));
}

#[tokio::test(start_paused = true)]
async fn sglangs_plain_answer_to_several_prompts_is_a_list() {
    let json = format!("[{}, {}]", sglang(0, "a", 5, 3), sglang(0, "b", 9, 7));
    let record = check_json(PLAIN, &json, (14, 10, Backend)).await;
    assert_eq!(record.usage.unwrap().cached, Some(2));
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_too_many_to_tell_apart_are_not_for_free() {
    let events: String = (1..=3)
        .flat_map(|round| (0..200).map(move |index| format!("data: {}\n\n", sglang(index, "a", 5, round))))
        .collect();
    let (_, record) = pass(PLAIN, EVENTS, vec![events.as_bytes()]).await;
    assert_eq!(super::tokens(&record), Some((1000, 600, Estimated)));
}
