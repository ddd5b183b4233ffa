//! Receivers that are away for a while, at five hundred exchanges a second.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use llmproxy_testkit::Client;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use super::{
    ask, backend,
    books::{Books, Told},
    config, is_long, reporter,
};
use crate::harness::{Folder, PATIENCE, Proxy};

const CLIENTS: u32 = 25;
const BATCH: usize = 100;
/// Of each client, so that there are 500 a second.
const EVERY: Duration = Duration::from_millis(50);
/// What the proxy may have more during and after the outage than before it, in KiB: the newest records are kept in memory,
/// 4096 at most, and a page of older ones for each reporter.
const MEMORY: u64 = 24 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_costs_no_record_no_order_and_no_memory() {
    let seconds = if is_long() { 60 } else { 4 };
    let (backend, folder) = (backend().await, Folder::new());
    let (single, batch) = (Books::open(), Books::open());
    let batches = json!({"batch_size": BATCH, "batch_interval": "50ms"});
    let reporters = [reporter("single", &single.url(), &json!({})), reporter("batch", &batch.url(), &batches)];
    let proxy = Proxy::start(&config(&backend, &folder, &reporters).to_string()).await;

    let (mut all, _) = load(proxy.address(), 1).await;
    let warm: Vec<String> = all.iter().flatten().cloned().collect();
    single.wait_for(&warm).await;
    batch.wait_for(&warm).await;
    let before = proxy.memory();

    let (single, batch) = (single.close().await, batch.close().await);
    let (during, rate) = load(proxy.address(), seconds).await;
    let count: usize = during.iter().map(Vec::len).sum();
    let at_end = proxy.memory();
    for name in ["single", "batch"] {
        waiting(&proxy, name, count).await;
    }
    all.iter_mut().zip(during).for_each(|(all, during)| all.extend(during));
    let ids: Vec<String> = all.iter().flatten().cloned().collect();

    let (single, batch) = (single.open(), batch.open());
    let (single, batch) = tokio::join!(caught_up(&single, &ids), caught_up(&batch, &ids));
    let after = proxy.memory();
    println!("{count} exchanges in an outage of {seconds} s, {rate:.0} a second");
    println!("memory: {before} KiB before, {at_end} KiB at its end, {after} KiB when all was delivered");
    for (name, (told, rate)) in [("single", &single), ("batch", &batch)] {
        println!("{name}: caught up at {rate:.0} records a second, {} came twice", told.again);
        assert_eq!((told.order.len(), &*told.conflicts), (ids.len(), &[][..]));
        // A client's next exchange begins after the one before has ended.
        let places: HashMap<&String, usize> = told.order.iter().zip(0..).collect();
        for mine in &all {
            assert!(mine.is_sorted_by_key(|id| places[id]), "the order is another");
        }
    }
    assert!(single.0.order == batch.0.order, "each has the ledger's order");
    assert!(at_end.max(after) <= before + MEMORY, "{before} KiB became {at_end} KiB, then {after} KiB");
}

/// The metric says that `count` records wait for `reporter`, and at most a batch that was on its way when it was closed.
async fn waiting(proxy: &Proxy, reporter: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    let label = format!("reporter=\"{reporter}\"");
    let expected = count as f64..=(count + BATCH) as f64;
    loop {
        let pending = proxy.metrics().await.sum("llmproxy_usage_records_pending", &[&label]);
        if expected.contains(&pending) {
            return;
        }
        assert!(Instant::now() < deadline, "of {count} records {pending} wait for {reporter}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all is there; the records, and how many came in a second from the first request that was answered on.
async fn caught_up(books: &Books, ids: &[String]) -> (Told, f64) {
    let before = books.told().order.len();
    let known = books.requests().len();
    let told = books.wait_for(ids).await;
    let since = books.requests()[known];
    let rate = (told.order.len() - before) as f64 / since.elapsed().as_secs_f64();
    (told, rate)
}

/// Exchanges for so many seconds: the ids of each client's, in their order, and how many there were in a second.
async fn load(proxy: SocketAddr, seconds: u32) -> (Vec<Vec<String>>, f64) {
    let begin = Instant::now();
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        clients.spawn(async move {
            let mut ticks = interval_at(begin + EVERY / CLIENTS * index, EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut client = Client::connect(proxy).await;
            let mut ids = Vec::new();
            while begin.elapsed() < Duration::from_secs(seconds.into()) {
                ticks.tick().await;
                let (status, id) = ask(&mut client, "m").await;
                assert_eq!(status, 200);
                ids.push(id);
            }
            (index, ids)
        });
    }
    let mut all = clients.join_all().await;
    all.sort_by_key(|(index, _)| *index);
    let all: Vec<Vec<String>> = all.into_iter().map(|(_, ids)| ids).collect();
    let count: usize = all.iter().map(Vec::len).sum();
    (all, count as f64 / begin.elapsed().as_secs_f64())
}
