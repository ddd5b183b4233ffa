//! The layer and the reporters, from the request to the receiver.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod batches;
#[path = "../common/mod.rs"]
mod common;
mod destinations;
mod outages;
mod reload;
#[path = "../../src/scratch.rs"]
mod scratch;
mod strict;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{BoxError, Exchange, HttpClient, RequestBody};
use llmproxy_testkit::{Behaviour, Client, Receiver};
use llmproxy_usage::{
    LedgerError, Opening, OpeningLayer, Reporters, Usage, UsageConfig, UsageError, UsageLayer, to_json,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

use common::record;
use scratch::Folder;

type Answers = Arc<Mutex<VecDeque<u16>>>;
type Sent = Arc<Mutex<Vec<Request<Bytes>>>>;

/// A client whose receivers answer these statuses, then 200; 0 stands for a connection that fails, 1 for no answer.
fn client(answers: &[u16]) -> (HttpClient, Sent) {
    let answers: Answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
    let sent = Sent::default();
    let theirs = sent.clone();
    let client = HttpClient::new(service_fn(move |request: Request<Bytes>| {
        theirs.lock().unwrap().push(request);
        let status = answers.lock().unwrap().pop_front().unwrap_or(200);
        async move {
            match status {
                0 => Err::<_, BoxError>("connection refused".into()),
                1 => std::future::pending().await,
                429 => Ok(Response::builder().status(429).header("retry-after", "20").body(Bytes::new())?),
                status => Ok(Response::builder().status(status).body(Bytes::new())?),
            }
        }
    }));
    (client, sent)
}

/// A client that asks over real connections.
fn real_client() -> HttpClient {
    HttpClient::new(service_fn(|request: Request<Bytes>| async move {
        let addr = request.uri().authority().unwrap().as_str().parse()?;
        let mut client = Client::try_connect(addr).await?;
        let headers: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        client.send(request.method().as_str(), request.uri().path(), &headers, request.body()).await;
        client.try_head().await?;
        let answer = client.read_to_end().await;
        let mut response = Response::builder().status(answer.status);
        if let Some(wait) = answer.header("retry-after") {
            response = response.header("retry-after", wait);
        }
        Ok::<_, BoxError>(response.body(Bytes::new())?)
    }))
}

fn config(extra: Value) -> UsageConfig {
    let webhook = json!({"url": "http://receiver/usage", "headers": {"authorization": "Bearer t"}});
    let mut config = json!({"enabled": true, "reporters": [{"name": "billing", "webhook": webhook}]});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn request(body: impl Into<Bytes>) -> (Request<RequestBody>, Arc<Exchange>) {
    let mut request = Request::new(RequestBody::whole(body));
    let exchange = Exchange::of(request.extensions_mut());
    (request, exchange)
}

/// What the meter does at the end. Returns the record's id.
fn end(exchange: &Exchange) -> String {
    let record = record();
    exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
    record.request_id.to_string()
}

async fn ok(_: Request<RequestBody>) -> Result<Response<()>, BoxError> {
    Ok(Response::new(()))
}

/// Sends a request through the layer.
async fn admit(reporters: &Arc<Reporters>, body: &'static str) -> Result<Arc<Exchange>, BoxError> {
    let (request, exchange) = request(body);
    UsageLayer::new(reporters.clone()).layer(service_fn(ok)).oneshot(request).await?;
    Ok(exchange)
}

/// Reporters with a ledger of their own.
struct Started {
    reporters: Arc<Reporters>,
    folder: Folder,
}

impl Started {
    async fn new(client: HttpClient, extra: Value) -> Self {
        let started = Self { reporters: Reporters::new(client), folder: Folder::new() };
        started.apply(config(extra)).await;
        started
    }

    /// A new configuration, of the same ledger.
    async fn apply(&self, mut config: UsageConfig) {
        config.ledger.path = self.folder.ledger();
        // Another test may be starting a process at the moment, which has the lock of a ledger that was closed until it is
        // another program.
        let started = Instant::now();
        while let Err(error) = self.reporters.open(&config).await {
            let is_soon = started.elapsed() < Duration::from_secs(10);
            assert!(matches!(error, LedgerError::InUse { .. }) && is_soon, "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.reporters.apply(&config);
    }

    /// The process ends in good order, and another begins.
    async fn restart(mut self, client: HttpClient, extra: Value) -> Self {
        self.reporters.close().await;
        self.reporters = Reporters::new(client);
        self.apply(config(extra)).await;
        self
    }

    async fn admit(&self) -> Result<Arc<Exchange>, BoxError> {
        admit(&self.reporters, "{}").await
    }

    /// Ends so many requests, and says which records there were.
    async fn end_some(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(end(&self.admit().await.unwrap()));
        }
        ids
    }

    /// All is delivered, in time.
    async fn flush(&self) {
        assert_eq!(self.reporters.flush(LONG).await, 0);
    }
}

/// Waits until `check` holds, ten seconds at most.
async fn eventually(what: &str, check: impl Fn() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < Duration::from_secs(10), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The ids of the records that were sent to `host`, one by one.
fn sent_to(sent: &Sent, host: &str) -> Vec<String> {
    let sent = sent.lock().unwrap();
    let theirs = sent.iter().filter(|request| request.uri().host() == Some(host));
    let id = |request: &Request<Bytes>| {
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        body["request_id"].as_str().unwrap().to_owned()
    };
    theirs.map(id).collect()
}

fn bodies(sent: &Sent) -> Vec<Value> {
    sent.lock().unwrap().iter().map(|request| serde_json::from_slice(request.body()).unwrap()).collect()
}

/// Nothing takes that long.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_record_is_reported_as_configured() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, json!({})).await;
    let exchange = started.admit().await.unwrap();
    assert_eq!(started.reporters.pending(), 0);
    end(&exchange);
    assert_eq!(started.reporters.pending(), 1);
    started.flush().await;
    let sent = sent.lock().unwrap();
    assert_eq!((sent.len(), sent[0].method().as_str()), (1, "POST"));
    assert_eq!(sent[0].uri(), "http://receiver/usage");
    assert_eq!(sent[0].headers()["authorization"], "Bearer t");
    assert_eq!(sent[0].headers()["content-type"], "application/json");
}

#[tokio::test]
async fn prompts_are_sent_only_where_they_are_asked_for() {
    let (client, sent) = client(&[]);
    let with = json!({"url": "http://a/", "include_request_body": true});
    let without = json!({"url": "http://b/"});
    let both = json!([{"name": "a", "webhook": with}, {"name": "b", "webhook": without}]);
    let started = Started::new(client, json!({ "reporters": both })).await;
    end(&admit(&started.reporters, r#"{"model":"m","messages":[]}"#).await.unwrap());
    started.flush().await;
    let bodies = bodies(&sent);
    assert_eq!(bodies.len(), 2);
    for (request, body) in sent.lock().unwrap().iter().zip(bodies) {
        let expected = (request.uri().host() == Some("a")).then(|| json!({"model": "m", "messages": []}));
        assert_eq!(body.get("request_body"), expected.as_ref());
    }
}

#[tokio::test]
async fn the_bytes_are_those_of_the_tree_and_hold_a_prompt_that_no_receiver_chokes_on() {
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    let check = async |body: String, expected: Option<Value>| {
        let (client, sent) = client(&[]);
        let webhook = json!({"url": "http://a/", "include_request_body": true});
        let started = Started::new(client, json!({"reporters": [{ "webhook": webhook }]})).await;
        let (request, exchange) = request(body);
        UsageLayer::new(started.reporters.clone()).layer(service_fn(ok)).oneshot(request).await.unwrap();
        let record = record();
        exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
        started.flush().await;
        let mut tree = to_json(&record);
        if let Some(body) = expected {
            tree["request_body"] = body;
        }
        assert_eq!(sent.lock().unwrap()[0].body(), &tree.to_string());
    };
    check(r#"{"b": [1, 2.50], "a": "\u00e9"}"#.to_owned(), Some(json!({"a": "é", "b": [1, 2.5]}))).await;
    // As one string, or a client could keep its prompt to itself.
    for odd in [r#"{"a": "\ud800"}"#, r#"{"a": 1e999}"#, &deep, "model=m"] {
        check(odd.to_owned(), Some(json!(odd))).await;
    }
    check(String::new(), None).await;
}

#[tokio::test]
async fn failures_that_may_pass_are_tried_again_in_order() {
    let (client, sent) = client(&[500, 0]);
    let started = Started::new(client, json!({})).await;
    let ids = started.end_some(3).await;
    started.flush().await;
    let expected = [&ids[0], &ids[0], &ids[0], &ids[1], &ids[2]];
    assert_eq!(sent_to(&sent, "receiver").iter().collect::<Vec<_>>(), expected);
    let bodies = bodies(&sent);
    assert!(bodies[..3].iter().all(|body| body == &bodies[0]), "the same record each time");
}

#[tokio::test]
async fn what_a_receiver_refuses_is_given_up() {
    let check = async |answers: &[u16], tries: usize| {
        let (client, sent) = client(answers);
        let started = Started::new(client, json!({})).await;
        started.end_some(1).await;
        started.flush().await;
        assert_eq!(sent.lock().unwrap().len(), tries, "{answers:?}");
        // It is not kept for later, either.
        let (other, sent) = crate::client(&[]);
        let started = started.restart(other, json!({})).await;
        started.flush().await;
        assert_eq!(sent.lock().unwrap().len(), 0, "{answers:?}");
    };
    check(&[400], 1).await;
    check(&[500, 422], 2).await;
}

/// Two reporters: `a` fails, and `b` takes all.
fn one_fails() -> (HttpClient, Sent) {
    let sent = Sent::default();
    let theirs = sent.clone();
    let client = HttpClient::new(service_fn(move |request: Request<Bytes>| {
        let status = if request.uri().host() == Some("a") { 503 } else { 200 };
        theirs.lock().unwrap().push(request);
        async move { Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::new())?) }
    }));
    (client, sent)
}

fn two() -> Value {
    json!({"reporters": [
        {"name": "a", "webhook": {"url": "http://a/"}}, {"name": "b", "webhook": {"url": "http://b/"}},
    ]})
}

#[tokio::test]
async fn a_reporter_that_fails_for_ever_costs_the_other_nothing_and_loses_nothing() {
    let (failing, sent) = one_fails();
    let started = Started::new(failing, two()).await;
    let mut ids = started.end_some(50).await;
    eventually("b has all", || sent_to(&sent, "b").len() == 50).await;
    assert_eq!(sent_to(&sent, "b"), ids, "in their order");
    assert!(sent_to(&sent, "a").iter().all(|id| *id == ids[0]), "the first is tried, and the others wait for it");
    eventually("it is known", || started.reporters.pending() == 50).await;
    // All of that is there for it when it is mended.
    let (mended, sent) = client(&[]);
    let started = started.restart(mended, two()).await;
    ids.extend(started.end_some(1).await);
    started.flush().await;
    assert_eq!(sent_to(&sent, "a"), ids);
    assert_eq!(sent_to(&sent, "b"), ids[50..]);
}

#[tokio::test]
async fn a_request_without_room_for_its_record_is_refused_before_a_backend_is_asked() {
    let (client, _) = client(&[]);
    let started = Started::new(client, json!({"queue_size": 2, "admit_timeout": "100ms"})).await;
    let first = started.admit().await.unwrap();
    let _second = started.admit().await.unwrap();
    let begun = Instant::now();
    let layer = UsageLayer::new(started.reporters.clone());
    let mut never = layer.layer(service_fn(|_| async { Err::<Response<()>, BoxError>("it was asked".into()) }));
    let error = never.call(request("{}").0).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&UsageError::Full));
    assert!(begun.elapsed() >= Duration::from_millis(100));
    // An end makes room as soon as it is written; a request may wait for that.
    let layer = UsageLayer::new(started.reporters.clone()).layer(service_fn(ok));
    started.apply(config(json!({"queue_size": 2, "admit_timeout": "10s"}))).await;
    let (response, _) = tokio::join!(layer.oneshot(request("{}").0), async { end(&first) });
    response.unwrap();
}

#[tokio::test]
async fn a_request_without_a_record_gives_its_place_back() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, json!({"queue_size": 1, "admit_timeout": "10s"})).await;
    for _ in 0..3 {
        // Refused further in, or nothing to count: the sink is dropped.
        started.admit().await.unwrap();
    }
    let meter_dropped = started.admit().await.unwrap();
    drop(meter_dropped.take_sinks());
    started.admit().await.unwrap();
    // Nobody waits for a record of those.
    started.flush().await;
    assert_eq!(sent.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_flush_that_is_out_of_time_says_what_is_left() {
    let (client, _) = client(&[1; 100]);
    let started = Started::new(client, json!({})).await;
    started.end_some(12).await;
    let begun = Instant::now();
    assert_eq!(started.reporters.flush(Duration::from_millis(200)).await, 12);
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_flush_waits_for_each_record_that_was_handed_over_before() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, json!({})).await;
    for count in 1..=100 {
        started.end_some(1).await;
        started.flush().await;
        assert_eq!(sent.lock().unwrap().len(), count);
    }
}

#[tokio::test]
async fn a_sink_that_is_called_twice_reports_once() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, json!({})).await;
    let exchange = started.admit().await.unwrap();
    let sinks = exchange.take_sinks();
    for _ in 0..2 {
        sinks[0].record(&record());
    }
    started.flush().await;
    assert_eq!(sent.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_real_receiver_has_every_record_in_spite_of_failures() {
    let receiver = Receiver::start().await;
    receiver.behave_for(1, Behaviour::Reset);
    let reporter = json!([{"webhook": {"url": receiver.url(), "headers": {"X-Team": "a"}}}]);
    let started = Started::new(real_client(), json!({ "reporters": reporter })).await;
    started.end_some(3).await;
    let bodies = receiver.wait_for(3).await;
    assert_eq!(bodies[0]["key_name"], "alice");
    started.flush().await;
    let seen = receiver.backend().seen();
    assert_eq!((seen.len(), seen[0].path.as_str(), seen[0].header("x-team")), (4, "/usage", Some("a")));
}

#[test]
fn services_can_be_shared() {
    fn check<T: Clone + Send + Sync>() {}
    check::<Usage<()>>();
    check::<UsageLayer>();
    check::<Opening<()>>();
    check::<OpeningLayer>();
    check::<Arc<Reporters>>();
}
