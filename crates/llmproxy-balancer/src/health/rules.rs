//! What a configuration says of health, and the waits that follow from it.

use std::time::Duration;

use tokio::time::Instant;

use super::Cause;
use crate::config::HealthCheckConfig;

/// The first check of a backend that is out comes after this; each further one after twice the time, up to the interval.
const FIRST_RECHECK: Duration = Duration::from_secs(1);
/// The longest wait before one is checked that could not be connected to: to knock costs nobody anything, and whoever
/// restarts it waits for it.
const REFUSED_RECHECK: Duration = Duration::from_secs(2);
/// How long a backend that is down gets nothing where no checks are made.
const PAUSE: Duration = Duration::from_secs(5);
/// What a check's wait is longer or shorter by at most, so that many proxies, or the checks of many backends, do not
/// beat in step.
const CHECK_JITTER: f64 = 0.1;
/// What an ejection is longer by at most, for the same reason.
const EJECTION_JITTER: f64 = 0.2;
/// How long a backend that has enough to do is passed over where it does not say: doubled with each further time without
/// a success between, up to the last.
const PRESSURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// The longest time for which it may say so.
const MAX_PRESSURE: Duration = Duration::from_secs(60);
/// A year: what is longer is for ever, and would be too long for a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// The share of the work that a backend which has come back begins with.
const FIRST_SHARE: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rules {
    pub(super) checked: bool,
    interval: Duration,
    pub(super) unhealthy_threshold: u32,
    pub(super) healthy_threshold: u32,
    /// Whether a backend is ejected by the share of its requests that fail.
    pub(super) passive: bool,
    pub(super) window: Duration,
    pub(super) min_requests: u32,
    pub(super) error_rate: f64,
    base_ejection: Duration,
    pub(super) max_ejection: Duration,
    slow_start: Duration,
}

// === impl Rules ===

impl Rules {
    pub(crate) fn new(config: &HealthCheckConfig) -> Self {
        let passive = &config.passive;
        Self {
            checked: config.enabled,
            interval: config.interval.min(LONGEST),
            unhealthy_threshold: config.unhealthy_threshold,
            healthy_threshold: config.healthy_threshold,
            passive: passive.enabled,
            window: passive.window,
            min_requests: passive.min_requests,
            error_rate: passive.error_rate,
            base_ejection: passive.base_ejection.min(LONGEST),
            max_ejection: passive.max_ejection.min(LONGEST),
            slow_start: config.slow_start,
        }
    }

    /// From one check of a backend of which nothing bad is known to the next.
    pub(super) fn next_check(&self) -> Duration {
        around(self.interval)
    }

    /// The wait before the check that follows `before` others of a backend that is out for this.
    pub(super) fn recheck(&self, cause: Cause, before: u32) -> Duration {
        let most = if cause == Cause::Refused { self.interval.min(REFUSED_RECHECK) } else { self.interval };
        around(doubled(FIRST_RECHECK, before, most))
    }

    /// How long a backend that was ejected for the `nth` time in a row, from 1 on, gets nothing.
    pub(super) fn ejection(&self, nth: u32) -> Duration {
        let plain = doubled(self.base_ejection, nth.saturating_sub(1), self.max_ejection);
        plain.mul_f64(1.0 + EJECTION_JITTER * fastrand::f64())
    }

    /// How long one that is down gets nothing where only a request can find out whether it is back.
    pub(super) fn pause(&self) -> Duration {
        PAUSE
    }

    /// How long a backend that refuses the `nth` request in a row, from 1 on, is passed over; `asked` is what it wants.
    pub(super) fn pressure(&self, nth: u32, asked: Option<Duration>) -> Duration {
        asked.unwrap_or_else(|| doubled(PRESSURE.0, nth.saturating_sub(1), PRESSURE.1)).min(MAX_PRESSURE)
    }

    /// When a backend that has come back then has all of its weight; `None` where no clock can tell.
    pub(super) fn warm(&self, back: Instant) -> Option<Instant> {
        back.checked_add(self.slow_start)
    }

    /// The share of its weight that a backend has `back` after it has come back; `None` where that is all of it.
    pub(super) fn share(&self, back: Duration) -> Option<f64> {
        let warm = back.as_secs_f64() / self.slow_start.as_secs_f64();
        // Without a slow start that is infinite, or no number.
        (warm < 1.0).then_some(FIRST_SHARE + (1.0 - FIRST_SHARE) * warm)
    }
}

/// Twice `first` for each of `times`, up to `most`.
fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    2_u32.checked_pow(times).map_or(most, |factor| first.saturating_mul(factor)).min(most)
}

fn around(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + CHECK_JITTER * (2.0 * fastrand::f64() - 1.0))
}
