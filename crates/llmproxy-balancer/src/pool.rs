//! One configuration's view of the backends: who could do a request, and who does it.

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use llmproxy_core::Backend;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{
    config::{Commit, InjectUsage, RoutingConfig},
    error::BalanceError,
    health::Cause,
    injection::Question,
    models::{ModelInfo, Models, Serves},
    node::{InFlight, Node},
    policy::{Candidate, Policy, policy},
    retry::Retry,
};

/// How long a request for a model waits while backends are being asked for the first time what they serve.
const LEARN_WAIT: Duration = Duration::from_secs(2);
/// The shortest time after which a client is asked to come back.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The backends of one configuration. Immutable; the state behind it is the [`Balancer`](crate::Balancer)'s, which makes
/// it and has an example.
#[derive(Debug)]
pub struct Pool {
    members: Vec<Member>,
    mapping: HashMap<String, Arc<str>>,
    policy: Arc<dyn Policy>,
    pub(crate) retry: Retry,
    pub(crate) commit: Commit,
    pub(crate) commit_after: Duration,
    changed: Arc<Notify>,
    /// A pick and its count are one step, else requests that come together all see the same emptiest backend.
    picking: Mutex<()>,
}

/// How one backend is doing, for people and metrics.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    /// The server.
    pub backend: Arc<Backend>,
    /// Its share of the work.
    pub weight: u32,
    /// Whether it is known to work.
    pub up: bool,
    /// Why it gets no requests, if it gets none.
    pub out: Option<Cause>,
    /// Requests whose answers have not ended.
    pub in_flight: usize,
    /// How long a first byte takes there.
    pub latency: Option<Duration>,
}

/// One backend in one configuration.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) backend: Arc<Backend>,
    pub(crate) weight: u32,
    /// The configured models; learned ones are the node's.
    pub(crate) models: Option<Models>,
    pub(crate) inject_usage: InjectUsage,
    pub(crate) node: Arc<Node>,
}

/// The backend for one attempt; counted there until it is dropped.
#[derive(Debug)]
pub(crate) struct Pick {
    pub(crate) index: usize,
    pub(crate) backend: Arc<Backend>,
    pub(crate) in_flight: InFlight,
    /// Where the backend refused the same request before, and that may have been for the usage in it.
    pub(crate) withdrawn: Option<Question>,
}

/// Which backends serve a model.
enum Able {
    /// These, if any is available.
    These(Vec<usize>),
    /// Not known yet: `unlearned` have not told, and `any` would take the name, as they take every one.
    Unlearned { unlearned: Vec<usize>, any: Vec<usize> },
    /// None.
    None,
}

// === impl Pool ===

impl Pool {
    pub(crate) fn new(members: Vec<Member>, routing: &RoutingConfig, changed: Arc<Notify>) -> Self {
        Self {
            members,
            mapping: routing
                .model_mapping
                .iter()
                .map(|(alias, model)| (alias.clone(), model.as_str().into()))
                .collect(),
            policy: policy(routing.load_balance),
            retry: Retry::new(&routing.retry),
            commit: routing.commit,
            commit_after: routing.commit_after,
            changed,
            picking: Mutex::default(),
        }
    }

    /// The backends, in the configuration's order.
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        self.members.iter().map(|member| member.backend.clone()).collect()
    }

    /// Whether any backend that gets requests is known to work.
    pub fn is_any_up(&self) -> bool {
        self.members.iter().any(|member| member.weight > 0 && member.node.is_up())
    }

    /// How each backend is doing, in the configuration's order.
    pub fn snapshot(&self) -> Vec<BackendStatus> {
        self.members
            .iter()
            .map(|Member { backend, weight, node, .. }| {
                let now = Instant::now();
                let (up, out) = {
                    let health = node.health();
                    (health.is_up(now), health.cause(now))
                };
                let (in_flight, latency) = (node.in_flight(), node.latency());
                BackendStatus { backend: backend.clone(), weight: *weight, up, out, in_flight, latency }
            })
            .collect()
    }

    /// All models that clients may ask for, by name: what backends serve, each once, and the aliases.
    pub fn models(&self) -> Vec<ModelInfo> {
        let mut all: BTreeMap<String, ModelInfo> = BTreeMap::new();
        for member in self.members.iter().filter(|member| member.weight > 0) {
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
        for (alias, model) in &self.mapping {
            let mut info = all.get(&**model).cloned().unwrap_or_default();
            info.id.clone_from(alias);
            if info.backends.is_empty() {
                // Not in any list; there may still be backends that accept every name.
                let able =
                    self.members.iter().filter(|member| member.weight > 0 && member.serves(model) == Serves::AnyName);
                info.backends = able.map(|member| member.backend.name.clone()).collect();
            }
            if !info.backends.is_empty() {
                all.insert(alias.clone(), info);
            }
        }
        all.into_values().collect()
    }

    /// Whether `model` is an alias or a backend lists it, or there is one that has no list. Not what a backend with a list
    /// takes besides, which may be any name.
    pub fn knows(&self, model: &str) -> bool {
        let may_own = |member: &Member| member.with_models(|models| models.may_own(model));
        self.mapping.contains_key(model) || self.members.iter().any(may_own)
    }

    /// The model that backends know under the name `model`, where that is another.
    pub(crate) fn alias(&self, model: Option<&Arc<str>>) -> Option<Arc<str>> {
        self.mapping.get(&**model?).cloned()
    }

    pub(crate) fn policy(&self) -> &Arc<dyn Policy> {
        &self.policy
    }

    /// What [`Pool::pick_first`] comes to where there is nothing to wait for; `None` where there may be.
    pub(crate) fn pick_now(&self, model: Option<&Arc<str>>, policy: &dyn Policy) -> Option<Result<Pick, BalanceError>> {
        match self.able(model) {
            Able::These(able) => Some(self.pick_available(&able, model, policy)),
            Able::None | Able::Unlearned { .. } => None,
        }
    }

    /// A backend for the first attempt at a request for `model`, or for any if it names none. Waits for a moment while
    /// the proxy is finding out for the first time what its backends serve.
    pub(crate) async fn pick_first(&self, model: Option<&Arc<str>>, policy: &dyn Policy) -> Result<Pick, BalanceError> {
        let deadline = Instant::now() + LEARN_WAIT;
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on nothing is missed that changes while we look.
            changed.as_mut().enable();
            let (unlearned, any) = match self.able(model) {
                Able::These(able) => return self.pick_available(&able, model, policy),
                Able::None => {
                    return Err(match model {
                        Some(model) => BalanceError::UnknownModel { model: model.clone() },
                        None => BalanceError::NoBackend { model: None, retry_after: MIN_RETRY_AFTER },
                    });
                }
                Able::Unlearned { unlearned, any } => (unlearned, any),
            };
            let soon = unlearned.iter().any(|at| self.members[*at].node.is_available());
            if !soon || timeout_at(deadline, changed).await.is_err() {
                if !any.is_empty() {
                    return self.pick_available(&any, model, policy);
                }
                return Err(BalanceError::Unlearned {
                    model: model.cloned().unwrap_or_default(),
                    retry_after: self.retry_after(&unlearned),
                });
            }
        }
    }

    /// A backend for a further attempt, among those that `wanted` says; available ones only, or also others.
    pub(crate) fn pick_again(
        &self,
        model: Option<&Arc<str>>,
        policy: &dyn Policy,
        available: bool,
        wanted: impl Fn(usize) -> bool,
    ) -> Option<Pick> {
        let able = match self.able(model) {
            Able::These(able) | Able::Unlearned { any: able, .. } => able,
            Able::None => return None,
        };
        self.pick(policy, |at, member| able.contains(&at) && wanted(at) && (!available || member.node.is_available()))
    }

    /// The same backend at once, for the same request without what it may have been refused for.
    pub(crate) fn pick_same(&self, index: usize, withdrawn: Question) -> Pick {
        let Member { backend, node, .. } = &self.members[index];
        let in_flight = node.enter(&backend.name);
        Pick { index, backend: backend.clone(), in_flight, withdrawn: Some(withdrawn) }
    }

    /// Whether the backend at `index` is asked for usage by a request that has a place for it.
    pub(crate) fn question(&self, index: usize) -> Question {
        let Member { node, inject_usage, .. } = &self.members[index];
        node.question(*inject_usage)
    }

    fn pick_available(
        &self,
        able: &[usize],
        model: Option<&Arc<str>>,
        policy: &dyn Policy,
    ) -> Result<Pick, BalanceError> {
        self.pick(policy, |at, member| able.contains(&at) && member.node.is_available())
            .ok_or_else(|| BalanceError::NoBackend { model: model.cloned(), retry_after: self.retry_after(able) })
    }

    fn pick(&self, policy: &dyn Policy, wanted: impl Fn(usize, &Member) -> bool) -> Option<Pick> {
        let _step = self.picking.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates: Vec<Candidate<'_>> = self
            .members
            .iter()
            .enumerate()
            .filter(|(index, member)| wanted(*index, member))
            .map(|(index, member)| Candidate {
                backend: &member.backend,
                index,
                weight: member.weight,
                in_flight: member.node.in_flight(),
                latency: member.node.latency(),
                tried: member.node.is_tried(),
            })
            .collect();
        let first = candidates.first()?;
        // A policy may be someone else's code; one that panics, or points beyond the end, has chosen the first.
        let picked = catch_unwind(AssertUnwindSafe(|| policy.pick(&candidates))).unwrap_or_else(|_| {
            tracing::error!("the balancer's policy panicked; the first backend that may be asked is");
            0
        });
        let index = candidates.get(picked).unwrap_or(first).index;
        let Member { backend, node, .. } = &self.members[index];
        Some(Pick { index, backend: backend.clone(), in_flight: node.enter(&backend.name), withdrawn: None })
    }

    fn able(&self, model: Option<&Arc<str>>) -> Able {
        let working = || self.members.iter().enumerate().filter(|(_, member)| member.weight > 0);
        let Some(model) = model else {
            let all: Vec<usize> = working().map(|(index, _)| index).collect();
            return if all.is_empty() { Able::None } else { Able::These(all) };
        };
        let model = self.mapping.get(&**model).unwrap_or(model);
        let (mut by_name, mut any, mut unlearned) = (Vec::new(), Vec::new(), Vec::new());
        for (index, member) in working() {
            match member.serves(model) {
                Serves::ByName => by_name.push(index),
                Serves::AnyName => any.push(index),
                Serves::Unknown => unlearned.push(index),
                Serves::No => {}
            }
        }
        // A backend that takes every name answers with the one model that it has: right only where nobody has this one.
        match (by_name.is_empty(), any.is_empty(), unlearned.len()) {
            (false, _, _) => Able::These(by_name),
            (true, false, 0) => Able::These(any),
            (true, true, 0) if self.members.iter().all(|member| member.weight == 0) => Able::These(by_name),
            (true, true, 0) => Able::None,
            // Whatever the only one that may have it says is the truth.
            (true, true, 1) => Able::These(unlearned),
            (true, _, _) => Able::Unlearned { unlearned, any },
        }
    }

    /// When the first of `indices` is tried again.
    fn retry_after(&self, indices: &[usize]) -> Duration {
        let next = indices.iter().map(|index| self.members[*index].node.health().next_chance()).min();
        next.map_or(MIN_RETRY_AFTER, |next| next.saturating_duration_since(Instant::now()).max(MIN_RETRY_AFTER))
    }
}

// === impl Member ===

impl Member {
    fn with_models<T>(&self, f: impl FnOnce(&Models) -> T) -> T {
        match &self.models {
            Some(models) => f(models),
            None => f(&self.node.models()),
        }
    }

    fn serves(&self, model: &str) -> Serves {
        self.with_models(|models| models.serves(model))
    }
}
