//! What each reporter is given, what it sends of it, and how a receiver knows that it is ours.

use std::fs;

use llmproxy_core::{Endpoint, UsageRecord};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::*;

/// 32 bytes from 0 on, and from 32 on.
const SECRETS: [&str; 2] =
    ["whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="];

async fn started(reporters: Value) -> Started {
    let reporters = json!({ "reporters": reporters });
    assert_eq!(config(reporters.clone()).validate(), []);
    Started::new(real_client(), reporters).await
}

/// One request and its record.
async fn tell(started: &Started, record: UsageRecord) -> Arc<UsageRecord> {
    let exchange = started.admit().await.unwrap();
    let record = Arc::new(UsageRecord { request_id: Uuid::now_v7(), ..record });
    exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
    record
}

fn of(model: &str, key: &str) -> UsageRecord {
    let known = |text: &str| Some(text.into());
    UsageRecord { model: known(model), key_name: known(key), ..UsageRecord::new(Endpoint::of("/v1/chat/completions")) }
}

/// HMAC by its definition (RFC 2104), base64 by its definition: nothing of what the reporter uses but the hash.
fn signature(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let first = SECRETS.iter().position(|known| *known == secret).unwrap() as u8 * 32;
    let pad = |with: u8| (0..64).map(|at| with ^ if at < 32 { first + at } else { 0 }).collect::<Vec<u8>>();
    let message = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let inner = Sha256::digest([pad(0x36), message].concat());
    let mac = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
    let mut text = String::from("v1,");
    for piece in mac.chunks(3) {
        let bits = piece.iter().chain(&[0, 0]).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for digit in 0..4 {
            let digit = (digit <= piece.len()).then(|| DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]);
            text.push(char::from(digit.unwrap_or(b'=')));
        }
    }
    text
}

#[tokio::test]
async fn a_receiver_can_tell_that_a_record_is_ours_and_whether_it_came_before() {
    let receiver = Receiver::start().await;
    receiver.behave_for(1, Behaviour::Status(503));
    let webhook = json!({"url": receiver.url(), "secret": SECRETS.join(" ")});
    let started = started(json!([{ "webhook": webhook }])).await;
    let record = tell(&started, of("m", "alice")).await;
    started.flush().await;
    let seen = receiver.backend().seen();
    assert_eq!(seen.len(), 2);
    for seen in seen {
        let header = |name: &str| seen.header(name).unwrap().to_owned();
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        assert_eq!(id, record.request_id.to_string(), "the same on each try");
        let age = jiff::Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
        assert!((0..60).contains(&age), "{timestamp}");
        let expected = SECRETS.map(|secret| signature(secret, &id, &timestamp, &seen.body)).join(" ");
        assert_eq!(header("webhook-signature"), expected);
    }
}

#[tokio::test]
async fn a_batch_is_signed_as_a_whole_and_keeps_its_id() {
    let receiver = Receiver::start().await;
    receiver.behave_for(1, Behaviour::Reset);
    let webhook = json!({"url": receiver.url(), "secret": SECRETS[1], "batch_size": 3, "batch_interval": "1h"});
    let started = started(json!([{ "webhook": webhook }])).await;
    for _ in 0..4 {
        tell(&started, of("m", "alice")).await;
    }
    started.flush().await;
    let mut ids = Vec::new();
    for seen in receiver.backend().seen() {
        let (id, timestamp) = (seen.header("webhook-id").unwrap(), seen.header("webhook-timestamp").unwrap());
        let expected = signature(SECRETS[1], id, timestamp, &seen.body);
        assert_eq!(seen.header("webhook-signature"), Some(&*expected));
        ids.push((seen.json().as_array().unwrap().len(), id.to_owned()));
    }
    ids.sort();
    assert_eq!((ids.len(), ids[0].0, ids[1].0), (3, 1, 3), "{ids:?}");
    assert_eq!(ids[1], ids[2], "the same batch again");
    assert_ne!(ids[0].1, ids[1].1);
}

#[tokio::test]
async fn a_receiver_says_what_becomes_of_a_record() {
    let check = async |behaviour: Behaviour, tries: usize, taken: usize| {
        let receiver = Receiver::start().await;
        receiver.behave_for(1, behaviour);
        let started = started(json!([{"webhook": {"url": receiver.url()}}])).await;
        tell(&started, of("m", "alice")).await;
        started.flush().await;
        assert_eq!((receiver.backend().seen().len(), receiver.bodies().len()), (tries, taken), "{behaviour:?}");
    };
    for status in [408, 425, 429, 500, 503] {
        check(Behaviour::Status(status), 2, 1).await;
    }
    check(Behaviour::Reset, 2, 1).await;
    let began = Instant::now();
    check(Behaviour::Throttle(1), 2, 1).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    for status in [301, 400, 401, 403, 404, 410, 413, 422] {
        check(Behaviour::Status(status), 1, 0).await;
    }
}

#[tokio::test]
async fn what_is_not_signed_says_nothing_of_it() {
    let receiver = Receiver::start().await;
    let started = started(json!([{"webhook": {"url": receiver.url()}}])).await;
    tell(&started, of("m", "alice")).await;
    started.flush().await;
    let seen = &receiver.backend().seen()[0];
    assert!(["webhook-id", "webhook-timestamp", "webhook-signature"].iter().all(|name| seen.header(name).is_none()));
}

#[tokio::test]
async fn each_reporter_gets_what_it_wants_and_sends_what_it_should() {
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    let folder = Folder::new();
    let path = folder.0.join("usage.jsonl");
    let config = |model: &str| {
        json!([
            {"name": "first", "webhook": {"url": first.url()}, "filter": {"models": [model]}, "fields": ["model"]},
            {"name": "second", "webhook": {"url": second.url()}, "filter": {"models": ["qwen*"], "keys": ["bob"]}},
            {"type": "file", "file": {"path": path}, "filter": {"paths": ["/v1/chat/*"]}, "fields": ["key_name"]},
        ])
    };
    let started = started(config("qwen*")).await;
    let mut told = Vec::new();
    for (model, key) in [("qwen-7b", "alice"), ("qwen-7b", "bob"), ("llama", "bob")] {
        told.push(tell(&started, of(model, key)).await);
    }
    started.flush().await;
    let id = |index: usize| told[index].request_id.to_string();
    let bodies = first.bodies();
    let chosen = |index: usize, model: &str| json!({"model": model, "request_id": id(index), "schema": 1});
    assert_eq!(bodies, [chosen(0, "qwen-7b"), chosen(1, "qwen-7b")]);
    assert_eq!(second.bodies(), [to_json(&told[1])]);
    let line = |index: usize, key: &str| json!({"key_name": key, "request_id": id(index), "schema": 1});
    let lines: Vec<Value> =
        fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [line(0, "alice"), line(1, "bob"), line(2, "bob")]);

    // A reload changes what is wanted.
    started.apply(super::config(json!({ "reporters": config("llama") }))).await;
    told.push(tell(&started, of("llama", "carol")).await);
    started.flush().await;
    assert_eq!(first.bodies().last().unwrap()["request_id"], told[3].request_id.to_string());
    assert_eq!((first.bodies().len(), second.bodies().len()), (3, 1));
}

#[tokio::test]
async fn a_file_that_can_not_be_written_gets_its_records_later() {
    let folder = Folder::new();
    let path = folder.0.join("usage.jsonl");
    fs::create_dir(&path).unwrap();
    let started = started(json!([{"type": "file", "file": {"path": path}}])).await;
    let record = tell(&started, of("m", "alice")).await;
    assert_eq!(started.reporters.flush(Duration::from_millis(300)).await, 1);
    fs::remove_dir(&path).unwrap();
    started.flush().await;
    let line: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(line, to_json(&record));
}
