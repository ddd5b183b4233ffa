//! Every API that a backend may speak is counted: nothing is changed in either direction, and the record says what the
//! backend said.

use llmproxy_testkit::{Backend, Client, Receiver, Requests};
use serde_json::{Value, json};

use crate::harness::{Proxy, within};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";
const JSON: &str = "application/json";

/// A proxy between a backend, which waits for each step, and a receiver of records.
struct Rig {
    proxy: Proxy,
    receiver: Receiver,
    requests: Requests,
    _backend: Backend,
    records: usize,
}

impl Rig {
    async fn start() -> Self {
        let receiver = Receiver::start().await;
        let (backend, requests) = Backend::stepped().await;
        let yaml = format!(
            "backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nusage: {{enabled: true, reporters: \
             [{{name: test, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
            backend.url(),
            receiver.url()
        );
        Self { proxy: Proxy::start(&yaml).await, receiver, requests, _backend: backend, records: 0 }
    }

    /// Sends `ask`, which must reach the backend as it is, and answers with these pieces, each of which the client must
    /// have before the next is sent. Without `leaves` the answer ends well; else the client leaves behind the last piece,
    /// and the backend must see it. Gives the record.
    async fn exchange(&mut self, path: &str, ask: &Value, answer: Answer<'_>, leaves: bool) -> Value {
        let mut client = Client::connect(self.proxy.address()).await;
        client.send_json(path, &[], ask).await;
        let (seen, mut wire) = self.requests.next().await;
        assert_eq!((&*seen.path, &*seen.body), (path, ask.to_string().as_bytes()));
        let headers: Vec<_> =
            [("content-type", answer.kind)].into_iter().chain(answer.headers.iter().copied()).collect();
        wire.head(200, &headers).await.expect("the proxy reads");
        for piece in answer.pieces {
            wire.chunk(piece).await.expect("the proxy reads");
            client.expect_piece(piece).await;
        }
        if leaves {
            client.leave();
            within("the backend to see the client leave", wire.client_gone()).await;
        } else {
            wire.finish().await.expect("the proxy reads");
            assert_eq!(client.read_to_end().await.text(), "");
        }
        self.records += 1;
        self.receiver.wait_for(self.records).await.pop().expect("as many as waited for")
    }

    /// The same where the record says these tokens of the backend's, and that all went well, with or without a client
    /// that leaves when it has read everything.
    async fn counts(&mut self, path: &str, ask: &Value, answer: Answer<'_>, expected: [u64; 2]) -> Value {
        let is_stream = answer.kind != JSON;
        if is_stream && answer.ends {
            let record = self.exchange(path, ask, answer, true).await;
            assert_eq!((tokens(&record), &record["end"]), (said(expected), &json!("complete")), "{record}");
        }
        let record = self.exchange(path, ask, answer, false).await;
        assert_eq!((tokens(&record), &record["end"]), (said(expected), &json!("complete")), "{record}");
        assert_eq!((&record["is_stream"], &record["path"]), (&json!(is_stream), &json!(path)), "{record}");
        record
    }

    /// The answer breaks off with an error of the backend's own, in a 200.
    async fn fails(&mut self, path: &str, ask: &Value, answer: Answer<'_>) -> Value {
        let record = self.exchange(path, ask, answer, false).await;
        assert_eq!((&record["end"], &record["error"]), (&json!("backend_failed"), &json!("gone")), "{record}");
        record
    }
}

#[derive(Clone, Copy)]
struct Answer<'a> {
    kind: &'a str,
    headers: &'a [(&'a str, &'a str)],
    pieces: &'a [&'a str],
    /// Whether its last piece says that nothing follows.
    ends: bool,
}

impl<'a> Answer<'a> {
    fn new(kind: &'a str, pieces: &'a [&'a str]) -> Self {
        Self { kind, headers: &[], pieces, ends: true }
    }
}

fn tokens(record: &Value) -> Value {
    json!([record["prompt_tokens"], record["completion_tokens"], record["usage_source"]])
}

fn said([prompt, completion]: [u64; 2]) -> Value {
    json!([prompt, completion, "backend"])
}

fn ask(stream: Option<bool>) -> Value {
    let mut ask = json!({"model": "m", "messages": [{"role": "user", "content": "Say two words."}], "max_tokens": 9});
    if let Some(stream) = stream {
        ask["stream"] = stream.into();
    }
    ask
}

#[tokio::test]
async fn openai_s_chat() {
    let mut rig = Rig::start().await;
    let path = "/v1/chat/completions";
    let mut streams = ask(Some(true));
    streams["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let pieces = [
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n",
        "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens_details\":{\"reasoning_tokens\":2}}}\n\n",
        "data: [DONE]\n\n",
    ];
    let record = rig.counts(path, &streams, Answer::new(EVENTS, &pieces), [5, 7]).await;
    assert_eq!((&record["cached_tokens"], &record["reasoning_tokens"]), (&json!(4), &json!(2)), "{record}");
    let record = rig.exchange(path, &streams, Answer::new(EVENTS, &pieces[..1]), true).await;
    assert_eq!((tokens(&record), &record["end"]), (said([5, 3]), &json!("client_gone")), "{record}");
    let record = rig.fails(path, &ask(None), Answer::new(JSON, &[r#"{"error":{"message":"gone","code":500}}"#])).await;
    assert!(record["usage"].is_null() && record["usage_source"].is_null(), "{record}");
}

#[tokio::test]
async fn the_responses_api() {
    let mut rig = Rig::start().await;
    let (path, ask) = ("/v1/responses", json!({"model": "m", "input": "Say two words.", "stream": true}));
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"usage\":null,\"error\":null}}\n\n";
    let delta =
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let last = "event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":5,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":7,\"total_tokens\":12}}}\n\n";
    let record = rig.counts(path, &ask, Answer::new(EVENTS, &[created, delta, last]), [5, 7]).await;
    assert_eq!((&record["upstream_id"], &record["cached_tokens"]), (&json!("r"), &json!(4)), "{record}");
    let record = rig.exchange(path, &ask, Answer::new(EVENTS, &[created, delta]), true).await;
    assert_eq!(record["completion_tokens"], 1, "{record}");
    assert_eq!((&record["usage_source"], &record["end"]), (&json!("estimated"), &json!("client_gone")), "{record}");
    let failed = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"message\":\"gone\"},\"usage\":null}}\n\n";
    rig.fails(path, &ask, Answer::new(EVENTS, &[created, failed])).await;
    let plain = json!({"model": "m", "input": "Say two words."});
    let json = r#"{"id":"r","error":null,"usage":{"input_tokens":5,"output_tokens":0,"total_tokens":5}}"#;
    rig.counts(path, &plain, Answer::new(JSON, &[json]), [5, 0]).await;
}

#[tokio::test]
async fn anthropic_s_messages() {
    let mut rig = Rig::start().await;
    let (path, streams) = ("/v1/messages", ask(Some(true)));
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg\",\"model\":\"m\",\"usage\":{\"input_tokens\":1,\"cache_read_input_tokens\":23,\"output_tokens\":1}}}\n\n";
    let text = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n";
    let delta = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":7}}\n\n";
    let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let record = rig.counts(path, &streams, Answer::new(EVENTS, &[start, text, delta, stop]), [24, 7]).await;
    assert_eq!((&record["upstream_id"], &record["cached_tokens"]), (&json!("msg"), &json!(23)), "{record}");
    let record = rig.exchange(path, &streams, Answer::new(EVENTS, &[start, text, text]), true).await;
    assert_eq!((tokens(&record), &record["end"]), (json!([24, 2, "estimated"]), &json!("client_gone")), "{record}");
    let error =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"gone\"}}\n\n";
    rig.fails(path, &streams, Answer::new(EVENTS, &[start, error])).await;
    let plain = r#"{"id":"msg","type":"message","content":[],"usage":{"input_tokens":5,"output_tokens":7}}"#;
    rig.counts(path, &ask(None), Answer::new(JSON, &[plain]), [5, 7]).await;
    let count = r#"{"input_tokens":2095}"#;
    let record = rig.exchange("/v1/messages/count_tokens", &ask(None), Answer::new(JSON, &[count]), false).await;
    assert!(record["usage"].is_null() && record["usage_source"].is_null(), "{record}");
}

#[tokio::test]
async fn ollama_s_own_api() {
    let mut rig = Rig::start().await;
    // A stream, since nothing is said of it.
    let (path, streams) = ("/api/chat", ask(None));
    let line = "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"done\":false}\n";
    let last = "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":5,\"eval_count\":7}\n";
    rig.counts(path, &streams, Answer::new(LINES, &[line, last]), [5, 7]).await;
    let record = rig.exchange(path, &streams, Answer::new(LINES, &[line, line]), true).await;
    assert_eq!(record["completion_tokens"], 2, "{record}");
    assert_eq!((&record["usage_source"], &record["end"]), (&json!("estimated"), &json!("client_gone")), "{record}");
    assert!(record["time_to_first_token_ms"].is_number(), "{record}");
    rig.fails(path, &streams, Answer::new(LINES, &[line, "{\"error\":\"gone\"}\n"])).await;
    rig.counts(path, &ask(Some(false)), Answer::new(JSON, &[last]), [5, 7]).await;
    let generate = json!({"model": "m", "prompt": "Say two words."});
    let done = "{\"model\":\"m\",\"response\":\"\",\"done\":true,\"context\":[1,2],\"prompt_eval_count\":5,\"eval_count\":7}\n";
    rig.counts("/api/generate", &generate, Answer::new(LINES, &[done]), [5, 7]).await;
    let embed = json!({"model": "m", "input": "two words"});
    let vectors = r#"{"model":"m","embeddings":[[0.1]],"prompt_eval_count":5}"#;
    rig.counts("/api/embed", &embed, Answer::new(JSON, &[vectors]), [5, 0]).await;
}

#[tokio::test]
async fn tgi_s_own_paths() {
    let mut rig = Rig::start().await;
    let ask = json!({"inputs": "Say two words.", "parameters": {"details": true, "max_new_tokens": 9}});
    let token = "data:{\"index\":1,\"token\":{\"id\":5,\"text\":\"a\",\"special\":false},\"generated_text\":null,\"details\":null}\n\n";
    let last = "data:{\"index\":2,\"token\":{\"id\":2,\"text\":\"\",\"special\":true},\"generated_text\":\"a\",\"details\":{\"generated_tokens\":7,\"input_length\":5}}\n\n";
    rig.counts("/generate_stream", &ask, Answer::new(EVENTS, &[token, last]), [5, 7]).await;
    let record = rig.exchange("/generate_stream", &ask, Answer::new(EVENTS, &[token, token]), true).await;
    assert_eq!(record["completion_tokens"], 2, "{record}");
    assert_eq!((&record["usage_source"], &record["end"]), (&json!("estimated"), &json!("client_gone")), "{record}");
    let error = "data:{\"error\":\"gone\",\"error_type\":\"generation\"}\n\n";
    rig.fails("/generate_stream", &ask, Answer::new(EVENTS, &[token, error])).await;
    let headers = [("x-prompt-tokens", "5"), ("x-generated-tokens", "7")];
    let plain = Answer { headers: &headers, ..Answer::new(JSON, &[r#"{"generated_text":"a"}"#]) };
    rig.counts("/generate", &ask, plain, [5, 7]).await;
}

#[tokio::test]
async fn llama_cpp_s_own_completion() {
    let mut rig = Rig::start().await;
    let streams = json!({"prompt": "Say two words.", "n_predict": 9, "stream": true});
    let token =
        "data: {\"index\":0,\"content\":\"a\",\"stop\":false,\"tokens_predicted\":1,\"tokens_evaluated\":5}\n\n";
    let last = "data: {\"index\":0,\"content\":\"\",\"stop\":true,\"tokens_predicted\":7,\"tokens_evaluated\":5,\"timings\":{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":7}}\n\n";
    let record = rig.counts("/completion", &streams, Answer::new(EVENTS, &[token, last]), [5, 7]).await;
    assert_eq!(record["cached_tokens"], 3, "{record}");
    let record = rig.exchange("/completion", &streams, Answer::new(EVENTS, &[token, token]), true).await;
    assert_eq!((tokens(&record), &record["end"]), (json!([5, 2, "estimated"]), &json!("client_gone")), "{record}");
    let error = "data: {\"error\":{\"code\":500,\"message\":\"gone\",\"type\":\"server_error\"}}\n\n";
    rig.fails("/completion", &streams, Answer::new(EVENTS, &[token, error])).await;
    let plain = json!({"prompt": "Say two words.", "n_predict": 9});
    rig.counts("/completion", &plain, Answer::new(JSON, &[&last["data: ".len()..]]), [5, 7]).await;
}

#[tokio::test]
async fn several_prompts_in_one_request_are_all_counted() {
    let mut rig = Rig::start().await;
    let event = |index: u64, prompt: u64, predicted: u64| {
        format!(
            "data: {{\"index\":{index},\"content\":\"\",\"stop\":true,\"tokens_predicted\":{predicted},\"tokens_evaluated\":{prompt}}}\n\n"
        )
    };
    let events = [event(1, 5, 7), event(0, 6, 8)];
    let streams = json!({"prompt": ["Say two words.", "Say three."], "n_predict": 9, "stream": true});
    let pieces = events.each_ref().map(|event| &**event);
    rig.counts("/completion", &streams, Answer::new(EVENTS, &pieces), [11, 15]).await;
    let list = format!("[{},{}]", events[0]["data: ".len()..].trim(), events[1]["data: ".len()..].trim());
    let plain = json!({"prompt": ["Say two words.", "Say three."], "n_predict": 9});
    rig.counts("/completion", &plain, Answer::new(JSON, &[&list]), [11, 15]).await;

    let ask = json!({"text": ["Say two words.", "Say three."], "stream": true});
    let event = |index: u64, completion: u64| {
        format!(
            "data: {{\"text\":\"a\",\"meta_info\":{{\"prompt_tokens\":5,\"completion_tokens\":{completion}}},\"index\":{index}}}\n\n"
        )
    };
    let events = [event(0, 1), event(1, 4), event(0, 3)];
    let mut pieces: Vec<&str> = events.iter().map(|event| &**event).collect();
    let record = rig.exchange("/generate", &ask, Answer::new(EVENTS, &pieces), true).await;
    assert_eq!((tokens(&record), &record["end"]), (said([10, 7]), &json!("client_gone")), "{record}");
    pieces.push("data: [DONE]\n\n");
    rig.counts("/generate", &ask, Answer::new(EVENTS, &pieces), [10, 7]).await;
}

/// `{"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}`
const PACKED: [(&str, &[u8]); 3] = [
    ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\xca\x4c\x51\xb2\x52\x4a\x56\xd2\x51\x4a\xce\xc8\xcf\x4c\x4e\x2d\x56\xb2\x8a\x8e\xd5\x51\x2a\x2d\x4e\x4c\x4f\x55\xb2\xaa\x56\x2a\x28\xca\xcf\x2d\x28\x89\x2f\xc9\xcf\x4e\xcd\x03\xca\x99\x02\xd5\x01\x05\x72\x52\x4b\x32\xf3\xf3\xe0\xa2\xe6\xb5\xb5\x00\x20\x20\x55\x13\x49\x00\x00\x00"),
    ("br", b"\x1b\x48\x00\x00\x04\x22\x6f\xa9\x5f\xfe\x6a\xb6\x4f\xd5\x4c\xa0\x7c\xe0\x7f\x68\x06\x1c\x72\xc0\x7a\xe1\x24\x81\xb6\x24\xe7\x60\x63\x0c\xcf\xf0\x44\xd0\xec\x3d\x6c\xa0\x74\x84\xf1\x05\x5a\xaa\x90\x16\xf6\x11\xdb\x67\xdc\x56\x79\x1d\x34\x09\x7f\x02\x9b\x2f\xa3\xfc\x3f"),
    ("zstd", b"\x28\xb5\x2f\xfd\x00\x38\x49\x02\x00\x7b\x22\x69\x64\x22\x3a\x22\x63\x22\x2c\x22\x63\x68\x6f\x69\x63\x65\x73\x22\x3a\x5b\x5d\x2c\x22\x75\x73\x61\x67\x65\x22\x3a\x7b\x22\x70\x72\x6f\x6d\x70\x74\x5f\x74\x6f\x6b\x65\x6e\x73\x22\x3a\x35\x2c\x22\x63\x6f\x6d\x70\x6c\x65\x74\x69\x6f\x6e\x5f\x74\x6f\x6b\x65\x6e\x73\x22\x3a\x37\x7d\x7d"),
];

#[tokio::test]
async fn an_answer_that_comes_compressed() {
    let mut rig = Rig::start().await;
    for (at, (coding, packed)) in PACKED.into_iter().enumerate() {
        let mut client = Client::connect(rig.proxy.address()).await;
        client.send_json("/v1/chat/completions", &[("accept-encoding", coding)], &ask(None)).await;
        let (seen, mut wire) = rig.requests.next().await;
        assert_eq!(seen.header("accept-encoding"), Some(coding));
        wire.head(200, &[("content-type", JSON), ("content-encoding", coding)]).await.expect("the proxy reads");
        for piece in packed.chunks(20) {
            wire.chunk(piece).await.expect("the proxy reads");
            client.expect_piece(piece).await;
        }
        wire.finish().await.expect("the proxy reads");
        client.read_to_end().await;
        let record = rig.receiver.wait_for(at + 1).await.pop().expect("as many as waited for");
        assert_eq!(
            (tokens(&record), &record["end"], &record["upstream_id"]),
            (said([5, 7]), &json!("complete"), &json!("c")),
            "{coding}"
        );
    }
}

#[tokio::test]
async fn what_is_not_measured_in_tokens_is_counted_in_its_own_units() {
    let mut rig = Rig::start().await;
    let done = Answer::new(JSON, &["{}"]);
    for (path, ask, kind, count) in [
        ("/v1/images/generations", json!({"model": "m", "prompt": "a cat", "n": 2}), "images", 2),
        ("/v1/audio/speech", json!({"model": "m", "input": "Gr\u{fc}\u{df}e"}), "characters", 5),
        ("/v1/rerank", json!({"model": "m", "query": "q", "documents": ["a", "b", "c"]}), "documents", 3),
        ("/v1/embeddings", json!({"model": "m", "input": ["a", "b"]}), "inputs", 2),
    ] {
        let record = rig.exchange(path, &ask, done, false).await;
        assert_eq!(record["units"], json!({"kind": kind, "count": count}), "{record}");
    }
    let record = rig.exchange("/v1/chat/completions", &ask(None), done, false).await;
    assert!(record["units"].is_null(), "{record}");

    let form =
        |name: &str, value: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let file = "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\nPNG\r\n--b--\r\n";
    let answer = r#"{"text":"a","usage":{"type":"duration","seconds":9}}"#;
    for (path, n, kind, count) in [
        ("/v1/images/edits", Some("3"), "images", 3),
        ("/v1/images/variations", None, "images", 1),
        ("/v1/audio/transcriptions", None, "seconds", 9),
    ] {
        let n = n.map(|n| form("n", n)).unwrap_or_default();
        let body = form("model", "m") + &n + file;
        let mut client = Client::connect(rig.proxy.address()).await;
        client.send("POST", path, &[("content-type", "multipart/form-data; boundary=b")], body.as_bytes()).await;
        let (seen, mut wire) = rig.requests.next().await;
        assert_eq!(&*seen.body, body.as_bytes());
        wire.head(200, &[("content-type", JSON)]).await.expect("the proxy reads");
        wire.chunk(answer).await.expect("the proxy reads");
        wire.finish().await.expect("the proxy reads");
        client.read_to_end().await;
        rig.records += 1;
        let record = rig.receiver.wait_for(rig.records).await.pop().expect("as many as waited for");
        assert_eq!(record["units"], json!({"kind": kind, "count": count}), "{record}");
    }
}

#[tokio::test]
async fn several_conversations_in_one_request_are_counted() {
    let mut rig = Rig::start().await;
    let ask =
        json!({"model": "m", "messages": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]});
    let answer = r#"{"choices":[{"index":0},{"index":1}],"usage":{"prompt_tokens":70,"completion_tokens":30}}"#;
    rig.counts("/v1/chat/completions/batch", &ask, Answer::new(JSON, &[answer]), [70, 30]).await;
}
