//! Attempts that begin and end on several threads at a time, while the configuration changes.

use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicU64, fence},
    },
    thread,
};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{
    BoxError, HttpClient,
    body::{Ending, Observer},
};
use metrics::{Counter, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tower::service_fn;

use super::*;
use crate::{
    BackendConfig, Balancer, HealthCheckConfig, QueueConfig, RoutingConfig,
    flight::Flight,
    metrics::{BACKEND_STATE, BACKEND_UP, IN_FLIGHT},
    policy::{Candidate, Choice, Policy, Work},
};

const THREADS: usize = 4;
const ROUNDS: usize = 20_000;
/// The most that a thread has in flight.
const HELD: usize = 8;

/// The gauges, by the backend's name.
#[derive(Default)]
struct Gauges(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let labels: Vec<&str> = key.labels().map(|label| label.value()).collect();
        let series = key.name().to_owned() + &labels.join(".");
        Gauge::from_arc(self.0.lock().expect("no panic").entry(series).or_default().clone())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

pub(super) fn backend(name: &str) -> Arc<Backend> {
    let mut backend = Backend::new("http://127.0.0.1:9").expect("a URL");
    backend.name = name.into();
    Arc::new(backend)
}

/// Ends an attempt in one of the ways that there are.
pub(super) fn end(flight: Flight, way: usize) {
    let mut flight = Observer::new(flight);
    let statuses = [200, 200, 200, 429, 503];
    if let Some(status) = statuses.get(way % 6) {
        flight.head(&Response::builder().status(*status).body(()).expect("a head").into_parts().0);
    }
    match way % 4 {
        0 => flight.end(Ending::Complete),
        1 => flight.end(Ending::Failed(&"it broke".into())),
        2 => flight.end(Ending::Dropped),
        // As a future that is dropped does it.
        _ => {}
    }
}

#[test]
fn as_many_are_in_flight_as_were_picked_and_did_not_end_and_all_are_given_back() {
    let rules = Rules::new(&HealthCheckConfig::default());
    let node = Node::new(0, backend("a"), rules, Arc::default());
    let gauges = Gauges::default();
    // Of all threads: what may be counted, and what must not be counted any more.
    let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let working = AtomicUsize::new(THREADS);
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (node, gauges, begun, ended, working) = (&node, &gauges, &begun, &ended, &working);
            let start = &start;
            scope.spawn(move || {
                metrics::with_local_recorder(gauges, || {
                    start.wait();
                    let mut held = Vec::new();
                    for round in 0..ROUNDS {
                        // A configuration may name it anew while requests are there.
                        let name = node.name();
                        begun.fetch_add(1, Ordering::SeqCst);
                        fence(Ordering::SeqCst);
                        held.push(Flight::new(node.enter(&name, &Work::default()), Default::default()));
                        let keep = (round * (number + 3)) % HELD;
                        while held.len() > keep {
                            end(held.swap_remove(round % held.len()), round + number);
                            fence(Ordering::SeqCst);
                            ended.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    let rest = held.len();
                    drop(held);
                    fence(Ordering::SeqCst);
                    ended.fetch_add(rest, Ordering::SeqCst);
                    working.fetch_sub(1, Ordering::SeqCst);
                });
            });
        }
        let mut looks = 0_usize;
        while working.load(Ordering::SeqCst) > 0 {
            let over = ended.load(Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let counted = node.in_flight();
            fence(Ordering::SeqCst);
            let most = begun.load(Ordering::SeqCst) - over;
            // One that was given back twice would make it wrap, and so be more than anything.
            assert!(counted <= most, "{counted} of at most {most}");
            node.configure(backend(["a", "b"][looks % 2]), rules);
            looks += 1;
            thread::yield_now();
        }
    });
    assert_eq!((node.in_flight(), begun.into_inner()), (0, THREADS * ROUNDS));
    let gauges = gauges.0.into_inner().expect("no panic");
    assert!(gauges.keys().any(|series| series.starts_with(IN_FLIGHT)), "{gauges:?}");
    for (series, value) in gauges.iter().filter(|(series, _)| series.starts_with(IN_FLIGHT)) {
        assert_eq!(f64::from_bits(value.load(Ordering::SeqCst)), 0.0, "{series}");
    }
}

/// Remembers whom it was told to forget.
#[derive(Debug, Default)]
struct Forgetful(std::sync::Mutex<Vec<usize>>);

impl Policy for Forgetful {
    fn pick(&self, _: &Work, _: &[Candidate<'_>]) -> Choice {
        Choice::new(0, "")
    }

    fn forget(&self, index: usize) {
        self.0.lock().expect("no panic").push(index);
    }
}

#[test]
fn policies_forget_what_a_process_had_that_was_gone() {
    let rules = Rules::new(&HealthCheckConfig::default());
    let (hub, policy) = (Arc::<Hub>::default(), Arc::<Forgetful>::default());
    hub.set_policies(vec![policy.clone()]);
    let node = Node::new(7, backend("a"), rules, hub);
    let check = || node.health().begin_check();
    node.check_passed(check());
    // Whose checks failed may still be the same, with all that it has in its caches.
    (0..3).for_each(|_| node.check_failed(check(), false, "500"));
    (0..2).for_each(|_| node.check_passed(check()));
    assert!(node.is_up() && policy.0.lock().expect("no panic").is_empty());
    node.check_failed(check(), true, "refused");
    node.check_passed(check());
    assert_eq!(*policy.0.lock().expect("no panic"), [7]);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_time_alone_has_changed_is_shown_to_whoever_asks_for_metrics() {
    let gauges = Gauges::default();
    let _recorder = metrics::set_default_local_recorder(&gauges);
    let nobody = service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("nobody is there".into()));
    let unchecked = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let backend = BackendConfig { name: Some("a".into()), ..BackendConfig::new("http://a") };
    let balancer = Balancer::new(HttpClient::new(nobody));
    let pool = balancer.apply(&[backend], &RoutingConfig::default(), &unchecked, &QueueConfig::default());
    let shown = |state: &str| {
        let gauges = gauges.0.lock().expect("no panic");
        f64::from_bits(gauges[&format!("{BACKEND_STATE}a.{state}")].load(Ordering::SeqCst))
    };
    let node = pool.view().members[0].node.clone();
    let request = node.enter(&node.name(), &Work::default());
    node.pressed(request.pass(), Some(Duration::from_secs(7)), "it was answered with 429");
    assert_eq!((shown("pressured"), shown("unknown")), (1.0, 0.0));
    tokio::time::sleep(Duration::from_secs(8)).await;
    pool.show_states();
    assert_eq!((shown("pressured"), shown("unknown")), (0.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn a_backend_whose_probe_is_due_is_not_up_before_that_has_worked() {
    let gauges = Gauges::default();
    let _recorder = metrics::set_default_local_recorder(&gauges);
    let node = Node::new(0, backend("a"), Rules::new(&HealthCheckConfig::default()), Arc::default());
    let is_shown_up = || {
        let gauges = gauges.0.lock().expect("no panic");
        f64::from_bits(gauges[&format!("{BACKEND_UP}a")].load(Ordering::SeqCst)) == 1.0
    };
    let check = node.health().begin_check();
    node.check_passed(check);
    assert!(is_shown_up());
    for _ in 0..3 {
        let request = node.enter(&node.name(), &Work::default());
        node.failed(request.pass(), Fault::Backend, None, "it was answered with 502");
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    // As a reload does.
    node.show();
    assert!(node.is_up() && !is_shown_up());
    let probe = node.enter(&node.name(), &Work::default());
    node.worked(probe.pass());
    assert!(is_shown_up());
}

#[test]
fn nobody_waits_for_what_is_cached_of_a_prompt() {
    let node = Node::new(0, backend("a"), Rules::new(&HealthCheckConfig::default()), Arc::default());
    let work = Work { prompt_tokens: 100, output_tokens: 10, ..Work::default() };
    let [mut first, mut second] = [(); 2].map(|()| node.enter(&node.name(), &work));
    first.is_cached(70);
    assert_eq!((node.tokens_waiting(), node.tokens()), (130, 220));
    second.is_cached(1000);
    assert_eq!(node.tokens_waiting(), 30, "it can't be more than there is");
    second.begun();
    first.begun();
    assert_eq!((node.tokens_waiting(), node.tokens()), (0, 220));
    drop((first, second));
    assert_eq!((node.tokens_waiting(), node.tokens()), (0, 0));
}

#[test]
fn a_weight_that_was_set_holds_until_another_one_is_configured() {
    let node = Node::new(0, backend("a"), Rules::new(&HealthCheckConfig::default()), Arc::default());
    node.set_weight(5, 3);
    assert_eq!((node.weight(5), node.weight(7)), (3, 7));
    node.is_weighted(5);
    assert_eq!(node.weight(5), 3);
    node.is_weighted(7);
    node.is_weighted(5);
    assert_eq!(node.weight(5), 5);
}
