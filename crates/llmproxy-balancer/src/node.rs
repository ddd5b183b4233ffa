//! What is known of one backend: it outlives configurations, as long as they name its URL.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use http::StatusCode;
use llmproxy_core::{Backend, labels};
use metrics::{Gauge, counter};
use tokio::{sync::Notify, time::Instant};

use crate::{
    config::InjectUsage,
    health::{BackendState, Change, Check, Fault, Health, Pass, Rules, Sight},
    hub::Hub,
    injection::{Injection, Question},
    latency::Latency,
    metrics::INJECTION_REFUSED,
    models::Models,
    signals::Signals,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

mod in_flight;
#[cfg(all(test, shuttle))]
mod interleavings;
mod show;
#[cfg(test)]
mod tests;

pub(crate) use in_flight::InFlight;

/// Why a backend is up that has passed a check.
const GOOD_CHECK: &str = "its health check was good";

/// One backend's state.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its number among all that there are: another one's when this one is gone.
    pub(crate) index: usize,
    backend: ArcSwap<Backend>,
    /// What an administrator has said of its share of the work.
    weight: Mutex<Option<SetWeight>>,
    /// Whether it gets no more requests because somebody has said so.
    draining: AtomicBool,
    /// Whether no configuration has it any more; requests may still be there.
    retired: AtomicBool,
    in_flight: AtomicUsize,
    /// Of these, those whose answers have not begun.
    waiting: AtomicUsize,
    /// Tokens of what is in flight, as expected.
    tokens: AtomicU64,
    /// Of these, those of prompts whose answers have not begun.
    tokens_waiting: AtomicU64,
    /// Where that is shown, under which name: found once, not by each request.
    shown: Mutex<Option<(Arc<str>, Gauge)>>,
    health: Mutex<Health>,
    /// The state that was last shown: time alone may change it.
    state_shown: Mutex<Option<BackendState>>,
    latency: Mutex<Latency>,
    injection: Mutex<Injection>,
    models: ArcSwap<Models>,
    /// When it was first asked what it serves, by those who ask it now.
    first_asked: Mutex<Option<Instant>>,
    /// Somebody wants to know at once what it serves.
    ask: Notify,
    /// Whether that is still to be found out.
    is_asked: AtomicBool,
    /// What it says of its own load.
    signals: Signals,
    /// Tells the checks that the next one is due at another time than they thought.
    pub(crate) rescheduled: Notify,
    /// Tells whoever waits for any backend.
    hub: Arc<Hub>,
}

/// A share of the work that somebody has set in the place of the configured one. It goes with that one only, so that a
/// configuration with another one takes its place in the moment in which it is shown.
#[derive(Clone, Copy, Debug)]
struct SetWeight {
    configured: u32,
    set: u32,
}

// === impl Node ===

impl Node {
    pub(crate) fn new(index: usize, backend: Arc<Backend>, rules: Rules, hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            index,
            weight: Mutex::default(),
            draining: AtomicBool::new(false),
            backend: ArcSwap::new(backend),
            retired: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            tokens: AtomicU64::new(0),
            tokens_waiting: AtomicU64::new(0),
            shown: Mutex::default(),
            health: Mutex::new(Health::new(rules)),
            state_shown: Mutex::default(),
            latency: Mutex::default(),
            injection: Mutex::default(),
            models: ArcSwap::default(),
            first_asked: Mutex::default(),
            ask: Notify::new(),
            is_asked: AtomicBool::new(false),
            signals: Signals::default(),
            rescheduled: Notify::new(),
            hub,
        })
    }

    /// The newest configuration has it like this.
    pub(crate) fn configure(&self, backend: Arc<Backend>, rules: Rules) {
        self.backend.store(backend);
        self.health().set_rules(rules);
    }

    /// Its share of the work, where it is configured so.
    pub(crate) fn weight(&self, configured: u32) -> u32 {
        match *self.weight_said() {
            Some(known) if known.configured == configured => known.set,
            _ => configured,
        }
    }

    /// Gives it another share than the configured one, until the configuration has a new one.
    pub(crate) fn set_weight(&self, configured: u32, weight: u32) {
        let old = self.weight(configured);
        *self.weight_said() = Some(SetWeight { configured, set: weight });
        if weight != old {
            tracing::info!(backend = %self.name(), weight, old, "it has another weight by an administrator's word");
        }
        self.hub.changed();
    }

    /// A configuration with this weight is in force: what was set in the place of another one is over.
    pub(crate) fn is_weighted(&self, configured: u32) {
        self.weight_said().take_if(|known| known.configured != configured);
    }

    fn weight_said(&self) -> MutexGuard<'_, Option<SetWeight>> {
        self.weight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it gets no more requests because somebody has said so, or no configuration has it any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_drained() || self.retired.load(Ordering::Acquire)
    }

    /// Whether somebody has said so.
    pub(crate) fn is_drained(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Says so, or takes it back. Whether that is news.
    pub(crate) fn set_draining(&self, draining: bool) -> bool {
        let news = self.draining.swap(draining, Ordering::AcqRel) != draining;
        if news {
            let state = self.state().as_str();
            tracing::info!(backend = %self.name(), draining, state, "drained by an administrator's word, or no more");
            self.show();
            self.hub.changed();
        }
        news
    }

    /// The next configuration does not have it, so its name may be another's. Nobody is told of it: until that one is shown
    /// nothing else is there to go to.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.signals.forget();
    }

    /// A configuration has it again.
    pub(crate) fn unretire(&self) {
        self.retired.store(false, Ordering::Release);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Requests whose answers have not begun.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tokens of what is in flight, as expected.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::SeqCst)
    }

    /// Of these, those of prompts whose answers have not begun.
    pub(crate) fn tokens_waiting(&self) -> u64 {
        self.tokens_waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What whoever picks a backend sees of its health.
    pub(crate) fn sight(&self) -> Sight {
        self.health().sight(Instant::now())
    }

    pub(crate) fn is_up(&self) -> bool {
        self.health().is_up(Instant::now())
    }

    /// What it is doing.
    pub(crate) fn state(&self) -> BackendState {
        if self.is_draining() { BackendState::Draining } else { self.health().state(Instant::now()) }
    }

    pub(crate) fn check_passed(&self, check: Check) {
        let change = self.health().check_passed(check, Instant::now());
        self.after(change, Some(GOOD_CHECK));
    }

    pub(crate) fn check_failed(&self, check: Check, refused: bool, problem: &str) {
        let change = self.health().check_failed(check, refused, Instant::now());
        self.after(change, Some(problem));
    }

    /// A check that was good otherwise has shown that it does not take the proxy's credentials.
    pub(crate) fn credentials_refused(&self, check: Check, problem: &str) {
        let change = self.health().credentials_refused(check, Instant::now());
        let is_good = matches!(change, Some(Change::Up { .. }));
        self.after(change, Some(if is_good { GOOD_CHECK } else { problem }));
    }

    pub(crate) fn refused(&self, pass: Pass) {
        let change = self.health().refused(pass, Instant::now());
        self.after(change, None);
    }

    pub(crate) fn failed(&self, pass: Pass, fault: Fault, asked: Option<Duration>, problem: &str) {
        let now = Instant::now();
        let change = self.health().failed(pass, fault, asked, now);
        self.after(change, Some(problem));
        self.judge(problem, now);
    }

    /// Ejects it, if it fails so often that it is to be.
    fn judge(&self, problem: &str, now: Instant) {
        let is_suspect = self.health().is_suspect(now);
        if is_suspect {
            // How the others do is asked without holding this one: they may be asking too.
            let best = self.hub.failure_rate_of_others(self);
            let change = self.health().convict(best, now);
            self.after(change, Some(problem));
        }
    }

    pub(crate) fn pressed(&self, pass: Pass, asked: Option<Duration>, problem: &str) {
        let change = self.health().pressed(pass, asked, Instant::now());
        self.after(change, Some(problem));
    }

    /// It refused a request with the proxy's credentials.
    pub(crate) fn misconfigured(&self, pass: Pass, problem: &str) {
        let now = Instant::now();
        let (change, doubts) = {
            let mut health = self.health();
            (health.misconfigured(pass, now), health.doubts_credentials())
        };
        self.after(change, Some(problem));
        if doubts {
            self.rescheduled.notify_one();
        }
        self.judge(problem, now);
    }

    /// There is an answer that says nothing against the backend.
    pub(crate) fn was_reached(&self, pass: Pass) {
        let change = self.health().answered(pass, Instant::now());
        self.after(change, Some("it has answered a request"));
    }

    /// There is a good one.
    pub(crate) fn worked(&self, pass: Pass) {
        let change = self.health().worked(pass, Instant::now());
        self.after(change, Some("a request has worked there"));
    }

    /// An answer has come to its end; `blames` where it blames the request.
    pub(crate) fn finished(&self, pass: Pass, blames: bool) {
        let change = self.health().finished(pass, blames, Instant::now());
        self.after(change, Some("it has answered a request"));
        self.show_state();
    }

    /// The measured time to a first byte.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latencies().estimate(Instant::now())
    }

    /// Whether anything has come of a request there.
    pub(crate) fn is_tried(&self) -> bool {
        self.latencies().is_tried()
    }

    /// An answer that says nothing of the time that work takes.
    pub(crate) fn answered(&self) {
        self.latencies().answered();
    }

    pub(crate) fn measured(&self, sample: Duration) {
        self.latencies().measured(sample, Instant::now());
    }

    pub(crate) fn given_up(&self, waited: Duration) {
        self.latencies().given_up(waited, Instant::now());
    }

    pub(crate) fn penalized(&self) {
        self.latencies().failed(Instant::now());
    }

    /// How an attempt with a place for a question for usage is to be made.
    pub(crate) fn question(&self, mode: InjectUsage) -> Question {
        self.injections().question(mode, Instant::now())
    }

    /// What came of it.
    pub(crate) fn question_answered(&self, question: Question, status: StatusCode) {
        if !question.is_a_test() || !self.injections().answered(question, status, Instant::now()) {
            return;
        }
        let name = self.name();
        let url = self.backend.load().url_text();
        let advice = "write `inject_usage: never` at this entry of `backends`, so that it is never asked; until then it is \
                      asked again in an hour, or once it was out";
        tracing::warn!(
            backend = %name,
            url,
            advice,
            "the backend refuses stream_options.include_usage; its streams are sent without, and their tokens estimated"
        );
        counter!(INJECTION_REFUSED, "backend" => labels::backend(&name)).increment(1);
    }

    pub(crate) fn models(&self) -> Guard<Arc<Models>> {
        self.models.load()
    }

    pub(crate) fn learned(&self, models: Models) {
        let old = self.models.swap(Arc::new(models));
        let new = self.models.load();
        if matches!(**new, Models::Any(_)) != matches!(*old, Models::Any(_)) || old.names() != new.names() {
            let any_name = matches!(**new, Models::Any(_));
            tracing::info!(backend = %self.name(), models = ?new.names(), any_name, "the backend's models are known");
        }
        self.hub.changed();
    }

    /// It is asked for the first time, or anew, what it serves.
    pub(crate) fn is_first_asked(&self) {
        *self.first_asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(crate) fn first_asked(&self) -> Option<Instant> {
        *self.first_asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets its checker find out at once what it serves.
    pub(crate) fn ask(&self) {
        self.is_asked.store(true, Ordering::Release);
        self.ask.notify_one();
    }

    /// Whether that is still to be found out.
    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    /// Somebody wants to know.
    pub(crate) async fn asked(&self) {
        self.ask.notified().await;
    }

    /// It is found out, as far as it can be.
    pub(crate) fn told(&self) {
        self.is_asked.store(false, Ordering::Release);
        self.hub.changed();
    }

    /// What it says of its own load.
    pub(crate) fn signals(&self) -> &Signals {
        &self.signals
    }

    fn injections(&self) -> MutexGuard<'_, Injection> {
        self.injection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latencies(&self) -> MutexGuard<'_, Latency> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> Arc<str> {
        self.backend.load().name.clone()
    }
}
