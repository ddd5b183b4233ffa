//! What a request may be served by: the decision, without HTTP bodies or backends.

mod routes;
mod rules;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::request::Parts;
use llmproxy_core::{Backend, Call, FlowKey};

use crate::{
    RoutingConfig,
    config::LoadBalance,
    policy::{Incoming, Policy, Work},
    view::{Probing, Terms},
};
use routes::{Routes, Way};
use rules::Rule;

/// What a request may be served by, the first choice first. Made once for each request.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Never empty.
    pub(crate) stages: Vec<Stage>,
    /// The policies of the stages, each with what it reads in the request: one for each model that is named.
    pub(crate) choosers: Vec<Chooser>,
    /// Whether it can be sent again elsewhere.
    pub(crate) may_fail: bool,
    /// How many answers it asks for at a time.
    pub(crate) answers: u32,
}

/// One way to serve it: the next one is looked at where this one has no backend that is not out, or none that answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    /// The model's name at the backends; `None` where the request names none.
    pub(crate) model: Option<Arc<str>>,
    /// Whether that is another name than the client's.
    pub(crate) renamed: bool,
    /// Only backends of this group.
    pub(crate) group: Option<Arc<str>>,
    /// Only the backend of this name.
    pub(crate) backend: Option<Arc<str>>,
    /// Only backends that list the model, and none that takes every name.
    pub(crate) listed: bool,
    /// Its place among the choosers.
    pub(crate) chooser: usize,
    /// What to say of the choice besides the policy's reason.
    pub(crate) because: Option<Cow<'static, str>>,
}

#[derive(Debug)]
pub(crate) struct Chooser {
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) work: Work,
}

/// A request, as far as it decides where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) head: &'a Parts,
    pub(crate) call: Option<&'a Call>,
    /// What its caller may be known by.
    pub(crate) flow: Option<&'a FlowKey>,
    /// Its body, where that was read whole.
    pub(crate) body: Option<&'a Bytes>,
}

/// For which requests a policy chooses: each has one of its own, of which it learns nothing by those of another, but for
/// policies that are [shared](crate::policy::Recipe::is_shared).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// For all of which nothing else is said.
    All,
    /// For those of the rule of this name.
    Rule(String),
    /// For those that name this model.
    Model(String),
}

/// Where policies come from: those that were there before keep what they know.
pub(crate) type Policies<'a> = dyn FnMut(Scope, LoadBalance) -> Arc<dyn Policy> + 'a;

/// A name that clients may use, which no backend need know.
pub(crate) struct Shown<'a> {
    pub(crate) name: &'a str,
    /// What it may be served by.
    pub(crate) stages: Vec<Stage>,
    /// Whether it means this even where a backend has a model of that name.
    pub(crate) hides: bool,
}

/// Makes plans, as one configuration says.
#[derive(Debug)]
pub(crate) struct Planner {
    rules: Vec<Rule>,
    routes: Routes,
    policy: Arc<dyn Policy>,
}

// === impl Planner ===

impl Planner {
    /// Of `backends`, to which others may come where `discovers`.
    pub(crate) fn new(
        routing: &RoutingConfig,
        backends: &[Arc<Backend>],
        discovers: bool,
        policies: &mut Policies<'_>,
    ) -> Self {
        let policy = policies(Scope::All, routing.load_balance);
        let routes = Routes::new(routing, backends, discovers, policies);
        let rules = routing.rules.iter().enumerate().map(|(index, config)| {
            let label = config.label(index);
            let fallbacks = config.fallbacks.iter().map(|name| routes.target(name)).collect();
            let policy = config.load_balance.map(|strategy| policies(Scope::Rule(label.clone()), strategy));
            Rule::new(config, &label, fallbacks, policy)
        });
        Self { rules: rules.collect(), routes, policy }
    }

    /// The way that `asked` may go; `policy` in the place of all that the configuration names, where there is one.
    pub(crate) fn plan(&self, asked: Asked<'_>, policy: Option<&Arc<dyn Policy>>) -> Plan {
        let named = asked.call.and_then(|call| call.model.as_ref());
        let rule = self.rules.iter().find(|rule| rule.takes(&asked));
        let (mut stages, chosen) = self.stages(named, rule);
        let policy = policy.unwrap_or(chosen);
        // What ties a request to a backend is of the model that is asked for there: of which others under other names are
        // too, and what stands in for it is not.
        let mut choosers: Vec<Chooser> = Vec::with_capacity(1);
        let mut models: Vec<Option<Arc<str>>> = Vec::with_capacity(1);
        for stage in &mut stages {
            if let Some(known) = models.iter().position(|model| *model == stage.model) {
                stage.chooser = known;
                continue;
            }
            let model = stage.model.as_deref();
            let incoming = Incoming { head: asked.head, call: asked.call, model, body: asked.body };
            let work = Work::of(asked.call, policy.affinity(&incoming));
            stage.chooser = choosers.len();
            choosers.push(Chooser { policy: policy.clone(), work });
            models.push(stage.model.clone());
        }
        Plan { stages, choosers, may_fail: false, answers: asked.call.map_or(1, |call| call.answers) }
    }

    /// What serves a request that names this model and that `rule` decides, and who chooses.
    fn stages<'a>(&'a self, named: Option<&Arc<str>>, rule: Option<&'a Rule>) -> (Vec<Stage>, &'a Arc<dyn Policy>) {
        // Where the request has no name there is no place to write one.
        let asked_for = named.map(|named| rule.and_then(|rule| rule.model.as_ref()).unwrap_or(named));
        let route = asked_for.and_then(|name| self.routes.get(name));
        let model = route.map(|route| &route.to).or(asked_for);
        let fallbacks = route.map_or(&[][..], |route| &route.fallbacks);
        let group = rule.and_then(|rule| rule.group.as_ref());
        let own = rule.map_or(&[][..], |rule| &rule.fallbacks);

        let mut ways = Ways { stages: Vec::with_capacity(1), named, rule, group };
        if !own.is_empty() {
            ways.add(model, None);
            // A rule that names what stands in may send it beyond its group; what is said elsewhere may not.
            ways.group = None;
            ways.models(own);
        } else if !fallbacks.is_empty() {
            ways.add(model, None);
            ways.models(fallbacks);
        } else if let Some(chain) = self.routes.chain(named.map(|named| &**named), model.map(|model| &**model)) {
            match &chain.primary {
                Some(way) => ways.way(way, model),
                None => ways.add(model, None),
            }
            chain.others.iter().for_each(|way| ways.way(way, model));
        }
        if ways.stages.is_empty() {
            ways.add(model, None);
        }
        let policy = rule.and_then(|rule| rule.policy.as_ref()).or(route.and_then(|route| route.policy.as_ref()));
        (ways.stages, policy.unwrap_or(&self.policy))
    }

    /// Names that clients may use besides those that backends list.
    pub(crate) fn shown(&self) -> impl Iterator<Item = Shown<'_>> {
        let shown = |name, rule: Option<&Rule>, hides| {
            let (stages, _) = self.stages(Some(&Arc::from(name)), rule);
            Shown { name, stages, hides }
        };
        let routes = self.routes.names().map(move |(name, hides)| shown(name, None, hides));
        let rules = self.rules.iter().filter_map(move |rule| Some(shown(rule.name()?, Some(rule), false)));
        routes.chain(rules)
    }

    /// Whether `model` is one of these names.
    pub(crate) fn is_known(&self, model: &str) -> bool {
        self.routes.knows(model) || self.rules.iter().any(|rule| rule.name() == Some(model))
    }
}

/// The stages of a plan that is being made.
struct Ways<'a> {
    stages: Vec<Stage>,
    named: Option<&'a Arc<str>>,
    rule: Option<&'a Rule>,
    group: Option<&'a Arc<str>>,
}

// === impl Ways ===

impl Ways<'_> {
    fn models(&mut self, models: &[Arc<str>]) {
        // No model can stand in for one that the request does not name.
        if self.named.is_some() {
            models.iter().for_each(|model| self.add(Some(model), None));
        }
    }

    /// The way of an entry of `routing.fallback`, for a request for `model`.
    fn way(&mut self, way: &Way, model: Option<&Arc<str>>) {
        match way {
            Way::Backend(backend) => self.add(model, Some(backend)),
            Way::Model(_) | Way::Listed(_) if self.named.is_none() => {}
            Way::Model(model) => self.add(Some(model), None),
            Way::Listed(model) => {
                let before = self.stages.len();
                self.add(Some(model), None);
                self.stages[before..].iter_mut().for_each(|stage| stage.listed = true);
            }
        }
    }

    fn add(&mut self, model: Option<&Arc<str>>, backend: Option<&Arc<str>>) {
        let group = self.group;
        let is_same = |stage: &Stage| {
            (stage.model.as_ref(), stage.backend.as_ref(), stage.group.as_ref()) == (model, backend, group)
        };
        if self.stages.iter().any(is_same) {
            return;
        }
        let first = self.stages.first().map(|first| first.model.as_ref().or(first.backend.as_ref()));
        let stands_in = first.map(|first| match first {
            Some(first) => format!("fallback for `{first}`"),
            None => "a fallback".to_owned(),
        });
        let because = match (self.rule.map(|rule| &rule.because), stands_in) {
            (None, None) => None,
            (Some(rule), None) => Some(rule.clone()),
            (None, Some(fallback)) => Some(fallback),
            (Some(rule), Some(fallback)) => Some(format!("{rule}, {fallback}")),
        };
        self.stages.push(Stage {
            model: model.cloned(),
            renamed: model != self.named,
            group: group.cloned(),
            backend: backend.cloned(),
            listed: false,
            chooser: 0,
            because: because.map(Cow::Owned),
        });
    }
}

// === impl Stage ===

impl Stage {
    /// Whether this backend, which is of that group, may be asked at all.
    pub(crate) fn admits(&self, backend: &Backend, group: Option<&Arc<str>>) -> bool {
        (self.group.is_none() || self.group.as_ref() == group)
            && self.backend.as_ref().is_none_or(|name| *name == backend.name)
    }
}

// === impl Plan ===

impl Plan {
    /// On which terms its stages are looked at for the first attempt, each time all of them. What is open in any comes before
    /// what is doubtful in the first. `learned`: whether it has waited for backends to tell what they serve.
    pub(crate) fn rounds(&self, learned: bool) -> impl Iterator<Item = Terms> + use<> {
        let probing = if self.may_fail { Probing::Any } else { Probing::Overdue };
        self.rounds_of(probing, learned)
    }

    /// The same for a further attempt.
    pub(crate) fn further_rounds(&self) -> impl Iterator<Item = Terms> + use<> {
        self.rounds_of(Probing::No, true)
    }

    fn rounds_of(&self, probing: Probing, learned: bool) -> impl Iterator<Item = Terms> + use<> {
        let is_alone = self.stages.len() < 2;
        [false, true].into_iter().skip(usize::from(is_alone)).map(move |doubtful| Terms { probing, doubtful, learned })
    }

    pub(crate) fn chooser(&self, stage: &Stage) -> &Chooser {
        &self.choosers[stage.chooser]
    }
}

#[cfg(test)]
mod tests;
