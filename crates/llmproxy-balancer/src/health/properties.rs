//! What holds of a backend's health whatever happens to it.

use proptest::prelude::*;

use super::{
    tests::{SECOND, config, health, works},
    *,
};
use crate::config::HealthCheckConfig;

/// What may happen to a backend, in any order.
#[derive(Clone, Copy, Debug)]
enum Event {
    Check(bool, bool),
    BeginCheck,
    /// A check shows that it does not take our credentials.
    KeyRefused,
    /// A request is sent there, if it is admitted or for want of another.
    Enter(bool),
    /// The request at this place, of those that are there, ends so.
    End(usize, End),
    Wait(u32),
    Rules(bool),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Works,
    Blamed,
    Leaves,
    Refused,
    Fails(Fault),
    Pressed(Option<u32>),
    Credentials,
}

fn event() -> impl Strategy<Value = Event> {
    let fault = prop_oneof![Just(Fault::Backend), Just(Fault::Midway), Just(Fault::Perhaps)];
    let end = prop_oneof![
        3 => Just(End::Works),
        1 => Just(End::Blamed),
        1 => Just(End::Leaves),
        1 => Just(End::Refused),
        4 => fault.prop_map(End::Fails),
        1 => proptest::option::of(0..100_u32).prop_map(End::Pressed),
        1 => Just(End::Credentials),
    ];
    prop_oneof![
        1 => any::<(bool, bool)>().prop_map(|(good, refused)| Event::Check(good, refused)),
        1 => Just(Event::BeginCheck),
        1 => Just(Event::KeyRefused),
        4 => any::<bool>().prop_map(Event::Enter),
        4 => (any::<usize>(), end).prop_map(|(at, end)| Event::End(at, end)),
        1 => (0..100_u32).prop_map(Event::Wait),
        1 => any::<bool>().prop_map(Event::Rules),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn it_is_never_out_for_good_and_never_probed_twice_at_a_time(events in proptest::collection::vec(event(), 1..100)) {
        let mut now = Instant::now();
        let mut health = health();
        let mut check = health.begin_check();
        let mut there: Vec<Pass> = Vec::new();
        let rules = |enabled| Rules::new(&HealthCheckConfig { enabled, ..config() });
        for event in events {
            match event {
                Event::Check(good, refused) => {
                    let _ = if good { health.check_passed(check, now) } else { health.check_failed(check, refused, now) };
                }
                Event::BeginCheck => check = health.begin_check(),
                Event::KeyRefused => {
                    let _ = health.credentials_refused(check, now);
                }
                Event::Enter(insists) => {
                    if insists || health.admission(now) != Admission::Closed {
                        there.push(health.enter(now));
                    }
                }
                Event::End(..) if there.is_empty() => {}
                Event::End(at, end) => {
                    let pass = there.swap_remove(at % there.len());
                    let _ = match end {
                        End::Works => health.worked(pass, now).or(health.finished(pass, false, now)),
                        End::Blamed => health.answered(pass, now).or(health.finished(pass, true, now)),
                        End::Leaves => None,
                        End::Refused => health.refused(pass, now),
                        End::Fails(fault) => health.failed(pass, fault, None, now).or(health.convict(None, now)),
                        End::Pressed(after) => health.pressed(pass, after.map(|after| after * SECOND), now),
                        End::Credentials => health.misconfigured(pass, now).or(health.convict(None, now)),
                    };
                    health.leave(pass);
                }
                Event::Wait(seconds) => now += seconds * SECOND,
                Event::Rules(checked) => health.set_rules(rules(checked)),
            }
            let probes = there.iter().filter(|pass| pass.is_probe && pass.era == health.era).count();
            prop_assert!(probes <= 1, "{probes} probes");
            prop_assert!(health.admission(now) != Admission::Probe || probes == 0);
            prop_assert_eq!(health.cause(now).is_none(), health.is_up(now) || health.state == State::Unknown);
            prop_assert!(health.next_check() <= now + 33 * SECOND, "it is checked again");
        }
        // All that was there leaves, its checks are good, and requests succeed where they are let in.
        there.into_iter().for_each(|pass| health.leave(pass));
        for _ in 0..3 {
            now = now.max(health.next_check());
            let _ = health.check_passed(health.begin_check(), now);
        }
        now = now.max(health.next_chance());
        prop_assert!(health.admission(now) != Admission::Closed, "{health:?}");
        works(&mut health, now);
        prop_assert!(health.admission(now) == Admission::Open && health.out().is_none(), "{health:?}");
    }
}
