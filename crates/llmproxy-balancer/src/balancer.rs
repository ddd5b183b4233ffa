//! What outlives configurations: the state of every backend, and the checks.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use futures_util::future::join_all;
use http::{HeaderName, HeaderValue};
use llmproxy_core::{Backend, BoxError, HttpClient, labels};
use metrics::gauge;

use crate::{
    check::{Checker, Settings, Task},
    config::{BackendConfig, HealthCheckConfig, LoadBalance, QueueConfig, RoutingConfig},
    discovery::Sources,
    health::{BackendState, Rules},
    hub::Hub,
    metrics::{BACKEND_STATE, BACKEND_UP},
    models::Models,
    node::Node,
    plan::{Planner, Scope},
    policy::{Policy, Recipe},
    pool::Pool,
    retry::Retry,
    signals::{self, Scraper},
    view::{Member, View},
};

mod authorities;
mod found;
mod identity;
mod kept;

use authorities::Authorities;
use found::{Changed, Configured};
use identity::{Identity, recognize};
use kept::Kept;

/// The state of all backends: what is in flight there, how they are, what they serve, what policies know of them. One for
/// the life of the process; its [`Pool`] shows what the newest configuration makes of it.
///
/// The checks, and the questions for load, run as long as the balancer lives and the newest configuration has the backend.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use llmproxy_balancer::{BackendConfig, Balancer};
/// use llmproxy_core::{BoxError, HttpClient};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // A client by which every server answers every check with 200.
/// let client = HttpClient::new(tower::service_fn(async |_: Request<Bytes>| {
///     Ok::<_, BoxError>(Response::new(Bytes::from(r#"{"data": [{"id": "qwen2.5"}]}"#)))
/// }));
/// let balancer = Balancer::new(client);
/// let (routing, health, queue) = Default::default();
/// let pool = balancer.apply(&[BackendConfig::new("http://vllm:8000")], &routing, &health, &queue);
/// balancer.check_now().await;
/// assert!(pool.is_any_up());
/// assert_eq!(pool.models()[0].id, "qwen2.5");
/// # }
/// ```
#[derive(Debug)]
pub struct Balancer {
    client: HttpClient,
    state: Mutex<State>,
    hub: Arc<Hub>,
    pool: Arc<Pool>,
    changed: OnceLock<Changed>,
    /// Itself, for the tasks that tell it of backends that were found.
    me: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// What the configuration says, to be put in force again when other backends are found.
    configured: Option<Configured>,
    sources: Sources,
    /// What is in force: the configuration's backends, and those that were found.
    joined: Vec<BackendConfig>,
    entries: Vec<(Identity, Entry)>,
    authorities: Authorities,
    /// Those that it had and that may come back.
    kept: Kept,
    /// By what they were made of, so that what a policy knows outlives a configuration that does not change it.
    policies: Vec<((Scope, Recipe), Arc<dyn Policy>)>,
}

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    checks: Option<(Arc<Checker>, Task)>,
    scrapes: Option<(signals::Settings, Task)>,
}

// === impl Balancer ===

impl Balancer {
    /// A balancer without backends, which will check them through `client`.
    pub fn new(client: HttpClient) -> Arc<Self> {
        let hub = Arc::<Hub>::default();
        let mut state = State::default();
        let view =
            state.view(Vec::new(), &RoutingConfig::default(), &HealthCheckConfig::default(), &QueueConfig::default());
        let pool = Pool::new(view, hub.clone());
        Arc::new_cyclic(|me| Self {
            client,
            state: Mutex::new(state),
            hub,
            pool,
            changed: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// What the newest configuration makes of the backends: the same through all configurations, and always up to date.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Puts a configuration in force, at once for all that go through the [`Pool`], which it returns. Backends that were
    /// there before keep their state; those that are gone are checked no more, and what is in flight there ends in its own
    /// time. Whoever comes back within ten minutes, or later if it was drained or something is in flight there, is as it was.
    ///
    /// The configuration should have been validated: a backend with a mistake is left out and logged.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where checks can't run.
    pub fn apply(
        &self,
        backends: &[BackendConfig],
        routing: &RoutingConfig,
        health: &HealthCheckConfig,
        queue: &QueueConfig,
    ) -> Arc<Pool> {
        let (backends, routing, health) = (backends.to_vec(), routing.clone(), health.clone());
        let configured = Configured { backends, routing, health, queue: *queue };
        let mut state = self.state();
        let joined = state.sources.join(&configured.backends);
        state.authorities.read_again(&joined);
        self.put_in_force(&mut state, configured, joined);
        self.pool.clone()
    }

    fn put_in_force(&self, state: &mut State, configured: Configured, joined: Vec<BackendConfig>) {
        let Configured { routing, health, queue, .. } = &configured;
        let backends = &joined;
        for node in state.kept.sweep() {
            self.hub.forget(node.index);
        }
        let mut old = std::mem::take(&mut state.entries);
        let names: Vec<Arc<str>> = old.iter().map(|(_, entry)| entry.node.name()).collect();
        let mut members: Vec<Arc<Member>> = Vec::with_capacity(backends.len());
        let mut new: Vec<(&BackendConfig, Arc<Backend>)> = Vec::with_capacity(backends.len());
        for config in backends {
            match build(config, routing, &mut state.authorities) {
                Ok(backend) => new.push((config, Arc::new(backend))),
                // The URL may hold a secret; the error says of it what may be told.
                Err(error) => tracing::error!(name = config.name, %error, "a backend is left out"),
            }
        }
        let identities = Identity::all(new.iter().map(|(_, backend)| &**backend));
        let known = recognize(&identities, &mut old, &mut state.kept);
        // Those that stay keep their numbers, so that new ones take what those that are gone had.
        let mut taken: Vec<usize> = known.iter().flatten().map(|entry| entry.node.index).collect();
        for (identity, gone) in old {
            gone.node.retire();
            if let Some(node) = state.kept.keep(identity, gone.node) {
                self.hub.forget(node.index);
            }
        }
        taken.extend(state.kept.indexes());
        // Where there is only one there is nothing to choose.
        let is_scraped = routing.load_signals.enabled && new.len() > 1;
        for (((config, backend), identity), known) in new.into_iter().zip(identities).zip(known) {
            let settings =
                Settings { backend: backend.clone(), health: health.clone(), learn: config.models.is_empty() };
            let scraped = is_scraped.then(|| signals::Settings::new(backend.clone(), config, &routing.load_signals));
            let index = known.as_ref().map_or_else(|| free(&mut taken), |entry| entry.node.index);
            let entry = self.entry(known, index, settings, scraped);
            members.push(Arc::new(Member {
                backend,
                weight: config.weight,
                tier: config.tier,
                group: config.group.as_deref().map(Into::into),
                max_concurrent: config.max_concurrent,
                max_tokens: config.max_tokens,
                models: (!config.models.is_empty()).then(|| Models::configured(&config.models)),
                inject_usage: config.inject_usage,
                node: entry.node.clone(),
            }));
            state.entries.push((identity, entry));
        }
        // Names may have moved from one backend to another, so those that nobody has go down before all others are shown.
        let gone = names.iter().filter(|name| members.iter().all(|member| member.backend.name != **name));
        for gone in gone.filter_map(labels::backend_of_its_own) {
            gauge!(BACKEND_UP, "backend" => gone.clone()).set(0);
            for state in BackendState::ALL {
                gauge!(BACKEND_STATE, "backend" => gone.clone(), "state" => state.as_str()).set(0);
            }
        }
        for member in &members {
            member.node.show();
        }
        let view = state.view(members, routing, health, queue);
        self.hub.set_policies(state.policies.iter().map(|(_, policy)| policy.clone()).collect());
        (state.configured, state.joined) = (Some(configured), joined);
        // Within the lock, so that what was made last is shown last.
        self.pool.show(view);
        for member in &self.pool.view().members {
            member.node.is_weighted(member.weight);
        }
        if let Some(changed) = self.changed.get() {
            changed.tell(&self.pool.backends());
        }
    }

    /// Lets the backend of this name get no more requests, or get them again; what is there ends in its own time. It holds
    /// through all configurations that have the backend. `None` where none has that name.
    pub fn set_draining(&self, name: &str, draining: bool) -> Option<bool> {
        Some(self.member(name)?.node.set_draining(draining))
    }

    /// Gives the backend of this name another share of the work, until a configuration gives it a new one; 0: none. `None`
    /// where none has that name.
    pub fn set_weight(&self, name: &str, weight: u32) -> Option<()> {
        // No other configuration comes in between.
        let _state = self.state();
        let member = self.member(name)?;
        member.node.set_weight(member.weight, weight);
        Some(())
    }

    /// Checks every backend now and waits for the outcome, at most for the time that a check may take.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the checks that are not done.
    pub async fn check_now(&self) {
        let checkers: Vec<Arc<Checker>> = {
            let state = self.state();
            state.entries.iter().filter_map(|(_, entry)| Some(entry.checks.as_ref()?.0.clone())).collect()
        };
        join_all(checkers.iter().map(|checker| checker.check())).await;
    }

    fn member(&self, name: &str) -> Option<Arc<Member>> {
        self.pool.view().members.iter().find(|member| &*member.backend.name == name).cloned()
    }

    fn entry(&self, old: Option<Entry>, index: usize, settings: Settings, scraped: Option<signals::Settings>) -> Entry {
        let rules = Rules::new(&settings.health);
        let backend = settings.backend.clone();
        let (node, checks, scrapes) = match old {
            Some(Entry { node, checks, scrapes }) => (node, checks, scrapes),
            None => (Node::new(index, backend.clone(), rules, self.hub.clone()), None, None),
        };
        node.configure(backend, rules);
        let checks = match checks {
            Some(checks) if *checks.0.settings() == settings => Some(checks),
            _ if !settings.is_needed() => None,
            _ => {
                let checker = Checker::new(node.clone(), self.client.clone(), settings);
                Some((checker.clone(), checker.spawn()))
            }
        };
        let scrapes = match (scrapes, scraped) {
            (Some(old), Some(scraped)) if old.0 == scraped => Some(old),
            (_, scraped) => {
                node.signals().forget();
                scraped.map(|settings| {
                    let scraper = Scraper::new(node.clone(), self.client.clone(), settings.clone());
                    (settings, scraper.spawn())
                })
            }
        };
        Entry { node, checks, scrapes }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Entry ===

impl Entry {
    /// Of one that is not asked for anything yet.
    fn of(node: Arc<Node>) -> Self {
        Self { node, checks: None, scrapes: None }
    }
}

// === impl State ===

impl State {
    fn view(
        &mut self,
        members: Vec<Arc<Member>>,
        routing: &RoutingConfig,
        health: &HealthCheckConfig,
        queue: &QueueConfig,
    ) -> View {
        let mut old = std::mem::take(&mut self.policies);
        let mut policies = |scope: Scope, strategy: LoadBalance| {
            let recipe = Recipe::of(strategy, routing);
            let chosen = (if recipe.is_shared() { Scope::All } else { scope }, recipe);
            if let Some((_, policy)) = self.policies.iter().find(|(known, _)| *known == chosen) {
                return policy.clone();
            }
            let known = old.iter().position(|(known, _)| *known == chosen);
            let policy = known.map_or_else(|| chosen.1.make(), |at| old.swap_remove(at).1);
            self.policies.push((chosen, policy.clone()));
            policy
        };
        let backends: Vec<Arc<Backend>> = members.iter().map(|member| member.backend.clone()).collect();
        let planner = Planner::new(routing, &backends, !self.sources.is_none(), &mut policies);
        View {
            members,
            planner,
            retry: Retry::new(&routing.retry),
            commit: routing.commit,
            commit_after: routing.commit_after,
            queue: *queue,
            panic_threshold: health.panic_threshold,
            soon: self.sources.is_waiting(),
        }
    }
}

impl fmt::Debug for State {
    /// Without what the configuration says: credentials are part of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// The lowest number that is not taken, which it is from now on.
fn free(taken: &mut Vec<usize>) -> usize {
    let index = (0..).find(|index| !taken.contains(index)).unwrap_or_default();
    taken.push(index);
    index
}

/// What runs, of what an operator wrote.
fn build(config: &BackendConfig, routing: &RoutingConfig, authorities: &mut Authorities) -> Result<Backend, BoxError> {
    let mut backend = Backend::new(&config.url)?;
    if let Some(name) = &config.name {
        backend.name = name.as_str().into();
    }
    for (name, value) in &config.headers {
        let mut value: HeaderValue = value.parse()?;
        value.set_sensitive(true);
        backend.headers.insert(name.parse::<HeaderName>()?, value);
    }
    backend.timeout = config.timeout.unwrap_or(routing.timeout);
    backend.connect_timeout = config.connect_timeout.unwrap_or(routing.connect_timeout);
    backend.http2 = config.http2;
    backend.preserve_host = config.preserve_host;
    if let Some(path) = &config.ca_file {
        backend.ca = Some(authorities.of(path)?);
    }
    backend.max_idle_conns = config.max_idle_conns.unwrap_or(Backend::DEFAULT_MAX_IDLE_CONNS);
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_prompts_is_one_table_for_all_and_outlives_a_configuration() {
        let text = r#"{"load_balance":"session","models":{"a":{"load_balance":"prefix_aware"},"b":{"load_balance":"prefix_aware"},
            "c":{"load_balance":"session"}},"rules":[{"match":{"tag":"x"},"load_balance":"prefix_aware"}]}"#;
        let routing: RoutingConfig = serde_json::from_str(text).expect("a configuration");
        let mut state = State::default();
        let mut policies = |routing: &RoutingConfig| {
            state.view(Vec::new(), routing, &HealthCheckConfig::default(), &QueueConfig::default());
            state.policies.iter().map(|(_, policy)| policy.clone()).collect::<Vec<_>>()
        };
        let first = policies(&routing);
        let names: Vec<String> = first.iter().map(|policy| format!("{policy:?}")).collect();
        let count = |name: &str| names.iter().filter(|other| other.starts_with(name)).count();
        assert_eq!((count("PrefixAware"), count("Session")), (1, 2));
        let second = policies(&routing);
        let is_kept = |policy| second.iter().any(|other| Arc::ptr_eq(policy, other));
        assert!(second.len() == 3 && first.iter().all(is_kept));
    }
}
