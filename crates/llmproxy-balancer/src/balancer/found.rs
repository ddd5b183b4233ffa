//! The configuration in force, joined with what its sources tell, and put in force again when they tell something else.

use std::{fmt, mem, sync::Arc};

use llmproxy_core::Backend;

use super::Balancer;
use crate::{
    config::{BackendConfig, DiscoveryConfig, HealthCheckConfig, QueueConfig, RoutingConfig},
    discovery::Sources,
};

/// What a configuration says.
pub(super) struct Configured {
    pub(super) backends: Vec<BackendConfig>,
    pub(super) routing: RoutingConfig,
    pub(super) health: HealthCheckConfig,
    pub(super) queue: QueueConfig,
}

/// Is told the backends whenever others are in force.
pub(super) struct Changed(Listener);

type Listener = Box<dyn Fn(&[Arc<Backend>]) + Send + Sync>;

// === impl Balancer ===

impl Balancer {
    /// Lets `changed` know the backends whenever others are in force, by a configuration or because others were found. It is
    /// called from where they are put in force, so it should be quick, and not come back here. Only the first one counts.
    pub fn on_change(&self, changed: impl Fn(&[Arc<Backend>]) + Send + Sync + 'static) {
        let _ = self.changed.set(Changed(Box::new(changed)));
    }

    /// Begins to ask the sources that `config` names; those that are asked already, because the configuration in force has
    /// the same, go on. Waits for what new ones have, but not for long. They count when they are [followed](Self::follow).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where nothing can be asked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, or what it returns, ends the asking of new ones.
    pub async fn discover(&self, config: &DiscoveryConfig) -> Sources {
        let old = self.state().sources.clone();
        let sources = Sources::start(config, &old, &self.client, &self.me);
        sources.asked().await;
        sources
    }

    /// From the next configuration that is put in force, the backends of `sources` count beside its own: when they tell
    /// others, these are in force at once.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use llmproxy_balancer::{BackendConfig, Balancer, DiscoveryConfig, SourceConfig, SourceType};
    /// use llmproxy_core::{BoxError, HttpClient};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let client = HttpClient::new(tower::service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("down".into())));
    /// let balancer = Balancer::new(client);
    /// let mut source = SourceConfig { kind: Some(SourceType::Static), ..SourceConfig::default() };
    /// source.fixed.backends.push(BackendConfig::new("http://vllm-2:8000"));
    /// let config = DiscoveryConfig { enabled: true, sources: vec![source], ..DiscoveryConfig::default() };
    ///
    /// let sources = balancer.discover(&config).await;
    /// balancer.follow(sources);
    /// let (routing, health, queue) = Default::default();
    /// let pool = balancer.apply(&[BackendConfig::new("http://vllm-1:8000")], &routing, &health, &queue);
    /// assert_eq!(pool.backends().len(), 2);
    /// # }
    /// ```
    pub fn follow(&self, sources: Sources) {
        let mut state = self.state();
        sources.show(&state.sources);
        let old = mem::replace(&mut state.sources, sources);
        drop(state);
        // Outside of the lock: those that nobody has any more end here.
        drop(old);
    }

    /// A source has told something. Puts that in force, if it makes a difference.
    pub(crate) fn rediscovered(&self) {
        let mut state = self.state();
        let Some(configured) = state.configured.take() else { return };
        let joined = state.sources.join(&configured.backends);
        if joined == state.joined && state.sources.is_waiting() == self.pool.view().soon {
            state.configured = Some(configured);
            return;
        }
        self.put_in_force(&mut state, configured, joined);
    }
}

// === impl Changed ===

impl Changed {
    pub(super) fn tell(&self, backends: &[Arc<Backend>]) {
        (self.0)(backends);
    }
}

impl fmt::Debug for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changed")
    }
}
