//! Many records in one request.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A webhook that takes up to `size` at a time, and waits so long for them.
fn batches(size: usize, interval: &str) -> Value {
    let webhook = json!({"url": "http://receiver/usage", "batch_size": size, "batch_interval": interval});
    json!({"reporters": [{"name": "billing", "webhook": webhook}]})
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

#[tokio::test]
async fn a_batch_leaves_when_it_is_full() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, batches(3, "1h")).await;
    let ids = started.end_some(7).await;
    eventually("two batches are full", || started.reporters.pending() == 1).await;
    assert_eq!(requests(&sent), [&ids[..3], &ids[3..6]]);
    started.flush().await;
    assert_eq!(requests(&sent)[2], &ids[6..], "an array of one");
}

#[tokio::test]
async fn a_long_batch_has_all_of_its_records_in_their_order() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, batches(1000, "1h")).await;
    let ids = started.end_some(1999).await;
    eventually("the first is full", || requests(&sent).len() == 1).await;
    started.flush().await;
    assert_eq!(requests(&sent).concat(), ids);
    assert_eq!(requests(&sent)[0].len(), 1000);
}

#[tokio::test]
async fn a_batch_leaves_when_its_oldest_record_has_waited_long_enough() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, batches(3, "300ms")).await;
    for count in 1..=2 {
        let begun = Instant::now();
        let ids = started.end_some(2).await;
        eventually("it leaves", || requests(&sent).len() == count).await;
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        assert_eq!(requests(&sent)[count - 1], ids);
    }
}

#[tokio::test]
async fn a_flush_does_not_wait_for_batches_to_fill_nor_do_records_that_come_meanwhile() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, batches(3, "1h")).await;
    let running = started.admit().await.unwrap();
    started.end_some(1).await;
    let (left, _) = tokio::join!(started.reporters.flush(LONG), async { end(&running) });
    assert_eq!((left, requests(&sent).concat().len()), (0, 2));
    // It is over: batches wait again.
    let sent_before = requests(&sent).len();
    started.end_some(2).await;
    assert_eq!(started.reporters.pending(), 2);
    let more = started.end_some(1).await;
    eventually("it is full", || requests(&sent).len() > sent_before).await;
    assert_eq!(requests(&sent)[sent_before].len(), 3);
    assert_eq!(requests(&sent)[sent_before][2], more[0]);
}

#[tokio::test]
async fn a_batch_that_is_not_taken_is_sent_again_as_it_was() {
    let (client, sent) = client(&[500, 0]);
    let started = Started::new(client, batches(3, "1h")).await;
    let ids = started.end_some(3).await;
    eventually("it is tried", || !requests(&sent).is_empty()).await;
    // What comes meanwhile is in another batch, after it.
    let other = started.end_some(1).await;
    started.flush().await;
    assert_eq!(requests(&sent), [ids.clone(), ids.clone(), ids, other]);
}

#[tokio::test]
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
    let started = Started::new(client, batches(100, "1h")).await;
    let mut ids = started.end_some(7).await;
    *bad.lock().unwrap() = ids.remove(2);
    started.flush().await;
    assert_eq!(*taken.lock().unwrap(), ids, "each once, in their order");
}

#[tokio::test]
async fn records_keep_no_places_while_their_batch_waits() {
    let (client, sent) = client(&[]);
    let mut extra = batches(100, "1h");
    extra["queue_size"] = json!(2);
    extra["admit_timeout"] = json!("10s");
    let started = Started::new(client, extra).await;
    let ids = started.end_some(20).await;
    assert_eq!((started.reporters.pending(), requests(&sent).len()), (20, 0));
    started.flush().await;
    assert_eq!(requests(&sent).concat(), ids);
}

#[tokio::test]
async fn a_reload_may_change_how_many_are_sent_at_a_time() {
    let (client, sent) = client(&[500]);
    let started = Started::new(client, batches(9, "1h")).await;
    let mut ids = started.end_some(2).await;
    eventually("they are read", || started.reporters.pending() == 2).await;
    assert!(requests(&sent).is_empty());
    // Fewer: what waits is a batch now. Its first try fails.
    started.apply(config(batches(2, "1h"))).await;
    eventually("it is tried", || requests(&sent).len() == 1).await;
    assert_eq!(requests(&sent), [&*ids]);
    // One by one: what is between two tries, too.
    started.apply(config(batches(1, "1h"))).await;
    ids.extend(started.end_some(1).await);
    started.flush().await;
    let expected: Vec<_> = ids.iter().map(|id| vec![format!("object {id}")]).collect();
    assert_eq!(requests(&sent).split_off(1), expected);
}

#[tokio::test]
async fn what_is_far_behind_is_read_from_the_file() {
    // More than are kept in memory, while the receiver is down.
    let is_down = Arc::new(AtomicBool::new(true));
    let (theirs, sent) = (is_down.clone(), Sent::default());
    let inbox = sent.clone();
    let client = HttpClient::new(service_fn(move |request: Request<Bytes>| {
        let status = if theirs.load(Ordering::Acquire) { 503 } else { 200 };
        if status == 200 {
            inbox.lock().unwrap().push(request);
        }
        async move { Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::new())?) }
    }));
    let started = Started::new(client, batches(500, "1ms")).await;
    let ids = started.end_some(9000).await;
    is_down.store(false, Ordering::Release);
    // The waits of one that was down may be long; those of a new process begin anew.
    let again = HttpClient::new(service_fn({
        let sent = sent.clone();
        move |request: Request<Bytes>| {
            sent.lock().unwrap().push(request);
            async { Ok::<_, BoxError>(Response::new(Bytes::new())) }
        }
    }));
    let started = started.restart(again, batches(500, "1ms")).await;
    started.flush().await;
    let mut delivered = requests(&sent).concat();
    delivered.dedup();
    assert_eq!(delivered, ids, "all of them, in their order");
}
