//! A request that is at a backend: what it takes there, and when that is given back.

use std::sync::{Arc, PoisonError};

use llmproxy_core::labels;
use metrics::{Gauge, gauge};
use tokio::time::Instant;

use super::Node;
use crate::{health::Pass, metrics::IN_FLIGHT, policy::Work, sync::atomic::Ordering};

/// A request that is at a backend, until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    node: Arc<Node>,
    /// By the name that it had when the request came, so that the metric goes down where it went up.
    shown: Gauge,
    /// Its model's name there.
    model: Option<Arc<str>>,
    /// Whether its answer is still to begin.
    waits: bool,
    /// What of it is still to be given back.
    prompt_waiting: u32,
    tokens: u32,
    pass: Pass,
    /// Whether it counts no more.
    is_gone: bool,
}

// === impl Node ===

impl Node {
    /// Counts a request.
    pub(crate) fn enter(self: &Arc<Self>, name: &Arc<str>, work: &Work) -> InFlight {
        // Half the size of what they are summed up in: there is one for each open stream, and no body has so many tokens.
        let small = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        let (prompt_waiting, tokens) = (small(work.prompt_tokens), small(work.tokens()));
        let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.signals.entered(in_flight);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.tokens.fetch_add(tokens.into(), Ordering::SeqCst);
        self.tokens_waiting.fetch_add(prompt_waiting.into(), Ordering::Relaxed);
        let gauge = self.shown_as(name);
        gauge.increment(1);
        let pass = self.health().enter(Instant::now());
        InFlight {
            node: self.clone(),
            shown: gauge,
            model: None,
            waits: true,
            prompt_waiting,
            tokens,
            pass,
            is_gone: false,
        }
    }

    fn shown_as(&self, name: &Arc<str>) -> Gauge {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shown {
            Some((known, gauge)) if known == name => gauge.clone(),
            _ => {
                let gauge = gauge!(IN_FLIGHT, "backend" => labels::backend(name));
                *shown = Some((name.clone(), gauge.clone()));
                gauge
            }
        }
    }
}

// === impl InFlight ===

impl InFlight {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The model of its one answer, which shows how long that model's answers are.
    pub(crate) fn is_for(&mut self, model: Option<&Arc<str>>) {
        self.model = model.cloned();
    }

    /// Its whole answer came in so many pieces.
    pub(crate) fn came_to(&self, pieces: u64) {
        if let Some(model) = &self.model {
            self.node.hub.lengths.came_to(model, pieces);
        }
    }

    /// What the request says of the backend's health, it says by this.
    pub(crate) fn pass(&self) -> Pass {
        self.pass
    }

    /// Whether it was sent there although the backend was out.
    pub(crate) fn is_doubted(&self) -> bool {
        self.pass.is_doubted
    }

    /// Whether it is the one that is to show whether the backend is back.
    pub(crate) fn is_probe(&self) -> bool {
        self.pass.is_probe
    }

    /// So many tokens of its prompt are in the backend's cache, so nobody waits for them.
    pub(crate) fn is_cached(&mut self, tokens: u64) {
        let cached = u32::try_from(tokens).unwrap_or(u32::MAX).min(self.prompt_waiting);
        self.prompt_waiting -= cached;
        self.node.tokens_waiting.fetch_sub(cached.into(), Ordering::Relaxed);
    }

    /// It counts no more: the backend has nothing more to do for it, whatever becomes of its answer.
    pub(crate) fn leave(&mut self) {
        if std::mem::replace(&mut self.is_gone, true) {
            return;
        }
        self.begun();
        if self.pass.is_probe {
            self.node.health().leave(self.pass);
        }
        self.node.tokens.fetch_sub(self.tokens.into(), Ordering::SeqCst);
        self.node.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.shown.decrement(1);
        self.node.hub.released();
    }

    /// Its answer has begun, so nobody waits behind its prompt any more.
    pub(crate) fn begun(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.node.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        self.node.tokens_waiting.fetch_sub(std::mem::take(&mut self.prompt_waiting).into(), Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.leave();
    }
}
