//! Backends and clients that fail at random, a few hundred exchanges of them, a few at a time.
//!
//! What each side does is drawn from a seed before anything begins. How the exchanges then overlap is the machine's
//! affair, so nothing here depends on it: each outcome is judged by its own plan, and at the end all is as it was before.
//!
//! `LLMPROXY_CHAOS_SEED=n cargo test -p llmproxy --test proxy chaos::` plays the seed that a failure has named.

mod backend;
mod client;
mod plan;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use llmproxy_testkit::{Backend, BodyEnd, Receiver};
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    backend::Stage,
    client::Outcome,
    plan::{Ask, Manner, Plan, own_error},
};
use crate::harness::{PATIENCE, Proxy};

const EXCHANGES: usize = 300;
/// So many exchanges at a time.
const AT_A_TIME: usize = 16;
/// What the proxy may have more at the end than after the first exchanges, in KiB: buffers that are kept for reuse, and
/// what the allocator does not give back.
const MEMORY: u64 = 16 * 1024;
/// Of a hundred exchanges so many may run into a limit of time although nobody stalled: the machine may be busy.
const LATE: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_exchange_ends_in_an_allowed_way_and_is_counted_once() {
    assert_eq!(play(20_250).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_where_backends_may_finish_what_clients_left() {
    let drained = play(20_251).await;
    assert!(drained > 0.0, "there was nothing to see");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_with_a_seed_of_this_run_s_own() {
    let seed = std::env::var("LLMPROXY_CHAOS_SEED")
        .map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("LLMPROXY_CHAOS_SEED is a number"));
    play(seed).await;
}

/// Plays it all, and says how many rests of answers were read after their clients had left.
async fn play(seed: u64) -> f64 {
    // Shown where the test fails.
    println!("LLMPROXY_CHAOS_SEED={seed} plays this again");
    let mut plans = Plan::draw(seed, EXCHANGES);
    let (warm, sentinel) = (EXCHANGES, EXCHANGES + 1);
    plans.extend([Plan::clean(warm), Plan::clean(sentinel)]);
    let stage = Stage::new(plans);
    let mut backends = Vec::new();
    for _ in 0..3 {
        let stage = stage.clone();
        backends.push(Backend::start(move |seen, wire| stage.clone().answer(seen, wire)).await);
    }
    let receiver = Receiver::start().await;
    let mut proxy = Proxy::start(&config(seed, &backends, &receiver)).await;
    let address = proxy.address();
    let first = Outcome::of(&stage.plans[warm], address).await;
    assert_eq!(first.end, Some(BodyEnd::Complete));
    quiet(&proxy).await;
    let memory = proxy.memory();

    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut running = JoinSet::new();
    for plan in &stage.plans[..EXCHANGES] {
        let (plan, place) = (plan.clone(), places.clone().acquire_owned().await.expect("never closed"));
        running.spawn(async move {
            let outcome = Outcome::of(&plan, address).await;
            drop(place);
            (plan.id, outcome)
        });
    }
    let mut outcomes: HashMap<usize, Outcome> = HashMap::new();
    while let Some(played) = running.join_next().await {
        let (id, outcome) = played.expect("no client panics");
        outcomes.insert(id, outcome);
    }

    // All that was taken is given back, and a client of good manners is served as before.
    quiet(&proxy).await;
    let clean = Outcome::of(&stage.plans[sentinel], address).await;
    assert_eq!((clean.status, clean.end), (Some(200), Some(BodyEnd::Complete)));
    assert_eq!(clean.body, stage.plans[sentinel].pieces().concat().into_bytes());
    quiet(&proxy).await;
    eventually("memory to be what it was", || async {
        let now = proxy.memory();
        (now > memory + MEMORY).then(|| format!("{memory} KiB became {now} KiB"))
    })
    .await;

    // Lines are written in the order in which exchanges end, so all are there with the last one's.
    let mut lines: HashMap<String, Vec<Value>> = HashMap::new();
    loop {
        let line = proxy.ended().await;
        let address = line["client_ip"].as_str().unwrap_or_default().to_owned();
        let is_last = address == stage.plans[sentinel].address();
        lines.entry(address).or_default().push(line);
        if is_last {
            break;
        }
    }
    let mut records: HashMap<String, Vec<Value>> = HashMap::new();
    let mut ids = HashSet::new();
    for record in receiver.bodies() {
        let id = record["request_id"].as_str().expect("a record has an id").to_owned();
        records.entry(id.clone()).or_default().push(record);
        ids.insert(id);
    }

    let (mut late, mut served, mut problems) = (0, 0, Vec::new());
    for plan in &stage.plans[..EXCHANGES] {
        let outcome = &outcomes[&plan.id];
        let lines = lines.remove(&plan.address()).unwrap_or_default();
        let exchange = Exchange { plan, outcome, asked: &stage.asked(plan.id), lines: &lines };
        let is_late = exchange.is_late();
        late += usize::from(is_late);
        served += usize::from(outcome.status == Some(200) && outcome.end == Some(BodyEnd::Complete));
        let result = exchange.is_counted(&mut records).and_then(|()| match is_late {
            true => Ok(()),
            false => exchange.is_allowed(),
        });
        if let Err(problem) = result {
            let shown = String::from_utf8_lossy(&outcome.body);
            let (status, end) = (outcome.status, outcome.end);
            let plan = Plan { garbage: Vec::new(), ..plan.clone() };
            problems.push(format!("{problem}\n  {plan:?}\n  {status:?}, {end:?}: {shown:?}\n  lines: {lines:?}"));
        }
    }
    for exchange in [warm, sentinel] {
        assert_eq!(stage.asked(exchange).len(), 1);
        records.remove(&stage.asked(exchange)[0]);
    }
    if !records.is_empty() {
        problems.push(format!("records of exchanges that nobody knows: {records:?}"));
    }
    assert!(problems.is_empty(), "seed {seed}: {} exchanges went wrong:\n{}", problems.len(), problems.join("\n"));
    assert!(late * 100 <= LATE * EXCHANGES, "seed {seed}: {late} limits of time were passed without a cause");
    // Else there was nothing to see.
    assert!(served * 4 > EXCHANGES, "seed {seed}: only {served} were served");
    proxy.metrics().await.sum("llmproxy_drains_total", &[])
}

/// One exchange and all that is known of it afterwards.
struct Exchange<'a> {
    plan: &'a Plan,
    outcome: &'a Outcome,
    /// The proxy's ids of the requests that backends had of it.
    asked: &'a [String],
    lines: &'a [Value],
}

impl Exchange<'_> {
    /// Whether a limit of time was passed though no backend was silent.
    fn is_late(&self) -> bool {
        self.lines.iter().any(|line| line["end"] == "timeout") && !self.plan.has(|fault| fault.is_silence())
    }

    /// One access line, and one record if a backend was asked.
    fn is_counted(&self, records: &mut HashMap<String, Vec<Value>>) -> Result<(), String> {
        let (client, lines) = (self.plan.client, self.lines.len());
        // A request whose client has left before it was looked at may not have been one.
        let may_be_none = !client.stays() && self.asked.is_empty();
        match lines {
            0 if may_be_none => return Ok(()),
            1 if client.sends_head() => {}
            _ => return Err(format!("{lines} access lines")),
        }
        let line = &self.lines[0];
        if let Some(other) = self.asked.iter().find(|id| line["request_id"] != **id) {
            return Err(format!("a backend was asked as {other}"));
        }
        let found = records.remove(line["request_id"].as_str().unwrap_or_default()).unwrap_or_default();
        let is_asked = !self.asked.is_empty() || !line["backend_url"].is_null();
        if found.len() != usize::from(is_asked) {
            return Err(format!("{} records of an exchange for which a backend was asked: {is_asked}", found.len()));
        }
        for key in ["end", "status_code"] {
            if let Some(record) = found.iter().find(|record| record[key] != line[key]) {
                return Err(format!("the record has another {key} than the line: {record}"));
            }
        }
        if let Some(record) =
            found.iter().find(|record| record["delivered_tokens"].is_u64() && line["end"] != "client_gone")
        {
            return Err(format!("the client had it all, or was told why not: {record}"));
        }
        Ok(())
    }

    /// What the client saw is what this plan can lead to.
    fn is_allowed(&self) -> Result<(), String> {
        let Self { plan, outcome, .. } = self;
        let wrong = |what: &str| Err(what.to_owned());
        let Some(status) = outcome.status else {
            return if plan.client.stays() { wrong("a patient client had no answer") } else { Ok(()) };
        };
        match plan.client {
            Manner::HalfHead { .. } | Manner::Garbage => {
                return if matches!(status, 400 | 408 | 414 | 431 | 505) {
                    Ok(())
                } else {
                    wrong("no such request was made")
                };
            }
            Manner::HalfBody { .. } if status == 200 => return wrong("half a question was answered"),
            Manner::HalfBody { .. } => return Ok(()),
            _ => {}
        }
        if plan.client.stays() && outcome.end.is_none() {
            return wrong("the answer has no end");
        }
        let complete = outcome.end == Some(BodyEnd::Complete);
        let Some(attempt) = outcome.attempt else {
            // The proxy's own words: a whole answer that says what it is.
            let cause = match status {
                502 | 503 => plan.has(|fault| !fault.is_whole()),
                504 => plan.has(|fault| fault.is_silence()),
                _ => return wrong("the proxy has no cause to say that"),
            };
            let is_error =
                serde_json::from_slice::<Value>(&outcome.body).is_ok_and(|body| body["error"]["message"].is_string());
            let is_whole = outcome.end.is_none() || (complete && is_error);
            return if cause && is_whole { Ok(()) } else { wrong("an error without a cause, or half of one") };
        };
        let fault = plan.fault(attempt);
        if status != 200 {
            let own = own_error(status).to_string();
            let is_own = own.as_bytes().starts_with(&outcome.body) && (!complete || outcome.body == own.as_bytes());
            let is_planned = fault == plan::Fault::Status(status);
            return if is_own && is_planned { Ok(()) } else { wrong("the backend did not say that") };
        }
        let whole = plan.pieces().concat();
        if complete {
            let is_right = fault.is_whole() && outcome.body == whole.as_bytes();
            return if is_right { Ok(()) } else { wrong("the answer looks complete and is not what was sent") };
        }
        if outcome.end.is_some() && fault.is_whole() {
            return wrong("the answer was broken off by the proxy");
        }
        let sent = if plan.ask == Ask::Stream { without_error(&outcome.body) } else { &outcome.body };
        if whole.as_bytes().starts_with(sent) { Ok(()) } else { wrong("the answer is not what was sent") }
    }
}

/// A stream without the error event at its end.
fn without_error(body: &[u8]) -> &[u8] {
    let text = std::str::from_utf8(body).unwrap_or_default();
    text.rfind("data: {\"error\":").map_or(body, |at| &body[..at])
}

/// Waits until nothing is under way: no connection but the one that asks, nothing in flight, no record on its way.
async fn quiet(proxy: &Proxy) {
    eventually("the proxy to be idle", || async {
        let metrics = proxy.metrics().await;
        let busy = [
            "llmproxy_in_flight",
            "llmproxy_inspect_buffered_bytes",
            "llmproxy_usage_records_pending",
            "llmproxy_drains_running",
        ];
        let counts = busy.map(|name| metrics.sum(name, &[]));
        let connections = metrics.sum("llmproxy_connections", &[]);
        let is_idle = counts == [0.0; 4] && connections <= 1.0;
        (!is_idle).then(|| format!("{busy:?} are {counts:?}, connections {connections}"))
    })
    .await;
}

/// Asks until there is no complaint.
async fn eventually<F: Future<Output = Option<String>>>(what: &str, complaint: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(complaint) = complaint().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}: {complaint}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// With an odd seed backends may finish what clients left.
fn on_abort(seed: u64) -> &'static str {
    if seed.is_multiple_of(2) { "delivered" } else { "drain" }
}

/// Short limits of time, and backends that are never given up, however often they fail.
fn config(seed: u64, backends: &[Backend], receiver: &Receiver) -> String {
    let backends: Vec<String> =
        backends.iter().map(|backend| format!("{{url: '{}', models: [m]}}", backend.url())).collect();
    format!(
        "server: {{read_timeout: 1s, trusted_proxies: [127.0.0.1]}}
backends: [{}]
health_check: {{enabled: false, unhealthy_threshold: 1000000}}
routing: {{timeout: 1s, gap_timeout: 1s, retry: {{max_retries: 1, initial_wait: 1ms}}}}
metering: {{on_abort: {}}}
usage:
  enabled: true
  reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]
",
        backends.join(", "),
        on_abort(seed),
        receiver.url()
    )
}
