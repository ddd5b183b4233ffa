//! What people are told of one backend: in the log and in metrics.

use std::{sync::PoisonError, time::Duration};

use llmproxy_core::labels;
use metrics::{counter, gauge};

use super::Node;
use crate::{
    health::{BackendState, Change},
    metrics::{BACKEND_STATE, BACKEND_UP, HEALTH_CHANGES},
    sync::atomic::Ordering,
};

// === impl Node ===

impl Node {
    /// Says what has changed, to all who want to know.
    pub(super) fn after(&self, change: Option<Change>, problem: Option<&str>) {
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
                tracing::info!(backend = %name, is_back, state = self.state().as_str(), "the backend is up");
                counter!(HEALTH_CHANGES, "backend" => labels::backend(&name), "to" => "up").increment(1);
            }
            Change::Out(cause) => {
                self.health().note(problem);
                self.signals.restarted();
                // What comes back may be another version.
                self.injections().forget();
                let (reason, advice) = (cause.as_str(), cause.advice());
                let url = self.backend.load().url.to_string();
                let (url, state) = (url.trim_end_matches('/'), self.state().as_str());
                tracing::warn!(backend = %name, url, state, reason, problem, advice, "the backend is out");
                counter!(HEALTH_CHANGES, "backend" => labels::backend(&name), "to" => "out").increment(1);
                self.rescheduled.notify_one();
            }
            Change::StillOut(wait) => {
                let wait = llmproxy_core::duration::format(Duration::from_secs(wait.as_secs().max(1)));
                tracing::info!(backend = %name, problem, next = wait, "the backend is still out: a request has failed there");
                self.rescheduled.notify_one();
            }
            Change::Pressured(wait) => {
                let wait = llmproxy_core::duration::format(Duration::from_millis(wait.as_millis() as u64));
                let advice = "it is passed over for this time while another one has room; where it says so often, give it \
                              `max_concurrent`, so that requests wait for it in the line";
                tracing::info!(backend = %name, problem, wait, advice, "the backend has enough to do");
            }
        }
        self.show();
        self.hub.changed();
    }

    /// Shows whether it is up, and what it is doing.
    pub(crate) fn show(&self) {
        *self.state_shown.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.show_state();
    }

    /// The same, if it is news.
    pub(crate) fn show_state(&self) {
        let state = self.state();
        let shown = self.state_shown.lock().unwrap_or_else(PoisonError::into_inner).replace(state);
        if shown == Some(state) || self.retired.load(Ordering::Acquire) {
            return;
        }
        let Some(name) = labels::backend_of_its_own(&self.name()) else { return };
        for each in BackendState::ALL {
            let is_it = f64::from(u8::from(each == state));
            gauge!(BACKEND_STATE, "backend" => name.clone(), "state" => each.as_str()).set(is_it);
        }
        let is_up = self.health().is_known_up();
        gauge!(BACKEND_UP, "backend" => name).set(f64::from(u8::from(is_up)));
    }
}
