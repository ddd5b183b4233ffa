//! Limits of requests over time: governor's decision over the states that accounts keep.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{Quota, clock::Clock as _, middleware::NoOpMiddleware, nanos::Nanos, state::StateStore};
use tokio::time::Instant;

use crate::{
    LimitKind,
    account::Account,
    clock::Clock,
    standing::Window,
    sync::atomic::{AtomicU64, Ordering},
};

/// So many requests per second or per minute. Keeps no state of its own: that is in the accounts, and outlives it.
pub(crate) struct RequestLimit {
    governor: governor::RateLimiter<Arc<Account>, Slot, Clock, NoOpMiddleware<Duration>>,
    slot: Slot,
    /// As it is configured.
    limit: u64,
    /// Nanoseconds in which one request is earned.
    every: u64,
    /// Nanoseconds in which the whole burst is earned.
    whole: u64,
}

/// One request taken from an account; given back when dropped, unless it is kept.
pub(crate) struct Charge<'a> {
    limit: &'a RequestLimit,
    account: &'a Account,
}

/// Which of an account's states belongs to a limit.
#[derive(Clone, Copy)]
enum Slot {
    Second,
    Minute,
}

// === impl RequestLimit ===

impl RequestLimit {
    /// `limit` per second, of which `burst` may come at once.
    pub(crate) fn per_second(limit: NonZeroU32, burst: NonZeroU32, epoch: Instant) -> Self {
        Self::new(Slot::Second, limit, Quota::per_second(limit).allow_burst(burst), epoch)
    }

    /// `limit` per minute, all of which may come at once.
    pub(crate) fn per_minute(limit: NonZeroU32, epoch: Instant) -> Self {
        Self::new(Slot::Minute, limit, Quota::per_minute(limit), epoch)
    }

    fn new(slot: Slot, limit: NonZeroU32, quota: Quota, epoch: Instant) -> Self {
        let governor = governor::RateLimiter::new(quota, slot, Clock::default());
        governor.clock().start(epoch);
        let every = u64::try_from(quota.replenish_interval().as_nanos()).unwrap_or(u64::MAX).max(1);
        let whole = every.saturating_mul(quota.burst_size().get().into());
        Self { governor, slot, limit: limit.get().into(), every, whole }
    }

    /// Its name.
    pub(crate) fn kind(&self) -> LimitKind {
        match self.slot {
            Slot::Second => LimitKind::RequestsPerSecond,
            Slot::Minute => LimitKind::RequestsPerMinute,
        }
    }

    /// Takes one request from `account`, or tells how long it has to wait for one.
    pub(crate) fn charge<'a>(&'a self, account: &'a Arc<Account>) -> Result<Charge<'a>, Duration> {
        // A state left by a slower limit of an earlier configuration could reach beyond this limit's whole burst.
        let state = self.slot.of(account);
        let fullest = nanos(self.governor.clock().now()).saturating_add(self.whole);
        if state.load(Ordering::Relaxed) > fullest {
            state.fetch_min(fullest, Ordering::Relaxed);
        }
        loop {
            let Err(until) = self.governor.check_key(account) else { return Ok(Charge { limit: self, account }) };
            // Another thread may have read the clock later and been counted before: then the wait is over by now, and
            // what this request was to have is still there.
            let wait = until.wait_time_from(self.governor.clock().now());
            if !wait.is_zero() {
                return Err(wait);
            }
        }
    }

    /// How long `account` has to wait for one more request, `now` nanoseconds after the epoch.
    pub(crate) fn wait(&self, account: &Account, now: u64) -> Duration {
        let free_at = self.state(account, now).saturating_sub(self.whole - self.every);
        Duration::from_nanos(free_at.saturating_sub(now))
    }

    /// What is left to `account`.
    pub(crate) fn window(&self, account: &Account, now: u64) -> Window {
        let used = self.state(account, now).saturating_sub(now);
        let remaining = self.whole.saturating_sub(used) / self.every;
        // A burst may be larger than the limit; nobody expects more to remain than the limit that stands beside it.
        Window { limit: self.limit, remaining: remaining.min(self.limit), reset: Duration::from_nanos(used) }
    }

    fn state(&self, account: &Account, now: u64) -> u64 {
        self.slot.of(account).load(Ordering::Relaxed).min(now.saturating_add(self.whole))
    }
}

// === impl Charge ===

impl Charge<'_> {
    /// The request was allowed: what it took stays taken.
    pub(crate) fn keep(self) {
        // Nothing but references in it.
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        let every = self.limit.every;
        // The closure always returns a new state, so that there is no failure to handle.
        let _ = self
            .limit
            .slot
            .of(self.account)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| Some(state.saturating_sub(every)));
    }
}

// === impl Slot ===

impl Slot {
    fn of(self, account: &Account) -> &AtomicU64 {
        match self {
            Self::Second => &account.per_second,
            Self::Minute => &account.per_minute,
        }
    }
}

impl StateStore for Slot {
    type Key = Arc<Account>;

    fn measure_and_replace<T, F, E>(&self, account: &Arc<Account>, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let state = self.of(account);
        let mut old = state.load(Ordering::Relaxed);
        loop {
            let (outcome, new) = decide(Some(old.into()))?;
            match state.compare_exchange_weak(old, new.as_u64(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(outcome),
                Err(current) => old = current,
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
