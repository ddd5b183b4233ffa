//! What becomes of backends is told in the log.

mod common;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Checks, Proxy, Reply, answer, backends, settle, text};
use llmproxy_balancer::{Balancer, HealthCheckConfig, LoadBalance, Pool, RoutingConfig};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::{DefaultGuard, set_default},
};

/// Keeps every event as a line of its fields.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl Lines {
    /// What this thread's code tells from here on.
    fn start() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let guard = set_default(lines.clone());
        (lines, guard)
    }

    /// The states of `a` that were told since the last look, as `STATE: WHY`.
    fn states(&self) -> Vec<String> {
        let lines = std::mem::take(&mut *self.0.lock().expect("no test panics in here"));
        let of_a = lines.iter().filter(|line| line.contains("backend=a "));
        of_a.filter_map(|line| {
            let value = |name: &str| Some(line.split_once(&format!("{name}=\""))?.1.split_once('"')?.0);
            Some(format!("{}: {}", value(" state")?, value(" reason").or_else(|| value(" problem"))?))
        })
        .collect()
    }
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().expect("no test panics in here").push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_weight_and_a_drain_leave_a_line_each_in_the_log() {
    let (lines, _guard) = Lines::start();
    let balancer = Balancer::new(Checks::default().client());
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let pool = balancer.apply(&backends(&[1]), &Default::default(), &health, &Default::default());
    balancer.set_weight("a", 5);
    balancer.set_weight("a", 5);
    balancer.set_draining("a", true);
    assert_eq!(pool.snapshot()[0].reason.as_deref(), Some("an administrator has drained it"));
    let lines = lines.0.lock().expect("no test panics in here");
    let told: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    assert_eq!(told.len(), 2, "what changes nothing is no news: {told:?}");
    for (line, expected) in
        told.iter().zip([["backend=a", "weight=5", "old=1"], ["backend=a", "draining=true", "state=\"draining\""]])
    {
        assert!(expected.iter().all(|field| line.contains(field)), "{line}");
    }
}

/// A proxy before `a` and `b`, which take turns, of which `a` answers with this status and asks for a second's patience.
fn before(pool: &Arc<Pool>, status: &Arc<AtomicUsize>) -> Proxy {
    let status = status.clone();
    Proxy::new(pool.clone(), move |target| {
        let status = if &*target.backend.name == "a" { status.load(Ordering::Relaxed) } else { 200 };
        let mut answer = answer(u16::try_from(status).expect("a status"), "");
        if status == 429 || status == 500 {
            answer.headers_mut().insert("retry-after", "1".parse().expect("a good value"));
        }
        Reply::Answer(answer)
    })
}

async fn ask(proxy: &Proxy, number: usize) {
    for _ in 0..number {
        let _ = text(proxy.ask().await.1.expect("there is always somebody to answer")).await;
    }
}

const SHARE: &str = "the time for which it had enough to do has passed";

#[tokio::test(start_paused = true)]
async fn each_state_of_a_backend_is_told_with_its_reason_also_what_time_alone_brings() {
    let (lines, _guard) = Lines::start();
    let checks = Checks::default();
    ["a", "b"].iter().for_each(|host| checks.serves(host, &["m"]));
    let routing = RoutingConfig { load_balance: LoadBalance::RoundRobin, ..RoutingConfig::default() };
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1]), &routing, &Default::default(), &Default::default());
    settle().await;
    assert_eq!(lines.states(), ["up: its health check was good"]);
    let status = Arc::<AtomicUsize>::default();
    let proxy = before(&pool, &status);
    // Twice without a success between them.
    for _ in 0..2 {
        status.store(429, Ordering::Relaxed);
        ask(&proxy, 2).await;
        assert_eq!(lines.states(), ["pressured: a request was answered with 429 Too Many Requests"]);
        tokio::time::sleep(Duration::from_millis(1001)).await;
        assert_eq!(lines.states(), [format!("up: {SHARE}")]);
    }
    status.store(500, Ordering::Relaxed);
    ask(&proxy, 2).await;
    assert_eq!(lines.states(), ["pressured: a request was answered with 500 Internal Server Error"]);
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(lines.states(), [format!("up: {SHARE}")]);
    status.store(502, Ordering::Relaxed);
    ask(&proxy, 8).await;
    assert_eq!(lines.states(), ["ejected: too many requests in a row failed"]);
    status.store(200, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(7)).await;
    ask(&proxy, 2).await;
    assert_eq!(lines.states(), ["warming: a request has worked there"]);
    tokio::time::sleep(Duration::from_millis(30_001)).await;
    assert_eq!(lines.states(), ["up: it has been back for as long as its slow start takes"]);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(lines.states(), [""; 0], "and then there is nothing to tell");
}

#[tokio::test(start_paused = true)]
async fn where_no_task_looks_after_a_backend_what_time_brings_is_told_at_the_next_look() {
    let (lines, _guard) = Lines::start();
    let mut backends = backends(&[1, 1]);
    backends.iter_mut().for_each(|backend| backend.models.push("m".into()));
    let routing = RoutingConfig { load_balance: LoadBalance::RoundRobin, ..RoutingConfig::default() };
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let balancer = Balancer::new(Checks::default().client());
    let pool = balancer.apply(&backends, &routing, &health, &Default::default());
    let status = Arc::new(AtomicUsize::new(429));
    let proxy = before(&pool, &status);
    let looks: [&dyn Fn(); 3] = [&|| pool.show_states(), &|| drop(pool.snapshot()), &|| {
        drop(balancer.apply(&backends, &routing, &health, &Default::default()))
    }];
    for look in looks {
        ask(&proxy, 2).await;
        let told = lines.states();
        assert_eq!(told[0], "pressured: a request was answered with 429 Too Many Requests", "{told:?}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        look();
        assert_eq!(lines.states(), [format!("up: {SHARE}")]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_task_that_asks_an_unchecked_backend_for_its_models_looks_after_it() {
    let (lines, _guard) = Lines::start();
    let checks = Checks::default();
    ["a", "b"].iter().for_each(|host| checks.serves(host, &["m"]));
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1, 1]), &Default::default(), &health, &Default::default());
    settle().await;
    ask(&before(&pool, &Arc::new(AtomicUsize::new(429))), 2).await;
    assert_eq!(lines.states()[0], "pressured: a request was answered with 429 Too Many Requests");
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(lines.states(), [format!("up: {SHARE}")]);
}
