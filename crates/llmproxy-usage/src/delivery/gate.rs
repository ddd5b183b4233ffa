//! When a reporter may be tried: what is known of its receiver, whichever records it was given.

use std::{pin::pin, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard, watch},
    time::{Instant, sleep_until},
};

/// The wait before the second try, doubled for each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Between tries of a reporter that is down.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A receiver that wants more patience than this gets this much.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// One for each reporter. Records that are on their way at the same time share it: a receiver that is down is tried by one of
/// them at a time.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: watch::Sender<State>,
    /// Held by the one that tries while the reporter is down; in turn, so that a record that fails for ever does not keep the
    /// others from finding out that the receiver is there.
    probe: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures since the last answer.
    streak: u32,
    /// The most tries of one batch among them.
    tries: u32,
    since: Option<Instant>,
    /// What was wrong last.
    why: String,
    is_down: bool,
    /// No try before that; where the receiver has asked for it, whatever else happens.
    not_before: Option<Instant>,
    is_asked: bool,
    /// Where it delivers.
    place: u64,
    /// Changes when what waits to be tried again had better be tried at once.
    nudges: u64,
}

/// A try that has failed.
#[derive(Debug)]
pub(crate) struct Failure<'a> {
    pub(crate) why: &'a str,
    /// How many there were of the same records, this one included.
    pub(crate) tries: u32,
    /// How many may follow the first before the reporter counts as down.
    pub(crate) retries: u32,
    /// How long the receiver wants to be left alone.
    pub(crate) after: Option<Duration>,
    /// Where it was.
    pub(crate) place: u64,
    /// What [`Gate::nudges`] was before.
    pub(crate) nudges: u64,
}

/// What follows from that.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Whether the reporter is down since this one.
    pub(crate) is_news: bool,
    /// The time to the next try.
    pub(crate) wait: Duration,
    /// That of these records, whatever others find out meanwhile.
    pub(crate) own: Option<Wait>,
}

/// A wait that a nudge ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    until: Instant,
    nudges: u64,
}

// === impl Gate ===

impl Gate {
    /// Waits until a try may be made. While what this returns is there, a reporter that is down is not tried by others.
    pub(super) async fn turn(&self, own: Option<Wait>) -> Option<MutexGuard<'_, ()>> {
        let mut news = self.state.subscribe();
        let mut lock = pin!(self.probe.lock());
        let mut probe = None;
        loop {
            let (is_down, until) = {
                let state = news.borrow_and_update();
                let own = own.filter(|own| own.nudges == state.nudges).map(|own| own.until);
                (state.is_down, state.not_before.max(own))
            };
            let until = until.filter(|until| *until > Instant::now());
            let is_next = !is_down || probe.is_some();
            if is_next && until.is_none() {
                return probe.filter(|_| is_down);
            }
            tokio::select! {
                biased;
                guard = &mut lock, if !is_next => probe = Some(guard),
                () = sleep_until(until.unwrap_or_else(Instant::now)), if is_next => {}
                _ = news.changed() => {}
            }
        }
    }

    /// Takes note of a try that has failed. `random`, from 0 to 1, is there so that many that failed together do not come back
    /// together.
    pub(super) fn failed(&self, failure: &Failure<'_>, random: f64) -> Failed {
        let mut failed = Failed { is_news: false, wait: Duration::ZERO, own: None };
        self.state.send_modify(|state| {
            let now = Instant::now();
            state.why = failure.why.to_owned();
            state.since.get_or_insert(now);
            state.streak = state.streak.saturating_add(1);
            let asked =
                failure.after.filter(|_| failure.place == state.place).map(|asked| asked.min(LONGEST_RETRY_AFTER));
            if asked.is_none() && failure.nudges != state.nudges {
                // What was changed during the try may have mended it.
                return;
            }
            state.tries = if state.is_down { state.tries.saturating_add(1) } else { state.tries.max(failure.tries) };
            // A record that fails while others are taken says nothing about the receiver.
            let is_dead = failure.tries > failure.retries && state.streak >= failure.tries;
            let is_closed = asked.is_some_and(|asked| asked > LONGEST_WAIT);
            failed.is_news = (is_dead || is_closed) && !state.is_down;
            state.is_down |= failed.is_news;
            failed.wait = backoff(state.tries, failure.retries, random).max(asked.unwrap_or_default());
            let until = now + failed.wait;
            let earlier = state.not_before.filter(|_| state.is_asked);
            state.is_asked = asked.is_some() || earlier.is_some_and(|earlier| earlier > now);
            state.not_before = earlier.max(Some(until));
            let is_own = asked.is_none() && !state.is_down;
            failed.own = is_own.then_some(Wait { until, nudges: state.nudges });
        });
        failed
    }

    /// Takes note of an answer; `true` where the reporter was down.
    pub(super) fn answered(&self) -> bool {
        let mut was_down = false;
        self.state.send_if_modified(|state| {
            if state.streak == 0 && state.not_before.is_none() {
                return false;
            }
            was_down = std::mem::take(&mut state.is_down);
            (state.streak, state.tries, state.since) = (0, 0, None);
            // One that was sent before may be answered after the receiver has asked for patience.
            let asked = state.not_before.filter(|until| state.is_asked && *until > Instant::now());
            (state.not_before, state.is_asked) = (asked, asked.is_some());
            true
        });
        was_down
    }

    /// Has what waits tried at once, unless the receiver has asked for patience.
    pub(crate) fn nudge(&self) {
        self.state.send_modify(|state| {
            state.nudges += 1;
            state.tries = 0;
            state.not_before = state.not_before.filter(|_| state.is_asked);
        });
    }

    /// It delivers to `place` from now on. What another one has asked for does not hold there.
    pub(crate) fn set_place(&self, place: u64) {
        self.state.send_modify(|state| {
            if state.place != place {
                (state.place, state.is_asked, state.not_before) = (place, false, None);
            }
        });
    }

    /// How long no try has been answered by now, and why not.
    pub(crate) fn failing(&self) -> Option<(Duration, String)> {
        let state = self.state.borrow();
        state.since.map(|since| (since.elapsed(), state.why.clone()))
    }

    pub(crate) fn nudges(&self) -> u64 {
        self.state.borrow().nudges
    }

    /// Waits until that is not `nudges` any more.
    pub(crate) async fn nudged(&self, nudges: u64) {
        let mut news = self.state.subscribe();
        // It can't be gone: it is ours.
        let _ = news.wait_for(|state| state.nudges != nudges).await;
    }

    /// How many tries in a row have failed.
    pub(super) fn tries(&self) -> u32 {
        self.state.borrow().tries
    }

    /// Changes with each failure, too.
    pub(super) fn news(&self) -> watch::Receiver<impl Sized + use<>> {
        self.state.subscribe()
    }
}

/// From half of the step to all of it.
pub(super) fn backoff(tries: u32, retries: u32, random: f64) -> Duration {
    let step = match tries > retries {
        true => LONGEST_WAIT,
        false => FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(LONGEST_WAIT),
    };
    step.mul_f64(0.5 + random / 2.0)
}
