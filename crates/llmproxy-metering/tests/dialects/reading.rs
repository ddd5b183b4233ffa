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
    assert_eq!(replay("/v1/images/generations", JSON, r#"{"data":[]}"#).await.usage, None);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_not_known_is_a_request_without_tokens() {
    let deltas = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let record = replay("/v1/anything", EVENTS, deltas).await;
    assert_eq!((record.usage, record.end), (None, End::Complete));
}

#[tokio::test(start_paused = true)]
async fn recordings_are_counted_by_their_seconds() {
    for (json, expected) in [
        (r#"{"text":"a","usage":{"type":"duration","seconds":9}}"#, Some(9)),
        (r#"{"task":"transcribe","duration":8.47,"text":"a \"duration\":1","segments":[{"duration":3}]}"#, Some(9)),
        (r#"{"duration":"8.0","text":"a"}"#, Some(8)),
        (r#"{"duration":7.2,"text":"a","usage":{"type":"duration","seconds":9}}"#, Some(9)),
        (r#"{"usage":{"type":"duration","seconds":9},"duration":7.2,"text":"a"}"#, Some(9)),
        (r#"{"text":"a","duration":null}"#, None),
        (r#"{"text":"a","duration":-1}"#, None),
    ] {
        for path in ["/v1/audio/transcriptions", "/v1/audio/translations"] {
            let record = replay(path, JSON, json).await;
            assert_eq!((record.usage, record.end), (None, End::Complete), "{json}");
            let seconds = expected.map(|count| Units { kind: UnitKind::Seconds, count });
            assert_eq!(record.units, seconds, "{json}");
        }
    }
    assert_eq!(replay("/v1/chat/completions", JSON, r#"{"choices":[],"duration":9}"#).await.units, None);
    let failed = r#"{"error":"gone","duration":9}"#;
    assert_eq!(replay("/v1/audio/transcriptions", JSON, failed).await.units, None);
}

#[tokio::test(start_paused = true)]
async fn a_transcription_s_stream_ends_with_what_it_came_to() {
    let path = "/v1/audio/transcriptions";
    let delta = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"a\"}\n\n";
    let done =
        |usage: &str| format!("data: {{\"type\":\"transcript.text.done\",\"text\":\"a\",\"usage\":{usage}}}\n\n");
    let tokens_done = done(r#"{"type":"tokens","input_tokens":14,"output_tokens":45,"total_tokens":59}"#);
    let stream = format!("{delta}{tokens_done}");
    assert_eq!(tokens(&*replay(path, EVENTS, &stream).await), Some((14, 45, Backend)));
    let record = cut(path, EVENTS, &stream).await;
    assert_eq!((tokens(&record), record.end), (Some((14, 45, Backend)), End::Complete));
    let stream = format!("{delta}{}", done(r#"{"type":"duration","seconds":9}"#));
    let record = replay(path, EVENTS, &stream).await;
    assert_eq!((record.usage, record.units), (None, Some(Units { kind: UnitKind::Seconds, count: 9 })));
    let record = cut(path, EVENTS, delta).await;
    assert_eq!((record.usage, record.units, record.end), (None, None, End::ClientGone));
    // vLLM's pieces are those of chat.
    let vllm = "data: {\"id\":\"t\",\"object\":\"transcription.chunk\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";
    assert_eq!(tokens(&*replay(path, EVENTS, vllm).await), Some((5, 7, Backend)));
}
