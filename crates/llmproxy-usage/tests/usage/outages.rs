//! What a receiver that is down costs, and what a new configuration changes for what waits.

use std::{fs, path::Path};

use super::*;

/// The reporter `billing`.
fn billing(webhook: Value) -> Value {
    let mut all = json!({"url": "http://receiver/usage"});
    all.as_object_mut().unwrap().extend(webhook.as_object().unwrap().clone());
    json!({"reporters": [{"name": "billing", "webhook": all}]})
}

/// A request with `body`, and its end.
async fn end_with(started: &Started, body: &Bytes) {
    let (request, exchange) = request(body.clone());
    UsageLayer::new(started.reporters.clone()).layer(service_fn(ok)).oneshot(request).await.unwrap();
    end(&exchange);
}

/// A prompt of so many bytes.
fn prompt(size: usize) -> Bytes {
    format!("\"{}\"", "x".repeat(size - 2)).into()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn requests_bodies_are_let_go_when_their_records_are_written_whatever_waits() {
    for webhook in [json!({"batch_size": 1000, "batch_interval": "1h"}), json!({})] {
        // It is down; only the first of its requests are answered, so to speak.
        let (client, _) = client(&[0; 1000]);
        let mut webhook = webhook;
        webhook["include_request_body"] = json!(true);
        let started = Started::new(client, billing(webhook)).await;
        let prompts: Vec<Bytes> = (0..9).map(|_| prompt(1 << 20)).collect();
        for prompt in &prompts {
            end_with(&started, prompt).await;
        }
        eventually("nobody holds them", || prompts.iter().all(Bytes::is_unique)).await;
        assert!(started.reporters.pending() >= 8);
    }
}

#[tokio::test]
async fn a_reload_takes_back_what_was_to_be_sent() {
    // What the reporter becomes while its first try has failed; what is sent then, and where.
    let check = async |webhook: Value, rest: Value| {
        let (client, sent) = client(&[500]);
        let started = Started::new(client, billing(json!({"include_request_body": true, "retry": 0}))).await;
        end_with(&started, &Bytes::from("\"secret\"")).await;
        end_with(&started, &Bytes::from("\"secret\"")).await;
        eventually("it is tried", || !sent.lock().unwrap().is_empty()).await;
        assert_eq!(bodies(&sent)[0]["request_body"], "secret");
        let file = started.folder.0.join("usage.jsonl");
        let mut new = billing(webhook);
        new["reporters"][0].as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        new["reporters"][0]["file"] = json!({ "path": file });
        started.apply(config(new)).await;
        started.flush().await;
        assert!(!started.folder.0.join("dead-letters.jsonl").exists());
        let sent = bodies(&sent).split_off(1);
        assert!(sent.iter().chain(&lines(&file)).all(|record| record.get("request_body").is_none()), "{sent:?}");
        (sent.len(), lines(&file).len())
    };
    assert_eq!(check(json!({}), json!({})).await, (2, 0));
    assert_eq!(check(json!({}), json!({"type": "file"})).await, (0, 2));
    assert_eq!(check(json!({"include_request_body": true}), json!({"filter": {"models": ["other"]}})).await, (0, 0));
}

#[tokio::test]
async fn records_that_become_too_old_together_cost_a_few_tries_together() {
    let (client, sent) = client(&[503; 1000]);
    let started = Started::new(client, billing(json!({"max_age": "1s"}))).await;
    let mut ids = started.end_some(300).await;
    let letters = started.folder.0.join("dead-letters.jsonl");
    eventually("all are given up", || started.reporters.pending() == 0).await;
    let kept = lines(&letters);
    let mut kept: Vec<_> = kept.iter().map(|line| line["record"]["request_id"].as_str().unwrap()).collect();
    kept.sort_unstable();
    ids.sort_unstable();
    assert_eq!(kept, ids);
    let tries = sent.lock().unwrap().len();
    assert!(tries < 10, "{tries}");
}

#[tokio::test]
async fn a_dead_letter_file_that_is_mended_is_used_at_once() {
    let (client, _) = client(&[422]);
    let started = Started::new(client, billing(json!({"dead_letter": "/proc/none/of/that.jsonl"}))).await;
    let ids = started.end_some(1).await;
    assert_eq!(started.reporters.flush(Duration::from_millis(300)).await, 1);
    let mended = started.folder.0.join("mended.jsonl");
    let begun = Instant::now();
    started.apply(config(billing(json!({ "dead_letter": mended })))).await;
    started.flush().await;
    assert_eq!(lines(&mended)[0]["record"]["request_id"], *ids[0]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
