//! How many of the last requests failed.

use std::time::Duration;

use tokio::time::Instant;

/// What is counted together. The last of them is under way, so the window is up to a tenth shorter than configured.
const BUCKETS: usize = 10;

/// Requests of a span of time that moves on.
#[derive(Debug)]
pub(super) struct Window {
    /// The time of one bucket.
    span: Duration,
    start: Instant,
    buckets: [Bucket; BUCKETS],
}

/// Counts of one part of it.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// How many spans after the start it began.
    number: u64,
    tally: Tally,
}

/// So many did, and so many did not work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) good: u32,
    pub(crate) bad: u32,
}

// === impl Window ===

impl Window {
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        Self { span: length / BUCKETS as u32, start: now, buckets: Default::default() }
    }

    /// A request worked.
    pub(super) fn good(&mut self, now: Instant) {
        self.current(now).good += 1;
    }

    /// A request failed.
    pub(super) fn bad(&mut self, now: Instant) {
        self.current(now).bad += 1;
    }

    /// One that was said to work failed after all.
    pub(super) fn spoiled(&mut self, now: Instant) {
        // Which bucket it is in is not known; the newest is nearest to the time at which it failed.
        let counted = self.buckets.iter_mut().filter(|bucket| bucket.tally.good > 0);
        if let Some(bucket) = counted.max_by_key(|bucket| bucket.number) {
            bucket.tally.good -= 1;
        }
        self.bad(now);
    }

    /// Of all that is not too old.
    pub(super) fn tally(&self, now: Instant) -> Tally {
        let oldest = self.number(now).saturating_sub(BUCKETS as u64 - 1);
        let young = self.buckets.iter().filter(|bucket| bucket.number >= oldest);
        young.fold(Tally::default(), |sum, Bucket { tally, .. }| Tally {
            good: sum.good.saturating_add(tally.good),
            bad: sum.bad.saturating_add(tally.bad),
        })
    }

    fn current(&mut self, now: Instant) -> &mut Tally {
        let number = self.number(now);
        let bucket = &mut self.buckets[(number % BUCKETS as u64) as usize];
        if bucket.number != number {
            *bucket = Bucket { number, tally: Tally::default() };
        }
        &mut bucket.tally
    }

    fn number(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_nanos();
        u64::try_from(passed / self.span.as_nanos().max(1)).unwrap_or(u64::MAX)
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) fn all(self) -> u32 {
        self.good.saturating_add(self.bad)
    }

    /// The share that failed; `None` of nothing.
    pub(crate) fn rate(self) -> Option<f64> {
        (self.all() > 0).then(|| f64::from(self.bad) / f64::from(self.all()))
    }

    /// The same, where too low would be worse than too high: as if there had been four more of which half failed, so that
    /// a little luck makes nobody look good.
    pub(crate) fn cautious_rate(self) -> Option<f64> {
        let with_more = f64::from(self.bad.saturating_add(2)) / f64::from(self.all().saturating_add(4));
        self.rate().map(|rate| rate.max(with_more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let now = Instant::now();
        let mut window = Window::new(10 * SECOND, now);
        assert_eq!(window.tally(now).rate(), None);
        window.good(now);
        window.bad(now + 5 * SECOND);
        for (after, good, bad) in [(5, 1, 1), (9, 1, 1), (10, 0, 1), (14, 0, 1), (15, 0, 0), (1000, 0, 0)] {
            assert_eq!(window.tally(now + after * SECOND), Tally { good, bad }, "after {after} s");
        }
        // The same place in the ring, a long time later.
        window.good(now + 105 * SECOND);
        assert_eq!(window.tally(now + 105 * SECOND), Tally { good: 1, bad: 0 });
    }

    #[test]
    fn an_answer_that_breaks_is_one_request_and_not_two() {
        let now = Instant::now();
        let mut window = Window::new(10 * SECOND, now);
        window.good(now);
        window.good(now);
        window.spoiled(now + 3 * SECOND);
        assert_eq!(window.tally(now + 3 * SECOND), Tally { good: 1, bad: 1 });
        let mut window = Window::new(10 * SECOND, now);
        window.spoiled(now);
        assert_eq!(window.tally(now).rate(), Some(1.0));
    }

    #[test]
    fn few_good_ones_are_no_proof() {
        for (good, bad, rate) in
            [(1, 0, 0.4), (4, 0, 0.25), (96, 0, 0.02), (0, 1, 1.0), (3, 7, 0.7), (7, 3, 5.0 / 14.0)]
        {
            assert_eq!(Tally { good, bad }.cautious_rate(), Some(rate), "{good} good and {bad} bad");
        }
        assert_eq!(Tally::default().cautious_rate(), None);
    }

    #[test]
    fn a_window_of_next_to_nothing_is_no_division_by_zero() {
        let now = Instant::now();
        let mut window = Window::new(Duration::from_nanos(3), now);
        window.bad(now + SECOND);
        assert_eq!(window.tally(now + SECOND).bad, 1);
    }
}
