//! What outlives configurations: the state of every backend, and the checks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::join_all;
use http::{HeaderName, HeaderValue};
use llmproxy_core::{Backend, BoxError, HttpClient};
use metrics::gauge;
use tokio::sync::Notify;

use crate::{
    check::{Checker, Settings, Task},
    config::{BackendConfig, HealthCheckConfig, RoutingConfig},
    health::Rules,
    metrics::BACKEND_UP,
    models::Models,
    node::Node,
    pool::{Member, Pool},
};

/// The state of all backends: what is in flight there, how they are, what they serve. One for the life of the process;
/// each configuration is a [`Pool`] over it.
///
/// The checks run as long as the balancer lives and the newest configuration has the backend.
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
/// let pool = balancer.apply(&[BackendConfig::new("http://vllm:8000")], &Default::default(), &Default::default());
/// balancer.check_now().await;
/// assert!(pool.is_any_up());
/// assert_eq!(pool.models()[0].id, "qwen2.5");
/// # }
/// ```
#[derive(Debug)]
pub struct Balancer {
    client: HttpClient,
    entries: Mutex<HashMap<Identity, Entry>>,
    changed: Arc<Notify>,
}

/// A backend's URL, and which of the entries with that URL it is.
type Identity = (String, usize);

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    checks: Option<(Arc<Checker>, Task)>,
}

// === impl Balancer ===

impl Balancer {
    /// A balancer without backends, which will check them through `client`.
    pub fn new(client: HttpClient) -> Arc<Self> {
        Arc::new(Self { client, entries: Mutex::default(), changed: Arc::default() })
    }

    /// Puts a configuration in force and returns the view of it that a stack works with. Backends that were there before
    /// keep their state; those that are gone are checked no more, and what is in flight there ends in its own time.
    ///
    /// The configuration should have been validated: a backend with a mistake is left out and logged.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where checks can't run.
    pub fn apply(&self, backends: &[BackendConfig], routing: &RoutingConfig, health: &HealthCheckConfig) -> Arc<Pool> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *entries);
        let names: Vec<Arc<str>> = old.values().map(|entry| entry.node.name()).collect();
        let mut members = Vec::with_capacity(backends.len());
        for config in backends {
            let backend = match build(config, routing) {
                Ok(backend) => Arc::new(backend),
                Err(error) => {
                    tracing::error!(url = config.url, %error, "a backend is left out");
                    continue;
                }
            };
            let url = backend.url.to_string();
            let twin = members.iter().filter(|member: &&Member| member.backend.url == backend.url).count();
            let identity = (url, twin);
            let settings =
                Settings { backend: backend.clone(), health: health.clone(), learn: config.models.is_empty() };
            let entry = self.entry(old.remove(&identity), settings);
            let models = (!config.models.is_empty()).then(|| Models::configured(&config.models));
            let (weight, inject_usage) = (config.weight, config.inject_usage);
            members.push(Member { backend, weight, models, inject_usage, node: entry.node.clone() });
            entries.insert(identity, entry);
        }
        for gone in old.values() {
            gone.node.retire();
        }
        // Names may have moved from one backend to another, so those that nobody has go down before all others are shown.
        for gone in names.into_iter().filter(|name| members.iter().all(|member| member.backend.name != *name)) {
            gauge!(BACKEND_UP, "backend" => gone).set(0);
        }
        for member in &members {
            member.node.show();
        }
        Arc::new(Pool::new(members, routing, self.changed.clone()))
    }

    /// Checks every backend now and waits for the outcome, at most for the time that a check may take.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the checks that are not done.
    pub async fn check_now(&self) {
        let checkers: Vec<Arc<Checker>> = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.values().filter_map(|entry| Some(entry.checks.as_ref()?.0.clone())).collect()
        };
        join_all(checkers.iter().map(|checker| checker.check())).await;
    }

    fn entry(&self, old: Option<Entry>, settings: Settings) -> Entry {
        let rules = Rules::new(&settings.health);
        let backend = settings.backend.clone();
        let (node, checks) = match old {
            Some(Entry { node, checks }) => (node, checks),
            None => (Node::new(backend.clone(), rules, self.changed.clone()), None),
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
        Entry { node, checks }
    }
}

/// What runs, of what an operator wrote.
fn build(config: &BackendConfig, routing: &RoutingConfig) -> Result<Backend, BoxError> {
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
        let pem = std::fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?;
        backend.ca = Some(pem.into());
    }
    backend.max_idle_conns = config.max_idle_conns.unwrap_or(Backend::DEFAULT_MAX_IDLE_CONNS);
    Ok(backend)
}
