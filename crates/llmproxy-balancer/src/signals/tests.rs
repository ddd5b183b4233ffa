//! What is ours of a load, and how backends are asked for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{BoxError, HttpClient};
use tokio::time::{Instant, advance, sleep};
use tower::service_fn;

use super::{Load, Page, Signals};
use crate::{BackendConfig, Balancer, HealthCheckConfig, Pool, RoutingConfig};

const INTERVAL: Duration = Duration::from_secs(5);

// === what is ours ===

fn page(running: u64, waiting: u64) -> Page {
    Page { running: Some(running), waiting: Some(waiting), kv_usage: None }
}

fn others(signals: &Signals, now: Instant) -> Option<u64> {
    signals.load(now).map(|load| load.others)
}

#[tokio::test(start_paused = true)]
async fn what_counts_is_what_others_have_there() {
    let (signals, now) = (Signals::default(), Instant::now());
    assert_eq!(others(&signals, now), None);
    signals.entered(1);
    signals.entered(2);
    signals.said(0, page(5, 1), 2, INTERVAL, now);
    assert_eq!(others(&signals, now), Some(4));
    signals.said(0, page(1, 0), 2, INTERVAL, now);
    assert_eq!(others(&signals, now), Some(0), "the page is behind our own count");
}

#[tokio::test(start_paused = true)]
async fn requests_of_ours_that_ended_lately_may_still_be_on_the_page() {
    let (signals, now) = (Signals::default(), Instant::now());
    (1..=8).for_each(|in_flight| signals.entered(in_flight));
    signals.said(0, page(8, 0), 0, INTERVAL, now);
    assert_eq!(others(&signals, now), Some(0));
    signals.said(0, page(8, 0), 0, INTERVAL, now);
    assert_eq!(others(&signals, now), Some(0), "they were there since the reading before the last");
    signals.said(0, page(8, 0), 0, INTERVAL, now);
    assert_eq!(others(&signals, now), Some(8), "these are not ours");
}

#[tokio::test(start_paused = true)]
async fn what_was_said_three_intervals_ago_counts_no_more() {
    let (signals, now) = (Signals::default(), Instant::now());
    signals.said(0, page(3, 0), 0, INTERVAL, now);
    assert!(signals.load(now + 3 * INTERVAL - Duration::from_millis(1)).is_some());
    assert_eq!(signals.load(now + 3 * INTERVAL), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_before_a_restart_says_nothing_of_what_runs_now() {
    let (signals, now) = (Signals::default(), Instant::now());
    let era = signals.begin();
    signals.restarted();
    signals.said(era, page(3, 0), 0, INTERVAL, now);
    assert_eq!(signals.load(now), None);
    signals.said(signals.begin(), page(3, 0), 0, INTERVAL, now);
    assert!(signals.load(now).is_some());
}

#[test]
fn a_backend_is_full_by_its_cache_or_by_those_who_wait_behind_others() {
    let load = |waiting, kv_usage, others| Load { running: Some(9), waiting, kv_usage, others, at: Instant::now() };
    assert!(load(Some(1), None, 1).is_full() && load(Some(1), None, 1).is_crowded());
    assert!(!load(Some(3), Some(0.9), 0).is_full(), "that is our own doing, which we count ourselves");
    assert!(!load(Some(0), None, 9).is_full() && !load(None, None, 9).is_full());
    assert!(load(None, Some(0.95), 0).is_full() && load(None, Some(0.95), 1).is_crowded());
    assert!(!load(Some(4), Some(1.0), 0).is_crowded());
}

// === asking ===

type Script = dyn Fn(&str) -> Option<(u16, String)> + Send;

/// Servers that say what their script does, by host; `None`: nothing, ever.
#[derive(Clone, Default)]
struct Servers {
    scripts: Arc<Mutex<HashMap<String, Box<Script>>>>,
    asked: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Servers {
    fn set(&self, host: &str, script: impl Fn(&str) -> Option<(u16, String)> + Send + 'static) {
        self.scripts.lock().unwrap().insert(host.into(), Box::new(script));
    }

    fn says(&self, host: &str, place: &'static str, page: &'static str) {
        self.set(host, move |path| Some(if path == place { (200, page.into()) } else { (404, String::new()) }));
    }

    /// A balancer that has asked nobody yet.
    fn balancer(&self) -> Arc<Balancer> {
        let (servers, began) = (self.clone(), Instant::now());
        Balancer::new(HttpClient::new(service_fn(move |request: Request<Bytes>| {
            let host = request.uri().host().expect("an absolute URI");
            let path = request.uri().path();
            servers.asked.lock().unwrap().push((format!("{host}{path}"), began.elapsed()));
            let answer =
                servers.scripts.lock().unwrap().get(host).map_or(Some((404, String::new())), |script| script(path));
            async move {
                let Some((status, body)) = answer else { return std::future::pending().await };
                Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::from(body)).expect("a good status"))
            }
        })))
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().map(|(what, _)| what).collect()
    }

    /// When a host was asked since the last time, in seconds.
    fn times(&self, what: &str) -> Vec<u64> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.into_iter().filter(|(asked, _)| asked == what).map(|(_, when)| when.as_secs()).collect()
    }
}

const VLLM: &str = "vllm:num_requests_running{engine=\"0\"} 3.0\nvllm:num_requests_waiting{engine=\"0\"} 1.0\n";

fn backend(url: &str) -> BackendConfig {
    BackendConfig { models: vec!["m".into()], ..BackendConfig::new(url) }
}

fn apply(balancer: &Balancer, backends: &[BackendConfig], routing: &RoutingConfig) -> Arc<Pool> {
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(backends, routing, &health, &Default::default())
}

fn loads(pool: &Pool) -> Vec<Option<u64>> {
    pool.snapshot().iter().map(|status| status.load.and_then(|load| load.running)).collect()
}

async fn settle() {
    sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn backends_are_asked_at_once_and_each_interval() {
    let servers = Servers::default();
    servers.says("a", "/metrics", VLLM);
    servers.says("b", "/slots", r#"[{"is_processing":true},{"is_processing":false}]"#);
    let balancer = servers.balancer();
    let pool = apply(&balancer, &[backend("http://a"), backend("http://b")], &Default::default());
    settle().await;
    assert_eq!(loads(&pool), [Some(3), Some(1)]);
    assert_eq!(pool.snapshot()[0].load.map(|load| (load.waiting, load.others)), Some((Some(1), 4)));
    assert_eq!(servers.asked(), ["a/metrics", "b/metrics", "b/slots"]);
    sleep(INTERVAL).await;
    assert_eq!(servers.asked(), ["a/metrics", "b/slots"], "each where it has told something");
}

#[tokio::test(start_paused = true)]
async fn an_only_backend_is_not_asked_and_nobody_where_it_is_switched_off() {
    let servers = Servers::default();
    let balancer = servers.balancer();
    let both = [backend("http://a"), backend("http://b")];
    apply(&balancer, &both[..1], &Default::default());
    sleep(10 * INTERVAL).await;
    let mut off = RoutingConfig::default();
    off.load_signals.enabled = false;
    apply(&balancer, &both, &off);
    sleep(10 * INTERVAL).await;
    assert_eq!(servers.asked(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_tells_nothing_is_asked_rarely() {
    let servers = Servers::default();
    servers.says("a", "/v1/models", "");
    let balancer = servers.balancer();
    apply(&balancer, &[backend("http://a"), backend("http://b")], &Default::default());
    sleep(Duration::from_secs(300)).await;
    assert_eq!(servers.times("a/metrics"), [0, 10, 30, 70, 130, 190, 250]);
}

#[tokio::test(start_paused = true)]
async fn garbage_errors_and_floods_say_nothing() {
    let servers = Servers::default();
    let balancer = servers.balancer();
    let pool = apply(&balancer, &[backend("http://a"), backend("http://b")], &Default::default());
    let huge = "x".repeat(4 << 20);
    for (status, body) in [(200, "<html>"), (500, VLLM), (503, ""), (501, "{}"), (200, &huge), (204, "")] {
        let body = body.to_owned();
        servers.set("a", move |_| Some((status, body.clone())));
        sleep(Duration::from_secs(61)).await;
        assert_eq!(loads(&pool), [None, None], "{status}");
    }
    servers.says("a", "/metrics", VLLM);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(loads(&pool), [Some(3), None], "it tells now");
}

#[tokio::test(start_paused = true)]
async fn one_that_stops_answering_becomes_neutral_and_is_asked_on() {
    let servers = Servers::default();
    servers.says("a", "/metrics", VLLM);
    let balancer = servers.balancer();
    let pool = apply(&balancer, &[backend("http://a"), backend("http://b")], &Default::default());
    settle().await;
    servers.set("a", |_| None);
    sleep(2 * INTERVAL).await;
    assert_eq!(loads(&pool), [Some(3), None], "what it said still counts");
    sleep(INTERVAL).await;
    assert_eq!(loads(&pool), [None, None]);
    servers.says("a", "/metrics", VLLM);
    sleep(INTERVAL + Duration::from_secs(1)).await;
    assert_eq!(loads(&pool), [Some(3), None]);
}

#[tokio::test(start_paused = true)]
async fn another_place_is_asked_alone() {
    let servers = Servers::default();
    servers.says("a", "/metrics", VLLM);
    servers.says("b", "/engine/metrics", VLLM);
    let balancer = servers.balancer();
    let elsewhere = BackendConfig { metrics_path: Some("/engine/metrics".into()), ..backend("http://b") };
    let pool = apply(&balancer, &[backend("http://a"), elsewhere], &Default::default());
    settle().await;
    assert_eq!(loads(&pool), [Some(3), Some(3)]);
    assert_eq!(servers.asked(), ["a/metrics", "b/engine/metrics"]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_changes_nothing_asks_nothing_and_one_that_does_begins_anew() {
    let servers = Servers::default();
    servers.says("a", "/metrics", VLLM);
    servers.says("b", "/metrics", VLLM);
    let balancer = servers.balancer();
    let mut backends = [backend("http://a"), backend("http://b")];
    let mut routing = RoutingConfig::default();
    let pool = apply(&balancer, &backends, &routing);
    settle().await;
    assert_eq!(servers.asked().len(), 2);
    backends[0].weight = 3;
    apply(&balancer, &backends, &routing);
    settle().await;
    assert_eq!((servers.asked(), loads(&pool)), (vec![], vec![Some(3), Some(3)]));
    backends[0].headers.insert("authorization".into(), "Bearer k".into());
    apply(&balancer, &backends, &routing);
    assert_eq!(loads(&pool), [None, Some(3)], "it may be another server");
    settle().await;
    assert_eq!((servers.asked(), loads(&pool)), (vec!["a/metrics".to_owned()], vec![Some(3), Some(3)]));
    routing.load_signals.enabled = false;
    apply(&balancer, &backends, &routing);
    assert_eq!(loads(&pool), [None, None]);
    advance(10 * INTERVAL).await;
    settle().await;
    assert_eq!(servers.asked(), Vec::<String>::new());
}
