//! Many records in one request.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{BoxError, HttpClient};
use llmproxy_usage::{Reporters, UsageConfig, UsageError};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::service_fn;

use crate::{LONG, Sent, admit, bodies, client, common::record, end};

/// Reporters with one webhook that takes up to three at a time and waits a minute.
fn batching(client: HttpClient, extra: Value) -> Arc<Reporters> {
    let reporters = Reporters::new(client);
    reporters.apply(&batches(json!({"batch_size": 3}), extra));
    reporters
}

fn batches(webhook: Value, extra: Value) -> UsageConfig {
    let mut all = json!({"url": "http://receiver/usage", "batch_interval": "1m"});
    all.as_object_mut().unwrap().extend(webhook.as_object().unwrap().clone());
    let mut config = json!({"reporters": [{"name": "billing", "webhook": all}]});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    crate::config(config)
}

/// Ends so many requests, and says which records there were.
async fn end_some(reporters: &Arc<Reporters>, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let exchange = admit(reporters, "{}").await.unwrap();
        let record = record();
        exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
        ids.push(record.request_id.to_string());
    }
    ids
}

/// Which records each request had, an object being one without a list around it.
fn requests(sent: &Sent) -> Vec<Vec<String>> {
    let id = |record: &Value| record["request_id"].as_str().unwrap().to_owned();
    let ids = |body: Value| match body {
        Value::Array(records) => records.iter().map(id).collect(),
        record => vec![format!("object {}", id(&record))],
    };
    bodies(sent).into_iter().map(ids).collect()
}

/// Lets the delivery do what it can do without time passing.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_leaves_when_it_is_full() {
    let (client, sent) = client(&[]);
    let reporters = batching(client, json!({}));
    let ids = end_some(&reporters, 2).await;
    settle().await;
    assert_eq!((requests(&sent).len(), reporters.pending()), (0, 2));
    let more = end_some(&reporters, 5).await;
    settle().await;
    let ids = [ids, more].concat();
    assert_eq!(requests(&sent), [&ids[..3], &ids[3..6]]);
    assert_eq!(reporters.pending(), 1);
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(requests(&sent)[2], &ids[6..], "an array of one");
}

#[tokio::test(start_paused = true)]
async fn a_long_batch_has_all_of_its_records_in_their_order() {
    let (client, sent) = client(&[]);
    let reporters = Reporters::new(client);
    reporters.apply(&batches(json!({"batch_size": 1000}), json!({})));
    let ids = end_some(&reporters, 999).await;
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(requests(&sent), [ids]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_leaves_when_its_oldest_record_has_waited_long_enough() {
    let (client, sent) = client(&[]);
    let reporters = batching(client, json!({}));
    let mut ids = end_some(&reporters, 1).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    ids.extend(end_some(&reporters, 1).await);
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert!(requests(&sent).is_empty());
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(requests(&sent), [ids]);
    assert_eq!(reporters.pending(), 0);
    // The next begins anew.
    let next = end_some(&reporters, 1).await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(requests(&sent).len(), 1);
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(requests(&sent)[1], next);
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_batches_to_fill_nor_do_records_that_come_meanwhile() {
    let (client, sent) = client(&[]);
    let reporters = batching(client, json!({}));
    let running = admit(&reporters, "{}").await.unwrap();
    end_some(&reporters, 1).await;
    let started = Instant::now();
    let (left, ()) = tokio::join!(reporters.flush(LONG), async { end(&running) });
    assert_eq!((left, started.elapsed(), requests(&sent).concat().len()), (0, Duration::ZERO, 2));
    // It is over: batches wait again.
    end_some(&reporters, 1).await;
    settle().await;
    assert_eq!(reporters.pending(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_taken_is_sent_again_as_it_was() {
    let (client, sent) = client(&[500, 0, 503, 429]);
    let reporters = Reporters::new(client);
    reporters.apply(&batches(json!({"batch_size": 3, "retry": 4}), json!({})));
    let ids = end_some(&reporters, 3).await;
    settle().await;
    // What comes meanwhile is in another batch.
    let other = end_some(&reporters, 1).await;
    let started = Instant::now();
    assert_eq!(reporters.flush(LONG).await, 0);
    assert!(started.elapsed() >= Duration::from_secs(20), "{:?}", started.elapsed());
    let requests = requests(&sent);
    assert!(requests.iter().all(|request| *request == ids || *request == other), "{requests:?}");
    assert_eq!(requests.len(), 6, "four failed, two did not");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_costs_none_of_its_batch() {
    // The third of seven is one that the receiver does not like.
    let bad = Arc::new(Mutex::new(String::new()));
    let (theirs, taken) = (bad.clone(), Arc::new(Mutex::new(Vec::new())));
    let inbox = taken.clone();
    let client = HttpClient::new(service_fn(move |request: Request<Bytes>| {
        let records: Vec<Value> = serde_json::from_slice(request.body()).unwrap();
        let ids = records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned());
        let refused = ids.clone().any(|id| id == *theirs.lock().unwrap());
        if !refused {
            inbox.lock().unwrap().extend(ids);
        }
        let status = if refused { 422 } else { 200 };
        async move { Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::new())?) }
    }));
    let reporters = Reporters::new(client);
    reporters.apply(&batches(json!({"batch_size": 7}), json!({})));
    let mut ids = end_some(&reporters, 7).await;
    *bad.lock().unwrap() = ids.remove(2);
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(*taken.lock().unwrap(), ids, "each once, in their order");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_the_place_is_not_looked_for_in_the_records() {
    for status in [401, 403, 404, 410] {
        let (client, sent) = client(&[status]);
        let reporters = Reporters::new(client);
        reporters.apply(&batches(json!({"batch_size": 7}), json!({})));
        end_some(&reporters, 7).await;
        assert_eq!(reporters.flush(LONG).await, 0);
        assert_eq!(sent.lock().unwrap().len(), 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_takes_too_long_is_sent_in_parts() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let inbox = taken.clone();
    // More than two at a time are too much for it.
    let client = HttpClient::new(service_fn(move |request: Request<Bytes>| {
        let records: Vec<Value> = serde_json::from_slice(request.body()).unwrap();
        let inbox = inbox.clone();
        async move {
            if records.len() > 2 {
                std::future::pending::<()>().await;
            }
            let ids = records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned());
            inbox.lock().unwrap().extend(ids);
            Ok::<_, BoxError>(Response::new(Bytes::new()))
        }
    }));
    let reporters = Reporters::new(client);
    reporters.apply(&batches(json!({"batch_size": 8, "retry": 2}), json!({})));
    let ids = end_some(&reporters, 8).await;
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(*taken.lock().unwrap(), ids, "each once, in their order");
}

#[tokio::test(start_paused = true)]
async fn records_keep_their_places_until_their_batch_is_taken() {
    let (client, sent) = client(&[429]);
    let reporters = batching(client, json!({"queue_size": 3, "admit_timeout": "30s"}));
    end_some(&reporters, 3).await;
    let started = Instant::now();
    admit(&reporters, "{}").await.unwrap();
    assert_eq!((started.elapsed().as_secs(), requests(&sent).len()), (20, 2));
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_for_a_batch_to_fill() {
    let (client, sent) = client(&[]);
    let reporters = batching(client, json!({"queue_size": 3, "admit_timeout": "30s"}));
    let _running = admit(&reporters, "{}").await.unwrap();
    let ids = end_some(&reporters, 2).await;
    let started = Instant::now();
    admit(&reporters, "{}").await.unwrap();
    assert_eq!((started.elapsed(), requests(&sent)), (Duration::ZERO, vec![ids]));
}

#[tokio::test(start_paused = true)]
async fn records_gather_while_a_batch_that_is_on_its_way_has_the_places() {
    let (client, sent) = client(&[429]);
    let reporters = batching(client, json!({"queue_size": 4, "admit_timeout": "30s"}));
    let ids = end_some(&reporters, 3).await;
    end_some(&reporters, 1).await;
    admit(&reporters, "{}").await.unwrap();
    assert_eq!(requests(&sent), [&*ids, &*ids], "the fourth still waits for others");
    assert_eq!(reporters.pending(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reload_may_change_how_many_are_sent_at_a_time() {
    let (client, sent) = client(&[500]);
    let reporters = Reporters::new(client);
    reporters.apply(&batches(json!({"batch_size": 9}), json!({})));
    let mut ids = end_some(&reporters, 2).await;
    settle().await;
    assert!(requests(&sent).is_empty());
    // Fewer: what waits is a batch now. Its first try fails.
    reporters.apply(&batches(json!({"batch_size": 2}), json!({})));
    settle().await;
    assert_eq!(requests(&sent), [&*ids]);
    // One by one: what is between two tries, too.
    reporters.apply(&batches(json!({}), json!({})));
    ids.extend(end_some(&reporters, 1).await);
    assert_eq!(reporters.flush(LONG).await, 0);
    let mut requests = requests(&sent).split_off(1);
    requests.sort();
    let mut expected: Vec<_> = ids.iter().map(|id| vec![format!("object {id}")]).collect();
    expected.sort();
    assert_eq!(requests, expected);
}

#[tokio::test(start_paused = true)]
async fn a_reporter_that_is_gone_sends_what_it_has_at_once() {
    let (client, sent) = client(&[]);
    let reporters = batching(client, json!({}));
    let running = admit(&reporters, "{}").await.unwrap();
    end_some(&reporters, 1).await;
    reporters.apply(&UsageConfig::default());
    end(&running);
    drop(running);
    settle().await;
    assert_eq!((requests(&sent).concat().len(), reporters.pending()), (2, 0));
}

#[test]
fn a_queue_that_nobody_empties_any_more_takes_nothing() {
    let (client, _) = client(&[]);
    let reporters = Reporters::new(client);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let running = first.block_on(async {
        reporters.apply(&batches(json!({"batch_size": 3}), json!({})));
        end_some(&reporters, 1).await;
        admit(&reporters, "{}").await.unwrap()
    });
    drop(first);
    end(&running);
    assert_eq!(reporters.pending(), 0);
    let error = runtime().block_on(admit(&reporters, "{}")).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&UsageError::Stopped));
}
