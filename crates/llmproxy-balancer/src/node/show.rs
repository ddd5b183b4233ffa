//! What people are told of one backend: in the log and in metrics.

use std::{future::pending, sync::PoisonError, time::Duration};

use llmproxy_core::labels;
use metrics::{counter, gauge};
use tokio::time::{Instant, sleep_until};

use super::Node;
use crate::{
    health::{BackendState, Change},
    metrics::{BACKEND_STATE, BACKEND_UP, HEALTH_CHANGES},
    sync::atomic::Ordering,
};

// === impl Node ===

impl Node {
    /// Says what has changed, to all who want to know, and what was `found` that changed it.
    pub(super) fn after(&self, change: Option<Change>, found: Option<&str>) {
        let Some(change) = change else { return };
        let name = self.name();
        match change {
            Change::Up { is_back, is_new } => {
                // What was measured before may have been another process.
                self.latencies().reset();
                self.signals.restarted();
                if is_new {
                    self.hub.forget(self.index);
                }
                let state = self.state().as_str();
                tracing::info!(backend = %name, is_back, state, reason = found, "the backend is up");
                counter!(HEALTH_CHANGES, "backend" => labels::backend(&name), "to" => "up").increment(1);
            }
            Change::Out(cause) => {
                self.health().note(found);
                self.signals.restarted();
                // What comes back may be another version.
                self.injections().forget();
                let (reason, advice) = (cause.as_str(), cause.advice());
                let url = self.backend.load().url.to_string();
                let (url, state) = (url.trim_end_matches('/'), self.state().as_str());
                tracing::warn!(backend = %name, url, state, reason, problem = found, advice, "the backend is out");
                counter!(HEALTH_CHANGES, "backend" => labels::backend(&name), "to" => "out").increment(1);
            }
            Change::StillOut(wait) => {
                let wait = llmproxy_core::duration::format(Duration::from_secs(wait.as_secs().max(1)));
                tracing::info!(backend = %name, problem = found, next = wait, "the backend is still out: a request has failed there");
            }
            Change::Pressured(wait) => {
                let wait = llmproxy_core::duration::format(Duration::from_millis(wait.as_millis() as u64));
                let advice = "it is passed over for this time while another one has room; where it says so often, give it \
                              `max_concurrent`, so that requests wait for it in the line";
                let state = self.state().as_str();
                tracing::info!(backend = %name, state, problem = found, wait, advice, "the backend has enough to do");
            }
        }
        self.show();
        self.rescheduled.notify_one();
        self.hub.changed();
    }

    /// Shows whether it is up, and what it is doing.
    pub(crate) fn show(&self) {
        self.put(true);
    }

    /// The same, if it is news.
    pub(crate) fn show_state(&self) {
        self.put(false);
    }

    /// Shows it when time alone has changed it. Never returns: what changes it otherwise may change when time does.
    pub(crate) async fn turn(&self) {
        loop {
            let now = Instant::now();
            self.show_state();
            let turn = self.health().next_turn(now);
            match turn {
                Some(turn) => sleep_until(turn).await,
                None => pending().await,
            }
        }
    }

    /// Shows it, if it is news or is to be shown `anyway`, and tells what time alone has changed.
    fn put(&self, anyway: bool) {
        // Looked at within the lock, so that what is shown last is so.
        let mut shown = self.state_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        let before = shown.replace(state);
        if before == Some(state) && !anyway || self.retired.load(Ordering::Acquire) {
            return;
        }
        let name = self.name();
        if let Some(label) = labels::backend_of_its_own(&name) {
            for each in BackendState::ALL {
                let is_it = f64::from(u8::from(each == state));
                gauge!(BACKEND_STATE, "backend" => label.clone(), "state" => each.as_str()).set(is_it);
            }
            let is_up = self.health().is_known_up();
            gauge!(BACKEND_UP, "backend" => label).set(f64::from(u8::from(is_up)));
        }
        drop(shown);
        if let Some(reason) = before.and_then(|before| passed(before, state)) {
            tracing::info!(backend = %name, state = state.as_str(), reason, "the backend gets its share again");
        }
    }
}

/// What has passed, where time alone has made the one state the other. Every other change is told by what has made it.
fn passed(before: BackendState, state: BackendState) -> Option<&'static str> {
    match (before, state) {
        (BackendState::Pressured, BackendState::Unknown | BackendState::Up | BackendState::Warming) => {
            Some("the time for which it had enough to do has passed")
        }
        (BackendState::Warming, BackendState::Up) => Some("it has been back for as long as its slow start takes"),
        _ => None,
    }
}
