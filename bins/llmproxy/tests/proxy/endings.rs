//! Every way an exchange can end, over HTTP/1 and HTTP/2: what the client saw, what the backend saw, one record,
//! everything given back.

use std::net::SocketAddr;

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Receiver, Refused, Requests, Response, Wire};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    harness::{Proxy, within},
    http2_client::{Http2, Stream},
};

const PATH: &str = "/v1/chat/completions";
const KEY: &str = "sk-test-0123456789abcdef";
const EVENT: &str = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word\"}}]}\n\n";
const USAGE_EVENT: &str = "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n";
const ANSWER: &str = r#"{"id":"c1","choices":[{"message":{"content":"two words"}}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;

/// One exchange and what must have come of it.
struct Case {
    stream: bool,
    /// What backend and client do, step by step.
    script: &'static [Step],
    status: u16,
    /// How the client's body ended; `None` where the client left.
    client: Option<BodyEnd>,
    /// Whether the client's stream ended in an error event.
    error_event: bool,
    end: &'static str,
    usage: Usage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    None,
    Backend,
    Estimated(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The backend's head of a stream.
    StreamHead,
    /// An event, which the client must have before the next step.
    Event,
    HalfEvent,
    UsageEvent,
    Done,
    /// The backend's whole JSON answer, with that status.
    Json(u16),
    /// The head and half of the body of a JSON answer with a length.
    HalfJson,
    /// The other half.
    RestOfJson,
    Finish,
    /// The backend breaks its connection.
    Reset,
    /// The backend closes its connection.
    Close,
    /// The backend says nothing more.
    Stall,
    /// Nobody listens at the backend's port.
    Refuse,
    /// The client leaves, and the backend must see it.
    Leave,
    /// The proxy reads its configuration again.
    Reload,
    /// The proxy is told to stop; its grace period is over at once.
    Stop,
}

use Step::{
    Close, Done, Event, Finish, HalfEvent, HalfJson, Leave, Refuse, Reload, Reset, Stall, Stop, StreamHead, UsageEvent,
};

/// A client, whatever it speaks.
trait Asks: Sized {
    /// Connects and asks.
    async fn ask(address: SocketAddr, headers: &[(&str, &str)], json: &Value) -> Self;
    async fn status(&mut self) -> u16;
    async fn expect(&mut self, piece: &str);
    async fn rest(&mut self) -> Response;
    /// Closes its connection, or resets its stream where that goes without.
    fn leave(self);
}

impl Asks for Client {
    async fn ask(address: SocketAddr, headers: &[(&str, &str)], json: &Value) -> Self {
        let mut client = Self::connect(address).await;
        client.send_json(PATH, headers, json).await;
        client
    }

    async fn status(&mut self) -> u16 {
        self.head().await.status
    }

    async fn expect(&mut self, piece: &str) {
        self.expect_piece(piece).await;
    }

    async fn rest(&mut self) -> Response {
        self.read_to_end().await
    }

    fn leave(self) {
        Client::leave(self);
    }
}

impl Asks for Stream {
    async fn ask(address: SocketAddr, headers: &[(&str, &str)], json: &Value) -> Self {
        Http2::connect(address).await.post(PATH, headers, json).await
    }

    async fn status(&mut self) -> u16 {
        self.head().await
    }

    async fn expect(&mut self, piece: &str) {
        self.expect_piece(piece).await;
    }

    async fn rest(&mut self) -> Response {
        self.read_to_end().await
    }

    fn leave(self) {
        Stream::leave(self);
    }
}

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        mod http1 {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                check::<Client>($case).await;
            })*
        }

        mod http2 {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                check::<Stream>($case).await;
            })*
        }
    };
}

cases! {
    a_stream_is_complete: Case {
        stream: true, script: &[StreamHead, Event, Event, UsageEvent, Done, Finish],
        status: 200, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::Backend,
    };
    a_stream_without_usage_is_estimated: Case {
        stream: true, script: &[StreamHead, Event, Event, Event, Done, Finish],
        status: 200, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::Estimated(3),
    };
    a_stream_without_a_terminal_event_is_complete: Case {
        stream: true, script: &[StreamHead, Event, Finish],
        status: 200, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::Estimated(1),
    };
    a_stream_goes_on_over_a_reload: Case {
        stream: true, script: &[StreamHead, Event, Reload, Event, UsageEvent, Done, Finish],
        status: 200, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::Backend,
    };
    a_plain_answer_goes_on_over_a_reload: Case {
        stream: false, script: &[HalfJson, Reload, Step::RestOfJson, Finish],
        status: 200, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::Backend,
    };
    a_plain_answer_is_complete: Case {
        stream: false, script: &[Step::Json(200)],
        status: 200, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::Backend,
    };
    a_backend_s_own_refusal_passes: Case {
        stream: true, script: &[Step::Json(400)],
        status: 400, client: Some(BodyEnd::Complete), error_event: false, end: "complete", usage: Usage::None,
    };
    a_backend_s_own_failure_passes: Case {
        stream: false, script: &[Step::Json(500)],
        status: 500, client: Some(BodyEnd::Complete), error_event: false, end: "backend_failed", usage: Usage::None,
    };
    nobody_listens_for_a_stream: Case {
        stream: true, script: &[Refuse],
        status: 502, client: Some(BodyEnd::Complete), error_event: false, end: "backend_failed", usage: Usage::None,
    };
    nobody_listens_for_a_plain_answer: Case {
        stream: false, script: &[Refuse],
        status: 502, client: Some(BodyEnd::Complete), error_event: false, end: "backend_failed", usage: Usage::None,
    };
    the_backend_breaks_before_the_head_of_a_stream: Case {
        stream: true, script: &[Reset],
        status: 502, client: Some(BodyEnd::Complete), error_event: false, end: "backend_failed", usage: Usage::None,
    };
    the_backend_closes_before_the_head_of_a_plain_answer: Case {
        stream: false, script: &[Close],
        status: 502, client: Some(BodyEnd::Complete), error_event: false, end: "backend_failed", usage: Usage::None,
    };
    the_backend_breaks_between_events: Case {
        stream: true, script: &[StreamHead, Event, Event, Reset],
        status: 200, client: Some(BodyEnd::Truncated), error_event: true, end: "backend_failed", usage: Usage::Estimated(2),
    };
    the_backend_closes_between_events: Case {
        stream: true, script: &[StreamHead, Event, Close],
        status: 200, client: Some(BodyEnd::Truncated), error_event: true, end: "backend_failed", usage: Usage::Estimated(1),
    };
    the_backend_breaks_inside_an_event: Case {
        stream: true, script: &[StreamHead, Event, HalfEvent, Close],
        status: 200, client: Some(BodyEnd::Truncated), error_event: false, end: "backend_failed", usage: Usage::Estimated(1),
    };
    the_backend_breaks_inside_a_plain_answer: Case {
        stream: false, script: &[HalfJson, Close],
        status: 200, client: Some(BodyEnd::Truncated), error_event: false, end: "backend_failed", usage: Usage::Estimated(0),
    };
    the_backend_never_answers_a_stream: Case {
        stream: true, script: &[Stall],
        status: 504, client: Some(BodyEnd::Complete), error_event: false, end: "timeout", usage: Usage::Estimated(0),
    };
    the_backend_never_answers_a_plain_request: Case {
        stream: false, script: &[Stall],
        status: 504, client: Some(BodyEnd::Complete), error_event: false, end: "timeout", usage: Usage::Estimated(0),
    };
    the_backend_stalls_after_the_head: Case {
        stream: true, script: &[StreamHead, Stall],
        status: 200, client: Some(BodyEnd::Truncated), error_event: true, end: "timeout", usage: Usage::Estimated(0),
    };
    the_backend_stalls_between_events: Case {
        stream: true, script: &[StreamHead, Event, Stall],
        status: 200, client: Some(BodyEnd::Truncated), error_event: true, end: "timeout", usage: Usage::Estimated(1),
    };
    the_backend_stalls_inside_a_plain_answer: Case {
        stream: false, script: &[HalfJson, Stall],
        status: 200, client: Some(BodyEnd::Truncated), error_event: false, end: "timeout", usage: Usage::Estimated(0),
    };
    the_client_leaves_before_the_head_of_a_stream: Case {
        stream: true, script: &[Leave],
        status: 499, client: None, error_event: false, end: "client_gone", usage: Usage::Estimated(0),
    };
    the_client_leaves_before_the_head_of_a_plain_answer: Case {
        stream: false, script: &[Leave],
        status: 499, client: None, error_event: false, end: "client_gone", usage: Usage::Estimated(0),
    };
    the_client_leaves_before_the_first_byte: Case {
        stream: true, script: &[StreamHead, Leave],
        status: 200, client: None, error_event: false, end: "client_gone", usage: Usage::Estimated(0),
    };
    the_client_leaves_in_the_middle_of_a_stream: Case {
        stream: true, script: &[StreamHead, Event, Event, Leave],
        status: 200, client: None, error_event: false, end: "client_gone", usage: Usage::Estimated(2),
    };
    the_client_leaves_in_the_middle_of_a_plain_answer: Case {
        stream: false, script: &[HalfJson, Leave],
        status: 200, client: None, error_event: false, end: "client_gone", usage: Usage::Estimated(0),
    };
    the_client_leaves_after_the_terminal_event: Case {
        stream: true, script: &[StreamHead, Event, UsageEvent, Done, Leave],
        status: 200, client: None, error_event: false, end: "complete", usage: Usage::Backend,
    };
    the_proxy_stops_before_the_head: Case {
        stream: true, script: &[Stop],
        status: 503, client: None, error_event: false, end: "shutdown", usage: Usage::Estimated(0),
    };
    the_proxy_stops_in_the_middle_of_a_stream: Case {
        stream: true, script: &[StreamHead, Event, Stop],
        status: 200, client: Some(BodyEnd::Truncated), error_event: false, end: "shutdown", usage: Usage::Estimated(1),
    };
    the_proxy_stops_in_the_middle_of_a_plain_answer: Case {
        stream: false, script: &[HalfJson, Stop],
        status: 200, client: Some(BodyEnd::Truncated), error_event: false, end: "shutdown", usage: Usage::Estimated(0),
    };
}

async fn check<C: Asks>(case: Case) {
    let receiver = Receiver::start().await;
    let (backend, mut requests) = Backend::stepped().await;
    let refused = (case.script == [Refuse]).then(Refused::new);
    let yaml = config(&refused.as_ref().map_or(backend.url(), Refused::url), &receiver.url());
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Some(ask::<C>(proxy.address(), case.stream).await);
    let stopped = play(&case, &mut proxy, &yaml, &mut client, &mut requests, refused.as_ref()).await;

    // What the client saw.
    if let (Some(expected), Some(client)) = (case.client, &mut client) {
        let answer = client.rest().await;
        assert_eq!((answer.status, answer.end), (case.status, expected), "{}", answer.text());
        let last = answer.pieces.last().map(|piece| String::from_utf8_lossy(piece).into_owned()).unwrap_or_default();
        assert_eq!(last.contains("\"error\"") && last.starts_with("data: "), case.error_event, "{last}");
        assert!(!answer.text().contains("[DONE]") || case.script.contains(&Done), "an invented [DONE]");
        if answer.status >= 500 && !case.script.contains(&Step::Json(500)) {
            assert!(answer.json()["error"]["message"].is_string(), "{}", answer.text());
        }
    }

    // One line in the access log, and one record that says the same.
    let line = proxy.ended().await;
    assert_eq!((&line["status_code"], &line["end"]), (&json!(case.status), &json!(case.end)), "{line}");
    let records = receiver.wait_for(1).await;
    let record = &records[0];
    assert_eq!((&record["status_code"], &record["end"]), (&json!(case.status), &json!(case.end)), "{record}");
    assert_eq!(record["request_id"], line["request_id"]);
    assert_eq!(record["is_stream"], case.stream);
    check_usage(record, case.usage);

    if stopped {
        assert!(proxy.exit().await.success());
        assert_eq!(receiver.bodies().len(), 1);
        return;
    }

    // Everything was given back: the one permit that the key has, the backend's place, the tokens. The next exchange
    // passes, and its record is the second.
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_in_flight", &[]), 0.0);
    if refused.is_some() {
        // A refused connection takes the backend out: nobody is asked, so there is no second record, and no permit or
        // token was kept by the first.
        let second = second_at(proxy.address()).await;
        assert_eq!(second.status, 503, "{}", second.text());
        // It had passed the limits, so it says what is left of them.
        assert!(second.header("x-ratelimit-remaining-tokens").is_some());
        proxy.ended().await;
        assert_eq!(receiver.bodies().len(), 1);
        assert_eq!(proxy.metrics().await.sum("llmproxy_exchanges_total", &[]), 1.0);
        return;
    }
    let answer = tokio::spawn({
        let address = proxy.address();
        async move { second_at(address).await }
    });
    let (_, wire) = requests.next().await;
    wire.json(200, &serde_json::from_str(ANSWER).expect("JSON")).await.expect("the proxy reads");
    let second = answer.await.expect("no panic");
    assert_eq!(second.status, 200, "{}", second.text());
    let used: u64 = receiver.wait_for(2).await.iter().filter_map(|record| record["total_tokens"].as_u64()).sum();
    let left = second.header("x-ratelimit-remaining-tokens").expect("limits are on").parse::<u64>().expect("a number");
    // At the second's head its own reservation is still out: 64 asked for and its prompt.
    assert!(left <= 100_000 && left >= 100_000 - 64 - 100 - used, "{left} tokens left, {used} used");
    assert_eq!(receiver.wait_for(2).await.len(), 2);
    let metrics = proxy.metrics().await;
    let exchanges = metrics.sum("llmproxy_exchanges_total", &[]);
    assert_eq!((exchanges, metrics.sum("llmproxy_in_flight", &[])), (2.0, 0.0));
}

/// Plays the script; `true` when the proxy was stopped.
async fn play<C: Asks>(
    case: &Case,
    proxy: &mut Proxy,
    yaml: &str,
    client: &mut Option<C>,
    requests: &mut Requests,
    refused: Option<&Refused>,
) -> bool {
    if refused.is_some() {
        return false;
    }
    let (seen, wire) = requests.next().await;
    assert_eq!(seen.path, PATH);
    assert_eq!(seen.header("authorization"), None, "the client's key must not reach the backend");
    let mut wire = Some(wire);
    let mut stopped = false;
    for step in case.script {
        match step {
            StreamHead => {
                let headers = [("content-type", "text/event-stream; charset=utf-8")];
                open(&mut wire).head(200, &headers).await.expect("the proxy reads");
                assert_eq!(there(client).status().await, 200);
            }
            Event => {
                open(&mut wire).chunk(EVENT).await.expect("the proxy reads");
                there(client).expect(EVENT).await;
            }
            HalfEvent => open(&mut wire).chunk(&EVENT[..EVENT.len() / 2]).await.expect("the proxy reads"),
            // Asked for by the proxy, so taken out again: the client sees nothing of it.
            UsageEvent => open(&mut wire).chunk(USAGE_EVENT).await.expect("the proxy reads"),
            Done => {
                open(&mut wire).chunk(DONE).await.expect("the proxy reads");
                there(client).expect(DONE).await;
            }
            Step::Json(status) => {
                let body =
                    if *status == 200 { ANSWER.to_owned() } else { json!({"error": {"message": "no"}}).to_string() };
                let headers = [("content-type", "application/json")];
                let wire = wire.take().expect("still open");
                wire.respond(*status, &headers, &body).await.expect("the proxy reads");
                // A refusal may be for the usage that the proxy asked for: it asks once more without, and is told the same.
                if case.stream && *status == 400 {
                    requests.next().await.1.respond(*status, &headers, &body).await.expect("the proxy reads");
                }
            }
            HalfJson => {
                let length = ANSWER.len().to_string();
                let headers = [("content-type", "application/json"), ("content-length", &*length)];
                let wire = open(&mut wire);
                wire.head(200, &headers).await.expect("the proxy reads");
                wire.raw(&ANSWER[..20]).await.expect("the proxy reads");
                there(client).expect(&ANSWER[..20]).await;
            }
            Step::RestOfJson => open(&mut wire).raw(&ANSWER[20..]).await.expect("the proxy reads"),
            Finish => wire.take().expect("still open").finish().await.expect("the proxy reads"),
            Reset | Close => {
                // Before the head the proxy asks once more, as the configuration says, and is told the same.
                let again = case.status == 502;
                break_off(*step, wire.take().expect("still open")).await;
                if again {
                    break_off(*step, requests.next().await.1).await;
                }
            }
            Stall => {}
            Leave => {
                client.take().expect("still there").leave();
                within("the backend to see the client leave", open(&mut wire).client_gone()).await;
            }
            Reload => proxy.reload(yaml, "reloaded").await,
            Stop => {
                proxy.signal(Signal::TERM);
                within("the backend to see the proxy stop", open(&mut wire).client_gone()).await;
                stopped = true;
            }
            Refuse => {}
        }
    }
    if let Some(mut wire) = wire.take() {
        // A backend that stalls is let go by the proxy.
        within("the backend to be let go", wire.client_gone()).await;
    }
    stopped
}

async fn break_off(step: Step, wire: Wire) {
    if step == Reset { wire.reset() } else { wire.close().await }
}

fn open(wire: &mut Option<Wire>) -> &mut Wire {
    wire.as_mut().expect("still open")
}

fn there<C>(client: &mut Option<C>) -> &mut C {
    client.as_mut().expect("still there")
}

fn check_usage(record: &Value, expected: Usage) {
    match expected {
        Usage::None => assert!(record["usage"].is_null(), "{record}"),
        Usage::Backend => {
            assert_eq!(record["usage_source"], "backend", "{record}");
            assert_eq!((&record["prompt_tokens"], &record["completion_tokens"]), (&json!(7), &json!(2)), "{record}");
        }
        Usage::Estimated(completion) => {
            assert_eq!(record["usage_source"], "estimated", "{record}");
            assert!(record["prompt_tokens"].as_u64() > Some(0), "{record}");
            // Of a plain answer that broke off, only the size is known.
            if record["is_stream"] == true {
                assert_eq!(record["completion_tokens"], completion, "{record}");
            }
        }
    }
}

async fn ask<C: Asks>(address: SocketAddr, stream: bool) -> C {
    let body = json!({
        "model": "any", "stream": stream, "max_tokens": 64,
        "messages": [{"role": "user", "content": "Say two words, please."}]
    });
    C::ask(address, &[("authorization", &format!("Bearer {KEY}"))], &body).await
}

async fn second_at(address: SocketAddr) -> Response {
    ask::<Client>(address, false).await.read_to_end().await
}

/// One key that may do one thing at a time, one backend, short limits of time.
fn config(backend: &str, receiver: &str) -> String {
    format!(
        r#"
server:
  shutdown_timeout: 100ms
backends:
  - url: "{backend}"
    models: [any]
auth:
  enabled: true
  pipeline:
    - name: file
      type: static
      static:
        keys: [{{key: "{KEY}", name: test, user_id: u1}}]
rate_limit:
  enabled: true
  per_key:
    max_concurrent: 1
    tokens_per_minute: 100000
routing:
  timeout: 1s
  gap_timeout: 1s
  retry:
    max_retries: 1
    initial_wait: 10ms
health_check:
  enabled: false
usage:
  enabled: true
  reporters:
    - name: test
      type: webhook
      webhook:
        url: "{receiver}"
"#
    )
}
