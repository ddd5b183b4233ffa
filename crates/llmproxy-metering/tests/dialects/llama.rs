//! llama.cpp's own completion.

use super::*;

const PATH: &str = "/completion";

fn event(content: &str, predicted: u64) -> String {
    format!(
        "data: {{\"index\":0,\"content\":\"{content}\",\"tokens\":[1],\"stop\":false,\"id_slot\":-1,\"tokens_predicted\":{predicted},\"tokens_evaluated\":5}}\n\n"
    )
}

const LAST: &str = "{\"index\":0,\"content\":\"\",\"tokens\":[],\"id_slot\":0,\"stop\":true,\"model\":\"m\",\"tokens_predicted\":7,\"tokens_evaluated\":5,\"generation_settings\":{\"stop\":[],\"n_predict\":9},\"prompt\":\"\\\"stop\\\":true\",\"stop_type\":\"eos\",\"tokens_cached\":11,\"timings\":{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":7}}";

#[tokio::test(start_paused = true)]
async fn totals_so_far_count_from_the_first_event_on() {
    let events = [event("a \\\"stop\\\":true", 1), event("b", 2), event("c", 3)];
    let last = format!("data: {LAST}\n\n");
    let record = check(
        PATH,
        EVENTS,
        &[
            (&events[0], (5, 1, Backend)),
            // Not every event is parsed; the pieces since then are counted.
            (&events[1], (5, 2, Estimated)),
            (&events[2], (5, 3, Estimated)),
            (&last, (5, 7, Backend)),
        ],
        true,
    )
    .await;
    assert_eq!(record.usage.unwrap().cached, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_has_the_same_members() {
    let record = check_json(PATH, LAST, (5, 7, Backend)).await;
    assert_eq!((record.usage.unwrap().cached, record.served_model.as_deref()), (Some(3), Some("m")));
    let timings = r#"{"content":"a","timings":{"cache_n":3,"prompt_n":2,"predicted_n":7}}"#;
    check_json(PATH, timings, (5, 7, Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_is_a_failure() {
    for error in [r#"{"error":{"code":500,"message":"gone","type":"server_error"}}"#, r#"{"error":"gone"}"#] {
        check_error(PATH, EVENTS, &format!("{}data: {error}\n\n", event("a", 1)), "gone").await;
        check_error(PATH, JSON, error, "gone").await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_prompt_in_the_last_event_may_be_too_large_to_be_kept() {
    let last = LAST.replace("\\\"stop\\\":true", &"long \\\"prompt\\\", ".repeat(10_000));
    let stream = format!("{}data: {last}\n\n", event("a", 1));
    let (out, record) = pass(PATH, EVENTS, stream.as_bytes().chunks(1460).collect()).await;
    assert_eq!(out, stream.as_bytes());
    assert_eq!((tokens(&record), record.usage.unwrap().cached), (Some((5, 7, Backend)), Some(3)));
    assert_eq!(cut(PATH, EVENTS, &stream).await.end, End::Complete);
}

/// What an event of one of several prompts, or of one of several answers to one, says.
fn of(index: u64, content: &str, stop: bool, predicted: u64, prompt: u64) -> String {
    let timings = format!(",\"timings\":{{\"cache_n\":1,\"prompt_n\":{},\"predicted_n\":{predicted}}}", prompt - 1);
    let timings = if stop { &*timings } else { "" };
    format!(
        "{{\"index\":{index},\"content\":\"{content}\",\"stop\":{stop},\"tokens_predicted\":{predicted},\"tokens_evaluated\":{prompt}{timings}}}"
    )
}

#[tokio::test(start_paused = true)]
async fn totals_of_each_prompt_are_summed() {
    let events = [
        of(1, "a", false, 1, 9),
        of(0, "a", false, 1, 5),
        of(1, "b", false, 2, 9),
        of(0, "b", false, 2, 5),
        of(0, "", true, 3, 5),
        of(1, "c", false, 3, 9),
        of(2, "a", false, 1, 6),
        of(1, "", true, 7, 9),
        of(2, "", true, 4, 6),
    ]
    .map(|event| format!("data: {event}\n\n"));
    let tokens = [(9, 1), (14, 2), (14, 3), (14, 4), (14, 5), (14, 6), (20, 7), (20, 11), (20, 14)];
    let pieces: Vec<(&str, Tokens)> = events
        .iter()
        .zip(tokens)
        .map(|(event, (prompt, completion))| (&**event, (prompt, completion, Backend)))
        .collect();
    let whole = events.concat();
    assert_eq!(super::tokens(&*replay(PATH, EVENTS, &whole).await), Some((20, 14, Backend)));
    let mut sent = String::new();
    for (piece, expected) in pieces {
        sent.push_str(piece);
        assert_eq!(super::tokens(&*cut(PATH, EVENTS, &sent).await), Some(expected), "behind {piece}");
    }
    // What came before it was known that there are several is counted by its pieces.
    let first = format!("data: {}\n\n", of(0, "a", false, 1, 5));
    let sent = [&*first, &first, &first, &events[0], &events[2]].concat();
    assert_eq!(super::tokens(&*cut(PATH, EVENTS, &sent).await), Some((14, 5, Estimated)));
    // The client has left before the last was through.
    assert_eq!(cut(PATH, EVENTS, &events[..7].concat()).await.end, End::ClientGone);
    assert_eq!(cut(PATH, EVENTS, &whole).await.end, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_to_several_prompts_is_a_list() {
    let json = format!("[{} , {},{}]", of(0, "a", true, 3, 5), of(1, "b [{", true, 7, 9), of(2, "", true, 0, 6));
    let record = check_json(PATH, &json, (20, 10, Backend)).await;
    assert_eq!(record.usage.unwrap().cached, Some(3));
    check_json(PATH, &format!("[{}]", of(0, "a", true, 3, 5)), (5, 3, Backend)).await;
}
