//! A disk that is full: a small one of the test's own, where it may be mounted.

use std::{fs::File, io::Write, path::Path, process::Command, time::Duration};

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{ask_all, backend, books::Books, config, reporter};
use crate::harness::{Folder, PATIENCE, Proxy};

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// A file system in memory of some megabytes; unmounted when dropped.
struct Disk(Folder);

struct Setting {
    proxy: Proxy,
    client: Client,
    books: Books,
    backend: Backend,
    // After the proxy, which has files open there.
    disk: Disk,
}

// === impl Disk ===

impl Disk {
    /// `None` where this user may not mount.
    fn mount() -> Option<Self> {
        let folder = Folder::new();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "llmproxy-test"]).arg(&*folder).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(folder)),
            refused => {
                let why = refused.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
                eprintln!("skipped: a file system in memory can't be mounted here: {why:?}");
                None
            }
        }
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut file = File::create(self.filler()).expect("there is room for a name");
        for piece in [&[0; 4096][..], &[0]] {
            while file.write_all(piece).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it is there");
    }

    fn filler(&self) -> std::path::PathBuf {
        self.path().join("filler")
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the proxy that has files there is being killed.
        let _ = Command::new("umount").arg("-l").arg(&*self.0).status();
    }
}

// === impl Setting ===

impl Setting {
    /// Three exchanges have gone well, and then the disk is full.
    async fn full(durability: &str) -> Option<Self> {
        let setting = Self::with_room(durability, json!({})).await?;
        setting.disk.fill();
        Some(setting)
    }

    /// Three exchanges have gone well.
    async fn with_room(durability: &str, usage: Value) -> Option<Self> {
        let disk = Disk::mount()?;
        let (backend, books) = (backend().await, Books::open());
        let mut yaml: Value = config(&backend, disk.path(), &[reporter("r", &books.url(), &json!({}))]);
        yaml["usage"]["durability"] = durability.into();
        yaml["usage"]["admit_timeout"] = "300ms".into();
        for (key, value) in usage.as_object().into_iter().flatten() {
            yaml["usage"][key] = value.clone();
        }
        let proxy = Proxy::start(&yaml.to_string()).await;
        let mut client = Client::connect(proxy.address()).await;
        let ids = ask_all(&mut client, 3).await;
        books.wait_for(&ids).await;
        Some(Self { proxy, client, books, backend, disk })
    }

    /// A stream that has begun when the disk is full, and is complete but for its end, which the backend has sent.
    async fn ending(&mut self) -> String {
        let (go, gone) = tokio::sync::watch::channel(false);
        self.backend.set_script(move |_, mut wire| {
            let mut gone = gone.clone();
            async move {
                wire.head(200, &[("content-type", "text/event-stream")]).await?;
                wire.chunk(EVENT).await?;
                let _ = gone.wait_for(|gone| *gone).await;
                wire.chunk(DONE).await?;
                wire.finish().await
            }
        });
        let body = json!({"model": "m", "stream": true, "messages": []});
        self.client.send_json("/v1/chat/completions", &[], &body).await;
        let head = self.client.head().await;
        self.client.expect_piece(EVENT).await;
        self.disk.fill();
        go.send_replace(true);
        self.failing(1.0).await;
        head.header("x-request-id").expect("every answer has one").to_owned()
    }

    async fn failing(&self, expected: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.proxy.metrics().await.sum("llmproxy_usage_ledger_failing", &[]) != expected {
            assert!(Instant::now() < deadline, "llmproxy_usage_ledger_failing is not {expected}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn on_a_full_disk_strict_durability_asks_no_backend_and_recovers_by_itself() {
    let Some(mut setting) = Setting::full("strict").await else { return };
    let asked = setting.backend.counts().requests;
    for _ in 0..5 {
        let answer = setting.client.post_json("/v1/chat/completions", &json!({"model": "m", "messages": []})).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "usage_not_written", "{}", answer.text());
        let wait: u64 = answer.header("retry-after").expect("waiting helps").parse().expect("seconds");
        assert!(wait > 0);
    }
    assert_eq!(setting.backend.counts().requests, asked, "a backend was asked");
    setting.failing(1.0).await;
    setting.proxy.logged("can't be written").await;

    setting.disk.free();
    setting.failing(0.0).await;
    let ids = ask_all(&mut setting.client, 5).await;
    setting.books.wait_for(&ids).await;
    setting.proxy.logged("is written again").await;
}

#[tokio::test]
async fn on_a_full_disk_relaxed_durability_serves_on_and_all_records_arrive_later() {
    let Some(mut setting) = Setting::full("relaxed").await else { return };
    let mut ids = ask_all(&mut setting.client, 20).await;
    setting.failing(1.0).await;
    setting.proxy.logged("can't be written").await;
    ids.extend(ask_all(&mut setting.client, 20).await);

    setting.disk.free();
    setting.failing(0.0).await;
    setting.proxy.logged("is written again").await;
    ids.extend(ask_all(&mut setting.client, 5).await);
    let told = setting.books.wait_for(&ids).await;
    assert_eq!(told.order[3..], ids);
    assert_eq!(setting.proxy.metrics().await.sum("llmproxy_usage_records_dropped_total", &[]), 0.0);
}

#[tokio::test]
async fn in_strict_durability_the_end_of_an_answer_waits_for_room_on_the_disk() {
    let Some(mut setting) = Setting::with_room("strict", json!({"commit_timeout": "15s"})).await else { return };
    let id = setting.ending().await;
    let early = timeout(Duration::from_millis(300), setting.client.piece()).await;
    assert!(early.is_err(), "the end came before its record was written: {early:?}");
    setting.disk.free();
    let rest = setting.client.read_to_end().await;
    assert_eq!((&*rest.text(), rest.end), (DONE, BodyEnd::Complete));
    let record = setting.books.wait_for(std::slice::from_ref(&id)).await.of(&id).expect("it was waited for");
    assert_eq!(record["end"], "complete", "{record}");
}

#[tokio::test]
async fn in_strict_durability_an_answer_whose_record_can_t_be_written_has_no_end_and_is_recorded_later() {
    let Some(mut setting) = Setting::with_room("strict", json!({"commit_timeout": "500ms"})).await else { return };
    let id = setting.ending().await;
    let rest = setting.client.read_to_end().await;
    assert!(!rest.text().contains(DONE) && rest.end != BodyEnd::Complete, "{:?}: {}", rest.end, rest.text());
    setting.disk.free();
    let record = setting.books.wait_for(std::slice::from_ref(&id)).await.of(&id).expect("it was waited for");
    // What the backend did is to be paid for, and was known before the end was held.
    assert_eq!(record["end"], "complete", "{record}");
}
