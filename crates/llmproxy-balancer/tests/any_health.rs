//! Whatever happens to the health of backends, in any order.

mod common;

use std::time::Duration;

use common::{Checks, Proxy, Reply, answer, backends, named, settle, text, ups};
use llmproxy_balancer::{BackendState, BackendStatus, Balancer, HealthCheckConfig, RoutingConfig};
use proptest::prelude::*;

/// Something that happens to the health of backends.
#[derive(Clone, Debug)]
enum Event {
    /// The backend goes away and comes back well.
    Restarts(usize),
    /// A request finds no connection there.
    Refuses(usize),
    /// A stream breaks there.
    Breaks(usize),
    /// All that it answers for a while is this.
    Answers(usize, u16),
    /// The backend is well, or its health page says otherwise.
    Health(usize, bool),
    /// Time passes.
    Seconds(u64),
    /// The configuration is put in force again.
    Reload,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3_usize).prop_map(Event::Restarts),
        (0..3_usize).prop_map(Event::Refuses),
        (0..3_usize).prop_map(Event::Breaks),
        (0..3_usize, proptest::sample::select(vec![429_u16, 500, 502, 503]))
            .prop_map(|(at, with)| Event::Answers(at, with)),
        (0..3_usize, any::<bool>()).prop_map(|(at, well)| Event::Health(at, well)),
        (1..40_u64).prop_map(Event::Seconds),
        Just(Event::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn there_is_always_a_backend_while_one_is_healthy(events in proptest::collection::vec(event(), 1..30), checked: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let checks = Checks::default();
            for host in ["a", "b", "c"] {
                checks.well(host);
            }
            let config = HealthCheckConfig { enabled: checked, ..Default::default() };
            let mut routing = RoutingConfig::default();
            routing.retry.enabled = false;
            let balancer = Balancer::new(checks.client());
            let mut pool = balancer.apply(&backends(&[1, 2, 3]), &routing, &config, &Default::default());
            settle().await;
            for event in events {
                let host = |at: usize| ["a", "b", "c"][at];
                match event {
                    Event::Restarts(at) => {
                        checks.refuse(host(at));
                        tokio::time::sleep(Duration::from_secs(31)).await;
                        checks.well(host(at));
                    }
                    Event::Refuses(at) | Event::Breaks(at) => {
                        let refuses = matches!(event, Event::Refuses(_));
                        let proxy = Proxy::new(pool.clone(), move |target| match &*target.backend.name {
                            name if name != host(at) => Reply::Answer(answer(200, "")),
                            _ if refuses => Reply::Refused,
                            _ => Reply::Answer(common::events([Err("reset")])),
                        });
                        for _ in 0..6 {
                            if let Ok(response) = proxy.ask().await.1 {
                                let _ = text(response).await;
                            }
                        }
                    }
                    Event::Answers(at, with) => {
                        let proxy = Proxy::new(pool.clone(), move |target| match &*target.backend.name {
                            name if name != host(at) => Reply::Answer(answer(200, "")),
                            _ => {
                                let mut answer = answer(with, "");
                                answer.headers_mut().insert("retry-after", "3".parse().unwrap());
                                Reply::Answer(answer)
                            }
                        });
                        for _ in 0..40 {
                            if let Ok(response) = proxy.ask().await.1 {
                                let _ = text(response).await;
                            }
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                    Event::Health(at, true) => checks.well(host(at)),
                    Event::Health(at, false) => checks.set(host(at), 500, 500, ""),
                    Event::Seconds(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                    Event::Reload => pool = balancer.apply(&backends(&[3, 2, 1]), &routing, &config, &Default::default()),
                }
                let any_up = pool.is_any_up();
                let result = named(pool.clone()).ask().await.1;
                if any_up {
                    prop_assert!(result.is_ok(), "{}", result.unwrap_err());
                }
                if result.is_err() {
                    // None of them is one that a request could still bring back.
                    let hopeless = |status: &BackendStatus| status.state == BackendState::Down && status.out.is_some();
                    prop_assert!(pool.snapshot().iter().all(hopeless));
                }
            }
            // Whatever happened: once all are well and time has passed, all are back.
            for host in ["a", "b", "c"] {
                checks.well(host);
            }
            tokio::time::sleep(Duration::from_secs(150)).await;
            prop_assert_eq!(ups(&pool), [true; 3]);
            for _ in 0..20 {
                let answer = named(pool.clone()).ask().await.1;
                prop_assert!(answer.is_ok());
                let _ = text(answer.unwrap()).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            prop_assert!(pool.snapshot().iter().all(|status| status.state == BackendState::Up), "{:?}", pool.snapshot());
            Ok(())
        })?;
    }
}
