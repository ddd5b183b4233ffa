//! What the pool shows of its backends: to people, to metrics, and to clients that ask for models.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use llmproxy_core::Backend;
use tokio::time::Instant;

use super::Pool;
use crate::{
    health::{BackendState, Cause},
    models::ModelInfo,
    signals::Load,
    view::Member,
};

/// How one backend is doing, for people and metrics.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    /// The server.
    pub backend: Arc<Backend>,
    /// Its share of the work.
    pub weight: u32,
    /// What it is doing.
    pub state: BackendState,
    /// Why it is in that state, in words; `None` where there is nothing to say.
    pub reason: Option<Cow<'static, str>>,
    /// Since when it is up, or out, or unknown.
    pub since: Instant,
    /// Whether it is known to work, or is due to be asked whether it does.
    pub up: bool,
    /// Why it gets no requests, if it gets none.
    pub out: Option<Cause>,
    /// Whether it gets no more requests because an administrator has said so.
    pub draining: bool,
    /// Backends of a lower tier are asked first.
    pub tier: u32,
    /// The group that rules may name.
    pub group: Option<Arc<str>>,
    /// Requests whose answers have not ended.
    pub in_flight: usize,
    /// The most there may be.
    pub max_concurrent: Option<usize>,
    /// Tokens of their prompts and answers, as expected.
    pub tokens_in_flight: u64,
    /// The models that it serves, as far as it says.
    pub models: Vec<String>,
    /// How long a first byte takes there.
    pub latency: Option<Duration>,
    /// What it says of its own load, where it has said so lately.
    pub load: Option<Load>,
}

// === impl Pool ===

impl Pool {
    /// The backends, in the configuration's order.
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        self.view().members.iter().map(|member| member.backend.clone()).collect()
    }

    /// Whether any backend that gets requests is known to work, or is at least asked although requests or checks failed there.
    pub fn is_any_up(&self) -> bool {
        let view = self.view();
        // Where none is open, all are asked of which only doubts keep requests away.
        let is_asked =
            |member: &Member| view.panic_threshold > 0 && member.node.sight().is_doubtful || member.node.is_up();
        view.members.iter().any(|member| member.is_working() && is_asked(member))
    }

    /// Brings the metrics of the backends' states up to date: time alone changes some. To be called before they are rendered.
    pub fn show_states(&self) {
        self.view().members.iter().for_each(|member| member.node.show_state());
    }

    /// Requests that wait in the line.
    pub fn waiting(&self) -> usize {
        self.line().len()
    }

    /// How each backend is doing, in the configuration's order.
    pub fn snapshot(&self) -> Vec<BackendStatus> {
        self.view()
            .members
            .iter()
            .map(|member| {
                let (now, node) = (Instant::now(), &member.node);
                node.show_state();
                let state = node.state();
                let health = node.health();
                let drained = || Cow::Borrowed("an administrator has drained it");
                BackendStatus {
                    backend: member.backend.clone(),
                    weight: member.weight(),
                    state,
                    reason: if node.is_drained() { Some(drained()) } else { health.reason(now) },
                    since: health.since(),
                    up: health.is_up(now),
                    out: health.cause(now),
                    draining: node.is_draining(),
                    tier: member.tier,
                    group: member.group.clone(),
                    in_flight: node.in_flight(),
                    max_concurrent: member.max_concurrent,
                    tokens_in_flight: node.tokens(),
                    models: member.with_models(|models| models.entries().map(|(name, _)| name.clone()).collect()),
                    latency: node.latency(),
                    load: node.signals().load(now),
                }
            })
            .collect()
    }

    /// All models that clients may ask for, by name: what backends serve, each once, and the aliases.
    pub fn models(&self) -> Vec<ModelInfo> {
        let view = self.view();
        let working = || view.members.iter().filter(|member| member.is_working());
        let mut all: BTreeMap<String, ModelInfo> = BTreeMap::new();
        for member in working() {
            member.with_models(|models| {
                for (id, entry) in models.entries() {
                    let info =
                        all.entry(id.clone()).or_insert_with(|| ModelInfo { id: id.clone(), ..ModelInfo::default() });
                    info.backends.push(member.backend.name.clone());
                    info.created = info.created.or(entry.created);
                    info.owned_by = info.owned_by.take().or_else(|| entry.owned_by.clone());
                }
            });
        }
        for shown in view.planner.shown() {
            if !shown.hides && all.contains_key(shown.name) {
                continue;
            }
            // The first choice that anyone has, else what stands in for it.
            if let Some(info) = shown.stages.iter().find_map(|stage| view.info(shown.name, stage)) {
                all.insert(shown.name.to_owned(), info);
            }
        }
        all.into_values().collect()
    }

    /// Whether `model` is an alias, or a rule's own name, or a backend lists it, or there is one that has no list. Not what
    /// a backend with a list takes besides, which may be any name.
    pub fn knows(&self, model: &str) -> bool {
        let view = self.view();
        let may_own = |member: &Arc<Member>| member.with_models(|models| models.may_own(model));
        view.planner.is_known(model) || view.members.iter().any(may_own)
    }
}
