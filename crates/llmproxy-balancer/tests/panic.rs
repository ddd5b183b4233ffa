//! Most backends are out: the others are asked with care, and no client pays for it.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Proxy, Reply, answer, asked, body, unchecked};
use http_body_util::BodyExt;
use llmproxy_balancer::RoutingConfig;
use llmproxy_core::RequestBody;
use tokio::time::sleep;

/// So many that answer 502, and a last one that is well. When told to, the broken ones hang.
fn one_of(number: usize, hangs: &Arc<AtomicBool>) -> Proxy {
    let well = char::from(b'a' + (number - 1) as u8).to_string();
    let hangs = hangs.clone();
    Proxy::new(unchecked(&vec![1; number], &RoutingConfig::default()), move |target| {
        match (*target.backend.name == *well, hangs.load(Ordering::Relaxed)) {
            (true, _) => Reply::Answer(answer(200, &well)),
            (false, false) => Reply::Answer(answer(502, "no engine")),
            (false, true) => Reply::Stall,
        }
    })
}

/// The statuses that so many clients get, one after the other.
async fn statuses(proxy: &Proxy, number: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..number {
        let response = proxy.ask().await.1.expect("somebody answers");
        statuses.push(response.status().as_u16());
        let _ = response.into_body().collect().await;
    }
    statuses
}

async fn all_but_one_are_out(proxy: &Proxy) {
    while proxy.pool.snapshot().iter().filter(|status| status.out.is_none()).count() > 1 {
        statuses(proxy, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_failed_at_a_doubtful_backend_goes_to_one_that_is_well() {
    let proxy = one_of(5, &Arc::default());
    all_but_one_are_out(&proxy).await;
    let statuses = statuses(&proxy, 500).await;
    let failed = statuses.iter().filter(|status| **status != 200).count();
    assert_eq!(failed, 0, "of 500 clients");
}

#[tokio::test(start_paused = true)]
async fn backends_that_hang_hold_one_client_each() {
    let hangs = Arc::default();
    let proxy = one_of(3, &hangs);
    all_but_one_are_out(&proxy).await;
    hangs.store(true, Ordering::Relaxed);
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { proxy.ask().await.1.map(|answer| answer.status()) })
        })
        .collect();
    sleep(Duration::from_millis(10)).await;
    let waiting = clients.iter().filter(|client| !client.is_finished()).count();
    assert_eq!((waiting, proxy.in_flight()), (2, vec![1, 1, 0]));
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_sent_again_goes_to_one_that_is_well() {
    let proxy = one_of(5, &Arc::default());
    all_but_one_are_out(&proxy).await;
    for _ in 0..200 {
        let (exchange, response) = proxy.ask_with(Some("m"), RequestBody::stream(body([Ok("form")]))).await;
        assert_eq!((asked(&exchange), response.unwrap().status().as_u16()), (vec!["e".to_owned()], 200));
    }
}

#[tokio::test(start_paused = true)]
async fn where_all_are_out_each_further_attempt_is_within_the_budget() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let status = Arc::new(AtomicU16::new(502));
    let proxy = Proxy::new(unchecked(&[1; 5], &RoutingConfig::default()), {
        let (attempts, status) = (attempts.clone(), status.clone());
        move |_| {
            attempts.fetch_add(1, Ordering::Relaxed);
            Reply::Answer(answer(status.load(Ordering::Relaxed), "no engine"))
        }
    });
    while proxy.pool.snapshot().iter().any(|status| status.out.is_none()) {
        statuses(&proxy, 1).await;
    }
    // All that retries took before is forgotten; no probe is due.
    sleep(Duration::from_secs(4)).await;
    attempts.store(0, Ordering::Relaxed);
    statuses(&proxy, 1000).await;
    let all = attempts.load(Ordering::Relaxed);
    assert!(all <= 1000 + 200 + 30 + 20, "{all} attempts for 1000 requests");
    // What is nothing to retry on is not retried, as nobody does better.
    status.store(429, Ordering::Relaxed);
    attempts.store(0, Ordering::Relaxed);
    statuses(&proxy, 100).await;
    let all = attempts.load(Ordering::Relaxed);
    assert!(all <= 105, "{all} attempts for 100 requests");
}
