//! The meter alone.

use llmproxy_testkit::{BodyEnd, DONE};
use serde_json::json;

use crate::process::Example;

async fn start() -> Example {
    Example::start(env!("CARGO_BIN_EXE_metering"), &[]).await
}

#[tokio::test]
async fn a_stream_that_completes_is_recorded_as_the_model_counted_it() {
    let mut example = start().await;
    let answer = example.connect().await.post_json("/v1/chat/completions", &json!({"max_tokens": 3})).await;
    assert_eq!((answer.status, answer.end), (200, BodyEnd::Complete));
    assert_eq!(answer.pieces.len(), 5, "every event by itself, as it was made: {}", answer.text());
    assert_eq!(answer.pieces[4], DONE);
    let record = example.says("record").await;
    assert_eq!(record, "record end=complete status=200 stream=true completion=3 source=backend");
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded_with_what_went_out() {
    let mut example = start().await;
    let mut client = example.connect().await;
    client.send_json("/v1/chat/completions", &[], &json!({"max_tokens": 100_000})).await;
    for _ in 0..2 {
        client.piece().await.unwrap();
    }
    client.leave();
    let record = example.says("record").await;
    assert!(record.starts_with("record end=client_gone status=200 stream=true completion="), "{record}");
    assert!(record.ends_with(" source=estimated"), "{record}");
    let completion: u64 = record.split("completion=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((2..1000).contains(&completion), "{record}");
}

#[tokio::test]
async fn an_answer_of_the_handlers_own_passes_and_is_recorded_without_tokens() {
    let mut example = start().await;
    let answer = example.connect().await.post_json("/v1/chat/completions", &json!({"max_tokens": "many"})).await;
    assert_eq!(answer.status, 400);
    let record = example.says("record").await;
    assert_eq!(record, "record end=complete status=400 stream=false completion=0 source=none");
}
