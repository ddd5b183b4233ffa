//! The model server, as a client sees it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use llmproxy_testkit::{BodyEnd, Client, DONE, ModelServer, Response};
use serde_json::{Value, json};

async fn fast() -> ModelServer {
    let server = ModelServer::builder().model("demo").model("other").words_per_second(f64::INFINITY);
    server.start().await.unwrap()
}

async fn chat(server: &ModelServer, extra: Value) -> Response {
    let mut ask = json!({"model": "demo", "messages": [{"role": "user", "content": "one two three"}]});
    ask.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    Client::connect(server.addr()).await.post_json("/v1/chat/completions", &ask).await
}

/// What a stream said, and in how many pieces.
fn said(answer: &Response) -> (String, u64) {
    let events = answer.events();
    let parts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
    (parts.concat(), parts.len() as u64)
}

#[tokio::test]
async fn a_stream_says_what_a_plain_answer_says() {
    let server = fast().await;
    let plain = chat(&server, json!({})).await.json();
    let stream = chat(&server, json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(stream.end, BodyEnd::Complete);
    assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let (text, pieces) = said(&stream);
    assert_eq!(plain["choices"][0]["message"]["content"], text);
    assert_eq!(plain["usage"]["completion_tokens"], pieces);
    assert_eq!(plain["usage"]["prompt_tokens"], 6);
    let events = stream.events();
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &plain["usage"]));
    assert_eq!(stream.pieces.last().unwrap(), DONE);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(server.generated(), 2 * pieces);
}

#[tokio::test]
async fn usage_is_only_told_where_it_was_asked_for() {
    let server = fast().await;
    let check = async |options: Value, with_usage: fn(usize, usize) -> bool| {
        let stream = chat(&server, json!({"stream": true, "max_tokens": 3, "stream_options": options})).await;
        let events = stream.events();
        for (at, event) in events.iter().enumerate() {
            assert_eq!(event.get("usage").is_some(), with_usage(at, events.len()), "{options} {at} {event}");
        }
    };
    check(json!(null), |_, _| false).await;
    check(json!({"include_usage": true}), |at, of| at == of - 1).await;
    check(json!({"include_usage": true, "continuous_usage_stats": true}), |_, _| true).await;
    check(json!({"continuous_usage_stats": true}), |_, _| false).await;
}

#[tokio::test]
async fn max_tokens_cuts_and_ignore_eos_goes_on() {
    let server = fast().await;
    let check = async |extra: Value, tokens: u64, reason: &str| {
        let answer = chat(&server, extra).await.json();
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
        assert_eq!(answer["choices"][0]["finish_reason"], reason);
    };
    check(json!({"max_tokens": 5}), 5, "length").await;
    check(json!({"max_completion_tokens": 7, "max_tokens": 5}), 7, "length").await;
    check(json!({"max_tokens": 500, "ignore_eos": true}), 500, "length").await;
    check(json!({"min_tokens": 300}), 300, "stop").await;
}

#[tokio::test]
async fn choices_are_interleaved_and_their_tokens_added() {
    let server = fast().await;
    let extra = json!({"stream": true, "n": 2, "max_tokens": 6, "stream_options": {"include_usage": true}});
    let events = chat(&server, extra).await.events();
    let indices: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["index"].as_u64()).collect();
    assert_eq!(indices, [0, 1].repeat(7));
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 12);
}

#[tokio::test]
async fn a_tool_is_called_when_there_is_one() {
    let server = fast().await;
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}]);
    let answer = chat(&server, json!({"tools": tools})).await.json();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call, &json!({"name": "weather", "arguments": r#"{"city":"demo"}"#}));
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let events = chat(&server, json!({"tools": tools, "stream": true})).await.events();
    let deltas: Vec<_> =
        events.iter().map(|event| &event["choices"][0]["delta"]["tool_calls"][0]["function"]).collect();
    assert!(deltas.iter().any(|function| function["name"] == "weather"));
    let arguments: String = deltas.iter().filter_map(|function| function["arguments"].as_str()).collect();
    assert_eq!(arguments, r#"{"city":"demo"}"#);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn completions_stream_their_text() {
    let server = fast().await;
    let mut client = Client::connect(server.addr()).await;
    let plain = client.post_json("/v1/completions", &json!({"model": "demo", "prompt": "a b"})).await.json();
    assert_eq!(plain["usage"], json!({"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18}));
    let ask = json!({"model": "demo", "prompt": "a b", "stream": true});
    let stream = client.post_json("/v1/completions", &ask).await;
    let text: String =
        stream.events().iter().filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(plain["choices"][0]["text"], text);
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_as_base64() {
    let server = fast().await;
    let mut client = Client::connect(server.addr()).await;
    let ask = json!({"model": "demo", "input": ["a b", "c"], "dimensions": 3});
    let answer = client.post_json("/v1/embeddings", &ask).await.json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    assert_eq!(answer["data"][1]["embedding"].as_array().unwrap().len(), 3);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let ask = json!({"model": "demo", "input": [1, 2], "dimensions": 3, "encoding_format": "base64"});
    let answer = client.post_json("/v1/embeddings", &ask).await.json();
    assert_eq!(answer["data"][0]["embedding"].as_str().unwrap().len(), 16);
}

#[tokio::test]
async fn mistakes_are_answered_as_vllm_does() {
    let server = fast().await;
    let mut client = Client::connect(server.addr()).await;
    let models = client.get("/v1/models").await.json();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("demo"), &json!("other")));
    assert_eq!(client.get("/health").await.status, 200);
    assert_eq!(client.get("/nothing").await.json(), json!({"detail": "Not Found"}));
    let answer = client.get("/v1/completions").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    let answer = client.post_json("/v1/completions", &json!({"model": "x", "prompt": "a"})).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (404, &json!("model")));
    for ask in [
        json!({"model": "demo"}),
        json!({"model": "demo", "prompt": "a", "max_tokens": 0}),
        json!({"model": "demo", "prompt": "a", "max_tokens": -1}),
        json!({"model": "demo", "prompt": "a", "n": 1_000_000}),
    ] {
        assert_eq!(client.post_json("/v1/completions", &ask).await.status, 400, "{ask}");
    }
    client.send("POST", "/v1/completions", &[], b"{").await;
    assert_eq!(client.read_to_end().await.json()["error"]["code"], 400);
    assert_eq!(server.counts().connections, 1);
}

#[tokio::test]
async fn a_request_id_comes_back_and_names_the_answer() {
    let server = fast().await;
    let mut client = Client::connect(server.addr()).await;
    let ask = json!({"model": "demo", "prompt": "a"});
    client.send_json("/v1/completions", &[("X-Request-Id", "r-1")], &ask).await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.header("x-request-id"), Some("r-1"));
    assert_eq!(answer.json()["id"], "cmpl-r-1");
}

#[tokio::test]
async fn it_stops_when_its_client_leaves() {
    let server = ModelServer::builder().words_per_second(0.001).prefill(Duration::ZERO).start().await.unwrap();
    for stream in [true, false] {
        let mut client = Client::connect(server.addr()).await;
        let ask = json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream});
        client.send_json("/v1/chat/completions", &[], &ask).await;
        server.when(|counts| counts.in_progress == 1).await;
        if stream {
            client.piece().await.unwrap();
        }
        client.leave();
        server.when(|counts| counts.in_progress == 0).await;
    }
    assert_eq!(server.counts().abandoned, 2);
    assert!(server.generated() <= 2);
}

#[tokio::test(start_paused = true)]
async fn thirty_words_take_a_second() {
    let server = ModelServer::builder().start().await.unwrap();
    let started = tokio::time::Instant::now();
    chat(&server, json!({"max_tokens": 31, "stream": true})).await;
    let took = started.elapsed();
    assert!((1.0..1.4).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_in_the_batch_waits_and_its_metrics_say_so() {
    let server = ModelServer::builder().batch(1).prefill(Duration::ZERO).start().await.unwrap();
    let ask =
        json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 30, "ignore_eos": true});
    let mut first = Client::connect(server.addr()).await;
    first.send_json("/v1/chat/completions", &[], &ask).await;
    first.piece().await.unwrap();
    let mut second = Client::connect(server.addr()).await;
    second.send_json("/v1/chat/completions", &[], &ask).await;
    assert_eq!(second.head().await.status, 200, "the head comes before its turn");
    let metrics = Client::connect(server.addr()).await.get("/metrics").await.text();
    for line in ["vllm:num_requests_running{", "vllm:num_requests_waiting{"] {
        let line = metrics.lines().find(|text| text.starts_with(line)).unwrap();
        assert!(line.ends_with(" 1.0"), "{line}");
    }
    let started = tokio::time::Instant::now();
    first.read_to_end().await;
    second.read_to_end().await;
    assert!(started.elapsed().as_secs_f64() > 1.5, "one after the other");
}

#[tokio::test(start_paused = true)]
async fn a_prompt_takes_its_time_but_for_what_was_read_before() {
    let server = ModelServer::builder().prefill_rate(100.0).prefill(Duration::ZERO).cache(1000).start().await.unwrap();
    let system = "word ".repeat(320);
    let turn = async |question: &str| {
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": question}]);
        let ask = json!({"messages": messages, "max_tokens": 1, "stream": true});
        let started = tokio::time::Instant::now();
        let mut client = Client::connect(server.addr()).await;
        client.send_json("/v1/chat/completions", &[], &ask).await;
        client.read_to_end().await;
        started.elapsed().as_secs_f64()
    };
    let (first, second) = (turn("one").await, turn("two").await);
    assert!((3.2..3.6).contains(&first), "{first}");
    assert!(second < 0.4, "{second}");
    assert_eq!(server.cached(), 320);
}
