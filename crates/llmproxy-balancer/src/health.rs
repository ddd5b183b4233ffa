//! Whether a backend gets requests: the decision, without HTTP.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::HealthCheckConfig;

/// The first check of a backend that is out comes after this; each further one after twice the time, up to the interval.
const FIRST_RECHECK: Duration = Duration::from_secs(1);
/// How long a backend that failed gets nothing where no checks are made.
const PAUSE: Duration = Duration::from_secs(5);

/// What is known of one backend's health, and what follows from it.
#[derive(Debug)]
pub(crate) struct Health {
    rules: Rules,
    state: State,
    /// Consecutive checks that did not change the state but speak against it.
    checks: u32,
    /// Consecutive requests that failed.
    failures: u32,
    /// How often the backend went out. A check that began before it did proves nothing.
    era: u64,
    next_check: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) checked: bool,
    interval: Duration,
    unhealthy_threshold: u32,
    healthy_threshold: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has been heard yet.
    Unknown,
    Up,
    Out {
        cause: Cause,
        since: Instant,
        recheck: Duration,
    },
}

/// Why a backend is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It can't be connected to.
    Refused,
    /// Its checks failed.
    Checks,
    /// Too many requests in a row failed.
    Failures,
    /// It refuses the credentials that the proxy was configured with.
    Credentials,
}

/// The backend came back, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Up,
    Out(Cause),
}

/// A check under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    era: u64,
    /// Whether it must also show that the proxy's credentials are good.
    pub(crate) credentials: bool,
}

// === impl Rules ===

impl Rules {
    pub(crate) fn new(config: &HealthCheckConfig) -> Self {
        Self {
            checked: config.enabled,
            interval: config.interval,
            unhealthy_threshold: config.unhealthy_threshold,
            healthy_threshold: config.healthy_threshold,
        }
    }
}

// === impl Cause ===

impl Cause {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "it can't be connected to",
            Self::Checks => "its health checks failed",
            Self::Failures => "too many requests in a row failed",
            Self::Credentials => "it refuses the credentials that the proxy is configured with",
        }
    }

    /// What an operator can do about it. It is asked again in any case.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Refused => {
                "see that it runs and that its `url` is right: scheme, name, port, and with https a certificate that this \
                 machine trusts; it gets requests as soon as it answers"
            }
            Self::Checks => {
                "see its own log, and whether it has the path of health_check.path; it gets requests as soon as its checks are \
                 good"
            }
            Self::Failures => "see its own log; it gets requests as soon as its checks are good",
            Self::Credentials => "write a key that it takes into its `headers`, such as `Authorization: Bearer KEY`",
        }
    }
}

// === impl Health ===

impl Health {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, state: State::Unknown, checks: 0, failures: 0, era: 0, next_check: Instant::now() }
    }

    /// A reload changed the rules; what is known stays known.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Whether the backend gets requests. One that was never heard of does.
    pub(crate) fn is_available(&self, now: Instant) -> bool {
        match self.state {
            State::Unknown | State::Up => true,
            State::Out { since, .. } => !self.rules.checked && now >= since + PAUSE,
        }
    }

    /// Whether the backend is known to work, or is taken to because nobody checks.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        self.is_available(now) && (self.state != State::Unknown || !self.rules.checked)
    }

    /// Why it is out, if it is.
    pub(crate) fn cause(&self, now: Instant) -> Option<Cause> {
        match self.state {
            State::Out { cause, .. } if !self.is_available(now) => Some(cause),
            _ => None,
        }
    }

    /// When it is worth asking again: the next check, or the end of the pause.
    pub(crate) fn next_chance(&self) -> Instant {
        match self.state {
            State::Out { since, .. } if !self.rules.checked => since + PAUSE,
            _ => self.next_check,
        }
    }

    /// When the next check is due.
    pub(crate) fn next_check(&self) -> Instant {
        self.next_check
    }

    /// A check begins.
    pub(crate) fn begin_check(&self) -> Check {
        let credentials = matches!(self.state, State::Out { cause: Cause::Credentials, .. });
        Check { era: self.era, credentials }
    }

    /// The check was good.
    pub(crate) fn check_passed(&mut self, check: Check, now: Instant) -> Option<Change> {
        if check.era != self.era {
            return None;
        }
        let needed = match self.state {
            State::Unknown => 1,
            State::Up => {
                self.checks = 0;
                self.next_check = now + self.rules.interval;
                return None;
            }
            // A backend that was flapping under its checks must show some steadiness; one that a request found broken
            // has proved what was asked by answering.
            State::Out { cause: Cause::Checks, .. } => self.rules.healthy_threshold,
            State::Out { .. } => 1,
        };
        self.checks += 1;
        if self.checks < needed {
            self.next_check = now + FIRST_RECHECK.min(self.rules.interval);
            return None;
        }
        self.next_check = now + self.rules.interval;
        self.up()
    }

    /// The check was not; `refused` where there was no connection, so that a request would find none either.
    pub(crate) fn check_failed(&mut self, check: Check, refused: bool, now: Instant) -> Option<Change> {
        match &mut self.state {
            State::Out { recheck, .. } => {
                if check.era == self.era {
                    self.checks = 0;
                    *recheck = (*recheck * 2).min(self.rules.interval);
                    self.next_check = now + *recheck;
                }
                None
            }
            // Never yet heard of, and not good at the first sight.
            State::Unknown => self.out(if refused { Cause::Refused } else { Cause::Checks }, now),
            State::Up => {
                self.checks += 1;
                self.next_check = now + self.rules.interval;
                match refused {
                    true => self.out(Cause::Refused, now),
                    false if self.checks >= self.rules.unhealthy_threshold => self.out(Cause::Checks, now),
                    false => None,
                }
            }
        }
    }

    /// A request could not be sent: no connection.
    pub(crate) fn refused(&mut self, now: Instant) -> Option<Change> {
        self.out(Cause::Refused, now)
    }

    /// The backend refused our credentials.
    pub(crate) fn misconfigured(&mut self, now: Instant) -> Option<Change> {
        self.out(Cause::Credentials, now)
    }

    /// A request failed in a way that is the backend's fault.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.rules.unhealthy_threshold { self.out(Cause::Failures, now) } else { None }
    }

    /// A request was answered to its end.
    pub(crate) fn succeeded(&mut self, now: Instant) -> Option<Change> {
        self.failures = 0;
        // While it is out this is the end of something older, which proves nothing of the present.
        if self.state != State::Up && self.is_available(now) && !self.rules.checked { self.up() } else { None }
    }

    fn up(&mut self) -> Option<Change> {
        (self.checks, self.failures) = (0, 0);
        self.state = State::Up;
        Some(Change::Up)
    }

    fn out(&mut self, cause: Cause, now: Instant) -> Option<Change> {
        if matches!(self.state, State::Out { .. }) && !self.is_available(now) {
            return None;
        }
        let recheck = FIRST_RECHECK.min(self.rules.interval);
        (self.checks, self.failures) = (0, 0);
        self.era += 1;
        self.state = State::Out { cause, since: now, recheck };
        self.next_check = now + recheck;
        Some(Change::Out(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn health() -> Health {
        Health::new(Rules::new(&HealthCheckConfig::default()))
    }

    fn unchecked() -> Health {
        Health::new(Rules::new(&HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() }))
    }

    fn up() -> Health {
        let mut health = health();
        assert_eq!(health.check_passed(health.begin_check(), Instant::now()), Some(Change::Up));
        health
    }

    #[test]
    fn an_unknown_backend_gets_requests_and_is_not_called_up() {
        let now = Instant::now();
        assert!(health().is_available(now) && !health().is_up(now));
        assert!(unchecked().is_up(now), "nobody will ever find out");
    }

    #[test]
    fn the_first_check_decides_at_once() {
        let now = Instant::now();
        assert!(up().is_up(now));
        let mut health = health();
        assert_eq!(health.check_failed(health.begin_check(), false, now), Some(Change::Out(Cause::Checks)));
        assert!(!health.is_available(now));
    }

    #[test]
    fn a_backend_that_was_up_may_fail_some_checks() {
        let (mut health, now) = (up(), Instant::now());
        assert_eq!(health.check_failed(health.begin_check(), false, now), None);
        assert_eq!(health.check_failed(health.begin_check(), false, now), None);
        assert_eq!(health.check_passed(health.begin_check(), now), None);
        for _ in 0..2 {
            assert_eq!(health.check_failed(health.begin_check(), false, now), None);
        }
        assert_eq!(health.check_failed(health.begin_check(), false, now), Some(Change::Out(Cause::Checks)));
        assert_eq!(health.check_passed(health.begin_check(), now), None, "one good check is not enough");
        assert_eq!(health.check_passed(health.begin_check(), now), Some(Change::Up));
    }

    #[test]
    fn a_refused_connection_takes_it_out_at_once_until_a_check_proves_it() {
        let (mut health, now) = (up(), Instant::now());
        assert_eq!(health.refused(now), Some(Change::Out(Cause::Refused)));
        assert_eq!(health.refused(now), None, "it is out already");
        assert!(!health.is_available(now + 100 * INTERVAL));
        assert_eq!(health.check_passed(health.begin_check(), now), Some(Change::Up));
    }

    #[test]
    fn a_check_that_began_before_it_went_out_proves_nothing() {
        let (mut health, now) = (up(), Instant::now());
        let check = health.begin_check();
        health.refused(now);
        assert_eq!(health.check_passed(check, now), None);
        assert!(!health.is_available(now));
    }

    #[test]
    fn a_backend_that_is_out_is_checked_soon_and_then_less_and_less_often() {
        let (mut health, now) = (up(), Instant::now());
        health.refused(now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push((health.next_check() - now).as_secs());
            health.check_failed(health.begin_check(), true, now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn failures_in_a_row_take_it_out_and_a_success_between_them_does_not() {
        let (mut health, now) = (up(), Instant::now());
        assert_eq!((health.failed(now), health.failed(now)), (None, None));
        assert_eq!(health.succeeded(now), None);
        assert_eq!((health.failed(now), health.failed(now)), (None, None));
        assert_eq!(health.check_passed(health.begin_check(), now), None, "its health page is not its work");
        assert_eq!(health.failed(now), Some(Change::Out(Cause::Failures)));
    }

    #[test]
    fn a_stream_that_ends_well_does_not_bring_a_refusing_backend_back() {
        let (mut health, now) = (up(), Instant::now());
        health.refused(now);
        assert_eq!(health.succeeded(now), None);
        assert!(!health.is_available(now));
    }

    #[test]
    fn without_checks_a_backend_that_failed_is_tried_again_after_a_pause() {
        let (mut health, now) = (unchecked(), Instant::now());
        assert_eq!(health.refused(now), Some(Change::Out(Cause::Refused)));
        assert!(!health.is_available(now));
        let later = now + PAUSE;
        assert!(health.is_available(later));
        assert_eq!(health.refused(later), Some(Change::Out(Cause::Refused)));
        assert!(!health.is_available(later));
        let later = later + PAUSE;
        assert_eq!(health.succeeded(later), Some(Change::Up));
    }

    #[test]
    fn a_backend_that_refuses_our_credentials_must_prove_that_it_takes_them() {
        let (mut health, now) = (up(), Instant::now());
        assert!(!health.begin_check().credentials);
        health.misconfigured(now);
        assert!(health.begin_check().credentials);
    }
}
