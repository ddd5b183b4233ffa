//! Ollama's own API.

use super::*;

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";
const LINES: &str = "application/x-ndjson";

fn chat(message: &str) -> String {
    format!("{{\"model\":\"m\",\"created_at\":\"2026-01-01T00:00:00Z\",\"message\":{message},\"done\":false}}\n")
}

/// The last line, with these counts.
fn done(counts: &str) -> String {
    format!(
        "{{\"model\":\"m\",\"created_at\":\"2026-01-01T00:00:00Z\",\"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":9,\"load_duration\":1{counts}}}\n"
    )
}

#[tokio::test(start_paused = true)]
async fn the_last_line_has_the_counts() {
    let lines = [
        chat(r#"{"role":"assistant","content":"a \"done\":true"}"#),
        chat(r#"{"role":"assistant","content":"","thinking":"hm"}"#),
        chat(
            r#"{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"eval_count":1}}}]}"#,
        ),
        chat(r#"{"role":"assistant","content":""}"#),
        done(",\"prompt_eval_count\":5,\"prompt_eval_duration\":3,\"eval_count\":7,\"eval_duration\":4"),
    ];
    let record = check(
        CHAT,
        LINES,
        &[
            (&lines[0], (GUESS, 1, Estimated)),
            (&lines[1], (GUESS, 2, Estimated)),
            (&lines[2], (GUESS, 3, Estimated)),
            (&lines[3], (GUESS, 3, Estimated)),
            (&lines[4], (5, 7, Backend)),
        ],
        true,
    )
    .await;
    assert_eq!((record.served_model.as_deref(), record.upstream_id.as_deref()), (Some("m"), None));
}

#[tokio::test(start_paused = true)]
async fn a_completion_is_counted_alike_and_its_last_line_needs_no_end() {
    let line = "{\"model\":\"m\",\"created_at\":\"x\",\"response\":\"a\",\"done\":false}\n";
    let last = "{\"model\":\"m\",\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\"context\":[1,2,3],\"prompt_eval_count\":5,\"eval_count\":7}\n";
    check(GENERATE, LINES, &[(line, (GUESS, 1, Estimated)), (last, (5, 7, Backend))], true).await;
    let record = replay(GENERATE, LINES, &format!("{line}{}", last.trim_end())).await;
    assert_eq!((tokens(&record), record.end), (Some((5, 7, Backend)), End::Complete));
}

#[tokio::test(start_paused = true)]
async fn counts_that_are_left_out() {
    let line = chat(r#"{"role":"assistant","content":"a"}"#);
    let empty = chat(r#"{"role":"assistant","content":""}"#);
    for (lines, counts, expected) in [
        // All of the prompt was cached: nobody knows how long it was.
        (&line, ",\"eval_count\":7", Some((GUESS, 7, Estimated))),
        // Nothing was generated.
        (&empty, ",\"prompt_eval_count\":5", Some((5, 0, Backend))),
        // A server that counts nothing at all.
        (&line, "", Some((GUESS, 1, Estimated))),
        // Zeros that are not left out.
        (&line, ",\"prompt_eval_count\":0,\"eval_count\":0", Some((0, 0, Backend))),
    ] {
        let record = replay(CHAT, LINES, &format!("{lines}{}", done(counts))).await;
        assert_eq!(tokens(&record), expected, "{counts}");
    }
    // To load a model is no generation.
    let loaded = done("").replace("\"stop\"", "\"load\"");
    assert_eq!(tokens(&*replay(CHAT, LINES, &loaded).await), Some((0, 0, Backend)));
    assert_eq!(tokens(&*replay(CHAT, JSON, &loaded).await), Some((0, 0, Backend)));
}

#[tokio::test(start_paused = true)]
async fn a_line_that_tells_of_an_error_is_a_failure() {
    let line = chat(r#"{"role":"assistant","content":"a"}"#);
    for error in ["{\"error\":\"gone\"}\n", "{\"error\":{\"message\":\"gone\",\"code\":500}}\n", "{\"error\":\"gone\"}"]
    {
        check_error(CHAT, LINES, &format!("{line}{error}"), "gone").await;
        check_error(CHAT, LINES, error, "gone").await;
        check_error(CHAT, JSON, error, "gone").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_is_one_line() {
    check_json(CHAT, &done(",\"prompt_eval_count\":5,\"eval_count\":7"), (5, 7, Backend)).await;
    let embeddings = r#"{"model":"m","embeddings":[[0.1,-2e-3]],"total_duration":9,"prompt_eval_count":5}"#;
    check_json("/api/embed", embeddings, (5, 0, Backend)).await;
    check_json("/api/embeddings", r#"{"embedding":[0.1]}"#, (GUESS, 0, Estimated)).await;
    assert_eq!(replay("/api/tags", JSON, r#"{"models":[]}"#).await.usage, None);
}

#[tokio::test(start_paused = true)]
async fn a_last_line_that_is_too_large_to_be_kept_is_read_while_it_passes() {
    let line = "{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n";
    let context = "12345,".repeat(20_000);
    let last = format!(
        "{{\"model\":\"m\",\"response\":\"\",\"done\":true,\"context\":[{context}1],\"prompt_eval_count\":5,\"eval_count\":7}}\n"
    );
    let stream = format!("{line}{last}");
    for stream in [&*stream, stream.trim_end()] {
        for size in [1000, 1 << 20] {
            let (out, record) = pass(GENERATE, LINES, stream.as_bytes().chunks(size).collect()).await;
            assert_eq!(out, stream.as_bytes());
            assert_eq!((tokens(&record), record.end), (Some((5, 7, Backend)), End::Complete));
        }
    }
}
