//! What a backend does not tell is counted: by the model's own tokenizer, or else by what answers before have taught.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use llmproxy_testkit::{Backend, Client, DONE, Receiver, Requests, Wire, script};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Folder, Proxy, command, within};

pub(crate) const CHAT: &str = "/v1/chat/completions";
const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];
/// Each word is a token, and so is each run of punctuation.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
    "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
    "model":{"type":"WordLevel","vocab":{"[UNK]":0},"unk_token":"[UNK]"}}"#;
/// Of each message two words beside its own, and two at the end.
const TEMPLATE: &str = "{% for message in messages %}begin {{ message.role }} {{ message.content }} {% endfor %}\
                        {% if add_generation_prompt %}begin assistant{% endif %}";

/// A proxy that counts, before one backend, and who is told of the records.
struct Setting {
    proxy: Proxy,
    requests: Requests,
    receiver: Receiver,
    yaml: Value,
    _backend: Backend,
    _files: Folder,
}

impl Setting {
    /// With a tokenizer for the model `m` and whatever else `metering` says.
    async fn with(metering: Value) -> Self {
        let files = tokenizer(TOKENIZER);
        let (backend, requests) = Backend::stepped().await;
        let receiver = Receiver::start().await;
        let mut yaml = yaml(&backend, &receiver);
        yaml["metering"] = json!({"tokenizers": [{"models": ["m*"], "file": files.join("tokenizer.json")}]});
        for (key, value) in metering.as_object().expect("a map") {
            yaml["metering"][key] = value.clone();
        }
        let proxy = Proxy::start(&yaml.to_string()).await;
        Self { proxy, requests, receiver, yaml, _backend: backend, _files: files }
    }

    /// The record of a question that is answered so, without usage.
    async fn answer(&mut self, path: &str, question: &Value, answer: &[u8]) -> Value {
        let before = self.receiver.bodies().len();
        let mut client = Client::connect(self.proxy.address()).await;
        client.send_json(path, &[], question).await;
        let (_, mut wire) = self.requests.next().await;
        wire.head(200, &[("content-type", "application/json")]).await.expect("the proxy reads");
        wire.chunk(answer.to_vec()).await.expect("the proxy reads");
        wire.finish().await.expect("the proxy reads");
        client.read_to_end().await;
        self.receiver.wait_for(before + 1).await.remove(before)
    }

    /// The record of a stream of these bytes, whole and without usage.
    async fn stream_of(&mut self, bytes: &[u8]) -> Value {
        let before = self.receiver.bodies().len();
        let (mut client, mut wire) = self.stream(&[]).await;
        wire.chunk(bytes.to_vec()).await.expect("the proxy reads");
        wire.chunk(DONE).await.expect("the proxy reads");
        wire.finish().await.expect("the proxy reads");
        client.read_to_end().await;
        self.receiver.wait_for(before + 1).await.remove(before)
    }

    /// A client that has each of `pieces` of its stream, and the backend's side of it.
    async fn stream(&mut self, pieces: &[&str]) -> (Client, Wire) {
        let mut client = Client::connect(self.proxy.address()).await;
        client.send_json(CHAT, &[], &ask(true)).await;
        let (_, mut wire) = self.requests.next().await;
        wire.head(200, EVENTS).await.expect("the proxy reads");
        for piece in pieces {
            let event = event(piece);
            wire.chunk(&event).await.expect("the proxy reads");
            client.expect_piece(&event).await;
        }
        (client, wire)
    }
}

/// A folder with a tokenizer and a chat template.
fn tokenizer(json: &str) -> Folder {
    let files = Folder::new();
    std::fs::write(files.join("tokenizer.json"), json).expect("the folder is ours");
    let config = json!({"chat_template": TEMPLATE}).to_string();
    std::fs::write(files.join("tokenizer_config.json"), config).expect("the folder is ours");
    files
}

pub(crate) fn yaml(backend: &Backend, receiver: &Receiver) -> Value {
    json!({
        "backends": [{"url": backend.url(), "models": ["m", "other"]}],
        "health_check": {"enabled": false},
        "usage": {"enabled": true, "reporters": [{"name": "r", "type": "webhook", "webhook": {"url": receiver.url()}}]},
    })
}

pub(crate) fn ask(stream: bool) -> Value {
    json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "one two three"}]})
}

fn event(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

pub(crate) fn counts(record: &Value) -> Value {
    let of = |key: &str| record[key].clone();
    json!([of("prompt_tokens"), of("prompt_usage_source"), of("completion_tokens"), of("completion_usage_source")])
}

/// begin user one two three begin assistant.
const PROMPT: u64 = 7;

#[tokio::test]
async fn a_stream_without_usage_is_counted_by_the_models_tokenizer() {
    let mut setting = Setting::with(json!({})).await;
    // Seams within words: two pieces are one token.
    let (mut client, mut wire) = setting.stream(&["Hel", "lo ", "world", ", and", " all"]).await;
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    client.read_to_end().await;
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 5, "counted"]), "{record}");
    assert_eq!((&record["usage_source"], &record["total_tokens"]), (&json!("counted"), &json!(12)));
}

#[tokio::test]
async fn whoever_leaves_is_counted_what_it_was_given() {
    let mut setting = Setting::with(json!({})).await;
    let (client, mut wire) = setting.stream(&["one ", "tw", "o thr"]).await;
    client.leave();
    within("the backend to see it", wire.client_gone()).await;
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 3, "counted"]), "{record}");
    assert_eq!((&record["end"], &record["delivered_tokens"]), (&json!("client_gone"), &json!(3)), "{record}");
}

#[tokio::test]
async fn whoever_leaves_before_the_head_is_counted_its_prompt() {
    let mut setting = Setting::with(json!({})).await;
    let mut client = Client::connect(setting.proxy.address()).await;
    client.send_json(CHAT, &[], &ask(true)).await;
    let (_, mut wire) = setting.requests.next().await;
    client.leave();
    within("the backend to see it", wire.client_gone()).await;
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 0, "counted"]), "{record}");
}

#[tokio::test]
async fn what_the_backend_says_stands_and_how_far_the_count_is_off_is_shown() {
    let mut setting = Setting::with(json!({})).await;
    let (mut client, mut wire) = setting.stream(&["one two"]).await;
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\n";
    wire.chunk([usage, DONE].concat()).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    client.read_to_end().await;
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([9, "backend", 3, "backend"]), "{record}");
    // The record did not wait for it.
    let compared = async { while setting.proxy.metrics().await.sum("llmproxy_usage_drift_tokens_count", &[]) < 2.0 {} };
    within("the count to be compared", compared).await;
    let metrics = setting.proxy.metrics().await;
    for (kind, drift) in [("kind=\"prompt\"", -2.0), ("kind=\"completion\"", -1.0)] {
        assert_eq!(metrics.sum("llmproxy_usage_drift_tokens_sum", &[kind]), drift, "{kind}");
        assert_eq!(metrics.sum("llmproxy_usage_drift_tokens_bucket", &[kind, "le=\"-4\""]), 0.0);
        assert_eq!(metrics.sum("llmproxy_usage_drift_tokens_bucket", &[kind, "le=\"-1\""]), 1.0);
    }
}

#[tokio::test]
async fn a_plain_answer_without_usage_is_counted_and_a_call_of_a_tool_is_an_estimate() {
    let mut setting = Setting::with(json!({})).await;
    let message = json!({"role": "assistant", "content": "four \"words\" are here", "reasoning_content": "hm hm"});
    let called =
        json!({"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}});
    let mut client = Client::connect(setting.proxy.address()).await;
    client.send_json(CHAT, &[], &ask(false)).await;
    let (_, wire) = setting.requests.next().await;
    wire.json(200, &json!({"choices": [{"index": 0, "message": message}]})).await.expect("the proxy reads");
    client.read_to_end().await;
    // Its quotes are tokens.
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 8, "counted"]), "{record}");

    let (mut client, mut wire) = setting.stream(&[]).await;
    wire.chunk(format!("data: {}\n\n{DONE}", json!({"choices": [called]}))).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    client.read_to_end().await;
    let record = setting.receiver.wait_for(2).await.remove(1);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 2, "estimated"]), "{record}");
}

#[tokio::test]
async fn a_stream_that_can_not_be_read_in_full_is_an_estimate() {
    let mut setting = Setting::with(json!({})).await;
    let surrogate = br#"data: {"choices":[{"index":0,"delta":{"content":"a b c \ud83d"}}]}"#;
    let utf8 = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"one \xe4\xb8 two\"}}]}";
    let twice = br#"data: {"choices":[{"index":0,"delta":{"content":"one two","content":" three"}}]}"#;
    let message = br#"data: {"choices":[{"index":0,"message":{"content":"one two three"}}]}"#;
    let function = br#"data: {"choices":[{"index":0,"delta":{"function_call":{"name":"f","arguments":"one two"}}}]}"#;
    // Of what is said elsewhere nothing is read, and it is no less than the estimate.
    let elsewhere = br#"data: {"choices":[{"index":0,"delta":{"content":"a"},"more":{"content":"forty bytes, of which each four are said to be a token"}}]}"#;
    let rows: [(&[u8], u64); 6] = [(surrogate, 4), (utf8, 2), (twice, 3), (message, 3), (function, 3), (elsewhere, 14)];
    for (event, tokens) in rows {
        let record = setting.stream_of(&[event, b"\n\n"].concat()).await;
        assert_eq!(counts(&record), json!([PROMPT, "counted", tokens, "estimated"]), "{record}");
    }
    let null = br#"data: {"choices":[{"index":null,"delta":{"content":"one two three"}}]}"#;
    let record = setting.stream_of(&[null, &b"\n\n"[..]].concat()).await;
    assert_eq!(counts(&record), json!([PROMPT, "counted", 3, "counted"]), "{record}");
}

#[tokio::test]
async fn a_compressed_answer_that_lacks_its_end_is_an_estimate() {
    let mut setting = Setting::with(json!({})).await;
    let plain = json!({"choices": [{"index": 0, "message": {"content": "one two three four"}}]}).to_string();
    let stream = [&event("one two"), &event(" three four"), DONE].concat();
    for (kind, text) in [("application/json", plain), ("text/event-stream", stream)] {
        let packed = gzip(text.as_bytes());
        for (len, source) in
            [(packed.len(), "counted"), (packed.len() - 1, "estimated"), (packed.len() - 12, "estimated")]
        {
            let before = setting.receiver.bodies().len();
            let mut client = Client::connect(setting.proxy.address()).await;
            client.send_json(CHAT, &[("accept-encoding", "gzip")], &ask(false)).await;
            let (_, mut wire) = setting.requests.next().await;
            wire.head(200, &[("content-type", kind), ("content-encoding", "gzip")]).await.expect("the proxy reads");
            wire.chunk(packed[..len].to_vec()).await.expect("the proxy reads");
            wire.finish().await.expect("the proxy reads");
            client.read_to_end().await;
            let record = setting.receiver.wait_for(before + 1).await.remove(before);
            assert_eq!(record["completion_usage_source"], source, "{kind} {len}: {record}");
            assert!(record["completion_tokens"].as_u64() > Some(0), "{kind} {len}: {record}");
        }
    }
}

#[tokio::test]
async fn a_plain_answer_is_counted_by_what_the_model_wrote_and_by_nothing_else() {
    let mut setting = Setting::with(json!({})).await;
    let message = |message: Value| json!({"choices": [{"index": 0, "message": message}]});
    let call = json!([{"id": "x", "type": "function", "function": {"name": "get weather now", "arguments": "one"}}]);
    let mut aside = message(json!({"content": "one two"}));
    aside["debug"] = json!({"text": "x y z", "messages": [{"content": "x y z"}]});
    let rows = [
        (message(json!({"content": "one", "reasoning": "hm hm"})), 3, "counted"),
        (message(json!({"content": "one", "reasoning": "hm hm", "reasoning_content": "hm hm"})), 3, "counted"),
        (aside, 2, "counted"),
        (message(json!({"content": null, "tool_calls": call})), 4, "estimated"),
    ];
    for (answer, tokens, source) in rows {
        let record = setting.answer(CHAT, &ask(false), answer.to_string().as_bytes()).await;
        assert_eq!(counts(&record), json!([PROMPT, "counted", tokens, source]), "{answer}: {record}");
    }
    for broken in
        [&br#"{"choices":[{"message":{"content":"one \ud83d"}}]}"#[..], br#"{"choices":[{"message":{"content":"a b"#]
    {
        let record = setting.answer(CHAT, &ask(false), broken).await;
        assert_eq!(counts(&record), json!([PROMPT, "counted", 2, "estimated"]), "{record}");
    }
    let question = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "one"}]});
    let answer =
        json!({"type": "message", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": "b"}}]});
    let record = setting.answer("/v1/messages", &question, answer.to_string().as_bytes()).await;
    assert_eq!(record["completion_usage_source"], "estimated", "{record}");
    assert!(record["completion_tokens"].as_u64() > Some(4), "{record}");
    let answer = json!({
        "instructions": "x y z",
        "input": [{"content": [{"type": "input_text", "text": "x y z"}]}],
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "one two"}]}],
    });
    let record =
        setting.answer("/v1/responses", &json!({"model": "m", "input": "x"}), answer.to_string().as_bytes()).await;
    assert_eq!((&record["completion_tokens"], &record["completion_usage_source"]), (&json!(2), &json!("counted")));
}

#[tokio::test]
async fn only_an_answer_of_text_alone_shows_how_far_the_count_is_off() {
    let mut setting = Setting::with(json!({})).await;
    let call = json!([{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for message in [
        json!({"content": "one", "reasoning": "hm hm"}),
        json!({"content": null, "tool_calls": call}),
        json!({"content": "one \u{fffd}"}),
        json!({"content": "one two"}),
    ] {
        let usage = json!({"prompt_tokens": PROMPT, "completion_tokens": 12});
        let answer = json!({"choices": [{"index": 0, "message": message}], "usage": usage}).to_string();
        let answer = answer.replace('\u{fffd}', "\\ud83d");
        let record = setting.answer(CHAT, &ask(false), answer.as_bytes()).await;
        assert_eq!(record["usage_source"], "backend", "{record}");
    }
    let drift = "llmproxy_usage_drift_tokens";
    // The records did not wait for it.
    let compared = async {
        let count = format!("{drift}_count");
        while setting.proxy.metrics().await.sum(&count, &[]) < 5.0 {}
    };
    within("the counts to be compared", compared).await;
    let metrics = setting.proxy.metrics().await;
    assert_eq!(metrics.sum(&format!("{drift}_count"), &["kind=\"prompt\""]), 4.0);
    assert_eq!(metrics.sum(&format!("{drift}_count"), &["kind=\"completion\""]), 1.0);
    assert_eq!(metrics.sum(&format!("{drift}_sum"), &["kind=\"completion\""]), -10.0);
}

#[tokio::test]
async fn a_prompt_that_is_echoed_is_not_counted_once_more() {
    let mut setting = Setting::with(json!({})).await;
    for (more, tokens, source) in [
        (json!({"echo": true}), 3, "estimated"),
        (json!({"echo": true, "n": 2}), 1, "estimated"),
        (json!({"echo": false}), 5, "counted"),
        (json!({"user": "echo"}), 5, "counted"),
    ] {
        let mut question = json!({"model": "m", "prompt": "a b"});
        question.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        let answer = br#"{"choices":[{"index":0,"text":"a b one two three"}]}"#;
        let record = setting.answer("/v1/completions", &question, answer).await;
        assert_eq!(counts(&record), json!([2, "counted", tokens, source]), "{question}: {record}");
    }
}

#[tokio::test]
async fn a_request_without_a_model_is_counted_by_the_tokenizer_for_any() {
    let text = json!({"content": "one two three", "generated_text": "one two three"});
    let (completion, generate) = (json!({"prompt": "a b"}), json!({"inputs": "a b"}));
    let chat = json!({"messages": [{"role": "user", "content": "one two three"}]});
    let chatted = json!({"choices": [{"index": 0, "message": {"content": "one two three"}}]});
    for (models, source) in [("*", "counted"), ("m*", "estimated")] {
        let backend = Backend::start(script::json(200, text.clone())).await;
        let (receiver, files) = (Receiver::start().await, tokenizer(TOKENIZER));
        let mut yaml = yaml(&backend, &receiver);
        yaml["backends"] = json!([{"url": backend.url()}]);
        yaml["metering"] = json!({"tokenizers": [{"models": [models], "file": files.join("tokenizer.json")}]});
        let proxy = Proxy::start(&yaml.to_string()).await;
        let mut client = Client::connect(proxy.address()).await;
        assert_eq!(client.post_json("/completion", &completion).await.status, 200);
        assert_eq!(client.post_json("/generate", &generate).await.status, 200);
        backend.set_script(script::json(200, chatted.clone()));
        assert_eq!(client.post_json(CHAT, &chat).await.status, 200);
        for record in receiver.wait_for(3).await {
            assert_eq!(record["usage_source"], source, "{models}: {record}");
        }
    }
}

#[tokio::test]
async fn a_drained_answer_says_what_was_delivered_in_the_same_tokens() {
    let mut setting = Setting::with(json!({"on_abort": "drain"})).await;
    let (client, mut wire) = setting.stream(&["one two thr"]).await;
    client.leave();
    assert_eq!(setting.proxy.ended().await["end"], "client_gone");
    for piece in ["ee four", " five"] {
        wire.chunk(event(piece)).await.expect("the proxy reads");
    }
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 5, "counted"]), "{record}");
    assert_eq!(record["delivered_tokens"], 3, "{record}");
}

#[tokio::test]
async fn counts_that_find_no_place_are_estimates_and_a_metric_says_so() {
    let mut setting = Setting::with(json!({"count_queue_bytes": 16})).await;
    let (mut client, mut wire) = setting.stream(&["one", " two", " three"]).await;
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    client.read_to_end().await;
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!((&record["usage_source"], &record["completion_tokens"]), (&json!("estimated"), &json!(3)), "{record}");
    let refused = setting.proxy.metrics().await.sum("llmproxy_usage_count_refused_total", &["reason=\"full\""]);
    assert_eq!(refused, 1.0);
}

#[tokio::test]
async fn no_prompt_takes_memory_or_time_beyond_its_size() {
    // As Llama 3 writes tools.
    let template = ["{% for tool in tools or [] %}{{ tool | tojson(indent=4) }}{% endfor %}", TEMPLATE].concat();
    let mut setting = Setting::with(json!({})).await;
    let files = tokenizer(TOKENIZER);
    std::fs::write(files.join("chat_template.jinja"), template).expect("the folder is ours");
    setting.yaml["metering"]["tokenizers"][0]["file"] = json!(files.join("tokenizer.json"));
    setting.proxy.reload(&setting.yaml.to_string(), "reloaded").await;

    let deep = |entries: usize| format!("{}{}{}", "[".repeat(110), vec!["1"; entries].join(","), "]".repeat(110));
    let tools = |entries| format!(r#"{{"model":"m","messages":[],"tools":[{{"x":{}}}]}}"#, deep(entries));
    let messages =
        |count: usize| format!(r#"{{"model":"m","messages":[{}]}}"#, vec![r#"{"role":"u"}"#; count].join(","));
    let prompt = format!(r#"{{"model":"m","prompt":[{}]}}"#, vec!["1"; 4_000_000].join(","));
    let before = setting.proxy.peak();
    let bodies = [
        // Too large, too many values, and what is just small enough to be tried.
        (CHAT, tools(2_000_000), "estimated"),
        (CHAT, messages(600_000), "estimated"),
        (CHAT, tools(60_000), "estimated"),
        (CHAT, messages(20_000), "counted"),
        ("/v1/completions", prompt, "counted"),
    ];
    for (index, (path, body, source)) in bodies.into_iter().enumerate() {
        let mut client = Client::connect(setting.proxy.address()).await;
        client.send("POST", path, &[("content-type", "application/json")], body.as_bytes()).await;
        let (_, wire) = setting.requests.next().await;
        let answer =
            json!({"choices": [{"text": "four words are here", "message": {"content": "four words are here"}}]});
        wire.json(200, &answer).await.expect("the proxy reads");
        client.read_to_end().await;
        let record = setting.receiver.wait_for(index + 1).await.remove(index);
        let sources = (&record["prompt_usage_source"], &record["completion_usage_source"]);
        assert_eq!(sources, (&json!(source), &json!("counted")), "{index}: {record}");
        // What is not counted is estimated by its size.
        assert!(record["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 10_000), "{index}: {record}");
        // The bodies themselves, up to 9 MB each and in several buffers, included.
        let grown = (setting.proxy.peak() - before) / 1024;
        assert!(grown < 160, "{index}: {grown} MiB");
    }
}

#[tokio::test]
async fn an_answer_is_counted_whatever_its_prompt_is() {
    let mut setting = Setting::with(json!({})).await;
    // What a parser makes of half a sign is not agreed on.
    let body = r#"{"model":"m","messages":[{"role":"user","content":"one two three \ud83d"}]}"#;
    let mut client = Client::connect(setting.proxy.address()).await;
    let json = [("content-type", "application/json")];
    client.send("POST", CHAT, &json, body.as_bytes()).await;
    let (_, wire) = setting.requests.next().await;
    wire.json(200, &json!({"choices": [{"message": {"content": "four words are here"}}]}))
        .await
        .expect("the proxy reads");
    client.read_to_end().await;
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!((&record["completion_tokens"], &record["completion_usage_source"]), (&json!(4), &json!("counted")));
    assert_eq!(record["prompt_usage_source"], "estimated", "{record}");
    let refused = setting.proxy.metrics().await.sum("llmproxy_usage_count_refused_total", &["reason=\"failed\""]);
    assert_eq!(refused, 1.0);
}

#[tokio::test]
async fn a_template_that_fails_at_every_chat_is_told_of_once() {
    let mut setting = Setting::with(json!({})).await;
    let files = tokenizer(TOKENIZER);
    let template = files.join("chat_template.jinja");
    std::fs::write(&template, "{{ raise_exception('it is broken') }}").expect("the folder is ours");
    setting.yaml["metering"]["tokenizers"][0]["file"] = json!(files.join("tokenizer.json"));
    setting.proxy.reload(&setting.yaml.to_string(), "reloaded").await;
    for index in 0..3 {
        let mut client = Client::connect(setting.proxy.address()).await;
        client.send_json(CHAT, &[], &ask(false)).await;
        let (_, wire) = setting.requests.next().await;
        let answer = json!({"choices": [{"message": {"content": "four words are here"}}]});
        wire.json(200, &answer).await.expect("the proxy reads");
        client.read_to_end().await;
        let record = setting.receiver.wait_for(index + 1).await.remove(index);
        assert_eq!(counts(&record), json!([3, "estimated", 4, "counted"]), "{record}");
    }
    let refused = setting.proxy.metrics().await.sum("llmproxy_usage_count_refused_total", &["reason=\"template\""]);
    assert_eq!(refused, 3.0);
    let line = setting.proxy.logged("the chat template failed").await;
    assert!(line.to_string().contains("it is broken"), "{line}");
    assert_eq!(line["file"], template.display().to_string(), "{line}");
    setting.proxy.signal(Signal::HUP);
    while {
        let line = setting.proxy.logged("").await.to_string();
        assert!(!line.contains("the chat template failed"), "{line}");
        !line.contains("reloaded")
    } {}
}

#[tokio::test]
async fn a_stop_waits_for_what_is_to_be_counted_yet() {
    let mut setting = Setting::with(json!({})).await;
    let mut pieces = Vec::new();
    for _ in 0..50 {
        pieces.push("word ".repeat(2000));
    }
    let (mut client, mut wire) = setting.stream(&[]).await;
    let read = tokio::spawn(async move { client.read_to_end().await });
    for piece in &pieces {
        wire.chunk(event(piece)).await.expect("the proxy reads");
    }
    setting.proxy.signal(Signal::TERM);
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    read.await.expect("no panic");
    assert!(setting.proxy.exit().await.success());
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 100_000, "counted"]), "{record}");
}

#[tokio::test]
async fn a_reload_may_bring_a_tokenizer_and_one_that_is_none_changes_nothing() {
    let mut setting = Setting::with(json!({})).await;
    let tokenizers = setting.yaml["metering"].take();
    setting.proxy.reload(&setting.yaml.to_string(), "reloaded").await;
    let (client, _wire) = setting.stream(&["one two"]).await;
    client.leave();
    let record = setting.receiver.wait_for(1).await.remove(0);
    assert_eq!(record["usage_source"], "estimated", "{record}");

    setting.yaml["metering"] = tokenizers;
    setting.proxy.reload(&setting.yaml.to_string(), "reloaded").await;
    let broken = tokenizer("{\"model\": 7}");
    let mut yaml = setting.yaml.clone();
    yaml["metering"]["tokenizers"][0]["file"] = json!(broken.join("tokenizer.json"));
    std::fs::write(setting.proxy.folder().join("config.yaml"), yaml.to_string()).expect("the folder is ours");
    setting.proxy.signal(Signal::HUP);
    let line = setting.proxy.logged("nothing was changed").await.to_string();
    assert!(line.contains("metering.tokenizers") && line.contains("tokenizer.json"), "{line}");
    let (client, _wire) = setting.stream(&["one two"]).await;
    client.leave();
    let record = setting.receiver.wait_for(2).await.remove(1);
    assert_eq!(counts(&record), json!([PROMPT, "counted", 2, "counted"]), "{record}");
}

#[tokio::test]
async fn a_tokenizer_that_is_none_is_named_by_check_and_at_the_start() {
    let files = tokenizer("no json");
    let path = files.join("tokenizer.json");
    let yaml = json!({"backends": [{"url": "http://localhost:1"}], "metering": {"tokenizers": [{"models": ["*"], "file": path}]}});
    let config = files.join("config.yaml");
    std::fs::write(&config, yaml.to_string()).expect("the folder is ours");
    for arguments in [&["check", "--config"][..], &["--config"][..]] {
        let output = command(&files).args(arguments).arg(&config).output();
        let output = within("it to give up", output).await.expect("the binary starts");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("metering.tokenizers") && said.contains("tokenizer.json"), "{said}");
    }
}

#[tokio::test]
async fn a_tokenizer_that_is_no_file_is_named_by_check() {
    let files = Folder::new();
    let pipe = files.join("pipe");
    let made = tokio::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(within("the pipe", made).await.expect("the system has it").success());
    let config = files.join("config.yaml");
    for path in [pipe.as_path(), "/dev/null".as_ref(), "/dev".as_ref()] {
        let yaml = json!({"backends": [{"url": "http://localhost:1"}], "metering": {"tokenizers": [{"models": ["*"], "file": path}]}});
        std::fs::write(&config, yaml.to_string()).expect("the folder is ours");
        let output = command(&files).args(["check", "--config"]).arg(&config).output();
        let output = within("it to give up", output).await.expect("the binary starts");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(&format!("{} is no regular file", path.display())), "{said}");
    }
}

#[tokio::test]
async fn what_a_token_is_is_learned_of_answers_that_tell() {
    // Two bytes for a token, until it says nothing any more.
    let usage = json!({"prompt_tokens": 12, "completion_tokens": 20});
    let text = "0123456789".repeat(4);
    let told = json!({"choices": [{"message": {"content": text}}], "usage": usage});
    let untold = json!({"choices": [{"message": {"content": text}}]});
    let backend = Backend::start(script::json(200, told)).await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&yaml(&backend, &receiver).to_string()).await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..3 {
        assert_eq!(client.post_json(CHAT, &ask(false)).await.status, 200);
    }
    backend.set_script(script::json(200, untold));
    assert_eq!(client.post_json(CHAT, &ask(false)).await.status, 200);
    let mut records = receiver.wait_for(4).await;
    // They may overtake one another on their way.
    records.sort_by_key(|record| record["usage_source"].to_string());
    assert_eq!(counts(&records[2]), json!([12, "backend", 20, "backend"]));
    assert_eq!(counts(&records[3]), json!([12, "estimated", 20, "estimated"]));
    let error = "llmproxy_usage_estimate_error_ratio";
    let metrics = proxy.metrics().await;
    // The first taught, the two after it showed how good that was.
    assert_eq!(metrics.sum(&format!("{error}_count"), &["kind=\"completion\""]), 2.0);
    assert_eq!(metrics.sum(&format!("{error}_sum"), &["kind=\"completion\""]), 2.0);
}
