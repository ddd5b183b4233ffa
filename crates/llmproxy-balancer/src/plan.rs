//! What a request may be served by: the decision, without HTTP bodies or backends.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::request::Parts;
use llmproxy_core::Call;

use crate::policy::{Incoming, Policy, Work};

/// What a request may be served by, the first choice first. Made once for each request.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Never empty.
    pub(crate) stages: Vec<Stage>,
    /// The policies of the stages, each with what it reads in the request.
    pub(crate) choosers: Vec<Chooser>,
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
    /// Its body, where that was read whole.
    pub(crate) body: Option<&'a Bytes>,
}

/// Makes plans, as one configuration says.
#[derive(Debug)]
pub(crate) struct Planner {
    mapping: std::collections::HashMap<String, Arc<str>>,
    policy: Arc<dyn Policy>,
}

// === impl Planner ===

impl Planner {
    pub(crate) fn new(routing: &crate::RoutingConfig, policy: Arc<dyn Policy>) -> Self {
        let mapping =
            routing.model_mapping.iter().map(|(alias, model)| (alias.clone(), model.as_str().into())).collect();
        Self { mapping, policy }
    }

    /// The way that `asked` may go; `policy` in the place of all that the configuration names, where there is one.
    pub(crate) fn plan(&self, asked: Asked<'_>, policy: Option<&Arc<dyn Policy>>) -> Plan {
        let named = asked.call.and_then(|call| call.model.as_ref());
        let target = named.and_then(|model| self.mapping.get(&**model));
        let stage = Stage { model: target.or(named).cloned(), renamed: target.is_some(), ..Stage::default() };
        let policy = policy.unwrap_or(&self.policy).clone();
        let incoming = Incoming { head: asked.head, call: asked.call, body: asked.body };
        let affinity = policy.affinity(&incoming);
        let work = Work::of(asked.call, affinity);
        Plan { stages: vec![stage], choosers: vec![Chooser { policy, work }] }
    }

    /// Names that clients may use, and the model that each stands for.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&String, &Arc<str>)> {
        self.mapping.iter()
    }

    pub(crate) fn is_alias(&self, model: &str) -> bool {
        self.mapping.contains_key(model)
    }
}

// === impl Plan ===

impl Plan {
    pub(crate) fn chooser(&self, stage: &Stage) -> &Chooser {
        &self.choosers[stage.chooser]
    }
}
