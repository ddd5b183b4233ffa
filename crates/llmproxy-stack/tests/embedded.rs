//! What an embedder may add to the whole stack, and what may be served in its place.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::Extension, routing::get};
use futures_util::future::BoxFuture;
use llmproxy_balancer::{Candidate, Choice, Policy, Work};
use llmproxy_config::{Config, LoadOptions, load_str};
use llmproxy_stack::{Options, Peer, Runtime, Server};
use llmproxy_testkit::{Backend, Client, script};
use llmproxy_usage::{Entry, Report, Verdict};
use serde_json::json;
use tokio::sync::oneshot;

#[derive(Debug)]
struct Last;

impl Policy for Last {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        Choice::new(candidates.len() - 1, "the last one")
    }
}

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Entry>>);

impl Report for Kept {
    fn name(&self) -> &str {
        "kept"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        self.0.lock().unwrap().push(entry);
        Box::pin(async { Verdict::Delivered })
    }
}

/// A ledger of a test's own; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("llmproxy-stack-{}", uuid::Uuid::now_v7())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(backends: &[&Backend], folder: &Folder) -> Config {
    let urls: Vec<_> = backends.iter().map(|backend| json!({"url": backend.url(), "models": ["m"]})).collect();
    let yaml = json!({
        "server": {"listen": "127.0.0.1:0"},
        "backends": urls,
        "health_check": {"enabled": false},
        "routing": {"load_signals": {"enabled": false}},
        "logging": {"access": {"enabled": false}},
        "usage": {"ledger": {"path": folder.0.join("usage.db")}},
    });
    load_str(&yaml.to_string(), &LoadOptions { env: false, ..LoadOptions::default() }).unwrap().config
}

#[tokio::test]
async fn a_policy_and_a_reporter_outlive_a_reload() {
    let backends =
        [Backend::start(script::json(200, json!({}))).await, Backend::start(script::json(200, json!({}))).await];
    let folder = Folder::new();
    let config = config(&backends.each_ref(), &folder);
    let kept = Arc::new(Kept::default());
    let options = Options { policy: Some(Arc::new(Last)), reporters: vec![kept.clone()], ..Options::default() };
    let runtime = Runtime::start(&config, options).await.unwrap();
    let server = Server::bind(&config.server, runtime.stop_flag()).await.unwrap();
    let addr = server.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(server.run(runtime.service(), async { _ = stopped.await }));
    let mut client = Client::connect(addr).await;
    for reloads in 0..3 {
        assert_eq!(client.post_json("/v1/chat/completions", &json!({"model": "m"})).await.status, 200, "{reloads}");
        runtime.reload(&config).await.unwrap();
    }
    assert_eq!((backends[0].counts().requests, backends[1].counts().requests), (0, 3));
    stop.send(()).unwrap();
    served.await.unwrap();
    assert_eq!(runtime.shutdown(Duration::from_secs(10)).await, 0);
    let kept = kept.0.lock().unwrap();
    assert_eq!(kept.len(), 3);
    assert_eq!(kept[0].record.backend_url.as_deref(), Some(&*backends[1].url()));
}

#[tokio::test]
async fn the_server_serves_a_router_of_ones_own() {
    let app = Router::new().route("/peer", get(async |Extension(peer): Extension<Peer>| peer.0.ip().to_string()));
    let config = config(&[&Backend::start(script::hang()).await], &Folder::new());
    let server = Server::bind(&config.server, Default::default()).await.unwrap();
    let addr = server.local_addr().unwrap();
    tokio::spawn(server.run(app, std::future::pending()));
    assert_eq!(Client::connect(addr).await.get("/peer").await.text(), "127.0.0.1");
}
