use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{BoxError, HttpClient};
use proptest::prelude::*;
use tokio::time::{Instant, advance, sleep};
use tower::service_fn;

use super::{Load, Page, Signals};
use crate::{BackendConfig, Balancer, HealthCheckConfig, Pool, RoutingConfig};

const INTERVAL: Duration = Duration::from_secs(5);

// === pages ===

fn check(page: &str, running: Option<u64>, waiting: Option<u64>, kv_usage: Option<f64>) {
    let expected = Page { running, waiting, kv_usage };
    assert_eq!(Page::read(page.as_bytes()), Some(expected).filter(|page| *page != Page::default()), "{page}");
}

#[test]
fn vllm_tells_its_load() {
    let page = r#"# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 8.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct",reason="capacity"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 0.37
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 3.0
"#;
    check(page, Some(8), Some(2), Some(0.37));
}

#[test]
fn engines_of_one_vllm_are_added_up_and_their_caches_averaged() {
    let page = r#"vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.6
"#;
    check(page, Some(7), Some(1), Some(0.4));
}

#[test]
fn the_new_name_of_vllms_cache_goes_before_the_old_one() {
    let old = "vllm:num_requests_running 1.0\nvllm:gpu_cache_usage_perc{model_name=\"m\"} 0.5\n";
    check(old, Some(1), None, Some(0.5));
    check(&format!("{old}vllm:kv_cache_usage_perc{{model_name=\"m\"}} 0.25\n"), Some(1), None, Some(0.25));
}

#[test]
fn sglang_tells_its_load() {
    let page = r#"# HELP sglang:token_usage The token usage
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.28
# HELP sglang:num_running_reqs The number of running requests
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 162.0
# HELP sglang:num_queue_reqs The number of requests in the waiting queue
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 2826.0
"#;
    check(page, Some(162), Some(2826), Some(0.28));
}

#[test]
fn what_sglangs_workers_say_of_one_engine_is_said_once() {
    let page = r#"sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 5.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",pp_rank="0",tp_rank="2"} 7.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",pp_rank="0",tp_rank="3"} 7.0
"#;
    check(page, Some(12), None, None);
}

#[test]
fn what_sglang_says_of_each_priority_is_part_of_the_whole() {
    let page = r#"sglang:num_queue_reqs{model_name="m",priority="",tp_rank="0"} 9.0
sglang:num_queue_reqs{model_name="m",priority="0",tp_rank="0"} 4.0
sglang:num_queue_reqs{model_name="m",priority="10",tp_rank="0"} 5.0
"#;
    check(page, None, Some(9), None);
}

#[test]
fn tgi_tells_its_load() {
    let page = "# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 4\n\n# TYPE tgi_queue_size gauge\ntgi_queue_size 7\n\
                tgi_batch_current_max_tokens 5120\n";
    check(page, Some(4), Some(7), None);
}

#[test]
fn llama_server_tells_its_load_and_its_cache_is_no_part_of_it() {
    let page = "# HELP llamacpp:requests_processing Number of requests processing.\n\
                # TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\n\
                # HELP llamacpp:requests_deferred Number of requests deferred.\n\
                # TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 1\n\
                llamacpp:kv_cache_usage_ratio 0.98\n";
    check(page, Some(2), Some(1), None);
}

#[test]
fn slots_say_who_works_and_not_who_waits() {
    let page = r#"[{"id":0,"id_task":135,"n_ctx":65536,"speculative":false,"is_processing":true,"params":{"n_predict":-1}},
        {"id":1,"n_ctx":65536,"is_processing":false},{"id":2,"is_processing":true}]"#;
    check(page, Some(2), None, None);
    check("[]", None, None, None);
    check(r#"[{"id":0,"state":1}]"#, None, None, None);
}

#[test]
fn any_spelling_that_the_format_allows_is_read() {
    let labels = r#"vllm:num_requests_running { model_name = "a\"}\\" , engine="0", } 3 1719937482000"#;
    check(labels, Some(3), None, None);
    check("vllm:num_requests_running\t4e0\r\n", Some(4), None, None);
    check("sglang:token_usage{} 1.0", None, None, Some(1.0));
}

#[test]
fn what_is_missing_or_no_number_of_requests_is_not_taken_for_none() {
    for page in [
        "",
        " ",
        "not found",
        "<html>vllm:num_requests_running 3</html>",
        "# vllm:num_requests_running 3",
        "vllm:num_requests_running",
        "vllm:num_requests_running ",
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running +Inf",
        "vllm:num_requests_running -1",
        "vllm:num_requests_running 1e30",
        "vllm:num_requests_running many",
        "vllm:num_requests_running{",
        "vllm:num_requests_running{a",
        "vllm:num_requests_running{a=",
        "vllm:num_requests_running{a=\"",
        "vllm:num_requests_running{a=\"\\",
        "vllm:num_requests_running{a=\"b\"",
        "vllm:num_requests_running{a=\"b\"} ",
        "vllm:num_requests_running_total 3",
        "vllm:kv_cache_usage_perc 37.5",
        "[",
        "[1]",
        "{\"running\": 3}",
        "\u{feff}[]",
    ] {
        check(page, None, None, None);
    }
    check(
        "vllm:num_requests_running 3\nvllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc 55",
        Some(3),
        None,
        None,
    );
}

#[test]
fn lines_of_other_than_text_are_left_out() {
    let page = b"vllm:num_requests_running{a=\"\xff\xfe\"} 3\nvllm:num_requests_waiting 1\n";
    assert_eq!(Page::read(page), Some(Page { waiting: Some(1), ..Page::default() }));
}

#[test]
fn a_page_of_a_million_series_is_read_in_bounded_memory() {
    let page: String = (0..1_000_000).map(|at| format!("tgi_queue_size{{a=\"{at}\"}} 1\n")).collect();
    assert_eq!(Page::read(page.as_bytes()).and_then(|page| page.waiting), Some(1024));
}

proptest! {
    #[test]
    fn no_page_is_a_panic(page in r#"((vllm:num_requests_(running|waiting)|sglang:token_usage|tgi_queue_size)?[{}="\\, a\n0-9.e+-é]{0,24}){0,8}"#) {
        if let Some(page) = Page::read(page.as_bytes()) {
            prop_assert!(page != Page::default());
            prop_assert!(page.kv_usage.is_none_or(|usage| (0.0..=1.0).contains(&usage)));
        }
    }

    #[test]
    fn no_bytes_are_a_panic(page in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Page::read(&page);
    }
}

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
fn a_backend_is_saturated_by_its_cache_or_by_those_who_wait_behind_others() {
    let load = |waiting, kv_usage, others| Load { running: Some(9), waiting, kv_usage, others, at: Instant::now() };
    assert!(load(Some(1), None, 1).is_saturated());
    assert!(!load(Some(3), Some(0.9), 0).is_saturated(), "that is our own doing, which we count ourselves");
    assert!(!load(Some(0), None, 9).is_saturated() && !load(None, None, 9).is_saturated());
    assert!(load(None, Some(0.95), 0).is_saturated());
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
