//! Backends that come and go without a reload.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, Refused, script};
use serde_json::{Value, json};

use crate::harness::{Folder, Proxy, command, get, within};

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

fn ask() -> Value {
    json!({"model": "m", "stream": true, "messages": []})
}

/// A configuration whose only backends are those of `sources`.
fn config(sources: &Value) -> String {
    json!({"health_check": {"enabled": false}, "discovery": {"enabled": true, "sources": [sources]}}).to_string()
}

fn file(path: &Path) -> String {
    config(&json!({"name": "list", "type": "file", "file": {"path": path, "interval": "20ms"}}))
}

fn registry(url: &str) -> String {
    let http = json!({"url": format!("{url}/backends"), "interval": "50ms", "headers": {"x-token": "t"}});
    config(&json!({"name": "registry", "type": "http", "http": http}))
}

fn entry(backend: &Backend) -> Value {
    json!({"url": backend.url(), "models": ["m"]})
}

/// Writes the list as careful people do: nobody sees half of it.
fn write(path: &Path, list: &Value) {
    let new = path.with_extension("new");
    std::fs::write(&new, list.to_string()).expect("the folder is ours");
    std::fs::rename(new, path).expect("the folder is ours");
}

#[tokio::test]
async fn a_backend_appears_and_one_disappears_while_a_stream_runs_there() {
    let (old, mut requests) = Backend::stepped().await;
    let new = Backend::start(script::json(200, json!({"from": "new"}))).await;
    let folder = Folder::new();
    let list = folder.join("backends.json");
    write(&list, &json!([entry(&old)]));
    let mut proxy = Proxy::start(&file(&list)).await;

    let mut stream = Client::connect(proxy.address()).await;
    stream.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    wire.chunk(EVENT).await.expect("the proxy reads");
    stream.expect_piece(EVENT).await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_discovered_backends", &["source=\"list\""]), 1.0);
    proxy.logged("the backends of a source are known").await;

    // A list that can't be read changes nothing.
    std::fs::write(&list, "[{").expect("the folder is ours");
    proxy.logged("can't be asked").await;
    write(&list, &json!({"backends": [entry(&new)]}));
    proxy.logged("the backends of a source are known").await;
    let mut client = Client::connect(proxy.address()).await;
    for _ in 0..3 {
        assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.json()["from"], "new");
    }

    // What is at the one that is gone goes on to its end.
    wire.chunk(EVENT).await.expect("the proxy reads");
    stream.expect_piece(EVENT).await;
    wire.chunk(DONE).await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    let rest = stream.read_to_end().await;
    assert_eq!((rest.text().as_str(), rest.end), (DONE, BodyEnd::Complete));
}

#[tokio::test]
async fn a_registry_that_is_down_takes_no_backend_with_it() {
    let backend = Backend::start(script::json(200, json!({"from": "a"}))).await;
    let other = Backend::start(script::json(200, json!({"from": "b"}))).await;
    let status = Arc::new(AtomicU16::new(200));
    let which = Arc::new(AtomicUsize::new(0));
    let lists = [json!({"data": [entry(&backend)]}), json!({"data": [entry(&other)]})];
    let answers = (status.clone(), which.clone());
    let server = Backend::start(move |seen, wire| {
        assert_eq!((seen.path.as_str(), seen.header("x-token")), ("/backends", Some("t")));
        let (status, list) = (answers.0.load(Ordering::SeqCst), lists[answers.1.load(Ordering::SeqCst)].clone());
        async move { wire.json(status, &list).await }
    })
    .await;
    let mut proxy = Proxy::start(&registry(&server.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.json()["from"], "a");

    status.store(503, Ordering::SeqCst);
    let line = proxy.logged("can't be asked").await;
    assert_eq!((&line["source"], &line["kept"]), (&json!("registry"), &json!(1)));
    assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.json()["from"], "a");
    assert!(proxy.metrics().await.sum("llmproxy_discovery_failures_total", &["source=\"registry\""]) >= 1.0);

    which.store(1, Ordering::SeqCst);
    status.store(200, Ordering::SeqCst);
    proxy.logged("answers again").await;
    proxy.logged("the backends of a source are known").await;
    assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.json()["from"], "b");
}

#[tokio::test]
async fn a_proxy_that_knows_no_backend_says_so_until_it_knows_one() {
    let backend = Backend::start(script::json(200, json!({"from": "a"}))).await;
    let nobody = Refused::new();
    let mut proxy = Proxy::start(&registry(&nobody.url())).await;
    assert_eq!(get(proxy.address(), "/ready").await.0, 503);
    let mut client = Client::connect(proxy.address()).await;
    let answer = client.post_json("/v1/chat/completions", &ask()).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("no_backend")));
    assert!(answer.header("retry-after").is_some());

    let server = nobody.start(script::json(200, json!([entry(&backend)])));
    proxy.logged("the backends of a source are known").await;
    assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.json()["from"], "a");
    drop(server);
}

#[tokio::test]
async fn a_reload_takes_sources_up_and_lets_them_go() {
    let [fixed, found] = ["fixed", "found"].map(|name| Backend::start(script::json(200, json!({"from": name}))));
    let (fixed, found) = (fixed.await, found.await);
    let folder = Folder::new();
    let list = folder.join("backends.json");
    write(&list, &json!([{"url": found.url(), "models": ["other"]}]));
    let yaml = json!({"health_check": {"enabled": false}, "backends": [entry(&fixed)]}).to_string();
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    let other = json!({"model": "other", "messages": []});
    assert_eq!(client.post_json("/v1/chat/completions", &other).await.status, 404);
    proxy.reload(&file(&list).replacen('{', &format!("{{\"backends\": [{}],", entry(&fixed)), 1), "reloaded").await;
    assert_eq!(client.post_json("/v1/chat/completions", &other).await.json()["from"], "found");
    assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.json()["from"], "fixed");
    proxy.reload(&yaml, "reloaded").await;
    assert_eq!(client.post_json("/v1/chat/completions", &other).await.status, 404);
    assert_eq!(proxy.metrics().await.sum("llmproxy_discovered_backends", &[]), 0.0);
}

#[tokio::test]
async fn a_check_of_the_file_asks_nobody() {
    let server = Backend::start(script::json(200, json!([]))).await;
    let folder = Folder::new();
    let path = folder.join("config.yaml");
    std::fs::write(&path, registry(&server.url())).expect("the folder is ours");
    let output = within("the check", command(&folder).arg("check").arg("--config").arg(&path).output()).await;
    let output = output.expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.counts().requests, 0);
}

#[tokio::test]
async fn backends_that_come_and_go_under_new_names_have_no_series_without_end() {
    const MOST: usize = 500;
    let stays = Backend::start(script::json(200, json!({"from": "stays"}))).await;
    let folder = Folder::new();
    let list = folder.join("backends.json");
    let generation = |number: usize| -> Vec<Value> {
        let gone = Refused::new().url();
        let all = (0..200).map(|at| {
            json!({"name": format!("pod-{number}-{at}"), "url": format!("{gone}/{number}/{at}"), "models": ["other"]})
        });
        let asked = json!({"name": format!("asked-{number}"), "url": stays.url(), "models": ["m"]});
        all.chain([asked]).collect()
    };
    write(&list, &json!(generation(0)));
    let mut proxy = Proxy::start(&file(&list)).await;
    let mut client = Client::connect(proxy.address()).await;
    for number in 1..=4 {
        proxy.logged("the backends of a source are known").await;
        assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.status, 200);
        write(&list, &json!(generation(number)));
    }
    proxy.logged("the backends of a source are known").await;
    assert_eq!(client.post_json("/v1/chat/completions", &ask()).await.status, 200);
    proxy.ended().await;
    let page = get(proxy.address(), "/metrics").await.1;
    let count = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(count("llmproxy_backend_up{"), MOST);
    assert_eq!(count("llmproxy_backend_state{backend=\"other\""), 0, "several can't be in one state");
    assert_eq!(count("llmproxy_requests_total{path=\"/v1/chat/completions\",stream=\"true\",backend=\"other\""), 1);
    assert_eq!(count("llmproxy_tokens_total{model=\"m\",backend=\"other\",type=\"prompt\""), 1);
}
