//! One configuration's backends: who could serve a request, and who of these is asked.

use std::{
    borrow::Cow,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{Commit, QueueConfig},
    health::{Admission, Cause},
    line::{Class, Wish},
    models::{ModelInfo, Serves},
    node::Node,
    plan::{Plan, Planner, Stage},
    policy::Candidate,
    pool::{LEARN_WAIT, Pick},
    retry::Retry,
};

mod member;

pub(crate) use member::Member;
use member::Seen;

/// The shortest time after which a client is asked to come back.
pub(crate) const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The backends of one configuration, and what it says of them. Immutable; the state is the nodes'.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) members: Vec<Arc<Member>>,
    pub(crate) planner: Planner,
    pub(crate) retry: Retry,
    pub(crate) commit: Commit,
    pub(crate) commit_after: Duration,
    pub(crate) queue: QueueConfig,
    /// Where less than this part of a hundred is open of those that could serve a request, those of which only doubts keep
    /// requests away are asked too.
    pub(crate) panic_threshold: u32,
    /// Whether there may soon be backends that are not known yet.
    pub(crate) soon: bool,
}

/// Whether a request may go to a backend that is out, be it to find out whether it works again, though another one is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Probing {
    /// It can be sent elsewhere if it fails.
    Any,
    /// It can't, so only where no better one has come for some time.
    Overdue,
    /// It has failed already.
    No,
}

/// Who will do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) probing: Probing,
    /// Whether, where no backend is open, those will do of which only doubts keep requests away.
    pub(crate) doubtful: bool,
    /// Whether waiting has not shown what the backends serve: then those that take every name will do.
    pub(crate) learned: bool,
}

/// What is looked for: a backend for one stage of a plan.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) plan: &'a Plan,
    /// The stage.
    pub(crate) at: usize,
    pub(crate) terms: Terms,
    /// Those whose room is for others.
    pub(crate) kept: &'a HashSet<usize>,
}

/// What looking for a backend comes to.
pub(crate) enum Standing {
    Picked(Box<Pick>),
    /// These would do, and have as much to do as they may.
    Full(Vec<usize>),
    /// All that could serve it are out; one of them is tried again after that time.
    Out(Duration),
    /// Nobody serves the model.
    Nobody,
    /// Nobody is known to, and some have not told yet what they serve. `until` when that is worth waiting for, where it is.
    Unlearned {
        until: Option<Instant>,
        retry_after: Duration,
    },
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

// === impl View ===

impl View {
    /// Looks for a backend among those that `wanted` says.
    pub(crate) fn look(&self, search: Search<'_>, wanted: impl Fn(&Arc<Node>) -> bool) -> Standing {
        match self.able(search.stage()) {
            Able::These(able) => self.choose(&able, search, wanted),
            Able::Unlearned { unlearned, any } => {
                let members = unlearned.iter().map(|index| &self.members[*index]);
                let is_in = |member: &&Arc<Member>| member.node.sight().admission != Admission::Closed;
                let asked = members.clone().filter(is_in).filter_map(|member| member.node.first_asked());
                // It is once that all wait for one, not as long as it does not tell.
                let until = asked.map(|asked| asked + LEARN_WAIT).filter(|until| *until > Instant::now()).max();
                match any.is_empty() || until.is_some() && !search.terms.learned {
                    true => Standing::Unlearned { until, retry_after: self.retry_after(members) },
                    false => self.choose(&any, search, wanted),
                }
            }
            Able::None => Standing::Nobody,
        }
    }

    /// Those requests that can be served as this stage of it can.
    pub(crate) fn class(&self, wish: &Wish, at: usize) -> Class {
        let able = self.able(&wish.plan.stages[at]).known();
        let nodes = able.iter().map(|index| &self.members[*index].node).filter(|node| wish.is_for(node));
        let mut numbers: Vec<usize> = nodes.map(|node| node.index).collect();
        numbers.sort_unstable();
        Class { backends: numbers.into(), probing: wish.probing() }
    }

    /// The name of one of those that could serve this stage, where all are out because they refuse the proxy's credentials:
    /// waiting does not help against that.
    pub(crate) fn refuses_us(&self, plan: &Plan, at: usize) -> Option<Arc<str>> {
        let able = self.able(&plan.stages[at]).known();
        let now = Instant::now();
        let refuses = |index: &usize| self.members[*index].node.health().cause(now) == Some(Cause::Credentials);
        let name = |index: &usize| self.members[*index].backend.name.clone();
        if able.iter().all(refuses) { able.first().map(name) } else { None }
    }

    /// A backend that has failed in this request and is asked again, whether it is out or not.
    pub(crate) fn insist(&self, plan: &Plan, at: usize, wanted: impl Fn(&Arc<Node>) -> bool) -> Option<Box<Pick>> {
        let able = self.able(&plan.stages[at]).known();
        let work = &plan.chooser(&plan.stages[at]).work;
        let wanted = able.iter().map(|index| &self.members[*index]).filter(|member| wanted(&member.node));
        let room: Vec<Seen<'_>> = wanted.filter(|member| member.has_room(work)).map(Seen::new).collect();
        if room.is_empty() { None } else { Some(self.pick(&room, plan, at)) }
    }

    /// How often requests failed lately at the best of those that do the same work as `node`: one that can do it is enough to
    /// show that it can be done, however many can't. Those that are out are asked only where no other has had any requests:
    /// what failed at one of them and is another's turn now takes that one out as well otherwise, and so on.
    pub(crate) fn failure_rate_beside(&self, node: &Node) -> Option<f64> {
        let now = Instant::now();
        let member = self.members.iter().find(|member| std::ptr::eq(&*member.node, node))?;
        let others = self.members.iter().filter(|other| !std::ptr::eq(&*other.node, node) && other.is_working());
        let others = others.filter(|other| member.shares_models_with(other));
        let rates = others.filter_map(|other| {
            let health = other.node.health();
            Some((health.is_in(), health.failure_rate(now)?))
        });
        let best = |best: Option<f64>, rate: f64| Some(best.map_or(rate, |best| best.min(rate)));
        let (within, without) = rates.fold((None, None), |(within, without), (is_in, rate)| match is_in {
            true => (best(within, rate), without),
            false => (within, best(without, rate)),
        });
        within.or(without)
    }

    /// Looks for a backend among `able`, by their health and their room.
    fn choose(&self, able: &[usize], search: Search<'_>, wanted: impl Fn(&Arc<Node>) -> bool) -> Standing {
        let Search { plan, at, terms, .. } = search;
        let able: Vec<Seen<'_>> = able.iter().map(|index| Seen::new(&self.members[*index])).collect();
        let wanted: Vec<Seen<'_>> = able.iter().filter(|seen| wanted(&seen.member.node)).copied().collect();
        let asked = self.asked(&able, &wanted, search);
        let is_due = |seen: &&Seen<'_>| {
            let may_be_asked = match terms.probing {
                Probing::Any => true,
                Probing::Overdue => seen.sight.is_overdue,
                Probing::No => false,
            };
            seen.sight.admission == Admission::Probe && (may_be_asked || terms.doubtful && asked.is_empty())
        };
        let due: Vec<Seen<'_>> = wanted.iter().filter(is_due).copied().collect();
        if asked.is_empty() && due.is_empty() {
            return Standing::Out(self.retry_after(able.iter().map(|seen| seen.member)));
        }
        let is_hopeless = asked.is_empty() && !terms.doubtful;
        let room = narrowed(asked.iter().filter(|seen| search.has_room(seen)).copied().collect());
        let tier = room.first().map(|seen| seen.member.tier);
        let is_near = |seen: &&Seen<'_>| search.has_room(seen) && tier.is_none_or(|tier| seen.member.tier <= tier);
        if let Some(probed) = due.iter().find(is_near) {
            let reason =
                Cow::Borrowed("a probe: requests failed there before, and one is to show whether they still do");
            return Standing::Picked(Box::new(Pick::new(probed.member.clone(), plan, at, reason)));
        }
        if room.is_empty() && is_hopeless {
            // Of those that are due nothing is known that is worth waiting for.
            return Standing::Out(self.retry_after(able.iter().map(|seen| seen.member)));
        }
        if room.is_empty() {
            return Standing::Full(asked.iter().chain(&due).map(|seen| seen.member.node.index).collect());
        }
        Standing::Picked(self.pick(&room, plan, at))
    }

    /// Those of `wanted` that are open. Where most of `able` are not, those too, or instead, of which only doubts keep requests
    /// away.
    fn asked<'a>(&self, able: &[Seen<'a>], wanted: &[Seen<'a>], search: Search<'_>) -> Vec<Seen<'a>> {
        let terms = search.terms;
        let is_open = |seen: &&Seen<'_>| seen.sight.admission == Admission::Open;
        let open = able.iter().filter(is_open).count();
        let may_doubt = terms.doubtful || wanted.iter().any(|seen| is_open(&seen));
        // With most of them out, either the work of all would fall upon few, or it is not the backends that are at fault.
        let is_panic = may_doubt && open as u64 * 100 < u64::from(self.panic_threshold) * able.len() as u64;
        let group = |doubtful: bool| {
            let is_in = |seen: &&Seen<'_>| match doubtful {
                // One that hangs would take all that it is given: while another one is well, it has one at a time.
                true => seen.sight.is_doubtful && (open == 0 || seen.member.node.waiting() == 0),
                false => is_open(seen),
            };
            let mut group: Vec<Seen<'a>> = wanted.iter().filter(is_in).copied().collect();
            if group.iter().any(|seen| !seen.sight.is_pressured) {
                group.retain(|seen| !seen.sight.is_pressured);
            }
            group
        };
        // Then those that are open get as many as they would at the threshold, and the doubtful ones the rest: a policy alone
        // would give nearly all to whatever fails fast.
        let share = open as f64 * 100.0 / (f64::from(self.panic_threshold) * able.len() as f64);
        // Not what has failed before, nor what can't be sent elsewhere: its client would pay.
        let doubtful_first = is_panic && terms.probing == Probing::Any && fastrand::f64() >= share;
        let mut asked = group(doubtful_first);
        let is_short = match terms.probing {
            Probing::Any | Probing::No => !asked.iter().any(|seen| search.has_room(seen)),
            Probing::Overdue => asked.is_empty(),
        };
        if is_panic && is_short {
            asked.extend(group(!doubtful_first));
        }
        asked
    }

    /// Lets the policy choose among `members`, of which there is one at least.
    fn pick(&self, members: &[Seen<'_>], plan: &Plan, at: usize) -> Box<Pick> {
        let stage = &plan.stages[at];
        let chooser = plan.chooser(stage);
        let candidates: Vec<Candidate<'_>> = members.iter().map(Seen::candidate).collect();
        // A policy may be someone else's code; one that panics, or points beyond the end, has chosen the first.
        let choice = catch_unwind(AssertUnwindSafe(|| chooser.policy.pick(&chooser.work, &candidates)));
        let (position, reason, cached) = match choice {
            Ok(choice) if choice.at < members.len() => (choice.at, choice.reason, choice.cached),
            Ok(_) => (0, Cow::Borrowed("the first one: the policy chose none that there is"), 0),
            Err(_) => {
                tracing::error!("the balancer's policy panicked; the first backend that may be asked is");
                (0, Cow::Borrowed("the first one: the policy panicked"), 0)
            }
        };
        let reason = match (&stage.because, members) {
            (None, [_]) => Cow::Borrowed("the only one"),
            (None, _) => reason,
            (Some(because), [_]) => because.clone(),
            (Some(because), _) => Cow::Owned(format!("{because}; {reason}")),
        };
        let mut pick = Box::new(Pick::new(members[position].member.clone(), plan, at, reason));
        pick.in_flight.is_cached(cached);
        pick
    }

    fn able(&self, stage: &Stage) -> Able {
        let admitted = |member: &Arc<Member>| stage.admits(&member.backend, member.group.as_ref());
        let working = |(_, member): &(usize, &Arc<Member>)| admitted(member) && member.is_working();
        let working = || self.members.iter().enumerate().filter(working);
        let Some(model) = &stage.model else {
            let all: Vec<usize> = working().map(|(index, _)| index).collect();
            return if all.is_empty() { Able::None } else { Able::These(all) };
        };
        let (mut by_name, mut any, mut unlearned) = (Vec::new(), Vec::new(), Vec::new());
        for (index, member) in working() {
            match member.serves(model) {
                Serves::ByName => by_name.push(index),
                _ if stage.listed => {}
                Serves::AnyName => any.push(index),
                Serves::Unknown => unlearned.push(index),
                Serves::No => {}
            }
        }
        // A backend that takes every name answers with the one model that it has: right only where nobody has this one.
        match (by_name.is_empty(), any.is_empty(), unlearned.len()) {
            (false, _, _) => Able::These(by_name),
            (true, false, 0) => Able::These(any),
            // Somebody would have it who is not to be asked: that passes, unlike a name that nobody knows.
            (true, true, 0) if self.members.iter().all(|member| !member.is_working()) => Able::These(by_name),
            (true, true, 0) if self.members.iter().any(|member| admitted(member) && member.rests(model)) => {
                Able::These(by_name)
            }
            (true, true, 0) => Able::None,
            // Whatever the only one that may have it says is the truth.
            (true, true, 1) => Able::These(unlearned),
            (true, _, _) => Able::Unlearned { unlearned, any },
        }
    }

    /// What to show under `name` of a model that this stage is for; `None` where nobody has it.
    pub(crate) fn info(&self, name: &str, stage: &Stage) -> Option<ModelInfo> {
        let model = stage.model.as_deref()?;
        let admitted = |member: &&Arc<Member>| stage.admits(&member.backend, member.group.as_ref());
        let working = || self.members.iter().filter(|member| member.is_working()).filter(admitted);
        let of = |serves: Serves| working().filter(move |member| member.serves(model) == serves);
        let mut info = ModelInfo { id: name.to_owned(), ..ModelInfo::default() };
        for member in of(Serves::ByName) {
            info.backends.push(member.backend.name.clone());
            member.with_models(|models| {
                let Some(entry) = models.entry(model) else { return };
                info.created = info.created.or(entry.created);
                info.owned_by = info.owned_by.take().or_else(|| entry.owned_by.clone());
            });
        }
        if info.backends.is_empty() {
            // Not in any list; there may still be backends that accept every name.
            info.backends = of(Serves::AnyName).map(|member| member.backend.name.clone()).collect();
        }
        Some(info).filter(|info| !info.backends.is_empty())
    }

    /// When the first of these is tried again.
    fn retry_after<'a>(&self, members: impl Iterator<Item = &'a Arc<Member>>) -> Duration {
        let next = members.map(|member| member.node.health().next_chance()).min();
        next.map_or(MIN_RETRY_AFTER, |next| next.saturating_duration_since(Instant::now()).max(MIN_RETRY_AFTER))
    }
}

/// Of members that have room those of the lowest tier, by their own word too: a tier in which all are full spills into the
/// next. Within it, a policy passes over those that we have filled as it sees fit: it has our own counts, which are
/// newer. It can't know of those that others have filled, so these are left out. Where nobody would be left, all are.
fn narrowed(seen: Vec<Seen<'_>>) -> Vec<Seen<'_>> {
    let free = seen.iter().filter(|seen| !seen.load.is_some_and(|load| load.is_full()));
    let tier = free.map(|seen| seen.member.tier).min().or_else(|| seen.iter().map(|seen| seen.member.tier).min());
    let mut seen = seen;
    seen.retain(|seen| Some(seen.member.tier) == tier);
    let is_crowded = |seen: &Seen<'_>| seen.load.is_some_and(|load| load.is_crowded());
    if !seen.iter().all(is_crowded) {
        seen.retain(|seen| !is_crowded(seen));
    }
    seen
}

// === impl Search ===

impl<'a> Search<'a> {
    fn stage(&self) -> &'a Stage {
        &self.plan.stages[self.at]
    }

    fn has_room(&self, seen: &Seen<'_>) -> bool {
        let work = &self.plan.chooser(self.stage()).work;
        !self.kept.contains(&seen.member.node.index) && seen.member.has_room(work)
    }
}

// === impl Able ===

impl Able {
    /// Those of which it is known.
    fn known(self) -> Vec<usize> {
        match self {
            Self::These(able) | Self::Unlearned { any: able, .. } => able,
            Self::None => Vec::new(),
        }
    }
}
