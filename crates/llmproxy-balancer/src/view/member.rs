//! One backend in one configuration, and how it looks when a request comes.

use std::sync::Arc;

use llmproxy_core::Backend;
use tokio::time::Instant;

use crate::{
    config::InjectUsage,
    health::Sight,
    injection::Question,
    models::{Models, Serves},
    node::Node,
    policy::{Candidate, Work},
    signals::Load,
};

/// One backend in one configuration.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) backend: Arc<Backend>,
    /// The configured one.
    pub(crate) weight: u32,
    pub(crate) tier: u32,
    pub(crate) group: Option<Arc<str>>,
    pub(crate) max_concurrent: Option<usize>,
    pub(crate) max_tokens: Option<u64>,
    /// The configured models; learned ones are the node's.
    pub(crate) models: Option<Models>,
    pub(crate) inject_usage: InjectUsage,
    pub(crate) node: Arc<Node>,
}

/// A backend, and how it is in this moment.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) member: &'a Arc<Member>,
    pub(super) sight: Sight,
    /// What it says of its own load, where it has said so lately.
    pub(super) load: Option<Load>,
}

// === impl Member ===

impl Member {
    pub(crate) fn with_models<T>(&self, f: impl FnOnce(&Models) -> T) -> T {
        match &self.models {
            Some(models) => f(models),
            None => f(&self.node.models()),
        }
    }

    pub(crate) fn serves(&self, model: &str) -> Serves {
        self.with_models(|models| models.serves(model))
    }

    /// Its share of the work.
    pub(crate) fn weight(&self) -> u32 {
        self.node.weight(self.weight)
    }

    /// Whether it is to have requests at all. As long as this configuration is the newest that is shown, no other one counts.
    pub(crate) fn is_working(&self) -> bool {
        self.weight() > 0 && !self.node.is_drained()
    }

    /// Whether it has `model` and is only kept from working.
    pub(super) fn rests(&self, model: &str) -> bool {
        !self.is_working() && matches!(self.serves(model), Serves::ByName | Serves::AnyName)
    }

    /// Whether one more request may be there. One that is larger than all that may be there goes where nothing else is.
    pub(super) fn has_room(&self, work: &Work) -> bool {
        let in_flight = self.node.in_flight();
        let tokens = self.node.tokens().saturating_add(work.tokens());
        self.max_concurrent.is_none_or(|max| in_flight < max)
            && self.max_tokens.is_none_or(|max| tokens <= max || in_flight == 0)
    }

    /// Whether requests for one model may come to both.
    pub(super) fn shares_models_with(&self, other: &Self) -> bool {
        let may_serve = |model: &String| !matches!(other.serves(model), Serves::No);
        self.with_models(|models| {
            let mut names = models.entries().map(|(name, _)| name).peekable();
            names.peek().is_none() || names.any(may_serve)
        })
    }

    /// Whether it is asked for usage by a request that has a place for it.
    pub(crate) fn question(&self) -> Question {
        self.node.question(self.inject_usage)
    }
}

// === impl Seen ===

impl<'a> Seen<'a> {
    pub(super) fn new(member: &'a Arc<Member>) -> Self {
        Self { member, sight: member.node.sight(), load: member.node.signals().load(Instant::now()) }
    }

    pub(super) fn candidate(&self) -> Candidate<'a> {
        let node = &self.member.node;
        Candidate {
            backend: &self.member.backend,
            index: node.index,
            weight: f64::from(self.member.weight()) * self.sight.share,
            in_flight: node.in_flight(),
            waiting: node.waiting(),
            tokens_in_flight: node.tokens(),
            tokens_waiting: node.tokens_waiting(),
            latency: node.latency(),
            tried: node.is_tried(),
            others: self.load.map_or(0.0, |load| load.others as f64),
            load: self.load,
        }
    }
}
