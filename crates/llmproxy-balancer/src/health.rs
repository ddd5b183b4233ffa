//! Whether a backend gets requests: the decision, without HTTP.
//!
//! A backend is out for one of two kinds of reasons, and comes back by what would show that the reason has passed:
//!
//! - It is *down* where it is known not to work: no connection, failed checks, refused credentials. Its checks bring it back;
//!   where none are made, a request after a pause.
//! - It is *ejected* where requests failed there, whatever its health page says. A single request that is sent there after a
//!   while, the probe, brings it back or makes the next while longer.
//!
//! Every request that is sent to a backend has a [`Pass`], and tells by it what it met. So what a request tells that was sent
//! before the backend went out proves nothing of the present.

mod cause;
mod checks;
mod credentials;
mod rules;
mod told;
mod window;
mod words;

use std::time::Duration;

use tokio::time::Instant;

pub use self::cause::{BackendState, Cause};
use self::{credentials::Credentials, window::Window};
pub(crate) use self::{
    rules::Rules,
    words::{Admission, Change, Check, Fault, Pass, Sight},
};

/// By how much a backend must fail more often than the best of the others to be ejected for its share of failures.
const OUTLIER: f64 = 2.0;

/// After so long without a request that could be sent again elsewhere, any will do as a probe: there may be no others.
const OVERDUE: Duration = Duration::from_secs(10);

/// After so long a probe under way keeps no others away where there is nobody else to ask: there was a connection, it
/// seems, and the first byte of a good answer may be long in coming.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of one backend's health, and what follows from it.
#[derive(Debug)]
pub(crate) struct Health {
    rules: Rules,
    state: State,
    since: Instant,
    /// What was found when it went out, where there is more to say than the cause.
    problem: Option<Box<str>>,
    /// How often the backend went out. What began before it did proves nothing.
    era: u64,
    /// Consecutive checks that did not change the state but speak against it.
    checks: u32,
    next_check: Instant,
    /// Consecutive requests that failed by more than a status that may be their own doing.
    failures: u32,
    window: Window,
    row: Row,
    /// How often in a row it was ejected.
    ejections: u32,
    /// When it came back, if it was out: its share of the work grows from then on.
    back: Option<Instant>,
    /// Whether it has ever worked: else there is nothing to come back to.
    has_worked: bool,
    /// When it last did.
    last_worked: Option<Instant>,
    credentials: Credentials,
    /// Until when it has said to have enough to do.
    pressed: Option<Instant>,
    /// Whether, since it last worked, there was nobody to connect to.
    was_refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has been heard yet.
    Unknown,
    Up,
    Out {
        cause: Cause,
        /// When a request may find out whether it is back, where that is how it is found out.
        until: Instant,
        /// Since when one is doing so.
        probing: Option<Instant>,
        rechecks: u32,
    },
}

/// Requests since the last one that worked.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    failed: u32,
    rejected: u32,
    since: Option<Instant>,
}

// === impl Health ===

impl Health {
    pub(crate) fn new(rules: Rules) -> Self {
        let now = Instant::now();
        Self {
            rules,
            state: State::Unknown,
            since: now,
            problem: None,
            era: 0,
            checks: 0,
            next_check: now,
            failures: 0,
            window: Window::new(rules.window, now),
            row: Row::default(),
            ejections: 0,
            back: None,
            has_worked: false,
            last_worked: None,
            credentials: Credentials::default(),
            pressed: None,
            was_refused: false,
        }
    }

    /// A reload changed the rules; what is known stays known.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        if rules.window != self.rules.window {
            self.window = Window::new(rules.window, Instant::now());
        }
        self.rules = rules;
    }

    /// Whether it gets a request. One that was never heard of does.
    pub(crate) fn admission(&self, now: Instant) -> Admission {
        match self.state {
            State::Unknown | State::Up => Admission::Open,
            State::Out { until, probing: None, .. } if self.waits_for_probe() && now >= until => Admission::Probe,
            State::Out { .. } => Admission::Closed,
        }
    }

    pub(crate) fn sight(&self, now: Instant) -> Sight {
        Sight {
            admission: self.admission(now),
            is_overdue: now >= self.next_chance() + OVERDUE,
            is_doubtful: self.is_doubtful(now),
            is_pressured: self.is_pressured(now),
            share: self.share(now).unwrap_or(1.0),
        }
    }

    /// When it is worth asking again: the next check, or the next probe.
    pub(crate) fn next_chance(&self) -> Instant {
        match self.state {
            State::Out { until, .. } if self.waits_for_probe() => until,
            _ => self.next_check,
        }
    }

    /// When the next check is due.
    pub(crate) fn next_check(&self) -> Instant {
        self.next_check
    }

    /// A request is sent there.
    pub(crate) fn enter(&mut self, now: Instant) -> Pass {
        let is_probe = self.admission(now) == Admission::Probe;
        if let State::Out { probing, .. } = &mut self.state {
            *probing = probing.or(is_probe.then_some(now));
        }
        Pass { era: self.era, is_probe, is_doubted: self.out().is_some() }
    }

    /// It has ended. If it was a probe that has shown nothing, the next one may be.
    pub(crate) fn leave(&mut self, pass: Pass) {
        if let State::Out { probing, .. } = &mut self.state
            && pass.is_probe
            && pass.era == self.era
        {
            *probing = None;
        }
    }

    /// It could not be sent: no connection.
    pub(crate) fn refused(&mut self, pass: Pass, now: Instant) -> Option<Change> {
        match self.out() {
            _ if pass.era != self.era => None,
            Some(Cause::Refused) if !pass.is_probe => None,
            _ => self.take_out(Cause::Refused, now),
        }
    }

    /// There is an answer that is no failure of the backend's, whatever it says of the request.
    pub(crate) fn answered(&mut self, pass: Pass, now: Instant) -> Option<Change> {
        if pass.era == self.era && self.out() == Some(Cause::Refused) { self.up(now) } else { None }
    }

    /// There is a good answer, the first byte of it at least.
    pub(crate) fn worked(&mut self, pass: Pass, now: Instant) -> Option<Change> {
        if pass.era != self.era {
            return None;
        }
        self.window.good(now);
        self.last_worked = Some(now);
        self.row = Row::default();
        // Whoever is asked in spite of its checks proves nothing against them.
        match self.out() {
            Some(Cause::Checks) if self.rules.checked => None,
            Some(_) => self.up(now),
            None => None,
        }
    }

    /// An answer has come to its end; `blames` where it is one that blames the request, which speaks neither against the
    /// backend nor for it.
    pub(crate) fn finished(&mut self, pass: Pass, blames: bool, now: Instant) -> Option<Change> {
        if pass.era != self.era {
            return None;
        }
        if !blames {
            self.failures = 0;
        }
        self.has_worked = true;
        if self.state == State::Unknown && !self.rules.checked { self.up(now) } else { None }
    }

    /// The backend can't take more now: 429 or 503, after `asked` perhaps. That is no failure, unless it is all that it says.
    pub(crate) fn pressed(&mut self, pass: Pass, asked: Option<Duration>, now: Instant) -> Option<Change> {
        if pass.era != self.era {
            return None;
        }
        self.row.rejected = self.row.rejected.saturating_add(1);
        let began = *self.row.since.get_or_insert(now);
        let news = self.press(self.rules.pressure(self.row.rejected, asked), now);
        if pass.is_probe {
            return self.probe_failed(now);
        }
        let all = self.row.failed.saturating_add(self.row.rejected);
        let is_all_it_says =
            all >= self.rules.min_requests && now.saturating_duration_since(began) >= self.rules.window;
        if self.rules.passive && is_all_it_says && self.out().is_none() {
            return self.take_out(Cause::Rejections, now);
        }
        news
    }

    /// It is to be passed over for this time. Told of one that is in, once for as long as that goes on.
    fn press(&mut self, wait: Duration, now: Instant) -> Option<Change> {
        let was = self.is_pressured(now);
        self.pressed = self.pressed.max(Some(now + wait));
        (!was && self.is_pressured(now) && self.out().is_none()).then_some(Change::Pressured(wait))
    }

    /// A request failed in a way that is the backend's fault, or may be; it may have `asked` to be left alone for some time.
    /// If it fails often enough to be ejected for it, [`Health::convict`] says whether it is.
    pub(crate) fn failed(&mut self, pass: Pass, fault: Fault, asked: Option<Duration>, now: Instant) -> Option<Change> {
        if pass.era != self.era {
            return None;
        }
        let news = asked.and_then(|asked| self.press(self.rules.pressure(1, Some(asked)), now));
        match fault {
            Fault::Midway => self.window.spoiled(now),
            Fault::Backend | Fault::Perhaps => self.window.bad(now),
        }
        self.row.failed = self.row.failed.saturating_add(1);
        self.row.since.get_or_insert(now);
        if pass.is_probe && self.out().is_some() {
            return self.probe_failed(now);
        }
        if self.out().is_some() || fault == Fault::Perhaps {
            return news;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.rules.unhealthy_threshold { self.take_out(Cause::Failures, now) } else { news }
    }

    /// Whether so many requests failed that it is to be ejected, unless the others fare no better.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.suspicion(now).is_some()
    }

    /// Ejects it, if so many requests failed and it fails more often than the others: a request that fails wherever it goes
    /// takes nobody out. `best` is the share of failures of the best of the others; `None` where nothing is known of any.
    pub(crate) fn convict(&mut self, best: Option<f64>, now: Instant) -> Option<Change> {
        let rate = self.suspicion(now)?;
        if best.is_some_and(|best| rate < OUTLIER * best) { None } else { self.take_out(Cause::ErrorRate, now) }
    }

    /// The share of requests that failed, where it is reason enough.
    fn suspicion(&self, now: Instant) -> Option<f64> {
        let rules = &self.rules;
        if !rules.passive || self.out().is_some() {
            return None;
        }
        // However long it took, and whatever came before: else a busy backend that breaks would go on for half the window,
        // and one that is asked once a minute for ever.
        if self.row.failed >= rules.min_requests {
            return Some(1.0);
        }
        let tally = self.window.tally(now);
        tally.rate().filter(|rate| tally.all() >= rules.min_requests && *rate >= rules.error_rate)
    }

    fn out(&self) -> Option<Cause> {
        match self.state {
            State::Out { cause, .. } => Some(cause),
            State::Unknown | State::Up => None,
        }
    }

    /// Whether it is by a request that it comes back.
    fn waits_for_probe(&self) -> bool {
        self.out().is_some_and(|cause| cause.is_ejection() || !self.rules.checked)
    }

    /// Whether it is better than none.
    fn is_doubtful(&self, now: Instant) -> bool {
        match self.state {
            State::Out { cause, probing, .. } => {
                let is_under_way = probing.is_some_and(|began| now.saturating_duration_since(began) >= PATIENCE);
                cause.is_doubtful() || is_under_way && self.waits_for_probe()
            }
            State::Unknown | State::Up => false,
        }
    }

    fn is_pressured(&self, now: Instant) -> bool {
        self.pressed.is_some_and(|until| now < until)
    }

    fn share(&self, now: Instant) -> Option<f64> {
        self.rules.share(now.saturating_duration_since(self.back?))
    }

    fn up(&mut self, now: Instant) -> Option<Change> {
        let cause = self.out();
        self.back = cause.filter(|_| self.has_worked).map(|_| now);
        self.has_worked = true;
        self.checks = 0;
        // That it works is newer than what it met before it went out. Of one that was never out nothing has passed.
        if cause.is_some() {
            self.failures = 0;
            self.row = Row::default();
            self.window = Window::new(self.rules.window, now);
            self.pressed = None;
        }
        self.problem = None;
        (self.state, self.since) = (State::Up, now);
        let is_new = std::mem::take(&mut self.was_refused);
        Some(Change::Up { is_back: cause.is_some(), is_new })
    }

    /// It goes out, or stays so for another reason.
    fn take_out(&mut self, cause: Cause, now: Instant) -> Option<Change> {
        let wait = match cause.is_ejection() {
            true => {
                // Who has been well for longer than it may be out for begins anew.
                let is_old = |back: Instant| now.saturating_duration_since(back) > self.rules.max_ejection;
                if self.back.is_none_or(is_old) {
                    self.ejections = 0;
                }
                self.ejections = self.ejections.saturating_add(1);
                self.rules.ejection(self.ejections)
            }
            false => self.rules.pause(),
        };
        let was_out = self.out();
        self.was_refused |= cause == Cause::Refused;
        let wait = self.close(cause, wait, now);
        if was_out != Some(cause) {
            self.since = now;
            self.problem = None;
            return Some(Change::Out(cause));
        }
        Some(Change::StillOut(wait))
    }

    /// The probe has failed: the next one is later.
    fn probe_failed(&mut self, now: Instant) -> Option<Change> {
        let cause = self.out()?;
        let cause = if cause.is_ejection() { cause } else { Cause::Failures };
        let is_same = Some(cause) == self.out();
        self.ejections = self.ejections.saturating_add(1);
        let wait = self.close(cause, self.rules.ejection(self.ejections), now);
        if is_same {
            return Some(Change::StillOut(wait));
        }
        self.since = now;
        self.problem = None;
        Some(Change::Out(cause))
    }

    /// No requests for `wait`, or for as long as it has asked for itself; how long that is.
    fn close(&mut self, cause: Cause, wait: Duration, now: Instant) -> Duration {
        (self.checks, self.failures) = (0, 0);
        self.row = Row::default();
        self.era += 1;
        let until = (now + wait).max(self.pressed.unwrap_or(now));
        self.state = State::Out { cause, until, probing: None, rechecks: 0 };
        self.next_check = now + self.rules.recheck(cause, 0);
        until - now
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
