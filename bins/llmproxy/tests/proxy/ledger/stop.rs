//! Stops and reloads while receivers are away.

use std::time::Duration;

use llmproxy_testkit::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    ask_all, backend,
    books::{Books, Closed},
    config, reporter,
};
use crate::harness::{Folder, Proxy};

/// What a stop gives records to be delivered, and some for a busy machine.
const STOP: Duration = Duration::from_secs(16);
/// A reporter that is down waits for at least a quarter of a minute between its tries.
const AT_ONCE: Duration = Duration::from_secs(14);

#[tokio::test]
async fn a_stop_does_not_wait_for_a_receiver_that_is_away_and_the_next_start_delivers() {
    let (backend, folder, closed) = (backend().await, Folder::new(), Closed::new());
    let yaml = config(&backend, &folder, &[reporter("r", &closed.url(), &json!({}))]).to_string();
    let mut proxy = Proxy::start(&yaml).await;
    let ids = ask_all(&mut Client::connect(proxy.address()).await, 7).await;
    let since = Instant::now();
    proxy.signal(Signal::TERM);
    let line = proxy.logged("usage records are not delivered yet").await;
    assert_eq!(line["left"], 7, "{line}");
    assert_eq!(proxy.exit().await.code(), Some(0));
    assert!(since.elapsed() < STOP, "the stop took {:?}", since.elapsed());

    let books = closed.open();
    let _proxy = Proxy::start(&yaml).await;
    let told = books.wait_for(&ids).await;
    assert_eq!((told.order, told.again), (ids, 0));
}

#[tokio::test]
async fn a_receiver_that_is_back_has_everything_by_the_stop() {
    let (backend, folder, closed) = (backend().await, Folder::new(), Closed::new());
    let yaml = config(&backend, &folder, &[reporter("r", &closed.url(), &json!({"retry": 0}))]).to_string();
    let mut proxy = Proxy::start(&yaml).await;
    let ids = ask_all(&mut Client::connect(proxy.address()).await, 7).await;
    // From then on it is tried about twice a minute.
    proxy.logged("takes no usage records").await;
    let books = closed.open();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().await.code(), Some(0));
    let told = books.told();
    assert_eq!((told.order, told.again), (ids, 0));
}

#[tokio::test]
async fn a_reporter_that_was_away_for_a_reload_goes_on_where_it_was() {
    let (backend, folder, books) = (backend().await, Folder::new(), Books::open());
    let with = config(&backend, &folder, &[reporter("r", &books.url(), &json!({}))]).to_string();
    let without = config(&backend, &folder, &[]).to_string();
    let mut proxy = Proxy::start(&with).await;
    let mut client = Client::connect(proxy.address()).await;
    let mut ids = ask_all(&mut client, 3).await;
    books.wait_for(&ids).await;
    proxy.reload(&without, "reloaded").await;
    ids.extend(ask_all(&mut client, 3).await);
    assert!(ids[3..].iter().all(|id| !books.told().texts.contains_key(id)), "it was told all the same");
    proxy.reload(&with, "reloaded").await;
    ids.extend(ask_all(&mut client, 3).await);
    let told = books.wait_for(&ids).await;
    assert_eq!(told.order, ids);
    assert_eq!(told.conflicts, [""; 0]);
}

#[tokio::test]
async fn a_reload_during_an_outage_may_name_another_receiver() {
    let (backend, folder, closed, other) = (backend().await, Folder::new(), Closed::new(), Books::open());
    let yaml = |url: &str| config(&backend, &folder, &[reporter("r", url, &json!({"retry": 0}))]).to_string();
    let mut proxy = Proxy::start(&yaml(&closed.url())).await;
    let mut client = Client::connect(proxy.address()).await;
    let mut ids = ask_all(&mut client, 5).await;
    proxy.logged("takes no usage records").await;
    let since = Instant::now();
    proxy.reload(&yaml(&other.url()), "reloaded").await;
    ids.extend(ask_all(&mut client, 5).await);
    let told = other.wait_for(&ids).await;
    assert_eq!((told.order, told.again), (ids, 0));
    assert!(since.elapsed() < AT_ONCE, "it was left alone for {:?}", since.elapsed());
}

#[tokio::test]
async fn of_two_receivers_one_that_is_away_costs_the_other_nothing() {
    let (backend, folder, closed, books) = (backend().await, Folder::new(), Closed::new(), Books::open());
    let reporters = [reporter("away", &closed.url(), &json!({})), reporter("there", &books.url(), &json!({}))];
    let proxy = Proxy::start(&config(&backend, &folder, &reporters).to_string()).await;
    let ids = ask_all(&mut Client::connect(proxy.address()).await, 20).await;
    assert_eq!(books.wait_for(&ids).await.order, ids);
    let late = closed.open();
    let told = late.wait_for(&ids).await;
    assert_eq!((told.order, told.again), (ids, 0));
    assert_eq!(books.told().again, 0);
}

#[tokio::test]
async fn without_usage_tokens_are_counted_and_limited_and_no_file_is_made() {
    let (backend, folder) = (backend().await, Folder::new());
    let mut yaml: Value = config(&backend, &folder, &[]);
    yaml["usage"] = json!({"enabled": false, "ledger": {"path": folder.join("usage.db")}});
    yaml["rate_limit"] = json!({"enabled": true, "per_key": {"tokens_per_minute": 1000}});
    let proxy = Proxy::start(&yaml.to_string()).await;
    let mut client = Client::connect(proxy.address()).await;
    let mut left = Vec::new();
    for _ in 0..3 {
        let body = json!({"model": "m", "max_tokens": 2, "messages": []});
        let answer = client.post_json("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200);
        let remaining = answer.header("x-ratelimit-remaining-tokens").expect("there is a limit");
        left.push(remaining.parse::<u32>().expect("a number"));
    }
    // What was reserved for the first two is settled by what they came to: nine tokens each.
    assert!(left[0] > left[1] && left[1] > left[2], "{left:?}");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("llmproxy_usage_tokens_total", &["prompt"]), 21.0);
    assert_eq!(metrics.sum("llmproxy_usage_tokens_total", &["completion"]), 6.0);
    let files = std::fs::read_dir(&*folder).expect("it is ours").count();
    assert_eq!(files, 0);
    assert!(!proxy.folder().join("data").exists());
}
