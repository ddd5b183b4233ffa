//! Backends that tell of their own load, and where requests go then.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Checks, Proxy, Reply, answer, asked, backends, settle};
use futures_util::FutureExt;
use llmproxy_balancer::{BackendConfig, Balancer, HealthCheckConfig, LoadBalance, Pool, RoutingConfig};

const INTERVAL: Duration = Duration::from_secs(5);

/// `a`, `b`, ... in these tiers, all well, serving `m`.
fn tiers(checks: &Checks, tiers: &[u32]) -> Vec<BackendConfig> {
    let mut backends = backends(&vec![1; tiers.len()]);
    for (backend, tier) in backends.iter_mut().zip(tiers) {
        backend.tier = *tier;
        backend.models.push("m".into());
        checks.well(backend.name.as_deref().expect("they are named"));
    }
    backends
}

fn apply(balancer: &Balancer, backends: &[BackendConfig]) -> Arc<Pool> {
    let routing = RoutingConfig { load_balance: LoadBalance::LeastConnections, ..RoutingConfig::default() };
    balancer.apply(backends, &routing, &HealthCheckConfig::default(), &Default::default())
}

/// Where each of the next requests goes, one after the other.
async fn next(pool: &Arc<Pool>, requests: usize) -> String {
    let proxy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(200, "hello")));
    let mut all = String::new();
    for _ in 0..requests {
        let (exchange, answer) = proxy.ask().await;
        drop(answer.expect("somebody answers"));
        all.push_str(&asked(&exchange).concat());
    }
    all
}

/// Two tiers of one backend each, of which the first is full by its own word, so that requests go to the second.
async fn spilt() -> (Checks, Arc<Balancer>, Arc<Pool>) {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 1]);
    checks.runs("a", 12, 3, 1.0);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    settle().await;
    assert_eq!(next(&pool, 1).await, "b");
    (checks, balancer, pool)
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_is_full_by_its_own_word_spills_into_the_next() {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 1]);
    checks.runs("a", 12, 0, 0.6);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    settle().await;
    assert_eq!(next(&pool, 4).await, "aaaa", "it works, and has room");
    checks.runs("a", 12, 0, 0.97);
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(next(&pool, 4).await, "bbbb");
    checks.runs("b", 30, 4, 0.9);
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(next(&pool, 4).await, "aaaa", "all are full, so that the first tier is as good as any");
    checks.runs("a", 3, 0, 0.2);
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(next(&pool, 4).await, "aaaa");
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_others_is_passed_over_within_a_tier() {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 0, 1]);
    checks.runs("a", 9, 2, 0.5);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    settle().await;
    assert_eq!(next(&pool, 4).await, "bbbb");
}

#[tokio::test(start_paused = true)]
async fn what_others_have_there_counts_like_our_own() {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 0]);
    checks.runs("a", 2, 0, 0.1);
    checks.runs("b", 0, 0, 0.0);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    settle().await;
    let proxy = Proxy::new(pool, |_| Reply::Stall);
    let mut open: Vec<_> = (0..6).map(|_| Box::pin(proxy.ask())).collect();
    for request in &mut open {
        assert!(request.now_or_never().is_none(), "it is never answered");
    }
    assert_eq!(proxy.in_flight(), [2, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_all_ours_sends_nobody_away() {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 1]);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    let proxy = Proxy::new(pool.clone(), |_| Reply::Stall);
    let mut open: Vec<_> = (0..6).map(|_| Box::pin(proxy.ask())).collect();
    for request in &mut open {
        assert!(request.now_or_never().is_none(), "it is never answered");
    }
    checks.runs("a", 4, 2, 0.9);
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(proxy.in_flight(), [6, 0]);
    assert_eq!(next(&pool, 2).await, "aa");
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_full_of_our_own_work_spills_and_leaves_the_tier_to_its_policy() {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 0, 1]);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    let proxy = Proxy::new(pool.clone(), |_| Reply::Stall);
    let mut open: Vec<_> = (0..5).map(|_| Box::pin(proxy.ask())).collect();
    for request in &mut open {
        assert!(request.now_or_never().is_none(), "it is never answered");
    }
    assert_eq!(proxy.in_flight(), [3, 2, 0]);
    checks.runs("b", 2, 0, 0.99);
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(next(&pool, 1).await, "b", "fewest requests");
    checks.runs("a", 3, 0, 0.99);
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(next(&pool, 1).await, "c");
}

#[tokio::test(start_paused = true)]
async fn a_word_that_is_old_sends_nobody_away() {
    let (checks, _balancer, pool) = spilt().await;
    checks.tells("a", "/metrics", 404, "");
    tokio::time::sleep(2 * INTERVAL).await;
    assert_eq!(next(&pool, 1).await, "b", "it still counts");
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(next(&pool, 1).await, "a");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_out_is_another_server_until_it_tells_again() {
    let (checks, _balancer, pool) = spilt().await;
    checks.refuse("a");
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(pool.snapshot()[0].out.is_some());
    assert_eq!(pool.snapshot()[0].load, None);
    checks.scraped();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(checks.scraped().iter().all(|what| !what.starts_with("a/")), "its checks ask it, nobody else");
    checks.well("a");
    checks.runs("a", 1, 0, 0.1);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(checks.scraped().contains(&"a/metrics".to_owned()));
    assert_eq!(pool.snapshot()[0].load.and_then(|load| load.running), Some(1));
    assert_eq!(next(&pool, 1).await, "a");
}

#[tokio::test(start_paused = true)]
async fn one_that_told_nothing_is_asked_as_soon_as_it_is_back() {
    let checks = Checks::default();
    let backends = tiers(&checks, &[0, 0]);
    let balancer = Balancer::new(checks.client());
    let pool = apply(&balancer, &backends);
    tokio::time::sleep(Duration::from_secs(600)).await;
    checks.refuse("a");
    tokio::time::sleep(Duration::from_secs(40)).await;
    checks.well("a");
    checks.runs("a", 1, 0, 0.1);
    while pool.snapshot()[0].out.is_some() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    settle().await;
    assert_eq!(pool.snapshot()[0].load.and_then(|load| load.running), Some(1));
}
