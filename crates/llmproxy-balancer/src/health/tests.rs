//! Backends that do well and badly, in virtual time.

use super::*;
use crate::config::{HealthCheckConfig, PassiveConfig};

pub(super) const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);

pub(super) fn config() -> HealthCheckConfig {
    HealthCheckConfig::default()
}

pub(super) fn health() -> Health {
    Health::new(Rules::new(&config()))
}

fn unchecked() -> Health {
    Health::new(Rules::new(&HealthCheckConfig { enabled: false, ..config() }))
}

fn up() -> Health {
    let mut health = health();
    let change = health.check_passed(health.begin_check(), Instant::now());
    assert_eq!(change, Some(Change::Up { is_back: false, is_new: false }));
    health
}

/// A request that fails; what follows, the verdict about its share of failures included.
fn fails(health: &mut Health, fault: Fault, others: Option<f64>, now: Instant) -> Option<Change> {
    let pass = health.enter(now);
    let change = health.failed(pass, fault, None, now);
    health.leave(pass);
    if health.is_suspect(now) { health.convict(others, now) } else { change }
}

/// A request that works.
pub(super) fn works(health: &mut Health, now: Instant) -> Option<Change> {
    let pass = health.enter(now);
    let change = health.worked(pass, now);
    health.finished(pass, false, now).or(change)
}

/// A request that it blames for what is wrong with it.
fn blames(health: &mut Health, now: Instant) -> Option<Change> {
    let pass = health.enter(now);
    let change = health.answered(pass, now);
    health.finished(pass, true, now).or(change)
}

/// One that was ejected, by three failures in a row.
fn ejected(now: Instant) -> Health {
    let mut health = up();
    for _ in 0..2 {
        assert_eq!(fails(&mut health, Fault::Backend, None, now), None);
    }
    assert_eq!(fails(&mut health, Fault::Backend, None, now), Some(Change::Out(Cause::Failures)));
    health
}

/// Seconds until a probe may be sent there.
fn wait(health: &Health, now: Instant) -> f64 {
    (health.next_chance() - now).as_secs_f64()
}

fn admission(health: &Health, now: Instant) -> Admission {
    health.admission(now)
}

#[test]
fn an_unknown_backend_gets_requests_and_is_not_called_up() {
    let now = Instant::now();
    assert!(admission(&health(), now) == Admission::Open && !health().is_up(now));
    assert!(unchecked().is_up(now), "nobody will ever find out");
}

#[test]
fn the_first_check_decides_at_once() {
    let now = Instant::now();
    assert!(up().is_up(now));
    let mut health = health();
    assert_eq!(health.check_failed(health.begin_check(), false, now), Some(Change::Out(Cause::Checks)));
    assert_eq!(admission(&health, now + LONG), Admission::Closed);
    assert_eq!(health.state(now), BackendState::Down);
}

#[test]
fn a_backend_that_was_up_may_fail_some_checks() {
    let (mut health, now) = (up(), Instant::now());
    for _ in 0..2 {
        assert_eq!(health.check_failed(health.begin_check(), false, now), None);
    }
    assert_eq!(health.check_passed(health.begin_check(), now), None);
    for _ in 0..2 {
        assert_eq!(health.check_failed(health.begin_check(), false, now), None);
    }
    assert_eq!(health.check_failed(health.begin_check(), false, now), Some(Change::Out(Cause::Checks)));
    assert_eq!(health.check_passed(health.begin_check(), now), None, "one good check is not enough");
    assert_eq!(health.check_passed(health.begin_check(), now), Some(Change::Up { is_back: true, is_new: false }));
}

#[test]
fn a_refused_connection_takes_it_out_at_once_until_a_check_proves_it() {
    let (mut health, now) = (up(), Instant::now());
    let passes = [health.enter(now), health.enter(now)];
    assert_eq!(health.refused(passes[0], now), Some(Change::Out(Cause::Refused)));
    assert_eq!(health.refused(passes[1], now), None, "it is out already");
    assert_eq!(admission(&health, now + LONG), Admission::Closed);
    let change = health.check_passed(health.begin_check(), now);
    assert_eq!(change, Some(Change::Up { is_back: true, is_new: true }), "it may be another process");
}

#[test]
fn a_check_that_began_before_it_went_out_proves_nothing() {
    let (mut health, now) = (up(), Instant::now());
    let check = health.begin_check();
    let pass = health.enter(now);
    health.refused(pass, now);
    assert_eq!(health.check_passed(check, now), None);
    assert_eq!(admission(&health, now), Admission::Closed);
}

#[test]
fn a_backend_that_is_out_is_checked_soon_and_then_less_and_less_often() {
    let (mut health, now) = (self::health(), Instant::now());
    health.check_failed(health.begin_check(), false, now);
    for plain in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
        let wait = (health.next_check() - now).as_secs_f64();
        assert!((plain * 0.9..=plain * 1.1).contains(&wait), "{plain}: {wait}");
        health.check_failed(health.begin_check(), false, now);
    }
}

#[test]
fn a_backend_that_is_restarted_is_knocked_at_for_as_long_as_it_takes() {
    let (mut health, now) = (up(), Instant::now());
    let pass = health.enter(now);
    health.refused(pass, now);
    for plain in [1.0, 2.0, 2.0, 2.0, 2.0] {
        let wait = (health.next_check() - now).as_secs_f64();
        assert!((plain * 0.9..=plain * 1.1).contains(&wait), "{plain}: {wait}");
        assert_eq!(health.check_failed(health.begin_check(), true, now), None);
    }
    health.set_rules(Rules::new(&HealthCheckConfig { interval: SECOND, ..config() }));
    health.check_failed(health.begin_check(), true, now);
    assert!(health.next_check() - now < SECOND * 12 / 10, "as often as it is checked when it is well");
}

#[test]
fn one_that_loads_after_its_restart_is_better_than_none() {
    let (mut health, now) = (up(), Instant::now());
    let pass = health.enter(now);
    health.refused(pass, now);
    assert!(!health.sight(now).is_doubtful, "there is nobody to ask");
    let change = health.check_failed(health.begin_check(), false, now);
    assert_eq!((change, health.sight(now).is_doubtful), (Some(Change::Out(Cause::Checks)), true));
    // It dies again.
    let change = health.check_failed(health.begin_check(), true, now);
    assert_eq!((change, health.sight(now).is_doubtful), (Some(Change::Out(Cause::Refused)), false));
    assert_eq!(health.check_failed(health.begin_check(), false, now), Some(Change::Out(Cause::Checks)));
    assert_eq!(health.check_passed(health.begin_check(), now), None);
    let change = health.check_passed(health.begin_check(), now);
    assert_eq!(change, Some(Change::Up { is_back: true, is_new: true }), "another process, so its caches are empty");
}

#[test]
fn the_checks_of_many_backends_do_not_beat_in_step() {
    let now = Instant::now();
    let waits: std::collections::BTreeSet<Duration> = (0..20).map(|_| up().next_check() - now).collect();
    assert!(waits.len() > 10, "{waits:?}");
    assert!(waits.iter().all(|wait| (26..34).contains(&wait.as_secs())), "{waits:?}");
}

#[test]
fn failures_in_a_row_eject_it_and_a_success_between_them_does_not() {
    let (mut health, now) = (up(), Instant::now());
    for _ in 0..3 {
        assert_eq!(fails(&mut health, Fault::Backend, None, now), None);
        assert_eq!(fails(&mut health, Fault::Backend, None, now), None);
        works(&mut health, now);
    }
    let mut health = ejected(now);
    assert_eq!((health.state(now), admission(&health, now)), (BackendState::Ejected, Admission::Closed));
    assert_eq!(health.check_passed(health.begin_check(), now), None, "its health page is not its work");
}

#[test]
fn an_answer_that_blames_the_request_is_no_success_between_failures() {
    let now = Instant::now();
    let passive = PassiveConfig { enabled: false, ..PassiveConfig::default() };
    for enabled in [true, false] {
        // The first of a backend of which nothing was heard, too.
        let mut health = Health::new(Rules::new(&HealthCheckConfig { enabled, passive: passive.clone(), ..config() }));
        for _ in 0..2 {
            assert_eq!(fails(&mut health, Fault::Backend, None, now), None);
            blames(&mut health, now);
        }
        assert_eq!(fails(&mut health, Fault::Backend, None, now), Some(Change::Out(Cause::Failures)), "{enabled}");
    }
    // Nor do good checks stand between them, the first one included.
    let mut health = self::health();
    for _ in 0..9 {
        fails(&mut health, Fault::Perhaps, None, now);
        blames(&mut health, now);
    }
    health.check_passed(health.begin_check(), now);
    assert_eq!(fails(&mut health, Fault::Perhaps, None, now), Some(Change::Out(Cause::ErrorRate)));
}

#[test]
fn a_server_whose_engine_has_died_is_ejected_by_its_tenth_500() {
    let (mut health, now) = (up(), Instant::now());
    // However well it did before.
    for _ in 0..1000 {
        works(&mut health, now);
    }
    for _ in 0..9 {
        assert_eq!(fails(&mut health, Fault::Perhaps, Some(0.0), now), None);
    }
    assert_eq!(fails(&mut health, Fault::Perhaps, Some(0.0), now), Some(Change::Out(Cause::ErrorRate)));
}

#[test]
fn an_error_now_and_then_ejects_nobody() {
    let (mut health, now) = (up(), Instant::now());
    for round in 0..1000 {
        let now = now + round * SECOND / 10;
        assert_eq!(fails(&mut health, Fault::Perhaps, Some(0.0), now), None);
        works(&mut health, now);
        works(&mut health, now);
    }
}

#[test]
fn half_of_what_it_is_asked_must_fail_and_it_must_be_asked_enough() {
    let (mut health, now) = (up(), Instant::now());
    for _ in 0..4 {
        works(&mut health, now);
        assert_eq!(fails(&mut health, Fault::Perhaps, Some(0.0), now), None, "too few to say");
    }
    works(&mut health, now);
    assert_eq!(fails(&mut health, Fault::Perhaps, Some(0.0), now), Some(Change::Out(Cause::ErrorRate)));
    // What was long ago is no part of it.
    let (mut health, now) = (up(), Instant::now());
    for _ in 0..9 {
        fails(&mut health, Fault::Perhaps, None, now);
        works(&mut health, now + LONG);
        assert_eq!(fails(&mut health, Fault::Perhaps, None, now + LONG), None);
        health = up();
    }
}

#[test]
fn a_request_that_fails_wherever_it_goes_takes_nobody_out() {
    let now = Instant::now();
    for (others, is_out) in [(None, true), (Some(0.0), true), (Some(0.5), true), (Some(0.6), false), (Some(1.0), false)]
    {
        let mut health = up();
        let changes: Vec<_> = (0..20).filter_map(|_| fails(&mut health, Fault::Perhaps, others, now)).collect();
        let expected: &[Change] = if is_out { &[Change::Out(Cause::ErrorRate)] } else { &[] };
        assert_eq!(changes, expected, "where {others:?} of the others' fail");
    }
}

#[test]
fn streams_that_break_count_as_one_failure_each() {
    let rules = Rules::new(&HealthCheckConfig { unhealthy_threshold: 1000, ..config() });
    let (mut health, now) = (up(), Instant::now());
    health.set_rules(rules);
    for nth in 1..=10 {
        let pass = health.enter(now);
        health.worked(pass, now);
        health.failed(pass, Fault::Midway, None, now);
        assert_eq!(health.is_suspect(now), nth == 10, "{nth}");
    }
    assert_eq!(health.failure_rate(now), Some(1.0));
}

#[test]
fn switched_off_only_failures_in_a_row_count() {
    let passive = PassiveConfig { enabled: false, ..PassiveConfig::default() };
    let (mut health, now) = (up(), Instant::now());
    health.set_rules(Rules::new(&HealthCheckConfig { passive, ..config() }));
    for round in 0..100 {
        assert_eq!(fails(&mut health, Fault::Perhaps, None, now + round * SECOND), None);
        let pass = health.enter(now);
        health.pressed(pass, None, now + round * SECOND);
        assert_eq!(health.out(), None);
    }
    assert_eq!(fails(&mut health, Fault::Backend, None, now), None);
    assert_eq!(fails(&mut health, Fault::Backend, None, now), None);
    assert_eq!(fails(&mut health, Fault::Backend, None, now), Some(Change::Out(Cause::Failures)));
}

#[test]
fn an_ejected_backend_gets_one_request_at_a_time_to_prove_itself() {
    let now = Instant::now();
    let mut health = ejected(now);
    let due = health.next_chance();
    assert_eq!(admission(&health, due - SECOND / 100), Admission::Closed);
    assert_eq!(admission(&health, due), Admission::Probe);
    let probe = health.enter(due);
    assert!(probe.is_probe);
    assert_eq!(admission(&health, due + LONG), Admission::Closed, "one is enough");
    assert!(!health.enter(due).is_probe, "whoever is sent there all the same is none");
    // Its client leaves: nothing is known, and the next one may find out.
    health.leave(probe);
    assert_eq!(admission(&health, due), Admission::Probe);
    let probe = health.enter(due);
    assert_eq!(health.worked(probe, due), Some(Change::Up { is_back: true, is_new: false }));
    assert_eq!((admission(&health, due), health.state(due)), (Admission::Open, BackendState::Warming));
}

#[test]
fn each_probe_that_fails_makes_the_next_wait_twice_as_long() {
    let mut now = Instant::now();
    let mut health = ejected(now);
    for plain in [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0] {
        let wait = wait(&health, now);
        assert!((plain..=plain * 1.2).contains(&wait), "{plain}: {wait}");
        now = health.next_chance();
        let change = fails(&mut health, Fault::Perhaps, Some(1.0), now);
        assert!(matches!(change, Some(Change::StillOut(_))), "{change:?}");
    }
}

#[test]
fn one_that_fails_again_soon_is_out_for_longer_and_one_that_was_long_well_is_not() {
    for (well, plain) in [(30 * SECOND, 10.0), (LONG, 5.0)] {
        let now = Instant::now();
        let mut health = ejected(now);
        let back = health.next_chance();
        assert!(works(&mut health, back).is_some());
        let again = back + well;
        for _ in 0..3 {
            fails(&mut health, Fault::Backend, None, again);
        }
        let wait = wait(&health, again);
        assert!((plain..=plain * 1.2).contains(&wait), "after {well:?}: {wait}");
    }
}

#[test]
fn a_probe_is_not_sent_sooner_than_the_backend_asks() {
    let now = Instant::now();
    let mut health = ejected(now);
    let now = health.next_chance();
    let probe = health.enter(now);
    let change = health.pressed(probe, Some(50 * SECOND), now);
    assert_eq!(change, Some(Change::StillOut(50 * SECOND)), "which is told as it is");
    assert_eq!(wait(&health, now), 50.0);
    // But not for ever either.
    let now = health.next_chance();
    let probe = health.enter(now);
    health.pressed(probe, Some(LONG), now);
    assert_eq!(wait(&health, now), 60.0);
}

#[test]
fn what_began_before_it_was_ejected_proves_nothing() {
    let (mut health, now) = (up(), Instant::now());
    let old = health.enter(now);
    for _ in 0..3 {
        fails(&mut health, Fault::Backend, None, now);
    }
    assert_eq!(
        (health.answered(old, now), health.worked(old, now), health.finished(old, false, now)),
        (None, None, None)
    );
    assert_eq!(health.state(now), BackendState::Ejected);
    // Nor does it fail the probe, or those that came after it.
    let due = health.next_chance();
    let probe = health.enter(due);
    assert_eq!(health.failed(old, Fault::Midway, None, due), None);
    assert!(health.worked(probe, due).is_some());
    (0..5).for_each(|_| assert_eq!(health.failed(old, Fault::Midway, None, due), None));
}

#[test]
fn a_process_that_goes_while_it_is_ejected_is_down_and_back_by_its_checks() {
    let now = Instant::now();
    let mut health = ejected(now);
    assert_eq!(health.check_failed(health.begin_check(), true, now), Some(Change::Out(Cause::Refused)));
    let change = health.check_passed(health.begin_check(), now);
    assert_eq!(change, Some(Change::Up { is_back: true, is_new: true }));
}

#[test]
fn without_checks_a_backend_that_refused_is_tried_by_one_request_after_a_pause() {
    let (mut health, now) = (unchecked(), Instant::now());
    let pass = health.enter(now);
    assert_eq!(health.refused(pass, now), Some(Change::Out(Cause::Refused)));
    assert_eq!(admission(&health, now), Admission::Closed);
    let later = health.next_chance();
    assert_eq!((later - now, admission(&health, later)), (5 * SECOND, Admission::Probe));
    let pass = health.enter(later);
    assert!(matches!(health.refused(pass, later), Some(Change::StillOut(_))));
    assert_eq!(admission(&health, later), Admission::Closed);
    let later = later + 5 * SECOND;
    let pass = health.enter(later);
    let change = health.answered(pass, later);
    assert_eq!(change, Some(Change::Up { is_back: true, is_new: true }), "whatever it answers, it is there");
}

#[test]
fn a_backend_that_has_enough_to_do_is_pressured_and_not_out() {
    let (mut health, now) = (up(), Instant::now());
    for (asked, seconds) in [(None, 1), (Some(7 * SECOND), 7), (Some(LONG), 60)] {
        let pass = health.enter(now);
        assert_eq!(health.pressed(pass, asked, now), Some(Change::Pressured(seconds * SECOND)));
        let sight = |after| health.sight(now + after);
        assert!(sight(Duration::ZERO).is_pressured && sight(Duration::ZERO).admission == Admission::Open);
        assert!(!sight(seconds * SECOND).is_pressured);
        assert_eq!(health.state(now), BackendState::Pressured);
        (health.row, health.pressed) = (Row::default(), None);
    }
}

#[test]
fn one_that_has_enough_to_do_at_the_first_request_is_left_alone_for_as_long_as_it_says() {
    let now = Instant::now();
    let press = |health: &mut Health| {
        let pass = health.enter(now);
        health.pressed(pass, Some(30 * SECOND), now);
        health.finished(pass, true, now)
    };
    let is_up = Some(Change::Up { is_back: false, is_new: false });
    let mut checked = health();
    assert_eq!(press(&mut checked), None, "its first check is under way");
    assert_eq!(checked.check_passed(checked.begin_check(), now), is_up);
    let mut unchecked = unchecked();
    assert_eq!(press(&mut unchecked), is_up);
    for health in [checked, unchecked] {
        assert_eq!(health.state(now + 29 * SECOND), BackendState::Pressured);
        assert_eq!(health.state(now + 30 * SECOND), BackendState::Up);
    }
}

#[test]
fn one_that_says_for_long_that_it_has_enough_to_do_and_nothing_else_is_ejected() {
    let (mut health, now) = (up(), Instant::now());
    let mut at = now;
    let out = loop {
        let pass = health.enter(at);
        match health.pressed(pass, None, at) {
            Some(Change::Out(cause)) => break cause,
            _ => at += SECOND,
        }
        assert!(at < now + LONG);
    };
    assert_eq!((out, at - now), (Cause::Rejections, 30 * SECOND));
    // A burst is no such thing, nor is one that finishes something in between.
    let (mut health, now) = (up(), Instant::now());
    for round in 0..1000 {
        let at = now + round * SECOND / 10;
        let pass = health.enter(at);
        assert!(!matches!(health.pressed(pass, None, at), Some(Change::Out(_))));
        if round % 100 == 0 {
            works(&mut health, at);
        }
    }
}

#[test]
fn a_backend_that_has_come_back_gets_a_growing_share() {
    let now = Instant::now();
    let share = |health: &Health, after: u32| health.sight(now + after * SECOND).share;
    assert_eq!(share(&up(), 0), 1.0, "not at the first start");
    let mut health = up();
    let pass = health.enter(now);
    health.refused(pass, now);
    health.check_passed(health.begin_check(), now);
    for (after, expected) in [(0, 0.1), (15, 0.55), (30, 1.0), (3000, 1.0)] {
        assert!((share(&health, after) - expected).abs() < 1e-3, "{after}");
    }
    assert_eq!((health.state(now), health.state(now + LONG)), (BackendState::Warming, BackendState::Up));
    health.set_rules(Rules::new(&HealthCheckConfig { slow_start: Duration::ZERO, ..config() }));
    assert_eq!((share(&health, 0), health.state(now)), (1.0, BackendState::Up));
}

#[test]
fn a_backend_that_refuses_our_credentials_must_prove_that_it_takes_them() {
    let (mut health, now) = (up(), Instant::now());
    let check = health.begin_check();
    assert!(!check.credentials);
    let pass = health.enter(now);
    assert_eq!(health.misconfigured(pass, now), None, "it may be the request");
    assert_eq!(health.next_check(), now, "which is found out at once");
    assert_eq!(
        (health.check_passed(check, now), health.next_check()),
        (None, now),
        "not by a check that has begun before"
    );
    let check = health.begin_check();
    assert!(check.credentials);
    assert_eq!(health.credentials_refused(check, now), Some(Change::Out(Cause::Credentials)));
    assert!(health.begin_check().credentials);
    assert!(!health.sight(now).is_doubtful, "asking all the same would not help");
    assert_eq!(health.credentials_refused(health.begin_check(), now), None);
    assert_eq!(health.check_passed(health.begin_check(), now), Some(Change::Up { is_back: true, is_new: false }));

    let mut health = unchecked();
    let pass = health.enter(now);
    assert_eq!(health.misconfigured(pass, now), Some(Change::Out(Cause::Credentials)), "there is no check to find out");
}

#[test]
fn a_backend_whose_requests_work_takes_the_credentials() {
    for mut health in [up(), unchecked()] {
        let now = Instant::now();
        works(&mut health, now);
        let refuse = |health: &mut Health, now: Instant| {
            let pass = health.enter(now);
            health.misconfigured(pass, now)
        };
        assert_eq!(refuse(&mut health, now + 59 * SECOND), None);
        // Its list of models may be for others.
        let at = now + 59 * SECOND;
        if health.rules.checked {
            assert_eq!(health.credentials_refused(health.begin_check(), at), None);
            assert!(health.next_check() > at + 25 * SECOND, "all has been found out that can be");
            refuse(&mut health, at + SECOND);
            assert!(!health.doubts_credentials(), "not for each request");
            refuse(&mut health, at + 10 * SECOND);
            assert!(health.doubts_credentials());
            let change = health.credentials_refused(health.begin_check(), at + 10 * SECOND);
            assert_eq!(change, Some(Change::Out(Cause::Credentials)));
        } else {
            assert_eq!(refuse(&mut health, at + SECOND), Some(Change::Out(Cause::Credentials)));
        }
    }
}

#[test]
fn people_are_told_why() {
    let now = Instant::now();
    let mut health = ejected(now);
    health.note(Some("a request was answered with 502"));
    let reason = health.reason(now).unwrap();
    assert_eq!(reason, "too many requests in a row failed: a request was answered with 502");
    works(&mut health, now + LONG);
    assert_eq!(health.reason(now + 2 * LONG), None);
}

#[test]
fn waits_that_no_clock_can_tell_are_no_panic() {
    let passive =
        PassiveConfig { base_ejection: Duration::MAX, max_ejection: Duration::MAX, ..PassiveConfig::default() };
    let long = HealthCheckConfig { interval: Duration::MAX, slow_start: Duration::MAX, passive, ..config() };
    let (mut health, now) = (up(), Instant::now());
    health.set_rules(Rules::new(&long));
    for _ in 0..3 {
        fails(&mut health, Fault::Backend, None, now);
    }
    health.check_passed(health.begin_check(), now);
    assert_eq!((health.state(now + LONG), health.sight(now).share), (BackendState::Ejected, 1.0));
}
