//! A budget of tokens per minute, from which is taken before it is known how much is needed.
//!
//! It is GCRA in its form as a leaky bucket: a level that drains at the budget's rate and may not rise above the
//! budget. The level is kept in tokens rather than as a time, so that a change of the budget keeps what was used.
//!
//! What was taken too much is given back later, when part of it has drained already. Giving back the drained part too
//! would let a caller save up budget without a bound, by requests that reserve much and use little. So time is taken to
//! drain evenly all that is in the bucket, and what is given back is what is still there. A bucket keeps how far a token
//! taken at its beginning has decayed; two readings of it tell what is left of a token taken at the first.

use std::{sync::PoisonError, time::Duration};

use crate::{
    standing::Window,
    sync::{Mutex, MutexGuard},
};

/// Tokens that were used within the last minute, more or less.
#[derive(Debug, Default)]
pub(crate) struct TokenBucket(Mutex<Level>);

/// What was taken from a bucket.
#[derive(Debug)]
pub(crate) struct Debit {
    tokens: u64,
    /// The budget at the time.
    budget: u64,
    decay: f64,
    generation: u64,
}

#[derive(Debug, Default)]
struct Level {
    tokens: f64,
    /// When it was so, in nanoseconds since the limiter's epoch.
    at: u64,
    /// What is left of a token that was taken at the beginning of this generation, as a natural logarithm: a bucket that
    /// is never empty makes it smaller than any float could tell.
    decay: f64,
    /// Begins when the bucket is empty: of a debit from an earlier one nothing is left.
    generation: u64,
}

/// Differences below a millionth of a token come from rounding.
const ROUNDING: f64 = 1e-6;

/// So do those below a hundredth of a nanosecond: who comes back at the moment that it was told must pass.
const ROUNDING_NANOS: f64 = 0.01;

const NANOS_PER_MINUTE: f64 = 60e9;

// === impl TokenBucket ===

impl TokenBucket {
    /// Takes `tokens` from a budget of `budget` per minute, or tells how long that has to wait. More than the whole
    /// budget would wait forever: the caller asks for at most `budget`.
    pub(crate) fn take(&self, tokens: u64, budget: u64, now: u64) -> Result<Debit, Duration> {
        let mut level = self.lock();
        level.drain(budget, now);
        let wait = level.wait(tokens, budget);
        if !wait.is_zero() {
            return Err(wait);
        }
        level.tokens += tokens as f64;
        Ok(Debit { tokens, budget, decay: level.decay, generation: level.generation })
    }

    /// Settles what was taken by what was used in truth. May leave the bucket in debt, above its budget.
    pub(crate) fn settle(&self, debit: &Debit, used: u64, budget: Option<u64>, now: u64) {
        let mut level = self.lock();
        level.drain(budget.unwrap_or(debit.budget), now);
        match used.checked_sub(debit.tokens) {
            Some(more) => level.tokens += more as f64,
            None => {
                let left = if level.generation == debit.generation { (level.decay - debit.decay).exp() } else { 0.0 };
                level.tokens = (level.tokens - (debit.tokens - used) as f64 * left).max(0.0);
            }
        }
    }

    /// How long `tokens` would have to wait.
    pub(crate) fn wait(&self, tokens: u64, budget: u64, now: u64) -> Duration {
        let mut level = self.lock();
        level.drain(budget, now);
        level.wait(tokens, budget)
    }

    /// What is left of the budget.
    pub(crate) fn window(&self, budget: u64, now: u64) -> Window {
        let mut level = self.lock();
        level.drain(budget, now);
        let remaining = (budget as f64 - level.tokens + ROUNDING).max(0.0).floor();
        Window { limit: budget, remaining: remaining as u64, reset: time_for(level.tokens, budget) }
    }

    /// Whether nothing counts against the budget.
    pub(crate) fn is_empty(&self, budget: u64, now: u64) -> bool {
        let mut level = self.lock();
        level.drain(budget, now);
        level.tokens <= ROUNDING
    }

    fn lock(&self) -> MutexGuard<'_, Level> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Level ===

impl Level {
    fn drain(&mut self, budget: u64, now: u64) {
        let elapsed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        if elapsed == 0 || self.tokens <= 0.0 {
            return;
        }
        let left = self.tokens - elapsed as f64 * budget as f64 / NANOS_PER_MINUTE;
        if left > 0.0 {
            self.decay += (left / self.tokens).ln();
            self.tokens = left;
        } else {
            *self = Self { tokens: 0.0, decay: 0.0, generation: self.generation + 1, ..*self };
        }
    }

    fn wait(&self, tokens: u64, budget: u64) -> Duration {
        time_for(self.tokens + tokens as f64 - budget as f64, budget)
    }
}

/// The time in which `tokens` drain, rounded up; zero if they are less than none.
fn time_for(tokens: f64, budget: u64) -> Duration {
    // A cast of a negative float is zero.
    Duration::from_nanos((tokens / budget as f64 * NANOS_PER_MINUTE - ROUNDING_NANOS).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn used(bucket: &TokenBucket, budget: u64, now: u64) -> u64 {
        budget - bucket.window(budget, now).remaining
    }

    #[test]
    fn a_whole_minutes_budget_may_come_at_once() {
        let bucket = TokenBucket::default();
        bucket.take(600, 600, 0).unwrap();
        assert_eq!(bucket.take(10, 600, 0).unwrap_err(), Duration::from_secs(1));
        bucket.take(10, 600, SECOND).unwrap();
    }

    #[test]
    fn what_was_taken_too_much_comes_back() {
        let bucket = TokenBucket::default();
        let debit = bucket.take(500, 600, 0).unwrap();
        bucket.settle(&debit, 120, Some(600), 0);
        assert_eq!(used(&bucket, 600, 0), 120);
    }

    #[test]
    fn what_was_used_beyond_is_a_debt() {
        let bucket = TokenBucket::default();
        let debit = bucket.take(600, 600, 0).unwrap();
        bucket.settle(&debit, 1200, Some(600), 0);
        assert_eq!(bucket.window(600, 0).remaining, 0);
        // 1200 are used; for one more, 601 have to drain at 10 per second.
        assert_eq!(bucket.wait(1, 600, 0), Duration::from_millis(60_100));
        bucket.take(1, 600, 60_100_000_000).unwrap();
    }

    #[test]
    fn what_has_drained_does_not_come_back_again() {
        let bucket = TokenBucket::default();
        let idle = bucket.take(600, 600, 0).unwrap();
        let busy = bucket.take(600, 600, 60 * SECOND).unwrap();
        bucket.settle(&idle, 0, Some(600), 60 * SECOND);
        assert_eq!(used(&bucket, 600, 60 * SECOND), 600);
        bucket.settle(&busy, 600, Some(600), 60 * SECOND);
        assert_eq!(used(&bucket, 600, 60 * SECOND), 600);
    }

    #[test]
    fn a_new_budget_keeps_what_was_used() {
        let bucket = TokenBucket::default();
        bucket.take(600, 600, 0).unwrap();
        assert_eq!(used(&bucket, 6000, 0), 600);
    }

    #[test]
    fn many_generations_leave_no_trace() {
        let bucket = TokenBucket::default();
        let first = bucket.take(600, 600, 0).unwrap();
        let mut now = 0;
        for _ in 0..1000 {
            now += 59_999_999_999;
            let wait = bucket.wait(600, 600, now);
            now += u64::try_from(wait.as_nanos()).unwrap();
            bucket.take(600, 600, now).unwrap();
        }
        bucket.settle(&first, 0, Some(600), now);
        assert_eq!(used(&bucket, 600, now), 600);
    }

    proptest! {
        /// However requests overlap, once all are settled at least as much is in the bucket as if each had taken at its
        /// beginning exactly what it used: nothing is given back twice.
        #[test]
        fn settling_never_gives_more_than_knowing_before(
            requests in vec((0u64..20, 1u64..600, 0u64..900, 0usize..4), 1..60),
        ) {
            const BUDGET: u64 = 600;
            let bucket = TokenBucket::default();
            let (mut now, mut open, mut truth, mut truth_at) = (0, Vec::new(), 0.0f64, 0);
            for (seconds, reserve, used, settle) in requests {
                now += seconds * SECOND;
                if let Ok(debit) = bucket.take(reserve, BUDGET, now) {
                    truth = (truth - (now - truth_at) as f64 * BUDGET as f64 / NANOS_PER_MINUTE).max(0.0) + used as f64;
                    truth_at = now;
                    open.push((debit, used));
                }
                if settle < open.len() {
                    let (debit, used) = open.swap_remove(settle);
                    bucket.settle(&debit, used, Some(BUDGET), now);
                }
            }
            for (debit, used) in open {
                bucket.settle(&debit, used, Some(BUDGET), now);
            }
            truth = (truth - (now - truth_at) as f64 * BUDGET as f64 / NANOS_PER_MINUTE).max(0.0);
            prop_assert!(bucket.lock().tokens >= truth - ROUNDING * 100.0);
        }
    }
}
