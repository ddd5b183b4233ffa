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
