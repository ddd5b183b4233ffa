//! What a backend says of its own load, and what of that others than this proxy have put there.
//!
//! What this proxy has in flight it counts itself, exactly and at once; that stays the first signal. A backend that others
//! use too, or whose cache is full, only says so itself: [`page`] reads what it says, [`scraper`] asks for it. What was
//! never heard, or too long ago, is `None`, which is neutral: it is never taken for idle, nor for busy.

mod page;
mod scraper;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use llmproxy_core::labels;
use metrics::gauge;
use tokio::{sync::Notify, time::Instant};

pub(crate) use page::Page;
pub(crate) use scraper::{Scraper, Settings};

use crate::{
    metrics::{BACKEND_KV_USAGE, BACKEND_LOAD},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

/// From this much of its KV cache on a backend is taken to be full: what comes next will wait, or push others out.
const FULL: f64 = 0.95;
/// For how many intervals what a backend said counts.
const FRESH: u32 = 3;

/// What a backend said of its own load, not long ago. What it did not say is `None`, which is not 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests that it works on.
    pub running: Option<u64>,
    /// Requests that wait there.
    pub waiting: Option<u64>,
    /// How much of its KV cache is in use, from 0 to 1.
    pub kv_usage: Option<f64>,
    /// Of these requests, those that can't be this proxy's: more than it had there at any time since the reading before the
    /// last.
    pub others: u64,
    /// When it said so.
    pub at: Instant,
}

/// What one backend said last; a part of its state.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    state: Mutex<State>,
    /// The most requests of ours that were there at a time since the last reading.
    peak: AtomicUsize,
    /// The backend came up or went out: what asks it begins anew.
    restarted: Notify,
}

#[derive(Debug, Default)]
struct State {
    load: Option<Load>,
    /// From when on that counts no more.
    until: Option<Instant>,
    /// How often all was forgotten. What was asked before that says nothing of the present.
    era: u64,
    /// `peak` as the last reading found it.
    peak: usize,
    /// Under which name the metrics show a value.
    shown: Option<Arc<str>>,
}

// === impl Load ===

impl Load {
    /// Whether by its own word the next request would wait: its cache is full, or requests wait that are not all ours. A queue
    /// that is all ours says nothing that our own count does not, and later.
    pub fn is_full(&self) -> bool {
        let is_queued = self.waiting.is_some_and(|waiting| waiting > 0) && self.others > 0;
        is_queued || self.kv_usage.is_some_and(|usage| usage >= FULL)
    }

    /// Whether it is full, and not by our doing alone.
    pub fn is_crowded(&self) -> bool {
        self.is_full() && self.others > 0
    }
}

// === impl Signals ===

impl Signals {
    /// What the backend said, if that still counts.
    pub(crate) fn load(&self, now: Instant) -> Option<Load> {
        let state = self.state();
        state.load.filter(|_| state.until.is_some_and(|until| now < until))
    }

    /// A request of ours came, and so many are there now.
    pub(crate) fn entered(&self, in_flight: usize) {
        self.peak.fetch_max(in_flight, Ordering::Relaxed);
    }

    /// The backend is about to be asked.
    pub(crate) fn begin(&self) -> u64 {
        self.state().era
    }

    /// It answered this; asked again after `interval`. So many requests of ours are there now.
    pub(crate) fn said(&self, era: u64, page: Page, in_flight: usize, interval: Duration, now: Instant) {
        let mut state = self.state();
        if state.era != era {
            return;
        }
        // Its page lags behind, so whatever of ours was there lately may be on it.
        let peak = self.peak.swap(in_flight, Ordering::Relaxed).max(in_flight);
        let own = peak.max(std::mem::replace(&mut state.peak, peak));
        let Page { running, waiting, kv_usage } = page;
        let all = running.unwrap_or(0).saturating_add(waiting.unwrap_or(0));
        let others = all.saturating_sub(own as u64);
        state.load = Some(Load { running, waiting, kv_usage, others, at: now });
        state.until = now.checked_add(interval.saturating_mul(FRESH));
    }

    /// Forgets what it said: it is another process now, or nobody asks any more.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.era += 1;
        (state.load, state.until) = (None, None);
        state.hide();
    }

    /// It came up or went out.
    pub(crate) fn restarted(&self) {
        self.forget();
        self.restarted.notify_one();
    }

    /// Shows in the metrics what counts now.
    pub(crate) fn show(&self, name: &Arc<str>, now: Instant) {
        let load = self.load(now);
        let mut state = self.state();
        if load.is_none() || state.shown.as_ref().is_some_and(|shown| shown != name) {
            state.hide();
        }
        if let Some(load) = load {
            set(name, load.running, load.waiting, load.kv_usage);
            state.shown = Some(name.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// A series can't be taken back; one that is not a number says that nothing is known.
    fn hide(&mut self) {
        if let Some(name) = self.shown.take() {
            set(&name, None, None, None);
        }
    }
}

fn set(name: &Arc<str>, running: Option<u64>, waiting: Option<u64>, kv_usage: Option<f64>) {
    let number = |value: Option<u64>| value.map_or(f64::NAN, |value| value as f64);
    let Some(name) = labels::backend_of_its_own(name) else { return };
    gauge!(BACKEND_LOAD, "backend" => name.clone(), "kind" => "running").set(number(running));
    gauge!(BACKEND_LOAD, "backend" => name.clone(), "kind" => "waiting").set(number(waiting));
    gauge!(BACKEND_KV_USAGE, "backend" => name).set(kv_usage.unwrap_or(f64::NAN));
}
