//! `backends[].inject_usage`: a backend is asked for usage that its client did not ask for, and what it makes of that.

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Receiver, Response, Seen};
use serde_json::{Value, json};

use crate::harness::Proxy;

const PATH: &str = "/v1/chat/completions";
const EVENT: &str = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word\"}}]}\n\n";
const TIMINGS: &str = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\
    \"timings\":{\"cache_n\":3,\"prompt_n\":4,\"predicted_n\":2}}\n\n";
const USAGE: &str = "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n";

/// The status that a backend has for a request.
type Judge = fn(&Seen) -> u16;

/// A proxy before one backend, and where its records go.
struct Rig {
    proxy: Proxy,
    backend: Backend,
    receiver: Receiver,
    records: usize,
}

/// What came of one request.
struct Came {
    answer: Response,
    record: Value,
    /// The requests that the backend saw for it.
    seen: Vec<Seen>,
}

impl Rig {
    /// With a backend that streams [`EVENT`] where `judge` says 200, and refuses otherwise.
    async fn start(mode: Option<&str>, judge: Judge) -> Self {
        Self::start_with(mode, judge, EVENT).await
    }

    async fn start_with(mode: Option<&str>, judge: Judge, event: &'static str) -> Self {
        let backend = Backend::start(move |seen, mut wire| async move {
            let status = judge(&seen);
            if status != 200 {
                return wire.json(status, &json!({"error": {"message": "refused"}})).await;
            }
            wire.head(200, &[("content-type", "text/event-stream")]).await?;
            wire.chunk(event).await?;
            if is_asked(&seen) {
                wire.chunk(USAGE).await?;
            }
            wire.chunk(DONE).await?;
            wire.finish().await
        })
        .await;
        let receiver = Receiver::start().await;
        let proxy = Proxy::start(&config(&backend, &receiver, mode)).await;
        Self { proxy, backend, receiver, records: 0 }
    }

    /// Sends `body` and checks what the client, the backend and the record have of it.
    async fn ask(&mut self, body: &Value) -> Came {
        let before = self.backend.seen().len();
        let mut client = Client::connect(self.proxy.address()).await;
        client.send_json(PATH, &[("accept-encoding", "gzip")], body).await;
        let answer = client.read_to_end().await;
        assert_eq!(answer.end, BodyEnd::Complete);
        self.records += 1;
        let record = self.receiver.wait_for(self.records).await.remove(self.records - 1);
        assert_eq!(record["status_code"], answer.status, "{record}");
        let seen = self.backend.seen().split_off(before);
        assert_eq!(record["attempts"], seen.len(), "{record}");
        Came { answer, record, seen }
    }

    /// How often the backend was found to refuse it.
    async fn refusals(&self) -> f64 {
        self.proxy.metrics().await.sum("llmproxy_usage_injection_refused_total", &["backend=\"b\""])
    }
}

impl Came {
    /// The answer; of each attempt, whether usage was asked for; and who counted.
    #[track_caller]
    fn check(&self, status: u16, text: &str, asked: &[bool], source: &str) {
        assert_eq!((self.answer.status, self.answer.text().as_str()), (status, text));
        assert_eq!(self.seen.iter().map(is_asked).collect::<Vec<_>>(), asked);
        assert_eq!(self.record["usage_source"].as_str().unwrap_or("nobody"), source, "{}", self.record);
    }
}

fn config(backend: &Backend, receiver: &Receiver, mode: Option<&str>) -> String {
    let mut entry = json!({"name": "b", "url": backend.url(), "models": ["m"]});
    if let Some(mode) = mode {
        entry["inject_usage"] = mode.into();
    }
    let yaml = json!({
        "backends": [entry],
        "health_check": {"enabled": false},
        // What is asked once more is no retry.
        "routing": {"retry": {"enabled": false}},
        "usage": {"enabled": true, "reporters": [{"name": "r", "type": "webhook", "webhook": {"url": receiver.url()}}]},
    });
    yaml.to_string()
}

fn ask() -> Value {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "Say a word."}]})
}

fn is_asked(seen: &Seen) -> bool {
    seen.json()["stream_options"]["include_usage"] == true
}

/// Knows no `stream_options`, as pydantic says it.
fn strict(seen: &Seen) -> u16 {
    if seen.json()["stream_options"].is_null() { 200 } else { 422 }
}

/// Takes any request that asks for something.
fn lenient(seen: &Seen) -> u16 {
    if seen.json()["messages"] == json!([]) { 400 } else { 200 }
}

fn plain() -> String {
    format!("{EVENT}{DONE}")
}

#[tokio::test]
async fn a_strict_backend_costs_one_request_an_attempt_and_no_client_an_error() {
    let mut rig = Rig::start(None, strict).await;
    let first = rig.ask(&ask()).await;
    first.check(200, &plain(), &[true, false], "estimated");
    // A compressed stream can't lose an event; where none is to be taken out the client may have what it likes.
    let encodings: Vec<_> = first.seen.iter().map(|seen| seen.header("accept-encoding")).collect();
    assert_eq!(encodings, [Some("identity"), Some("gzip")]);
    let line = rig.proxy.logged("refuses stream_options.include_usage").await;
    assert_eq!((&line["level"], &line["backend"]), (&json!("WARN"), &json!("b")), "{line}");
    assert!(line["advice"].as_str().is_some_and(|advice| advice.contains("inject_usage: never")), "{line}");
    rig.ask(&ask()).await.check(200, &plain(), &[false], "estimated");

    let same = config(&rig.backend, &rig.receiver, None);
    rig.proxy.reload(&same, "reloaded").await;
    rig.ask(&ask()).await.check(200, &plain(), &[false], "estimated");
    let always = config(&rig.backend, &rig.receiver, Some("always"));
    rig.proxy.reload(&always, "reloaded").await;
    assert_eq!(rig.ask(&ask()).await.answer.status, 422);

    let metrics = rig.proxy.metrics().await;
    assert_eq!((rig.refusals().await, metrics.sum("llmproxy_retries_total", &[])), (1.0, 0.0));
    assert_eq!((metrics.sum("llmproxy_backend_up", &["\"b\""]), metrics.sum("llmproxy_in_flight", &[])), (1.0, 0.0));
}

#[tokio::test]
async fn a_backend_that_refuses_everything_is_not_taken_for_a_strict_one() {
    let mut rig = Rig::start(None, |_| 400).await;
    for _ in 0..2 {
        let came = rig.ask(&ask()).await;
        assert_eq!((came.answer.status, came.answer.json()["error"]["message"].as_str()), (400, Some("refused")));
        assert_eq!(came.seen.iter().map(is_asked).collect::<Vec<_>>(), [true, false]);
        assert!(came.record["usage"].is_null(), "{}", came.record);
    }
    assert_eq!(rig.refusals().await, 0.0);
    assert_eq!(rig.proxy.metrics().await.sum("llmproxy_backend_up", &["\"b\""]), 1.0);
}

#[tokio::test]
async fn a_backend_that_has_taken_it_is_asked_once_by_a_bad_request() {
    let mut rig = Rig::start(None, lenient).await;
    rig.ask(&ask()).await.check(200, &plain(), &[true], "backend");
    let mut bad = ask();
    bad["messages"] = json!([]);
    let came = rig.ask(&bad).await;
    assert_eq!((came.answer.status, came.seen.len()), (400, 1));
    rig.ask(&ask()).await.check(200, &plain(), &[true], "backend");
}

#[tokio::test]
async fn a_client_that_asks_for_usage_itself_hears_what_the_backend_says() {
    let mut rig = Rig::start(None, strict).await;
    let mut own = ask();
    own["stream_options"] = json!({"include_usage": true});
    let came = rig.ask(&own).await;
    assert_eq!((came.answer.status, came.seen.len()), (422, 1));
    let mut rig = Rig::start(Some("never"), lenient).await;
    rig.ask(&own).await.check(200, &format!("{EVENT}{USAGE}{DONE}"), &[true], "backend");
}

#[tokio::test]
async fn always_passes_every_refusal_and_never_gives_no_cause_for_one() {
    let mut rig = Rig::start(Some("always"), strict).await;
    for _ in 0..2 {
        let came = rig.ask(&ask()).await;
        assert_eq!((came.answer.status, came.seen.len()), (422, 1));
    }
    let mut rig = Rig::start(Some("never"), strict).await;
    rig.ask(&ask()).await.check(200, &plain(), &[false], "estimated");
    // A server that says it unasked is counted by what it says, and its client gets that, too.
    let mut rig = Rig::start_with(Some("never"), strict, TIMINGS).await;
    let came = rig.ask(&ask()).await;
    came.check(200, &format!("{TIMINGS}{DONE}"), &[false], "backend");
    assert_eq!((&came.record["prompt_tokens"], &came.record["completion_tokens"]), (&json!(7), &json!(2)));
}
