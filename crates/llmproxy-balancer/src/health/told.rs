//! What others are told of a backend's health.

use std::borrow::Cow;

use tokio::time::Instant;

use super::{BackendState, Cause, Health, State};

// === impl Health ===

impl Health {
    pub(crate) fn state(&self, now: Instant) -> BackendState {
        match self.state {
            State::Out { cause, .. } if cause.is_ejection() => BackendState::Ejected,
            State::Out { .. } => BackendState::Down,
            _ if self.is_pressured(now) => BackendState::Pressured,
            State::Unknown => BackendState::Unknown,
            State::Up if self.share(now).is_some() => BackendState::Warming,
            State::Up => BackendState::Up,
        }
    }

    /// Whether the backend is known to work, or is taken to because nobody checks.
    pub(crate) fn is_known_up(&self) -> bool {
        match self.state {
            State::Unknown => !self.rules.checked,
            State::Up => true,
            State::Out { .. } => false,
        }
    }

    /// The same, or whether it is due to be asked whether it does.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        match self.state {
            State::Out { until, .. } => self.waits_for_probe() && now >= until,
            State::Unknown | State::Up => self.is_known_up(),
        }
    }

    /// When time alone changes its state next, as far as is known by now.
    pub(crate) fn next_turn(&self, now: Instant) -> Option<Instant> {
        let turns = [self.pressed, self.back.and_then(|back| self.rules.warm(back))];
        turns.into_iter().flatten().filter(|turn| self.is_in() && *turn > now).min()
    }

    /// Since when it is in, or out.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Why it is in its state, for people; `None` where there is nothing to say.
    pub(crate) fn reason(&self, now: Instant) -> Option<Cow<'static, str>> {
        match (self.state(now), self.out(), &self.problem) {
            (_, Some(cause), None) => Some(Cow::Borrowed(cause.as_str())),
            (_, Some(cause), Some(problem)) => Some(Cow::Owned(format!("{}: {problem}", cause.as_str()))),
            (BackendState::Pressured, ..) => Some(Cow::Borrowed("it has said that it has enough to do")),
            (BackendState::Warming, ..) => Some(Cow::Borrowed("it has come back, and its share of the work grows")),
            (BackendState::Unknown, ..) if self.rules.checked => Some(Cow::Borrowed("its first check is under way")),
            _ => None,
        }
    }

    /// Why it is out, if it is and no request may find out whether it is back.
    pub(crate) fn cause(&self, now: Instant) -> Option<Cause> {
        self.out().filter(|_| !self.is_up(now))
    }

    /// The share of its requests that fail, judged by the last ones, and rather too high where these are few.
    pub(crate) fn failure_rate(&self, now: Instant) -> Option<f64> {
        self.window.tally(now).cautious_rate()
    }

    /// Whether it is in: neither ejected nor down.
    pub(crate) fn is_in(&self) -> bool {
        self.out().is_none()
    }

    /// What was found, after it went out.
    pub(crate) fn note(&mut self, problem: Option<&str>) {
        self.problem = problem.map(Into::into);
    }
}
