//! Models by other names, and what stands in for them.

use std::{collections::HashMap, sync::Arc};

use llmproxy_core::{Backend, Pattern};

use super::{Policies, Scope};
use crate::{
    config::{Named, RoutingConfig, resolve},
    policy::Policy,
};

/// All names that the configuration says something of.
#[derive(Debug)]
pub(super) struct Routes {
    names: HashMap<String, Route>,
    chains: Vec<Chain>,
}

/// What it says of one.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The model that it stands for, which may be the one of that name.
    pub(super) to: Arc<str>,
    /// Models that stand in for that one.
    pub(super) fallbacks: Vec<Arc<str>>,
    pub(super) policy: Option<Arc<dyn Policy>>,
}

/// An entry of `routing.fallback`.
#[derive(Debug)]
pub(super) struct Chain {
    /// All models where there is none.
    models: Vec<Pattern>,
    pub(super) primary: Option<Way>,
    pub(super) others: Vec<Way>,
}

/// What an entry of `routing.fallback` names.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// This backend, with the model that is asked for.
    Backend(Arc<str>),
    /// Whoever has this model.
    Model(Arc<str>),
    /// Whoever lists this model, if it is one: it may be a backend that is not there now.
    Listed(Arc<str>),
}

// === impl Routes ===

impl Routes {
    /// Where `discovers`, there may be other backends than these at another time.
    pub(super) fn new(
        routing: &RoutingConfig,
        backends: &[Arc<Backend>],
        discovers: bool,
        policies: &mut Policies<'_>,
    ) -> Self {
        let mut names = HashMap::new();
        for (alias, model) in &routing.model_mapping {
            names.insert(alias.clone(), Route { to: model.as_str().into(), fallbacks: Vec::new(), policy: None });
        }
        for (name, entry) in &routing.models {
            let route = Route {
                to: entry.to.as_deref().unwrap_or(name).into(),
                fallbacks: entry.fallbacks.iter().map(|model| model.as_str().into()).collect(),
                policy: entry.load_balance.map(|strategy| policies(Scope::Model(name.clone()), strategy)),
            };
            names.insert(name.clone(), route);
        }
        // What an alias does not say, the entry of the model that it stands for says.
        let own: HashMap<String, Route> = names
            .iter()
            .filter(|(name, route)| ***name == *route.to)
            .map(|(name, route)| (name.clone(), route.clone()))
            .collect();
        for route in names.values_mut() {
            let Some(own) = own.get(&*route.to) else { continue };
            if route.fallbacks.is_empty() {
                route.fallbacks.clone_from(&own.fallbacks);
            }
            route.policy = route.policy.take().or_else(|| own.policy.clone());
        }
        let chains = routing.fallback.iter().map(|entry| {
            let way = |name: &String| {
                let known = backends.iter().map(|backend| (&*backend.name, backend.url.to_string()));
                match resolve(name, known) {
                    Named::Backend(name) => Way::Backend(name.as_str().into()),
                    Named::Model(name) if discovers => Way::Listed(name.as_str().into()),
                    Named::Model(name) => Way::Model(name.as_str().into()),
                    // It may come. Until then nobody is called so, and what is meant for it is for nobody else.
                    Named::NoBackend | Named::Several => Way::Backend(name.as_str().into()),
                }
            };
            let primary = entry.primary.as_ref().map(way);
            let mut models = entry.models.clone();
            if let (true, Some(Way::Model(model) | Way::Listed(model))) = (models.is_empty(), &primary) {
                models.push(Pattern::new(&**model));
            }
            Chain { models, primary, others: entry.fallback.iter().map(way).collect() }
        });
        Self { names, chains: chains.collect() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Route> {
        self.names.get(name)
    }

    /// The model that `name` stands for.
    pub(super) fn target(&self, name: &str) -> Arc<str> {
        self.names.get(name).map_or_else(|| name.into(), |route| route.to.clone())
    }

    /// The entry of `routing.fallback` for a request that names `named`, which stands for `model`.
    pub(super) fn chain(&self, named: Option<&str>, model: Option<&str>) -> Option<&Chain> {
        let is_for = |chain: &&Chain| {
            let mut names = named.iter().chain(&model);
            chain.models.is_empty() || names.any(|name| chain.models.iter().any(|pattern| pattern.matches(name)))
        };
        self.chains.iter().find(is_for)
    }

    /// The names that clients may use for what backends call otherwise or need not have, and whether each means
    /// another model even where a backend has one of that name.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        let names = self.names.iter().map(|(name, route)| (name.as_str(), **name != *route.to));
        names.chain(self.chains.iter().flat_map(Chain::names).map(|name| (name, false)))
    }

    /// Whether `name` is one of these.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.chains.iter().flat_map(Chain::names).any(|known| known == name)
    }
}

// === impl Chain ===

impl Chain {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(Pattern::as_str).filter(|name| !name.contains('*'))
    }
}
