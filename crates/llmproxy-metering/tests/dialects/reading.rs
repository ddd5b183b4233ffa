//! What reads and does not write, and what may do anything.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_total_alone_is_what_was_read() {
    let total = r#"{"id":"r","model":"m","usage":{"total_tokens":9},"results":[{"index":0,"relevance_score":0.9}]}"#;
    for path in ["/v1/rerank", "/rerank", "/v1/score", "/score", "/v1/embeddings"] {
        check_json(path, total, (9, 0, Backend)).await;
    }
    // Where something is written, it may be a part of the total: that is no count of either.
    let chat = replay("/v1/chat/completions", JSON, total).await;
    assert_eq!(tokens(&chat), Some((GUESS, total.len() as u64 / 4, Estimated)));
}

#[tokio::test(start_paused = true)]
async fn recordings_and_images_have_tokens_if_the_server_says_so() {
    let transcript = r#"{"text":"a","usage":{"type":"tokens","input_tokens":14,"input_token_details":{"audio_tokens":14},"output_tokens":45,"total_tokens":59}}"#;
    check_json("/v1/audio/transcriptions", transcript, (14, 45, Backend)).await;
    let image = r#"{"created":1,"data":[{"b64_json":"iVBO"}],"usage":{"total_tokens":100,"input_tokens":50,"output_tokens":50}}"#;
    check_json("/v1/images/generations", image, (50, 50, Backend)).await;
    let seconds = r#"{"text":"a","usage":{"type":"duration","seconds":9}}"#;
    assert_eq!(replay("/v1/audio/transcriptions", JSON, seconds).await.usage, None);
    assert_eq!(replay("/v1/images/generations", JSON, r#"{"data":[]}"#).await.usage, None);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_not_known_is_a_request_without_tokens() {
    let deltas = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let record = replay("/v1/anything", EVENTS, deltas).await;
    assert_eq!((record.usage, record.end), (None, End::Complete));
}
