//! Strict durability, from the request to the end of its answer.

use std::{
    io::Write,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use llmproxy_core::End;
use llmproxy_usage::{LedgerReader, Uncommitted};

use super::*;

/// Sends a request through both layers; what is further in counts in `asked`.
async fn exchange(reporters: &Arc<Reporters>, asked: &Arc<AtomicUsize>) -> Result<Arc<Exchange>, BoxError> {
    let (request, exchange) = request("{}");
    let asked = asked.clone();
    let inner = OpeningLayer::new(reporters.clone()).layer(service_fn(move |_: Request<RequestBody>| {
        asked.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, BoxError>(Response::new(())) }
    }));
    UsageLayer::new(reporters.clone()).layer(inner).oneshot(request).await?;
    Ok(exchange)
}

fn strict(extra: Value) -> Value {
    let mut all = json!({"durability": "strict", "reporters": [], "admit_timeout": "10s"});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    all
}

#[tokio::test]
async fn the_end_of_an_answer_waits_for_its_record() {
    let (client, _) = client(&[]);
    let started = Started::new(client, strict(json!({}))).await;
    let asked = Arc::default();
    for number in 1..=5 {
        let exchange = exchange(&started.reporters, &asked).await.unwrap();
        let mut hold = exchange.take_end_hold().expect("it waits");
        let early = tokio::time::timeout(Duration::from_millis(20), &mut hold).await;
        assert!(early.is_err(), "there is no record yet");
        let record = record();
        exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
        hold.await.unwrap();
        let mut reader = LedgerReader::open(started.folder.ledger()).await.unwrap();
        assert_eq!(reader.last().await.unwrap(), number);
    }
    // Without a record there is nothing to wait for.
    let exchange = exchange(&started.reporters, &asked).await.unwrap();
    let hold = exchange.take_end_hold().unwrap();
    drop(exchange.take_sinks());
    hold.await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn an_answer_without_a_record_in_time_is_broken_off() {
    let (client, _) = client(&[]);
    let started = Started::new(client, strict(json!({"commit_timeout": "50ms"}))).await;
    let exchange = exchange(&started.reporters, &Arc::default()).await.unwrap();
    let error = exchange.take_end_hold().unwrap().await.unwrap_err();
    assert!(error.is::<Uncommitted>(), "{error}");
}

#[tokio::test]
async fn the_beginning_is_on_the_disk_before_a_backend_is_asked() {
    let (client, _) = client(&[]);
    let started = Started::new(client, strict(json!({}))).await;
    let asked = Arc::default();
    let running = exchange(&started.reporters, &asked).await.unwrap();
    // What the disk has now is what a machine without power would have.
    let folder = Folder::new();
    for suffix in ["", "-wal"] {
        let file = |folder: &Folder| folder.0.join(format!("usage.db{suffix}"));
        std::fs::copy(file(&started.folder), file(&folder)).unwrap();
    }
    let mut dead = config(strict(json!({})));
    dead.ledger.path = folder.ledger();
    let reporters = Reporters::new(crate::client(&[]).0);
    reporters.open(&dead).await.unwrap();
    let page = LedgerReader::open(folder.ledger()).await.unwrap().after(0, 10, false).await.unwrap();
    let [(_, entry)] = &page.entries[..] else { panic!("{page:?}") };
    assert_eq!((entry.record.request_id, entry.record.end), (running.id(), End::ProxyDied));
    reporters.close().await;
}

#[tokio::test]
async fn relaxed_waits_for_nothing() {
    let (client, _) = client(&[]);
    let started = Started::new(client, json!({})).await;
    let exchange = exchange(&started.reporters, &Arc::default()).await.unwrap();
    assert!(exchange.take_end_hold().is_none());
}

/// A file system that goes with the test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn with_a_full_disk_no_backend_is_asked_until_there_is_room() {
    let folder = Folder::new();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&folder.0).output();
    if !matches!(&mount, Ok(output) if output.status.success()) {
        let test = "with_a_full_disk_no_backend_is_asked_until_there_is_room";
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: a file system can't be mounted here: {mount:?}");
        return;
    }
    let (client, _) = client(&[]);
    let started = Started { reporters: Reporters::new(client), folder };
    let _mounted = Mounted(started.folder.0.clone());
    let config = config(strict(json!({"admit_timeout": "300ms"})));
    started.apply(config).await;
    let ballast = started.folder.0.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    drop(file);
    let asked = Arc::default();
    // There may be some room left in the log.
    let mut refused = None;
    for _ in 0..2000 {
        match exchange(&started.reporters, &asked).await {
            Ok(exchange) => {
                end(&exchange);
            }
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.expect("the disk is full");
    assert_eq!(error.downcast_ref(), Some(&UsageError::Unwritable), "{error}");
    let before = asked.load(Ordering::Relaxed);
    let begun = Instant::now();
    for _ in 0..20 {
        let error = exchange(&started.reporters, &asked).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&UsageError::Unwritable), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "it is known, and nobody waits for it");
    assert_eq!(asked.load(Ordering::Relaxed), before);
    std::fs::remove_file(ballast).unwrap();
    let begun = Instant::now();
    while exchange(&started.reporters, &asked).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it recovers by itself");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    started.reporters.close().await;
}
