//! The layer and the reporters, from the request to the receiver.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod batches;
#[path = "../common/mod.rs"]
mod common;
mod destinations;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{BoxError, Exchange, HttpClient, RequestBody};
use llmproxy_testkit::{Behaviour, Client, Receiver};
use llmproxy_usage::{Reporters, Usage, UsageConfig, UsageError, UsageLayer, to_json};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

use common::record;

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

/// What the meter does at the end.
fn end(exchange: &Exchange) {
    let record = record();
    exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
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

fn bodies(sent: &Sent) -> Vec<Value> {
    sent.lock().unwrap().iter().map(|request| serde_json::from_slice(request.body()).unwrap()).collect()
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_record_is_reported_as_configured() {
    let (client, sent) = client(&[]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    let exchange = admit(&reporters, "{}").await.unwrap();
    assert_eq!(reporters.pending(), 0);
    end(&exchange);
    assert_eq!(reporters.flush(LONG).await, 0);
    let sent = sent.lock().unwrap();
    assert_eq!((sent.len(), sent[0].method().as_str()), (1, "POST"));
    assert_eq!(sent[0].uri(), "http://receiver/usage");
    assert_eq!(sent[0].headers()["authorization"], "Bearer t");
    assert_eq!(sent[0].headers()["content-type"], "application/json");
}

#[tokio::test(start_paused = true)]
async fn prompts_are_sent_only_where_they_are_asked_for() {
    let (client, sent) = client(&[]);
    let reporters = Reporters::new(client);
    let with = json!({"url": "http://a/", "include_request_body": true});
    let without = json!({"url": "http://b/"});
    let both = json!([{"name": "a", "webhook": with}, {"name": "b", "webhook": without}]);
    reporters.apply(&config(json!({ "reporters": both })));
    end(&admit(&reporters, r#"{"model":"m","messages":[]}"#).await.unwrap());
    assert_eq!(reporters.flush(LONG).await, 0);
    let bodies = bodies(&sent);
    for (request, body) in sent.lock().unwrap().iter().zip(bodies) {
        let expected = (request.uri().host() == Some("a")).then(|| json!({"model": "m", "messages": []}));
        assert_eq!(body.get("request_body"), expected.as_ref());
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_are_those_of_the_tree_and_hold_no_prompt_that_a_receiver_may_choke_on() {
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    let check = async |body: String, expected: Option<Value>| {
        let (client, sent) = client(&[]);
        let reporters = Reporters::new(client);
        let webhook = json!({"url": "http://a/", "include_request_body": true});
        reporters.apply(&config(json!({"reporters": [{ "webhook": webhook }]})));
        let (request, exchange) = request(body);
        UsageLayer::new(reporters.clone()).layer(service_fn(ok)).oneshot(request).await.unwrap();
        let record = record();
        exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
        assert_eq!(reporters.flush(LONG).await, 0);
        let mut tree = to_json(&record);
        if let Some(body) = expected {
            tree["request_body"] = body;
        }
        assert_eq!(sent.lock().unwrap()[0].body(), &tree.to_string());
    };
    check(r#"{"b": [1, 2.50], "a": "\u00e9"}"#.to_owned(), Some(json!({"a": "é", "b": [1, 2.5]}))).await;
    for bad in [r#"{"a": "\ud800"}"#, &deep, "model=m"] {
        check(bad.to_owned(), None).await;
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_may_pass_are_tried_again() {
    let (client, sent) = client(&[500, 0, 1]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    let started = Instant::now();
    end(&admit(&reporters, "{}").await.unwrap());
    assert_eq!(reporters.pending(), 1);
    assert_eq!(reporters.flush(LONG).await, 0);
    let bodies = bodies(&sent);
    assert_eq!(bodies.len(), 4);
    assert!(bodies.iter().all(|body| body == &bodies[0]), "the same record each time");
    // Three waits of half to one, doubled, and one answer that did not come for three seconds.
    let took = started.elapsed().as_secs_f64();
    assert!((4.75..6.6).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_patience_gets_it() {
    let (client, sent) = client(&[429]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    let started = Instant::now();
    end(&admit(&reporters, "{}").await.unwrap());
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(sent.lock().unwrap().len(), 2);
    assert_eq!(started.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn what_a_receiver_refuses_is_given_up() {
    let check = async |answers: &[u16], tries: usize| {
        let (client, sent) = client(answers);
        let reporters = Reporters::new(client);
        reporters.apply(&config(json!({})));
        end(&admit(&reporters, "{}").await.unwrap());
        assert_eq!(reporters.flush(LONG).await, 0);
        assert_eq!(sent.lock().unwrap().len(), tries, "{answers:?}");
    };
    check(&[400], 1).await;
    check(&[500, 401], 2).await;
    check(&[500; 9], 4).await;
}

#[tokio::test(start_paused = true)]
async fn one_record_that_waits_does_not_hold_up_the_others() {
    let (client, sent) = client(&[429]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    for _ in 0..20 {
        end(&admit(&reporters, "{}").await.unwrap());
    }
    assert_eq!(reporters.flush(Duration::from_secs(1)).await, 1);
    assert_eq!(sent.lock().unwrap().len(), 20);
    assert_eq!(reporters.flush(LONG).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_room_for_its_record_is_refused_before_a_backend_is_asked() {
    let (client, _) = client(&[]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({"queue_size": 2})));
    let first = admit(&reporters, "{}").await.unwrap();
    let _second = admit(&reporters, "{}").await.unwrap();
    let started = Instant::now();
    let layer = UsageLayer::new(reporters.clone());
    let mut never = layer.layer(service_fn(|_| async { Err::<Response<()>, BoxError>("it was asked".into()) }));
    let error = never.call(request("{}").0).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&UsageError::Full));
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    // An end makes room.
    end(&first);
    admit(&reporters, "{}").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_room_that_comes_in_time() {
    let (client, _) = client(&[]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({"queue_size": 1})));
    let first = admit(&reporters, "{}").await.unwrap();
    let waiting = tokio::spawn({
        let reporters = reporters.clone();
        async move { admit(&reporters, "{}").await.map(|_| Instant::now()) }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let freed = Instant::now();
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap(), freed);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_record_gives_its_place_back() {
    let (client, sent) = client(&[]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({"queue_size": 1, "admit_timeout": "0s"})));
    for _ in 0..3 {
        // Refused further in, or nothing to count: the sink is dropped.
        admit(&reporters, "{}").await.unwrap();
    }
    let meter_dropped = admit(&reporters, "{}").await.unwrap();
    drop(meter_dropped.take_sinks());
    admit(&reporters, "{}").await.unwrap();
    assert_eq!((reporters.pending(), sent.lock().unwrap().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn places_of_other_reporters_are_free_again_when_one_has_none() {
    let (client, _) = client(&[]);
    let reporters = Reporters::new(client);
    let two = json!([{"name": "a", "webhook": {"url": "http://a/"}}, {"name": "b", "webhook": {"url": "http://b/"}}]);
    let one = json!([{"name": "b", "webhook": {"url": "http://b/"}}]);
    reporters.apply(&config(json!({"queue_size": 1, "reporters": one})));
    let holds_b = admit(&reporters, "{}").await.unwrap();
    reporters.apply(&config(json!({"queue_size": 1, "reporters": two})));
    for _ in 0..2 {
        assert!(admit(&reporters, "{}").await.is_err());
    }
    drop(holds_b);
    admit(&reporters, "{}").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reload_loses_nothing() {
    let (client, sent) = client(&[500]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    let running = admit(&reporters, "{}").await.unwrap();
    end(&admit(&reporters, "{}").await.unwrap());
    tokio::task::yield_now().await;
    // One record is between two tries, one request still runs, and the reporter is gone.
    reporters.apply(&UsageConfig::default());
    assert!(admit(&reporters, "{}").await.unwrap().take_sinks().is_empty());
    end(&running);
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(sent.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_the_queue_of_a_reporter_that_stays() {
    let (client, sent) = client(&[500]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({"queue_size": 1})));
    let running = admit(&reporters, "{}").await.unwrap();
    let headers = json!({"url": "http://receiver/usage", "headers": {"authorization": "Bearer new"}});
    let reporter = json!([{"name": "billing", "webhook": headers}]);
    reporters.apply(&config(json!({"queue_size": 1, "reporters": reporter, "admit_timeout": "0s"})));
    assert!(admit(&reporters, "{}").await.is_err(), "the place is still taken");
    end(&running);
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(sent.lock().unwrap()[0].headers()["authorization"], "Bearer new");
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_is_out_of_time_says_what_is_left() {
    let (client, _) = client(&[1; 100]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    for _ in 0..12 {
        end(&admit(&reporters, "{}").await.unwrap());
    }
    let started = Instant::now();
    assert_eq!(reporters.flush(Duration::from_secs(2)).await, 12);
    assert_eq!(started.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_called_twice_reports_once() {
    let (client, sent) = client(&[]);
    let reporters = Reporters::new(client);
    reporters.apply(&config(json!({})));
    let exchange = admit(&reporters, "{}").await.unwrap();
    let sinks = exchange.take_sinks();
    for _ in 0..2 {
        sinks[0].record(&record());
    }
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(sent.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_real_receiver_has_every_record_in_spite_of_failures() {
    let receiver = Receiver::start().await;
    receiver.behave_for(1, Behaviour::Reset);
    let reporters = Reporters::new(real_client());
    let reporter = json!([{"webhook": {"url": receiver.url(), "headers": {"X-Team": "a"}}}]);
    reporters.apply(&config(json!({ "reporters": reporter })));
    for _ in 0..3 {
        end(&admit(&reporters, "{}").await.unwrap());
    }
    let bodies = receiver.wait_for(3).await;
    assert_eq!(bodies[0]["key_name"], "alice");
    assert_eq!(reporters.flush(Duration::from_secs(10)).await, 0);
    let seen = receiver.backend().seen();
    assert_eq!((seen.len(), seen[0].path.as_str(), seen[0].header("x-team")), (4, "/usage", Some("a")));
}

#[test]
fn services_can_be_shared() {
    fn check<T: Clone + Send + Sync>() {}
    check::<Usage<()>>();
    check::<UsageLayer>();
    check::<Arc<Reporters>>();
}
