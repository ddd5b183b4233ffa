//! Each API as its servers speak it: replayed at every split, and cut off behind every piece.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../support/mod.rs"]
mod support;

use std::{io::Write, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use llmproxy_core::{
    End, UnitKind, Units, UsageRecord,
    UsageSource::{self, Backend, Estimated},
};
use proptest::prelude::*;
use support::{Records, Script, Step, data, exchange, metered, next, read, typed};

const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";
/// What `exchange` says that the prompt has, which nobody has counted.
const GUESS: u64 = 11;

/// Prompt, completion, and who says so.
type Tokens = (u64, u64, UsageSource);

/// The pieces of a stream, each with what the record must say where the client leaves behind it.
type Pieces<'a> = &'a [(&'a str, Tokens)];

async fn pass(path: &str, kind: &str, chunks: Vec<&[u8]>) -> (Vec<u8>, Arc<UsageRecord>) {
    let exchange = exchange(path, false);
    let records = Records::of(&exchange);
    let answer = metered(&exchange, path, typed(kind, Script::chunks(chunks))).await;
    (read(answer.into_body()).await, records.one())
}

fn tokens(record: &UsageRecord) -> Option<Tokens> {
    Some((record.usage?.prompt, record.usage?.completion, record.source()?))
}

/// Two records that say the same of the answer.
fn assert_same(one: &UsageRecord, other: &UsageRecord) {
    assert_eq!((one.usage, one.usage_source, one.end), (other.usage, other.usage_source, other.end));
    assert_eq!((&one.error, &one.served_model), (&other.error, &other.served_model));
    assert_eq!((&one.upstream_id, one.units), (&other.upstream_id, other.units));
}

/// Splits `whole` at every byte, with an empty piece between, and into pieces of one byte. The bytes come out as they
/// went in; gives the record, which is the same each time.
async fn replay(path: &str, kind: &str, whole: &str) -> Arc<UsageRecord> {
    let (_, record) = pass(path, kind, vec![whole.as_bytes()]).await;
    let splits = (0..=whole.len()).map(|at| {
        let (head, tail) = whole.as_bytes().split_at(at);
        vec![head, b"", tail]
    });
    for chunks in splits.chain([whole.as_bytes().chunks(1).collect()]) {
        let (out, again) = pass(path, kind, chunks).await;
        assert_eq!(String::from_utf8_lossy(&out), whole);
        assert_same(&again, &record);
    }
    for coding in CODINGS {
        let packed = pack(coding, &[whole]).concat();
        for at in 0..=packed.len() {
            let (head, tail) = packed.split_at(at);
            let again = pass_packed(path, kind, coding, &[head, tail], false).await;
            assert_same(&again, &record);
        }
        let bytes: Vec<&[u8]> = packed.chunks(1).collect();
        assert_same(&*pass_packed(path, kind, coding, &bytes, false).await, &record);
    }
    record
}

/// As answers come compressed.
const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// These pieces compressed, each so that it can be read when it has come.
fn pack(coding: &str, pieces: &[&str]) -> Vec<Vec<u8>> {
    let mut packed = Vec::new();
    macro_rules! pack_each {
        ($encoder:ident) => {
            for piece in pieces {
                $encoder.write_all(piece.as_bytes()).unwrap();
                $encoder.flush().unwrap();
                packed.push(std::mem::take($encoder.get_mut()));
            }
        };
    }
    let end = match coding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            pack_each!(encoder);
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            pack_each!(encoder);
            encoder.into_inner()
        }
        _ => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_checksum(pieces.len() % 2 == 1).unwrap();
            pack_each!(encoder);
            encoder.finish().unwrap()
        }
    };
    packed.last_mut().unwrap().extend(end);
    packed
}

/// Sends `chunks`, which are compressed, and leaves behind them or reads to the end.
async fn pass_packed(path: &str, kind: &str, coding: &str, chunks: &[&[u8]], leaves: bool) -> Arc<UsageRecord> {
    let exchange = exchange(path, false);
    let records = Records::of(&exchange);
    let steps = chunks.iter().map(data).chain(leaves.then_some(Step::Hang));
    let mut answer = typed(kind, Script::new(steps));
    answer.headers_mut().insert("content-encoding", coding.parse().unwrap());
    let mut body = metered(&exchange, path, answer).await.into_body();
    let mut out = Vec::new();
    while leaves && out.len() < chunks.concat().len() {
        out.extend_from_slice(&next(&mut body).await.unwrap().unwrap());
    }
    if leaves {
        drop(body)
    } else {
        out = read(body).await
    }
    assert_eq!(out, chunks.concat());
    records.one()
}

/// The record where the client leaves when it has `sent`.
async fn cut(path: &str, kind: &str, sent: &str) -> Arc<UsageRecord> {
    let exchange = exchange(path, false);
    let records = Records::of(&exchange);
    let mut body = metered(&exchange, path, typed(kind, Script::new([data(sent), Step::Hang]))).await.into_body();
    next(&mut body).await.unwrap().unwrap();
    drop(body);
    records.one()
}

/// The stream is counted right, whole at every split and cut behind each piece and in each. The last piece is the one
/// that says that nothing follows, if `terminal`.
async fn check(path: &str, kind: &str, pieces: Pieces<'_>, terminal: bool) -> Arc<UsageRecord> {
    let whole: String = pieces.iter().map(|(piece, _)| *piece).collect();
    let mut sent = String::new();
    for (at, (piece, expected)) in pieces.iter().enumerate() {
        if at > 0 {
            // Behind the first bytes of a piece, what came before it counts.
            let begun = format!("{sent}{}", &piece[..piece.len().min(9)]);
            assert_eq!(tokens(&*cut(path, kind, &begun).await), Some(pieces[at - 1].1), "in {piece}");
        }
        sent.push_str(piece);
        let record = cut(path, kind, &sent).await;
        assert_eq!(tokens(&record), Some(*expected), "behind {piece}");
        let is_last = terminal && at + 1 == pieces.len();
        assert_eq!(record.end, if is_last { End::Complete } else { End::ClientGone }, "behind {piece}");
    }
    let texts: Vec<&str> = pieces.iter().map(|(piece, _)| *piece).collect();
    for coding in CODINGS {
        let packed = pack(coding, &texts);
        let packed: Vec<&[u8]> = packed.iter().map(|piece| &**piece).collect();
        for (at, (piece, expected)) in pieces.iter().enumerate() {
            let record = pass_packed(path, kind, coding, &packed[..=at], true).await;
            assert_eq!(tokens(&record), Some(*expected), "{coding}, behind {piece}");
        }
    }
    let record = replay(path, kind, &whole).await;
    assert_eq!(tokens(&record), pieces.last().map(|(_, expected)| *expected));
    assert_eq!((record.end, &record.error), (End::Complete, &None));
    assert!(record.stream && record.time_to_first_token.is_some());
    record
}

/// A plain answer is counted right at every split.
async fn check_json(path: &str, json: &str, expected: Tokens) -> Arc<UsageRecord> {
    let record = replay(path, JSON, json).await;
    assert_eq!((tokens(&record), record.end), (Some(expected), End::Complete), "{json}");
    record
}

/// What begins well and goes wrong is a failure, in these words.
async fn check_error(path: &str, kind: &str, answer: &str, words: &str) {
    let record = replay(path, kind, answer).await;
    assert_eq!((record.end, record.error.as_deref()), (End::BackendFailed, Some(words)), "{answer}");
}

/// Paths of every dialect.
const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/generate_stream",
    "/completion",
    "/v1/anything",
];

/// Objects that one dialect or another knows, and some that are none.
fn any_object() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(r#"{"choices":[{"delta":{"content":"hé"}}]}"#.to_owned()),
        Just(r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}"#.to_owned()),
        Just(r#"{"type":"response.output_text.delta","delta":"a"}"#.to_owned()),
        Just(r#"{"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":7}}}"#.to_owned()),
        Just(
            r#"{"type":"message_start","message":{"id":"1","usage":{"input_tokens":5,"output_tokens":1}}}"#.to_owned()
        ),
        Just(r#"{"type":"content_block_delta","delta":{"text":"\"usage\":{"}}"#.to_owned()),
        Just(r#"{"type":"message_delta","usage":{"output_tokens":7}}"#.to_owned()),
        Just(r#"{"type":"message_stop"}"#.to_owned()),
        Just(r#"{"model":"m","message":{"content":"a"},"done":false}"#.to_owned()),
        Just(r#"{"response":"","done":true,"prompt_eval_count":5,"eval_count":7}"#.to_owned()),
        Just(r#"{"token":{"id":1,"text":"a"},"generated_text":null,"details":null}"#.to_owned()),
        Just(
            r#"{"token":{"id":1,"text":""},"generated_text":"a","details":{"generated_tokens":7,"input_length":5}}"#
                .to_owned()
        ),
        Just(r#"{"content":"a","stop":false,"tokens_predicted":1,"tokens_evaluated":5}"#.to_owned()),
        Just(r#"{"content":"","stop":true,"tokens_predicted":7,"tokens_evaluated":5,"timings":{}}"#.to_owned()),
        Just(r#"{"error":"gone"}"#.to_owned()),
        Just(r#"{"type":"error","message":"gone"}"#.to_owned()),
        Just("[DONE]".to_owned()),
        "[ -~]{0,20}",
    ]
}

proptest! {
    #[test]
    fn any_stream_passes_unchanged_and_counts_the_same_at_any_split(
        objects in prop::collection::vec(any_object(), 0..6),
        path in prop::sample::select(&PATHS[..]),
        kind in prop::sample::select(vec![EVENTS, "application/x-ndjson", JSON]),
        line_end in prop::sample::select(vec!["\n", "\r\n"]),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let lead = if kind == EVENTS { "data: " } else { "" };
        let end = if kind == EVENTS { line_end.repeat(2) } else { line_end.to_owned() };
        let sent: String = objects.iter().map(|object| format!("{lead}{object}{end}")).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (sent.len() + 1)).chain([0, sent.len()]).collect();
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|pair| &sent.as_bytes()[pair[0]..pair[1]]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (out, record) = runtime.block_on(pass(path, kind, chunks));
        let (_, whole) = runtime.block_on(pass(path, kind, vec![sent.as_bytes()]));
        prop_assert_eq!(String::from_utf8_lossy(&out), sent);
        assert_same(&record, &whole);
    }
}

mod anthropic;
mod llama;
mod ollama;
mod openai;
mod packed;
mod reading;
mod responses;
mod servers;
mod tgi;
