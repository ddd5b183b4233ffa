//! What a receiver that is down costs, and what a new configuration changes for what waits.

use std::{collections::HashMap, fs, path::Path, sync::atomic::AtomicU64};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::*;

/// The gauges of this thread, by name and reporter.
#[derive(Default)]
struct Gauges(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Gauges {
    fn get(&self, name: &str, reporter: &str) -> Option<f64> {
        let gauges = self.0.lock().unwrap();
        let gauge = gauges.get(&format!("llmproxy_usage_{name} {reporter}"))?;
        Some(f64::from_bits(gauge.load(std::sync::atomic::Ordering::Acquire)))
    }
}

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let series = format!("{} {}", key.name(), key.labels().next().map_or("", |label| label.value()));
        Gauge::from_arc(self.0.lock().unwrap().entry(series).or_default().clone())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

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
async fn a_batch_is_full_when_its_bodies_are_large() {
    let (client, sent) = client(&[]);
    let webhook = json!({"batch_size": 1000, "batch_interval": "1h", "include_request_body": true});
    let started = Started::new(client, billing(webhook)).await;
    for _ in 0..4 {
        end_with(&started, &prompt(3 << 20)).await;
    }
    end_with(&started, &prompt(20 << 20)).await;
    eventually("two batches and a large record are on their way", || sent.lock().unwrap().len() == 3).await;
    started.flush().await;
    let sizes: Vec<usize> = bodies(&sent).iter().map(|body| body.as_array().unwrap().len()).collect();
    assert_eq!(sizes, [2, 2, 1]);
    assert!(
        bodies(&sent).iter().flat_map(|body| body.as_array().unwrap()).all(|record| record["request_body"].is_string())
    );
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
    let started = Started::new(client, billing(json!({"max_age": "1s", "retry": 100}))).await;
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

#[tokio::test]
async fn a_reporter_that_is_taken_out_alarms_nobody() {
    let gauges = Gauges::default();
    let _guard = metrics::set_default_local_recorder(&gauges);
    let gauge = |name: &str| gauges.get(name, "billing");
    let (client, _) = client(&[500; 4]);
    let webhook = billing(json!({"retry": 0}));
    let started = Started::new(client, webhook.clone()).await;
    assert_eq!(gauge("reporter_up"), Some(1.0));
    started.end_some(3).await;
    eventually("it is down", || gauge("reporter_up") == Some(0.0) && gauge("records_pending") == Some(3.0)).await;
    started.apply(config(json!({"reporters": []}))).await;
    eventually("it is gone", || gauge("reporter_up") == Some(1.0) && gauge("records_pending") == Some(0.0)).await;
    started.apply(config(webhook)).await;
    eventually("it is back", || gauge("records_pending") == Some(3.0)).await;
}
