//! The backends of the newest configuration, as a service sees them: a request finds one, or a place in the line.

use std::{
    borrow::Cow,
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use futures_util::FutureExt;
use llmproxy_core::Call;
use metrics::counter;
use tokio::{
    task::yield_now,
    time::{Instant, timeout_at},
};

use crate::{
    budget::Budget,
    error::BalanceError,
    hub::Hub,
    injection::Question,
    line::{Advance, Class, Line, Wish},
    metrics::QUEUE_REFUSED,
    node::{InFlight, Node},
    plan::Plan,
    policy::Policy,
    view::{MIN_RETRY_AFTER, Member, Search, Standing, Terms, View},
};

mod shown;
#[cfg(test)]
mod tests;
mod waiting;

pub use shown::BackendStatus;
use waiting::tell;

/// How long a request for a model waits while backends are being asked for the first time what they serve, and how long after
/// that any request does.
pub(crate) const LEARN_WAIT: Duration = Duration::from_secs(2);
/// Backends are not asked for their models more often than this because somebody wants one that nobody has.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The backends of the newest configuration. The [`Balancer`](crate::Balancer) makes it and keeps it up to date; it has an
/// example.
#[derive(Debug)]
pub struct Pool {
    view: ArcSwap<View>,
    hub: Arc<Hub>,
    /// Held for a pick and its count, which are one step: else requests that come together all see the same emptiest backend.
    line: Mutex<Line>,
    /// When backends were last asked for their models because somebody wanted one that nobody had.
    asked: Mutex<Option<Instant>>,
    pub(crate) retries: Budget,
}

/// The backend for one attempt; counted there until it is dropped.
#[derive(Debug)]
pub(crate) struct Pick {
    pub(crate) member: Arc<Member>,
    pub(crate) in_flight: InFlight,
    /// The stage of the plan that it serves.
    pub(crate) stage: usize,
    /// The model's name there, where it is not the client's.
    pub(crate) model: Option<Arc<str>>,
    /// Why this one.
    pub(crate) reason: Cow<'static, str>,
    /// Where the backend refused the same request before, and that may have been for the usage in it.
    pub(crate) withdrawn: Option<Question>,
}

/// What looking through the stages of a plan comes to.
enum Found {
    Pick(Box<Pick>),
    /// Those that would do are full.
    Full {
        class: Class,
        lacking: Vec<usize>,
    },
    /// Nobody can; `until` when it may be known that somebody can, where that is worth waiting for.
    None {
        error: BalanceError,
        until: Option<Instant>,
    },
}

// === impl Pick ===

impl Pick {
    pub(crate) fn new(member: Arc<Member>, plan: &Plan, at: usize, reason: Cow<'static, str>) -> Self {
        let stage = &plan.stages[at];
        let mut in_flight = member.node.enter(&member.backend.name, &plan.chooser(stage).work);
        // How long each of several answers was can't be told from their pieces.
        if plan.answers == 1 {
            in_flight.is_for(stage.model.as_ref());
        }
        let model = stage.model.clone().filter(|_| stage.renamed);
        Self { member, in_flight, stage: at, model, reason, withdrawn: None }
    }

    /// The same backend at once, for the same request without what it may have been refused for.
    pub(crate) fn again(member: Arc<Member>, plan: &Plan, stage: usize, withdrawn: Question) -> Box<Self> {
        let reason = Cow::Borrowed("the same once more, without stream_options.include_usage");
        Box::new(Self { withdrawn: Some(withdrawn), ..Self::new(member, plan, stage, reason) })
    }
}

// === impl Pool ===

impl Pool {
    pub(crate) fn new(view: View, hub: Arc<Hub>) -> Arc<Self> {
        let view = ArcSwap::from_pointee(view);
        let (line, asked) = Default::default();
        let pool = Arc::new(Self { view, hub, line, asked, retries: Budget::new() });
        pool.hub.connect(Arc::downgrade(&pool));
        pool
    }

    /// From here on requests go where this one says, those in the line too.
    pub(crate) fn show(&self, view: View) {
        self.view.store(Arc::new(view));
        self.hub.changed();
    }

    /// Tells a policy that is in no configuration when a backend goes.
    pub(crate) fn add_policy(&self, policy: &Arc<dyn Policy>) {
        self.hub.add_policy(policy);
    }

    pub(crate) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Expects of this request's answer what others of its model came to, as far as `call` does not bound it.
    pub(crate) fn foresee(&self, plan: &mut Plan, call: Option<&Call>) {
        let Some(model) = plan.stages.first().and_then(|stage| stage.model.as_deref()) else { return };
        let expected = self.hub.lengths.expected(model);
        plan.choosers.iter_mut().for_each(|chooser| chooser.work.expect_output(call, expected));
    }

    /// What [`Pool::pick_first`] comes to where there is nothing to wait for; `None` where there may be.
    pub(crate) fn pick_now(&self, view: &Arc<View>, plan: &Arc<Plan>) -> Option<Result<Box<Pick>, BalanceError>> {
        match self.find(&Wish { plan: plan.clone(), first: 0, learned: false, failed: Vec::new() }) {
            Found::Pick(pick) => Some(Ok(pick)),
            Found::None { .. } if self.has_left(view) => None,
            Found::None { error: BalanceError::UnknownModel { .. }, .. } if self.ask().is_some() => None,
            Found::None { error, until: None } => Some(Err(error)),
            Found::Full { .. } | Found::None { until: Some(_), .. } => None,
        }
    }

    /// A backend for the first attempt. Waits for a moment while the proxy is finding out for the first time what its
    /// backends serve, or whether one has got the model since it last told, and in the line while all that could serve it
    /// are full, both counted from `began`. `None` where the configuration is another one than `plan` was made by, so that
    /// another plan may be better; `number` keeps its place in the line.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the place in the line up.
    pub(crate) async fn pick_first(
        &self,
        view: &Arc<View>,
        plan: &Arc<Plan>,
        began: Instant,
        number: &mut Option<u64>,
    ) -> Result<Option<Box<Pick>>, BalanceError> {
        let mut learned = false;
        loop {
            let mut changed = pin!(self.hub.changed.notified());
            // From here on nothing is missed that changes while we look.
            changed.as_mut().enable();
            let wish = Wish { plan: plan.clone(), first: 0, learned, failed: Vec::new() };
            match self.find(&wish) {
                Found::Pick(pick) => return Ok(Some(pick)),
                Found::None { .. } if self.has_left(view) => return Ok(None),
                Found::None { until: Some(until), .. } if !learned => {
                    learned = timeout_at(until.min(began + LEARN_WAIT), changed).await.is_err();
                }
                Found::None { error: error @ BalanceError::UnknownModel { .. }, .. } => match self.ask() {
                    Some(until) => timeout_at(until, changed).await.map_err(|_| error)?,
                    // Unless the last one has told since we looked.
                    None => changed.now_or_never().ok_or(error)?,
                },
                Found::None { error, .. } => return Err(error),
                Found::Full { class, .. } => {
                    match self.wait(class, wish, began, number).await {
                        Ok(Some(pick)) => return Ok(Some(pick)),
                        Ok(None) if self.has_left(view) => return Ok(None),
                        // Whatever has changed, others have their turn before it is looked at again.
                        Ok(None) => yield_now().await,
                        Err(error) => {
                            let is_late = matches!(error, BalanceError::QueueTimeout { .. });
                            let reason = if is_late { "timeout" } else { "full" };
                            counter!(QUEUE_REFUSED, "reason" => reason).increment(1);
                            return Err(error);
                        }
                    }
                }
            }
        }
    }

    /// Whether `view` is not the newest one any more.
    fn has_left(&self, view: &Arc<View>) -> bool {
        !Arc::ptr_eq(view, &self.view())
    }

    /// Lets the backends tell again what they serve, unless they just have. Until when it is worth waiting for that; `None`
    /// where all have told.
    fn ask(&self) -> Option<Instant> {
        let view = self.view();
        let learned = || view.members.iter().filter(|member| member.models.is_none() && member.is_working());
        let now = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let began = match *asked {
            Some(began) if now.saturating_duration_since(began) < ASK_AGAIN => began,
            _ => {
                learned().for_each(|member| member.node.ask());
                *asked.insert(now)
            }
        };
        let until = began + LEARN_WAIT;
        (now < until && learned().any(|member| member.node.is_asked())).then_some(until)
    }

    /// A backend for a further attempt, one that `wanted` says for a stage and that is neither out nor full; of the stage
    /// `from` or a later one.
    pub(crate) fn pick_again(
        &self,
        plan: &Plan,
        from: usize,
        wanted: impl Fn(usize, &Arc<Node>) -> bool,
    ) -> Option<Box<Pick>> {
        let stages = |terms| (from..plan.stages.len()).map(move |stage| (stage, terms));
        self.step(|kept, view| {
            plan.further_rounds().flat_map(stages).find_map(|(stage, terms)| {
                match view.look(Search { plan, at: stage, terms, kept }, |node| wanted(stage, node)) {
                    Standing::Picked(pick) => Some(pick),
                    _ => None,
                }
            })
        })
    }

    /// The same, whether it is out or not.
    pub(crate) fn insist(&self, plan: &Plan, stage: usize, wanted: impl Fn(&Arc<Node>) -> bool) -> Option<Box<Pick>> {
        let _step = self.line();
        self.view().insist(plan, stage, wanted)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is for a request that comes now, as [`Pool::look`] has it.
    fn find(&self, wish: &Wish) -> Found {
        self.step(|kept, view| Self::look(kept, view, wish))
    }

    /// A look at the newest view that is one step with what comes of it: whoever came before is served before, and what they
    /// wait for is theirs.
    fn step<T>(&self, look: impl FnOnce(&HashSet<usize>, &View) -> T) -> T {
        let mut line = self.line();
        let view = self.view();
        let Advance { told, kept } = if line.len() == 0 { Advance::default() } else { self.advance(&mut line, &view) };
        let found = look(&kept, &view);
        drop(line);
        tell(told);
        found
    }

    /// Looks at each stage in turn, and again where none has a backend that is open. Those in the line and those who come are
    /// looked for alike, so that nobody waits for what it would not be told to wait for.
    fn look(kept: &HashSet<usize>, view: &View, wish: &Wish) -> Found {
        let mut found = None;
        for terms in wish.rounds() {
            found = Some(Self::round(kept, view, wish, terms));
            if !matches!(found, Some(Found::None { .. })) {
                break;
            }
        }
        found.expect("there is always a round")
    }

    /// Looks at each stage in turn.
    fn round(kept: &HashSet<usize>, view: &View, wish: &Wish, terms: Terms) -> Found {
        let plan = &wish.plan;
        let mut none = None;
        for (at, stage) in plan.stages.iter().enumerate().skip(wish.first) {
            let model = stage.model.clone();
            let found = match view.look(Search { plan, at, terms, kept }, |node| wish.is_for(node)) {
                Standing::Picked(pick) => return Found::Pick(pick),
                Standing::Full(lacking) => return Found::Full { class: view.class(wish, at), lacking },
                Standing::Out(retry_after) => match view.refuses_us(plan, at) {
                    Some(backend) => (BalanceError::Misconfigured { backend }, None),
                    None => (BalanceError::NoBackend { model, retry_after }, None),
                },
                Standing::Unlearned { until, retry_after } => {
                    (BalanceError::Unlearned { model: model.unwrap_or_default(), retry_after }, until)
                }
                Standing::Nobody => match model {
                    Some(model) if stage.backend.is_none() && !stage.listed => {
                        (BalanceError::UnknownModel { model }, None)
                    }
                    model => (BalanceError::NoBackend { model, retry_after: MIN_RETRY_AFTER }, None),
                },
            };
            // What hinders the first choice is what the client is told.
            let (error, until) = none.unwrap_or((found.0, None));
            none = Some((error, until.max(found.1)));
            if found.1.is_some() && !terms.learned {
                // Before anything stands in for it.
                break;
            }
        }
        let unplanned = || (BalanceError::NoBackend { model: None, retry_after: MIN_RETRY_AFTER }, None);
        let (error, until) = none.unwrap_or_else(unplanned);
        Found::None { error, until: until.max(view.soon.then(|| Instant::now() + LEARN_WAIT)) }
    }
}
