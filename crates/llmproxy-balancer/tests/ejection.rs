//! Backends that fail, or have enough to do, and what becomes of the requests.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Checks, Proxy, Reply, answer, asked, backends, events, text};
use http_body_util::BodyExt;
use llmproxy_balancer::{
    BackendConfig, BackendState, BackendStatus, Balancer, Cause, HealthCheckConfig, LoadBalance, Pool, QueueConfig,
    RoutingConfig,
};
use llmproxy_core::Target;

const SECOND: Duration = Duration::from_secs(1);

fn pool(weights: &[u32], health: &HealthCheckConfig, routing: &RoutingConfig) -> Arc<Pool> {
    let mut backends = backends(weights);
    for backend in &mut backends {
        backend.models.push("m".into());
    }
    let checks = Checks::default();
    for name in ["a", "b", "c", "d", "e"] {
        checks.well(name);
    }
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends, routing, health, &QueueConfig::default());
    // The checks go on as long as the balancer is there, which is until the test ends.
    std::mem::forget(balancer);
    pool
}

fn plain(weights: &[u32]) -> Arc<Pool> {
    pool(weights, &HealthCheckConfig::default(), &RoutingConfig::default())
}

/// Backend `a` does as `first` says, each other one answers 200 with its name.
fn a_is(mut first: impl FnMut() -> Reply + Send + 'static) -> impl FnMut(&Target) -> Reply + Send {
    move |target| match &*target.backend.name {
        "a" => first(),
        name => Reply::Answer(answer(200, name)),
    }
}

/// Sends `number` requests, one each `every`, and returns of each whom it was sent to, and its status.
async fn ask(proxy: &Proxy, number: usize, every: Duration) -> Vec<(Vec<String>, u16)> {
    let mut all = Vec::new();
    for _ in 0..number {
        let (exchange, response) = proxy.ask().await;
        let response = response.expect("there is always somebody to answer");
        let status = response.status().as_u16();
        let _ = response.into_body().collect().await;
        all.push((asked(&exchange), status));
        tokio::time::sleep(every).await;
    }
    all
}

/// How many of these attempts went to `a`.
fn to_a(attempts: &[(Vec<String>, u16)]) -> usize {
    attempts.iter().flat_map(|(names, _)| names).filter(|name| *name == "a").count()
}

fn state(pool: &Pool) -> BackendState {
    pool.snapshot()[0].state
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_500_at_once_gets_next_to_nothing_after_ten_of_them() {
    for load_balance in [LoadBalance::RoundRobin, LoadBalance::LeastConnections, LoadBalance::LatencyBased] {
        let routing = RoutingConfig { load_balance, ..RoutingConfig::default() };
        let pool = pool(&[1, 1, 1, 1], &HealthCheckConfig::default(), &routing);
        let broken = Arc::new(AtomicUsize::new(0));
        let proxy = Proxy::new(pool.clone(), {
            let broken = broken.clone();
            a_is(move || match broken.load(Ordering::Relaxed) {
                0 => Reply::Answer(answer(200, "a")),
                _ => Reply::Answer(answer(500, "engine dead")),
            })
        });
        ask(&proxy, 200, SECOND / 10).await;
        broken.store(1, Ordering::Relaxed);
        let all = ask(&proxy, 2000, SECOND / 10).await;
        let (failed, attempts) = (to_a(&all), all.iter().map(|(names, _)| names.len()).sum::<usize>());
        assert!((failed.saturating_sub(10)) * 50 < attempts, "{load_balance:?}: {failed} of {attempts}");
        let seen = all.iter().filter(|(_, status)| *status == 500).count();
        assert!(seen <= 10, "{load_balance:?}: {seen} clients saw it, and the probes' are not among them");
        assert!(load_balance == LoadBalance::LatencyBased || state(&pool) == BackendState::Ejected);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_blame_the_request_or_ask_for_patience_are_no_successes_between_failures() {
    let mut routing = RoutingConfig { load_balance: LoadBalance::RoundRobin, ..RoutingConfig::default() };
    routing.retry.enabled = false;
    let mut health = HealthCheckConfig::default();
    health.passive.enabled = false;
    for (between, expected) in [
        (404, BackendState::Ejected),
        (429, BackendState::Ejected),
        (501, BackendState::Ejected),
        (200, BackendState::Up),
    ] {
        let pool = pool(&[1, 1], &health, &routing);
        let mut number = 0;
        let proxy = Proxy::new(
            pool.clone(),
            a_is(move || {
                number += 1;
                Reply::Answer(answer(if number % 3 == 0 { between } else { 502 }, ""))
            }),
        );
        ask(&proxy, 20, SECOND * 2).await;
        assert_eq!(state(&pool), expected, "{between}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mended_server_is_back_after_one_request_and_with_a_growing_share() {
    let pool = plain(&[1, 1]);
    let broken = Arc::new(AtomicUsize::new(1));
    let proxy = Proxy::new(pool.clone(), {
        let broken = broken.clone();
        a_is(move || Reply::Answer(answer([200, 500][broken.load(Ordering::Relaxed)], "a")))
    });
    ask(&proxy, 40, SECOND / 100).await;
    let status = &pool.snapshot()[0];
    assert_eq!((status.state, status.out, status.up), (BackendState::Ejected, Some(Cause::ErrorRate), false));
    let reason = status.reason.as_deref().unwrap();
    assert_eq!(reason, "too many of its requests failed: a request was answered with 500 Internal Server Error");
    broken.store(0, Ordering::Relaxed);
    // Its checks were good all the time, and say nothing.
    let all = ask(&proxy, 45, SECOND / 10).await;
    assert_eq!(to_a(&all), 0, "not before its time");
    tokio::time::sleep(2 * SECOND).await;
    ask(&proxy, 1, Duration::ZERO).await;
    assert_eq!(state(&pool), BackendState::Warming);
    let share = to_a(&ask(&proxy, 100, Duration::ZERO).await);
    assert!((7..=11).contains(&share), "a tenth against a whole: {share}");
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(state(&pool), BackendState::Up);
    assert!((48..=52).contains(&to_a(&ask(&proxy, 100, Duration::ZERO).await)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_one_request_and_its_failure_costs_no_client_an_error() {
    let pool = plain(&[1, 1]);
    let stalls = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::new(pool.clone(), {
        let stalls = stalls.clone();
        a_is(move || match stalls.load(Ordering::Relaxed) {
            0 => Reply::Answer(answer(500, "")),
            _ => Reply::Stall,
        })
    });
    ask(&proxy, 40, SECOND / 100).await;
    assert_eq!(state(&pool), BackendState::Ejected);
    tokio::time::sleep(7 * SECOND).await;
    let all = ask(&proxy, 20, SECOND / 100).await;
    assert_eq!(all[0], (vec!["a".into(), "b".into()], 200), "500 is nothing to retry on, but for a probe");
    assert_eq!(to_a(&all), 1);
    // The next one hangs: all others go where it is well, until its client leaves and another one may find out.
    tokio::time::sleep(15 * SECOND).await;
    stalls.store(1, Ordering::Relaxed);
    for _ in 0..2 {
        let client = tokio::time::timeout(3 * SECOND, proxy.ask());
        let others = async {
            tokio::time::sleep(SECOND).await;
            assert_eq!(to_a(&ask(&proxy, 20, SECOND / 20).await), 0);
        };
        let (client, ()) = tokio::join!(client, others);
        assert!(client.is_err(), "it was the probe");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_takes_its_time_keeps_nobody_else_from_the_only_backend() {
    let pool = common::unchecked(&[1], &RoutingConfig::default());
    let refused = Proxy::new(pool.clone(), |_| Reply::Refused);
    assert!(refused.ask().await.1.is_err());
    let hung = Proxy::new(pool.clone(), |_| Reply::Stall);
    let well = Proxy::new(pool.clone(), |_| Reply::Answer(answer(200, "")));
    assert!(well.ask().await.1.is_err(), "there is nobody to connect to");
    tokio::time::sleep(5 * SECOND).await;
    let probe = tokio::spawn(async move { hung.ask().await.1.is_ok() });
    tokio::time::sleep(SECOND / 2).await;
    assert!(well.ask().await.1.is_err(), "the probe is to tell");
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(ask(&well, 1, Duration::ZERO).await[0].1, 200);
    assert!(pool.snapshot()[0].out.is_none(), "and that has told");
    probe.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_not_be_sent_again_is_a_probe_only_where_no_other_comes() {
    let pool = plain(&[1, 1]);
    let proxy = Proxy::new(pool, a_is(|| Reply::Answer(answer(500, ""))));
    ask(&proxy, 40, SECOND / 100).await;
    tokio::time::sleep(7 * SECOND).await;
    for (hosts, after) in [("b", 0), ("b", 1), ("a", 16), ("b", 0)] {
        tokio::time::sleep(after * SECOND).await;
        let upload = llmproxy_core::RequestBody::stream(common::body([Ok("form")]));
        let (exchange, response) = proxy.ask_with(Some("m"), upload).await;
        let status = if hosts == "b" { 200 } else { 500 };
        assert_eq!((asked(&exchange), response.unwrap().status().as_u16()), (vec![hosts.to_owned()], status));
    }
    tokio::time::sleep(13 * SECOND).await;
    let all = ask(&proxy, 5, Duration::ZERO).await;
    assert!(to_a(&all) == 1 && all.iter().all(|(_, status)| *status == 200), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn the_only_backend_is_asked_whatever_it_answers() {
    let pool = plain(&[1]);
    let proxy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(500, "out of memory")));
    let all = ask(&proxy, 100, SECOND / 100).await;
    assert!(all.iter().all(|(names, status)| names.len() == 1 && *status == 500), "its own answer, once: {all:?}");
    assert_eq!((state(&pool), pool.is_any_up()), (BackendState::Ejected, true));
    // The first that works brings it back, long before its time.
    let proxy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(200, "")));
    ask(&proxy, 1, Duration::ZERO).await;
    assert_eq!(state(&pool), BackendState::Warming);
}

#[tokio::test(start_paused = true)]
async fn the_only_backend_is_ready_as_long_as_requests_are_sent_there_whatever_its_health_page_says() {
    for (panic_threshold, is_ready) in [(50, true), (0, false)] {
        let checks = Checks::default();
        checks.set("a", 500, 500, "");
        let mut backends = backends(&[1]);
        backends[0].models.push("m".into());
        let health = HealthCheckConfig { panic_threshold, ..HealthCheckConfig::default() };
        let balancer = Balancer::new(checks.client());
        let pool = balancer.apply(&backends, &RoutingConfig::default(), &health, &QueueConfig::default());
        tokio::time::sleep(SECOND).await;
        assert_eq!((state(&pool), pool.is_any_up()), (BackendState::Down, is_ready));
        let proxy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(200, "")));
        assert_eq!(proxy.ask().await.1.is_ok(), is_ready);
        // It is shown as it is all the same, and nobody can be asked where there is no connection.
        checks.refuse("a");
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!((state(&pool), pool.is_any_up()), (BackendState::Down, false));
    }
}

#[tokio::test(start_paused = true)]
async fn where_most_fail_the_good_ones_are_not_buried_and_the_others_are_tried() {
    let pool = plain(&[1, 1, 1]);
    let proxy = Proxy::new(pool.clone(), |target| {
        Reply::Answer(answer(if &*target.backend.name == "c" { 200 } else { 500 }, ""))
    });
    ask(&proxy, 100, SECOND / 100).await;
    let states: Vec<_> = pool.snapshot().iter().map(|status| status.state).collect();
    assert_eq!(states, [BackendState::Ejected, BackendState::Ejected, BackendState::Up]);
    let all = ask(&proxy, 600, Duration::ZERO).await;
    assert!(all.iter().all(|(_, status)| *status == 200), "whoever was sent to one that is out was sent again");
    let first = all.iter().filter(|(names, _)| names[0] == "c").count();
    // A third is open where a half is wanted: two of three requests go there.
    assert!((340..460).contains(&first), "{first} of 600");

    let strict = HealthCheckConfig { panic_threshold: 0, ..HealthCheckConfig::default() };
    let proxy = Proxy::new(self::pool(&[1, 1, 1], &strict, &RoutingConfig::default()), |target| {
        Reply::Answer(answer(if &*target.backend.name == "c" { 200 } else { 500 }, ""))
    });
    ask(&proxy, 100, SECOND / 100).await;
    assert!(ask(&proxy, 100, Duration::ZERO).await.iter().all(|(names, _)| names == &["c"]));
}

#[tokio::test(start_paused = true)]
async fn one_good_backend_is_enough_to_judge_all_others_by() {
    for load_balance in [LoadBalance::RoundRobin, LoadBalance::LeastConnections] {
        let routing = RoutingConfig { load_balance, ..RoutingConfig::default() };
        let pool = pool(&[1, 1, 1, 1, 1], &HealthCheckConfig::default(), &routing);
        let proxy = Proxy::new(pool.clone(), |target| {
            Reply::Answer(answer(if &*target.backend.name == "e" { 200 } else { 500 }, ""))
        });
        ask(&proxy, 300, SECOND / 10).await;
        let states: Vec<_> = pool.snapshot().iter().map(|status| status.state).collect();
        assert_eq!(states[..4], [BackendState::Ejected; 4], "{load_balance:?}");
        assert_eq!(states[4], BackendState::Up, "{load_balance:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_at_one_backend_after_the_other_does_not_take_out_the_last() {
    let pool = plain(&[1, 1]);
    let poison = Proxy::new(pool.clone(), |_| Reply::Answer(answer(500, "")));
    let strange = Proxy::new(pool.clone(), a_is(|| Reply::Answer(answer(500, ""))));
    ask(&strange, 40, SECOND / 100).await;
    assert_eq!(state(&pool), BackendState::Ejected);
    ask(&poison, 100, SECOND / 100).await;
    assert!(pool.snapshot()[1].out.is_none(), "all of it comes here now, and it failed there as well");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_everywhere_ejects_nobody() {
    let pool = plain(&[1, 1, 1]);
    // Seven of ten are poison, and no backend gets more of it than another.
    let mut number = 0;
    let proxy = Proxy::new(pool.clone(), move |_| {
        number += 1;
        Reply::Answer(answer(if number % 10 < 3 { 200 } else { 500 }, ""))
    });
    ask(&proxy, 400, SECOND / 10).await;
    assert!(pool.snapshot().iter().all(|status| status.state == BackendState::Up), "{:?}", pool.snapshot());
}

#[tokio::test(start_paused = true)]
async fn a_backend_with_enough_to_do_is_passed_over_for_as_long_as_it_says() {
    let mut routing = RoutingConfig::default();
    routing.retry.enabled = false;
    let pool = pool(&[1, 1], &HealthCheckConfig::default(), &routing);
    let proxy = Proxy::new(
        pool.clone(),
        a_is(|| {
            let mut busy = answer(429, "busy");
            busy.headers_mut().insert("retry-after", "7".parse().unwrap());
            Reply::Answer(busy)
        }),
    );
    tokio::time::sleep(SECOND).await;
    assert_eq!(ask(&proxy, 1, Duration::ZERO).await[0], (vec!["a".to_owned()], 429));
    let status = &pool.snapshot()[0];
    assert_eq!((status.state, status.out, status.up), (BackendState::Pressured, None, true));
    assert_eq!(to_a(&ask(&proxy, 69, SECOND / 10).await), 0);
    assert_eq!(to_a(&ask(&proxy, 20, SECOND / 10).await), 1, "its turn again, once");
    // Where all have, all are asked.
    let busy = Proxy::new(pool.clone(), |_| Reply::Answer(answer(503, "busy")));
    let statuses: Vec<u16> = ask(&busy, 8, SECOND / 10).await.iter().map(|(_, status)| *status).collect();
    assert_eq!(statuses, [503; 8]);
    assert!(pool.snapshot().iter().all(|status| status.state == BackendState::Pressured));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_says_nothing_but_503_is_ejected_and_one_that_is_busy_is_not() {
    let pool = plain(&[1, 1]);
    let proxy = Proxy::new(pool.clone(), a_is(|| Reply::Answer(answer(503, "loading"))));
    let all = ask(&proxy, 2000, SECOND / 10).await;
    assert!(all.iter().all(|(_, status)| *status == 200), "503 is retried elsewhere");
    assert!(to_a(&all) * 50 < 2000, "{}", to_a(&all));
    assert_eq!((state(&pool), pool.snapshot()[0].out.is_some()), (BackendState::Ejected, true));

    let pool = plain(&[1, 1]);
    let mut number = 0;
    let busy = a_is(move || {
        number += 1;
        Reply::Answer(answer(if number % 4 == 0 { 200 } else { 503 }, ""))
    });
    let proxy = Proxy::new(pool.clone(), busy);
    for _ in 0..500 {
        ask(&proxy, 1, SECOND).await;
        assert_eq!(pool.snapshot()[0].out, None);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_in_the_middle_count_and_clients_that_leave_do_not() {
    let pool = plain(&[1, 1]);
    let proxy = Proxy::new(pool.clone(), a_is(|| Reply::Answer(events([Ok("1"), Ok("2"), Err("reset")]))));
    tokio::time::sleep(SECOND).await;
    for _ in 0..40 {
        // Gone after the first event.
        let mut response = proxy.ask().await.1.unwrap();
        let _ = response.body_mut().frame().await;
    }
    assert_eq!(state(&pool), BackendState::Up);
    for _ in 0..6 {
        let _ = text(proxy.ask().await.1.unwrap()).await;
    }
    assert_eq!(pool.snapshot()[0].out, Some(Cause::Failures));
}

#[tokio::test(start_paused = true)]
async fn a_bad_key_of_a_client_ejects_nobody() {
    let pool = plain(&[1]);
    for status in [400, 401, 403, 404, 422, 501] {
        let proxy = Proxy::new(pool.clone(), move |_| Reply::Answer(answer(status, "no")));
        ask(&proxy, 100, Duration::ZERO).await;
        assert!(pool.snapshot()[0].out.is_none(), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drained_backend_says_so() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let pool = balancer.apply(&backends(&[1]), &RoutingConfig::default(), &Default::default(), &Default::default());
    assert_eq!(state(&pool), BackendState::Unknown);
    balancer.check_now().await;
    assert_eq!((state(&pool), pool.snapshot()[0].reason.as_deref()), (BackendState::Up, None));
    balancer.set_draining("a", true);
    assert_eq!(state(&pool), BackendState::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_streams_are_errors_is_one_that_fails() {
    // Some end there, without the end of a line.
    let error = "data: {\"error\":{\"message\":\"EngineDeadError\",\"code\":500}}";
    for (load_balance, rest) in [
        (LoadBalance::LeastConnections, "\n\ndata: [DONE]\n\n"),
        (LoadBalance::LatencyBased, "\n\ndata: [DONE]\n\n"),
        (LoadBalance::LeastConnections, ""),
    ] {
        let routing = RoutingConfig { load_balance, ..RoutingConfig::default() };
        let pool = pool(&[1, 1, 1], &HealthCheckConfig::default(), &routing);
        let dead = move || Reply::Answer(events([Ok(": wait\n\n"), Ok(error), Ok(rest)]));
        let proxy = Proxy::new(pool.clone(), move |target| match &*target.backend.name {
            "a" => dead(),
            _ => Reply::Answer(events([Ok("data: {\"choices\":[]}\n\n"), Ok("data: [DONE]\n\n")])),
        });
        let all = ask(&proxy, 300, SECOND / 10).await;
        assert!(to_a(&all) <= 15, "{load_balance:?}: {}", to_a(&all));
        let seen = &pool.snapshot()[0];
        match load_balance {
            // So few, as a failure is a very long time.
            LoadBalance::LatencyBased => assert!(seen.latency > Some(SECOND), "{:?}", seen.latency),
            _ => assert_eq!((seen.state, seen.out), (BackendState::Ejected, Some(Cause::ErrorRate))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_blames_the_request_says_nothing_of_its_server() {
    let pool = plain(&[1, 1]);
    let blame = "data: {\"error\":{\"message\":\"too long\",\"type\":\"BadRequestError\",\"code\":400}}\n\n";
    let proxy = Proxy::new(pool.clone(), a_is(move || Reply::Answer(events([Ok(blame)]))));
    ask(&proxy, 60, SECOND / 10).await;
    let seen = &pool.snapshot()[0];
    assert_eq!((seen.state, seen.latency), (BackendState::Up, None), "neither a failure nor work");
}

/// Backends that come and go, as a source may tell them.
struct Flapping {
    balancer: Arc<Balancer>,
    backends: Vec<BackendConfig>,
}

impl Flapping {
    fn new() -> Self {
        let mut backends = backends(&[1, 1]);
        backends.iter_mut().for_each(|backend| backend.models.push("m".into()));
        let flapping = Self { balancer: Balancer::new(Checks::default().client()), backends };
        flapping.returns();
        flapping
    }

    /// Without its first backend.
    fn leaves(&self) {
        self.apply(&self.backends[1..]);
    }

    fn returns(&self) {
        self.apply(&self.backends);
    }

    fn apply(&self, backends: &[BackendConfig]) {
        let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
        self.balancer.apply(backends, &RoutingConfig::default(), &health, &QueueConfig::default());
    }

    fn first(&self) -> BackendStatus {
        self.balancer.pool().snapshot().into_iter().next().expect("there is always one")
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_leaves_and_returns_is_still_drained() {
    let flapping = Flapping::new();
    flapping.balancer.set_draining("a", true).expect("there is one");
    for away in [SECOND, 3600 * SECOND] {
        flapping.leaves();
        assert_eq!(&*flapping.first().backend.name, "b");
        tokio::time::sleep(away).await;
        flapping.returns();
        assert_eq!((flapping.first().state, flapping.first().draining), (BackendState::Draining, true));
    }
    flapping.balancer.set_draining("a", false);
    assert_eq!(flapping.first().state, BackendState::Unknown, "nothing else keeps it from working");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_leaves_and_returns_is_ejected_as_before_for_ten_minutes() {
    let flapping = Flapping::new();
    let pool = flapping.balancer.pool().clone();
    let proxy = Proxy::new(pool, a_is(|| Reply::Answer(answer(500, "engine dead"))));
    ask(&proxy, 40, SECOND / 100).await;
    assert_eq!(flapping.first().state, BackendState::Ejected);
    flapping.leaves();
    tokio::time::sleep(599 * SECOND).await;
    flapping.returns();
    assert_eq!(flapping.first().state, BackendState::Ejected);
    flapping.leaves();
    tokio::time::sleep(600 * SECOND).await;
    flapping.returns();
    assert_eq!(flapping.first().state, BackendState::Unknown, "so long after, it may be anything");
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_at_a_backend_counts_when_it_has_left_and_returned() {
    let flapping = Flapping::new();
    let proxy = Proxy::new(flapping.balancer.pool().clone(), a_is(|| Reply::Answer(answer(200, "a"))));
    let (exchange, response) = proxy.ask().await;
    let (exchange, response) = if asked(&exchange) == ["a"] { (exchange, response) } else { proxy.ask().await };
    assert_eq!(asked(&exchange), ["a"]);
    for away in [SECOND, 3600 * SECOND] {
        flapping.leaves();
        tokio::time::sleep(away).await;
        flapping.returns();
        assert_eq!(flapping.first().in_flight, 1);
    }
    drop(response);
    assert_eq!(flapping.first().in_flight, 0);
}
