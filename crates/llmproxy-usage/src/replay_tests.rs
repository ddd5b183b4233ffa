//! Replays from a ledger and from dead letters, to receivers of all moods.

use std::fs;

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{BoxError, Endpoint, UsageRecord};
use serde_json::{Value, json};

use super::*;
use crate::{StorageConfig, dead_letter::DeadLetters, ledger::scratch, scratch::Folder};

type Sent = Arc<Mutex<Vec<Value>>>;

/// Answers as `answer` says of what it is sent, and keeps what it has taken.
fn receiver(answer: impl Fn(&Value) -> u16 + Clone + Send + Sync + 'static) -> (HttpClient, Sent) {
    let sent = Sent::default();
    let taken = sent.clone();
    let client = HttpClient::new(tower::service_fn(move |request: Request<Bytes>| {
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let status = answer(&body);
        if status == 200 {
            taken.lock().unwrap().push(body);
        }
        async move { Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::new())?) }
    }));
    (client, sent)
}

/// The records of some minutes, a minute from one to the next; every third asks for `other`.
fn records(count: i64) -> Vec<UsageRecord> {
    let record = |minute| UsageRecord {
        request_id: Uuid::now_v7(),
        timestamp: at(minute),
        model: Some(if minute % 3 == 2 { "other" } else { "m" }.into()),
        ..UsageRecord::new(Endpoint::of("/v1/completions"))
    };
    (0..count).map(record).collect()
}

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + minute * 60).unwrap()
}

async fn ledger(folder: &Folder, records: &[UsageRecord]) -> LedgerReader {
    let written = |(seq, record): (i64, &UsageRecord)| (seq, record.timestamp.as_millisecond() + 500, record.clone());
    scratch::ledger(&folder.join("usage.db"), (1..).zip(records).map(written), &[]).await
}

fn replay(folder: &Folder, client: &HttpClient, reporter: Value) -> Result<Replay, ReplayError> {
    let config: UsageConfig = serde_json::from_value(json!({
        "ledger": {"path": folder.join("usage.db")},
        "reporters": [{"name": "off", "enabled": false, "type": "stdout"}, reporter],
    }))
    .unwrap();
    let storage = StorageConfig::default();
    Replay::new("r", &config, Stores { storage: &storage, admin_db: &folder.join("keys.db") }, client)
}

fn webhook(more: Value) -> Value {
    let mut webhook = json!({"url": "http://receiver.test/usage", "retry": 2});
    webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": "r", "type": "webhook", "webhook": webhook})
}

fn ids(sent: &Sent) -> Vec<String> {
    let objects = sent.lock().unwrap().clone().into_iter().flat_map(|body| match body {
        Value::Array(batch) => batch,
        object => vec![object],
    });
    objects.map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
}

fn ids_of<'a>(records: impl IntoIterator<Item = &'a UsageRecord>) -> Vec<String> {
    records.into_iter().map(|record| record.request_id.to_string()).collect()
}

#[tokio::test]
async fn what_the_time_and_the_filter_mean_is_sent_in_order() {
    let folder = Folder::new();
    let records = records(1000);
    let mut ledger = ledger(&folder, &records).await;
    let (client, sent) = receiver(|_| 200);
    let mut config = webhook(json!({"batch_size": 7, "include_request_body": true}));
    config["filter"] = json!({"models": ["m"]});
    config["fields"] = json!(["model", "request_body"]);
    let replay = replay(&folder, &client, config).unwrap();
    let range = ReplayRange { from: Some(at(200)), to: Some(at(800)), dry_run: false };
    let dry = ReplayRange { dry_run: true, ..range };
    let expected = ReplayTally { sent: 400, filtered: 200, ..ReplayTally::default() };
    assert_eq!(replay.from_ledger(&mut ledger, &dry).await.unwrap(), expected);
    assert!(sent.lock().unwrap().is_empty());
    assert_eq!(replay.from_ledger(&mut ledger, &range).await.unwrap(), expected);
    let wanted = records[200..800].iter().filter(|record| record.model.as_deref() == Some("m"));
    assert_eq!(ids(&sent), ids_of(wanted));
    let batches = sent.lock().unwrap();
    assert_eq!(batches.len(), 400_usize.div_ceil(7));
    let first = batches[0][0].as_object().unwrap();
    assert_eq!(first.keys().collect::<Vec<_>>(), ["model", "request_body", "request_id", "schema"]);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_stays_down_ends_it_and_it_says_where() {
    let folder = Folder::new();
    let mut records = records(10);
    // An exchange that was long: written after those that began later.
    records[8].timestamp = at(3);
    let mut ledger = ledger(&folder, &records).await;
    let tries = Arc::new(Mutex::new(0));
    let (client, sent) = receiver({
        let sixth = records[5].request_id.to_string();
        let tries = tries.clone();
        move |body| {
            let is_sixth = body["request_id"] == *sixth;
            *tries.lock().unwrap() += usize::from(is_sixth);
            if is_sixth { 503 } else { 200 }
        }
    });
    let replay = replay(&folder, &client, webhook(json!({}))).unwrap();
    let tally = replay.from_ledger(&mut ledger, &ReplayRange::default()).await.unwrap();
    assert_eq!((tally.sent, tally.refused), (5, 0));
    assert_eq!(*tries.lock().unwrap(), 3, "one, and two more");
    let stopped = tally.stopped.unwrap();
    assert!(stopped.why.contains("503"), "{}", stopped.why);
    assert_eq!((stopped.request_id, stopped.timestamp), (records[5].request_id, at(5)));
    assert_eq!((stopped.left, stopped.from), (5, at(3)), "the long one is among those that are left");
    assert_eq!(ids(&sent), ids_of(&records[..5]));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_refused_is_passed_over_and_a_receiver_that_refuses_all_ends_it() {
    let folder = Folder::new();
    let records = records(20);
    let mut ledger = ledger(&folder, &records).await;
    let (client, sent) = receiver({
        let bad = records[4].request_id.to_string();
        move |body| if body.to_string().contains(&bad) { 422 } else { 200 }
    });
    let bad = replay(&folder, &client, webhook(json!({"batch_size": 8}))).unwrap();
    let tally = bad.from_ledger(&mut ledger, &ReplayRange::default()).await.unwrap();
    assert_eq!(tally, ReplayTally { sent: 19, refused: 1, ..ReplayTally::default() });
    assert_eq!(ids(&sent).len(), 19);

    let (client, sent) = receiver(|_| 401);
    let all = replay(&folder, &client, webhook(json!({"batch_size": 8}))).unwrap();
    let tally = all.from_ledger(&mut ledger, &ReplayRange::default()).await.unwrap();
    assert_eq!((tally.sent, tally.refused), (0, 0));
    let stopped = tally.stopped.unwrap();
    assert_eq!((stopped.request_id, stopped.left), (records[0].request_id, 20));
    assert!(stopped.why.contains("401") && sent.lock().unwrap().is_empty(), "{}", stopped.why);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_and_says_where() {
    let folder = Folder::new();
    let records = records(600);
    let mut ledger = ledger(&folder, &records).await;
    // The third is never answered.
    let asked = Arc::new(Notify::new());
    let client = HttpClient::new(tower::service_fn({
        let (asked, third) = (asked.clone(), records[2].request_id.to_string());
        move |request: Request<Bytes>| {
            let is_third = String::from_utf8_lossy(request.body()).contains(&third);
            let asked = asked.clone();
            async move {
                if is_third {
                    asked.notify_one();
                    pending::<()>().await;
                }
                Ok::<_, BoxError>(Response::new(Bytes::new()))
            }
        }
    }));
    let replay = replay(&folder, &client, webhook(json!({"timeout": "1h"}))).unwrap();
    let range = ReplayRange::default();
    let stop = async {
        asked.notified().await;
        replay.stop();
    };
    let (tally, ()) = tokio::join!(replay.from_ledger(&mut ledger, &range), stop);
    let tally = tally.unwrap();
    let stopped = tally.stopped.unwrap();
    assert_eq!((tally.sent, stopped.left, stopped.request_id), (2, 598, records[2].request_id));
    let again = replay.from_ledger(&mut ledger, &range).await.unwrap();
    assert_eq!((again.sent, again.stopped.unwrap().left), (0, 600));
}

#[tokio::test]
async fn dead_letters_are_sent_again_and_stay() {
    let folder = Folder::new();
    let (client, sent) = receiver(|_| 200);
    let replay = replay(&folder, &client, webhook(json!({"include_request_body": true}))).unwrap();
    let path = folder.join("dead-letters.jsonl");
    assert_eq!(replay.dead_letters(), path);
    let records = records(6);
    let entry = |record: &UsageRecord| Entry::new(Arc::new(record.clone())).with_request_body(r#"{"n":1}"#);
    let letters = DeadLetters::new(path.clone());
    letters.append("r", "refused: 422", &[entry(&records[0])]).await.unwrap();
    letters.append("another", "expired", &[entry(&records[1])]).await.unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"reason\":\"ref").unwrap();
    letters.append("r", "refused: 422", &[entry(&records[2]), entry(&records[3])]).await.unwrap();
    let before = fs::read(&path).unwrap();

    let range = ReplayRange { to: Some(at(3)), ..ReplayRange::default() };
    let tally = replay.from_dead_letters(&path, &range).await.unwrap();
    assert_eq!(tally, ReplayTally { sent: 2, unreadable: 1, ..ReplayTally::default() });
    assert_eq!(ids(&sent), ids_of([&records[0], &records[2]]));
    assert_eq!(sent.lock().unwrap()[0]["request_body"], json!({"n": 1}));
    assert_eq!(fs::read(&path).unwrap(), before);

    let missing = replay.from_dead_letters(&folder.join("none"), &range).await.unwrap_err();
    assert!(missing.to_string().contains("/none can't be read"), "{missing}");
}

#[tokio::test]
async fn a_name_that_is_none_is_told_with_those_that_there_are() {
    let folder = Folder::new();
    let (client, _) = receiver(|_| 200);
    let error = replay(&folder, &client, json!({"name": "x", "type": "stdout"})).unwrap_err().to_string();
    assert!(error.contains("`r`") && error.contains("off, x"), "{error}");
    let error = replay(&folder, &client, json!({"name": "r", "type": "webhook"})).unwrap_err().to_string();
    assert!(error.contains("webhook.url"), "{error}");
    // One that is switched off can be told to send.
    assert!(replay(&folder, &client, json!({"name": "r", "type": "stdout", "enabled": false})).is_ok());
}
