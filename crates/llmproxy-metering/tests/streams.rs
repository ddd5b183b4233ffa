//! What servers really send, at every split; and that nothing is changed but the event that the proxy asked for.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body::Body;
use llmproxy_core::{End, UsageRecord, UsageSource};
use proptest::prelude::*;
use support::{Records, Script, Step, data, events, exchange, metered, next, read, typed};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

const VLLM: &str = concat!(
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}],\"prompt_token_ids\":null}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Grüße \\\"usage\\\":{}\"},\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" data: [DONE]\"},\"finish_reason\":\"stop\"}]}\n\n",
);
const VLLM_USAGE: &str = "data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":12,\"completion_tokens\":7,\"prompt_tokens_details\":null},\"system_fingerprint\":\"x\"}\n\n";
const DONE: &str = "data: [DONE]\n\n";

const VLLM_CONTINUOUS: &str = concat!(
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":5,\"completion_tokens\":0}}\n\n",
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":8,\"completion_tokens\":3}}\n\n",
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":12,\"completion_tokens\":7}}\n\n",
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":12,\"completion_tokens\":7}}\n\n",
    "data: [DONE]\n\n",
);

const LLAMA_SERVER: &str = concat!(
    "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}],\"id\":\"c\",\"model\":\"m\"}\n\n",
    "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\"a\"}}],\"id\":\"c\",\"model\":\"m\"}\n\n",
    ":\n\n",
    "data: {\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}],\"id\":\"c\",\"model\":\"m\",\"timings\":{\"cache_n\":3,\"prompt_n\":2,\"prompt_ms\":1.5,\"predicted_n\":7}}\n\n",
    "data: [DONE]\n\n",
);

const LLAMA_CPP_PYTHON: &str = concat!(
    "data: {\"id\": \"c\", \"model\": \"m\", \"choices\": [{\"index\": 0, \"delta\": {\"role\": \"assistant\"}, \"finish_reason\": null}]}\r\n\r\n",
    "data: {\"id\": \"c\", \"model\": \"m\", \"choices\": [{\"index\": 0, \"delta\": {\"content\": \"a\"}, \"finish_reason\": null}]}\r\n\r\n",
    "data: {\"id\": \"c\", \"model\": \"m\", \"choices\": [{\"index\": 0, \"delta\": {\"content\": \"b\"}, \"finish_reason\": null}]}\r\n\r\n",
    "data: {\"id\": \"c\", \"model\": \"m\", \"choices\": [{\"index\": 0, \"delta\": {}, \"finish_reason\": \"stop\"}]}\r\n\r\n",
    "data: [DONE]\r\n\r\n",
);

const TRANSFORMERS: &str = concat!(
    "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"role\":\"assistant\"},\"index\":0}],\"created\":1,\"model\":\"m\"}\n\n",
    "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a\"},\"index\":0}],\"created\":1,\"model\":\"m\"}\n\n",
    "data: {\"id\":\"c\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\",\"index\":0}],\"created\":1,\"model\":\"m\",\"usage\":{\"completion_tokens\":7,\"prompt_tokens\":5,\"total_tokens\":12}}\n\n",
);

const OLLAMA: &str = concat!(
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"text\":\"a\",\"index\":0,\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}}\n\n",
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"text\":\"b\",\"index\":0,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}}\n\n",
    "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}}\n\n",
    "data: [DONE]\n\n",
);

/// Sends `chunks` through the meter; what came out, and the record.
async fn pass(path: &str, inject_usage: bool, chunks: Vec<&[u8]>) -> (Vec<u8>, Arc<UsageRecord>) {
    let exchange = exchange(path, inject_usage);
    let records = Records::of(&exchange);
    let answer = metered(&exchange, path, events(Script::chunks(chunks))).await;
    (read(answer.into_body()).await, records.one())
}

/// Replays `stream` in two pieces split at every byte, an empty one between them, and in pieces of one byte. What comes
/// out is `expected`, and the record has these tokens.
async fn check(path: &str, inject_usage: bool, stream: &str, expected: &str, tokens: (u64, u64, UsageSource)) {
    let splits = (0..=stream.len()).map(|at| {
        let (head, tail) = stream.as_bytes().split_at(at);
        vec![head, b"", tail]
    });
    for chunks in splits.chain([stream.as_bytes().chunks(1).collect()]) {
        let (out, record) = pass(path, inject_usage, chunks).await;
        assert_eq!(String::from_utf8_lossy(&out), expected);
        let usage = record.usage.unwrap();
        assert_eq!((usage.prompt, usage.completion, record.source().unwrap()), tokens);
        assert_eq!(record.end, End::Complete);
        assert_eq!(
            (record.upstream_id.as_deref().map(|id| &id[..1]), record.served_model.as_deref()),
            (Some("c"), Some("m"))
        );
        assert!(record.stream && record.time_to_first_token.is_some());
    }
}

/// What servers send that were not asked for usage passes as it is.
async fn check_plain(path: &str, stream: &str, tokens: (u64, u64, UsageSource)) {
    check(path, false, stream, stream, tokens).await;
}

#[tokio::test(start_paused = true)]
async fn vllm_without_usage_is_counted_by_its_pieces() {
    check_plain(CHAT, &[VLLM, DONE].concat(), (11, 2, UsageSource::Estimated)).await;
}

#[tokio::test(start_paused = true)]
async fn vllm_with_usage_that_the_client_asked_for_passes_whole() {
    check_plain(CHAT, &[VLLM, VLLM_USAGE, DONE].concat(), (5, 7, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn the_usage_event_that_we_asked_for_is_taken_out_and_nothing_else() {
    let (sent, expected) = ([VLLM, VLLM_USAGE, DONE].concat(), [VLLM, DONE].concat());
    check(CHAT, true, &sent, &expected, (5, 7, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn every_line_end_is_taken_out_with_its_event() {
    for line_end in ["\r\n", "\r"] {
        let (sent, expected) = ([VLLM, VLLM_USAGE, DONE].concat(), [VLLM, DONE].concat());
        let (sent, expected) = (sent.replace('\n', line_end), expected.replace('\n', line_end));
        check(CHAT, true, &sent, &expected, (5, 7, UsageSource::Backend)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_event_needs_no_blank_line() {
    let sent = [VLLM, VLLM_USAGE.trim_end()].concat();
    check(CHAT, true, &sent, VLLM, (5, 7, UsageSource::Backend)).await;
    let sent = [VLLM_USAGE, VLLM.trim_end()].concat();
    check(CHAT, true, &sent, VLLM.trim_end(), (5, 9, UsageSource::Estimated)).await;
}

#[tokio::test(start_paused = true)]
async fn running_totals_are_not_summed() {
    check_plain(CHAT, VLLM_CONTINUOUS, (5, 7, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn llama_servers_timings_count_where_there_is_no_usage() {
    check_plain(CHAT, LLAMA_SERVER, (5, 7, UsageSource::Backend)).await;
    check(CHAT, true, LLAMA_SERVER, LLAMA_SERVER, (5, 7, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn llama_servers_event_of_usage_for_each_choice_is_taken_out() {
    let usage = |predicted: u64| {
        format!(
            "data: {{\"choices\":[],\"id\":\"c\",\"model\":\"m\",\"usage\":{{\"completion_tokens\":{predicted},\"prompt_tokens\":5}},\"timings\":{{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":{predicted}}}}}\n\n"
        )
    };
    let (sent, expected) = ([VLLM, &usage(4), VLLM, &usage(3), DONE].concat(), [VLLM, VLLM, DONE].concat());
    check(CHAT, true, &sent, &expected, (10, 7, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn llama_cpp_python_says_nothing_and_is_counted() {
    check_plain(CHAT, LLAMA_CPP_PYTHON, (11, 2, UsageSource::Estimated)).await;
    check(CHAT, true, LLAMA_CPP_PYTHON, LLAMA_CPP_PYTHON, (11, 2, UsageSource::Estimated)).await;
}

#[tokio::test(start_paused = true)]
async fn usage_beside_the_finish_reason_counts_and_stays() {
    check_plain(CHAT, TRANSFORMERS, (5, 7, UsageSource::Backend)).await;
    check(CHAT, true, TRANSFORMERS, TRANSFORMERS, (5, 7, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn ollamas_zeros_are_no_counts() {
    check_plain(COMPLETIONS, OLLAMA, (5, 7, UsageSource::Backend)).await;
    let usage = OLLAMA.rfind("data: {").unwrap();
    let expected = [&OLLAMA[..usage], DONE].concat();
    check(COMPLETIONS, true, OLLAMA, &expected, (5, 7, UsageSource::Backend)).await;
    // Cut off before the true one, the zeros do not stand for nothing.
    check_plain(COMPLETIONS, &OLLAMA[..usage], (11, 2, UsageSource::Estimated)).await;
}

#[tokio::test(start_paused = true)]
async fn an_explicit_zero_is_a_count() {
    let usage = VLLM_USAGE.replace("\"completion_tokens\":7", "\"completion_tokens\":0");
    check_plain(CHAT, &[VLLM, &usage, DONE].concat(), (5, 0, UsageSource::Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn a_piece_passes_as_the_same_bytes_when_nothing_is_to_be_removed() {
    let exchange = exchange(CHAT, false);
    let sent = Bytes::from_static(b"data: {\"choi");
    let script = Script::new([Step::Data(sent.clone()), Step::Hang]);
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    let passed = next(&mut body).await.unwrap().unwrap();
    assert_eq!((passed.as_ptr(), passed.len()), (sent.as_ptr(), sent.len()));
}

#[tokio::test(start_paused = true)]
async fn an_event_is_let_go_as_soon_as_it_has_a_choice() {
    let exchange = exchange(CHAT, true);
    let pieces = ["data: {\"id\":\"c\",", "\"choices\":[", "{\"delta\":", "{\"content\":"];
    let script = Script::new(pieces.map(data).into_iter().chain([Step::Hang]));
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    let mut passed = Vec::new();
    while passed.len() < pieces.concat().len() {
        passed.extend_from_slice(&next(&mut body).await.unwrap().unwrap());
    }
    assert_eq!(passed, pieces.concat().as_bytes());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_one_event_of_bounded_size_is_held() {
    let exchange = exchange(CHAT, true);
    let piece = vec![b'x'; 8 * 1024];
    let script = Script::new([data("data: ")].into_iter().chain((0..9).map(|_| data(&piece))).chain([Step::Hang]));
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    let mut passed = 0;
    while passed < 9 * piece.len() + 6 {
        passed += next(&mut body).await.unwrap().unwrap().len();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_held_passes_before_an_error() {
    let exchange = exchange(CHAT, true);
    let script = Script::new([data("data: {\"id\":"), Step::Error("reset".into())]);
    let mut body = metered(&exchange, CHAT, events(script)).await.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "data: {\"id\":");
    assert!(next(&mut body).await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn the_length_is_not_known_where_an_event_is_removed() {
    for (inject_usage, known) in [(true, false), (false, true)] {
        let exchange = exchange(CHAT, inject_usage);
        let sent = [VLLM, VLLM_USAGE, DONE].concat();
        let mut answer = events(Script::chunks([&sent]).exact());
        answer.headers_mut().insert("content-length", sent.len().into());
        let answer = metered(&exchange, CHAT, answer).await;
        assert_eq!(answer.headers().contains_key("content-length"), known);
        assert_eq!(answer.body().size_hint().exact().is_some(), known);
    }
}

/// Pieces of streams, most of them as servers of any kind send them.
fn any_event() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("data: {\"choices\":[{\"delta\":{\"content\":\"hé\"}}]}".to_owned()),
        Just("data:{\"choices\":[{\"index\":0}],\"usage\":{\"prompt_tokens\":1}}".to_owned()),
        Just("data: {\"id\":\"\",\"choices\":[],\"usage\":null}".to_owned()),
        Just("data: {\"choices\":[],\"x\":1}".to_owned()),
        Just("event: x\nid: 7\ndata: {\"a\":1,\ndata: \"b\":2}".to_owned()),
        Just("data: {\"choices\":[\n: in between\ndata: {\"delta\":{}}]}\nretry: 3".to_owned()),
        Just("id\ndata\ndata: \ndata: {\"choices\":[]".to_owned()),
        Just("event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":7}}".to_owned()),
        Just(
            "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":7}}}"
                .to_owned()
        ),
        Just(
            "data: {\"index\":1,\"content\":\"\",\"stop\":true,\"tokens_predicted\":7,\"tokens_evaluated\":5}"
                .to_owned()
        ),
        Just(
            "data: {\"text\":\"a\",\"meta_info\":{\"prompt_tokens\":5,\"completion_tokens\":7},\"index\":1}".to_owned()
        ),
        Just("{\"model\":\"m\",\"done\":true,\"prompt_eval_count\":5,\"eval_count\":7}".to_owned()),
        Just("data: {\"error\":{\"message\":\"gone\"}}".to_owned()),
        Just(format!("data: {{\"choices\":[],\"x\":\"{}\"}}", "x".repeat(66_000))),
        Just(": ping".to_owned()),
        Just(":".to_owned()),
        Just("data: [DONE]".to_owned()),
        "data: [ -~]{0,40}",
        "[ -~]{0,20}",
    ]
}

const USAGE_EVENTS: [&str; 6] = [
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}",
    "data:{ \"usage\" : {\"prompt_tokens\":5,\"completion_tokens\":7}, \"id\" : \"\", \"choices\" : [ ] }",
    "id: 1\ndata: {\"id\":\"choices\",\"choices\":[],\"timings\":{},\"usage\":{\"completion_tokens\":7,\"prompt_tokens\":5}}",
    "event: message\ndata: {\"object\":\"\\\"choices\\\":[{\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":12}}",
    "data: {\"choices\":[],\n: in between\nid: 7\ndata: \"usage\":{\"prompt_tokens\":5,\ndata: \"completion_tokens\":7}}",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7},\"timings\":{\"prompt_n\":5,\"predicted_n\":7}}",
];

/// Whether a usage event may have been asked for there, and others of every dialect.
const PATHS: [(&str, bool); 7] = [
    (CHAT, true),
    (COMPLETIONS, true),
    ("/v1/responses", false),
    ("/v1/messages", false),
    ("/api/chat", false),
    ("/generate", false),
    ("/completion", false),
];

fn split(stream: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([0, stream.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| stream[pair[0]..pair[1]].to_vec()).collect()
}

/// What comes out of a body of this type, in this coding, that comes like this.
fn passed(path: &str, kind: &str, coding: &str, inject: bool, chunks: &[Vec<u8>]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let exchange = exchange(path, inject);
        let records = Records::of(&exchange);
        let mut answer = typed(kind, Script::chunks(chunks));
        answer.headers_mut().insert("content-encoding", coding.parse().unwrap());
        let out = read(metered(&exchange, path, answer).await.into_body()).await;
        records.one();
        out
    })
}

proptest! {
    #[test]
    fn nothing_is_changed_but_the_events_that_the_proxy_asked_for(
        list in prop::collection::vec(any_event(), 0..6),
        usage in prop::collection::vec((0..USAGE_EVENTS.len(), any::<prop::sample::Index>()), 0..3),
        line_end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        (path, is_asked) in prop::sample::select(&PATHS[..]),
        inject in any::<bool>(),
    ) {
        let mut list: Vec<(String, bool)> = list.into_iter().map(|event| (event, false)).collect();
        for (which, place) in usage {
            list.insert(place.index(list.len() + 1), (USAGE_EVENTS[which].to_owned(), true));
        }
        let inject = inject && is_asked;
        let end = line_end.repeat(2);
        let render = |is_whole: bool| {
            let passes = list.iter().filter(|(_, is_usage)| is_whole || !is_usage);
            passes.map(|(event, _)| event.replace('\n', line_end) + &end).collect::<String>()
        };
        let chunks = split(render(true).as_bytes(), &cuts);
        let out = passed(path, "text/event-stream", "identity", inject, &chunks);
        prop_assert_eq!(String::from_utf8_lossy(&out), render(!inject));
    }

    #[test]
    fn bytes_of_any_kind_pass(
        stream in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), any::<u8>()], 0..200),
        head in prop::sample::select(vec![&b""[..], b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03", b"\x28\xb5\x2f\xfd\x00\x38", b"\x1b\x48\x00\x00"]),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        (path, is_asked) in prop::sample::select(&PATHS[..]),
        kind in prop::sample::select(vec!["text/event-stream", "application/x-ndjson", "application/json", "text/plain"]),
        coding in prop::sample::select(vec!["identity", "gzip", "br", "zstd", "gzip, br"]),
        inject in any::<bool>(),
    ) {
        let stream = [head, &stream].concat();
        let out = passed(path, kind, coding, inject && is_asked, &split(&stream, &cuts));
        prop_assert_eq!(out, stream);
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_is_between_two_pieces_that_carry_something() {
    let exchange = exchange(CHAT, false);
    let records = Records::of(&exchange);
    let piece = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let pieces = [": alive\n\n", piece, piece, ": alive\n\n", piece, DONE];
    let mut body = metered(&exchange, CHAT, events(Script::chunks(pieces))).await.into_body();
    for wait in [900, 100, 5, 20, 40, 800] {
        tokio::time::advance(Duration::from_millis(wait)).await;
        next(&mut body).await.unwrap().unwrap();
    }
    assert!(next(&mut body).await.is_none());
    let record = records.one();
    assert_eq!(record.time_to_first_token, Some(Duration::from_millis(1000)));
    assert_eq!(record.longest_gap, Some(Duration::from_millis(60)));
    // Three tokens have two waits between them.
    assert_eq!(record.time_per_output_token(), Some(Duration::from_micros(432_500)));
    assert_eq!(record.queue_time, None, "no balancer said so");
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_is_too_long_for_a_token_is_estimated_by_its_size() {
    let piece = |text: &str| {
        format!("data: {{\"id\":\"c\",\"model\":\"m\",\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    };
    check_plain(CHAT, &[piece(&"many words ".repeat(100)).as_str(), DONE].concat(), (11, 275, UsageSource::Estimated))
        .await;
    check_plain(CHAT, &[piece("sixteen letters!").as_str(), DONE].concat(), (11, 1, UsageSource::Estimated)).await;
}
