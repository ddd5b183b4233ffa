//! The attempts of one request.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::Guard;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, request::Parts};
use http_body::Body;
use llmproxy_core::{
    BoxError, Exchange, RequestBody, Target,
    body::{Observed, Observer},
    labels,
};
use metrics::counter;
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};

use crate::{
    flight::{Flight, Upload},
    injection::Question,
    metrics::{RETRIES, RETRIES_REFUSED},
    node::Node,
    peek::Peeked,
    plan::{Asked, Plan},
    policy::Policy,
    pool::{Pick, Pool},
    retry::Failure,
    view::View,
};

mod attempt;
mod tried;

use attempt::{Answer, Attempt, Outcome, commit, judge};
use tried::{Failed, Tried};

/// The body of an answer on its way from a backend: in flight there until it ends or is dropped.
pub type BalanceBody<B> = Observed<Peeked<B>, Flight>;

/// Picks a backend for each attempt at a request and leaves the [`Target`] in that attempt's extensions for the inner
/// service. An attempt that fails before its answer is the client's is followed by another one, where the
/// configuration wants it and the body can be sent again.
///
/// Reads the model from the exchange's call; without that fact (no inspect layer) every backend is taken to be able, and
/// aliases are not replaced. Made by [`BalanceLayer`](crate::BalanceLayer), where there is an example.
///
/// # Errors
///
/// A [`BalanceError`](crate::BalanceError) where no backend can be asked or none has answered; what the last of them failed by is its source.
///
/// # Cancel safety
///
/// Dropping the future drops the attempt that is under way; that is no failure of the backend.
#[derive(Clone, Debug)]
pub struct Balance<S> {
    inner: S,
    pool: Arc<Pool>,
    policy: Option<Arc<dyn Policy>>,
}

// === impl Balance ===

impl<S> Balance<S> {
    pub(crate) fn new(inner: S, pool: Arc<Pool>, policy: Option<Arc<dyn Policy>>) -> Self {
        Self { inner, pool, policy }
    }
}

impl<S, B> Balance<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    /// `request` is the first attempt's; while an attempt is under way it is the next one's, if there may be one. The
    /// parts that are not waited in are functions of their own, so that the future keeps nothing of theirs.
    async fn run(
        mut self,
        mut request: Option<(Parts, RequestBody)>,
        exchange: Arc<Exchange>,
    ) -> Result<Response<BalanceBody<B>>, BoxError> {
        exchange.expect_attempts();
        // One configuration decides how this request is served; who is there, each look finds anew.
        let mut view = Guard::into_inner(self.pool.view());
        let mut plan = self.plan(&view, &request, &exchange);
        let upload = Upload::default();
        if let Some((_, body)) = &mut request {
            let whole = mem::replace(body, RequestBody::whole(Bytes::new()));
            *body = upload.watch(whole);
        }
        let mut tried = Tried::default();
        let mut kept = None;
        self.pool.retries.request();
        let (mut pick, waited) = match self.pool.pick_now(&view, &plan) {
            Some(pick) => (pick?, Duration::ZERO),
            None => {
                let (began, mut number) = (Instant::now(), None);
                loop {
                    if let Some(pick) = Box::pin(self.pool.pick_first(&view, &plan, began, &mut number)).await? {
                        break (pick, began.elapsed());
                    }
                    // What it waited for is no more, and may have another name now.
                    view = Guard::into_inner(self.pool.view());
                    plan = self.plan(&view, &request, &exchange);
                }
            }
        };
        exchange.set_queue_time(waited);
        let last = loop {
            let (member, stage) = (pick.member.clone(), pick.stage);
            let (is_probe, is_doubted) = (pick.in_flight.is_probe(), pick.in_flight.is_doubted());
            let ready = self.inner.ready().await.map(|_| ());
            let retries_left = view.retry.max_retries as usize > tried.failed.len();
            let (called, mut attempt) = self.begin(ready, *pick, &mut request, retries_left, &exchange, &upload);
            if let Some(flight) = attempt.flight.get_mut() {
                flight.is_chosen_by(&plan, stage);
            }
            let result = match called {
                Ok(called) => called.await,
                Err(error) => Err(error),
            };
            let outcome = match judge(&view, result, attempt, &exchange) {
                Outcome::Undecided(answer) => Box::pin(commit(answer, view.commit_after, &exchange)).await,
                outcome => outcome,
            };
            let (failure, last) = match outcome {
                Outcome::Answered(answer) | Outcome::Undecided(answer) => return Ok(answer.serve(&exchange)),
                Outcome::Refused(question, flight) => {
                    pick = Pick::again(member, &plan, stage, question);
                    drop(flight);
                    continue;
                }
                Outcome::Failed { failure, last } => (failure, last),
            };
            tried.note(stage, &member, failure, &last);
            // What a backend answered, whatever it was, says more than that another one did not.
            let mut last = last.or_else(|error| kept.take().ok_or(error));
            let is_wanted = view.retry.is_wanted(failure);
            // The proxy has doubts about the backend and asked it all the same: the client is not to pay for that.
            let is_ours = is_doubted && failure.is_the_backends();
            if !retries_left || request.is_none() || !(is_wanted || is_ours) || tried.is_deadly() {
                break last;
            }
            let name = member.backend.name.clone();
            // Where another one is well; else this one was asked for want of a better one, as the next one would be.
            let better = match is_ours && !is_probe {
                true => self.pool.pick_again(&plan, stage, tried.is_open()),
                false => None,
            };
            let is_free = is_ours && is_probe || better.is_some();
            if !is_wanted && !is_free {
                break last;
            }
            // What is our own doing makes no backend do more than it would have done.
            let is_charged = failure != Failure::Credentials && !is_free;
            if is_charged && !self.pool.retries.take(view.retry.budget) {
                counter!(RETRIES_REFUSED, "backend" => labels::backend(&name), "reason" => failure.as_str())
                    .increment(1);
                break last;
            }
            // It is kept for the client, but takes nobody's place, that of the next attempt least.
            if let Some(flight) = last.as_mut().ok().and_then(|answer| answer.flight.get_mut()) {
                flight.leave();
            }
            let next = match (better, is_wanted) {
                (Some(better), _) => Some(better),
                (None, true) => Box::pin(next(&self.pool, &view, &plan, stage, &mut tried)).await,
                (None, false) => self.pool.pick_again(&plan, stage, tried.is_other()),
            };
            let Some(next) = next else {
                if is_charged {
                    self.pool.retries.give_back();
                }
                break last;
            };
            counter!(RETRIES, "backend" => labels::backend(&name), "reason" => failure.as_str()).increment(1);
            kept = last.ok();
            pick = next;
        };
        Ok(last?.serve(&exchange))
    }

    /// Where the request may go.
    fn plan(&self, view: &View, request: &Option<(Parts, RequestBody)>, exchange: &Exchange) -> Arc<Plan> {
        let (head, body) = request.as_ref().expect("it has not gone anywhere yet");
        let body = if let RequestBody::Replay(body, _) = body { Some(body) } else { None };
        let asked = Asked { head, call: exchange.call(), flow: exchange.flow(), body };
        let mut plan = view.planner.plan(asked, self.policy.as_ref());
        plan.may_fail = asked.body.is_some() && view.retry.max_retries > 0;
        self.pool.foresee(&mut plan, exchange.call());
        Arc::new(plan)
    }

    /// Calls the inner service, if it is ready, and leaves in `request` what another attempt would send.
    fn begin(
        &mut self,
        ready: Result<(), BoxError>,
        pick: Pick,
        request: &mut Option<(Parts, RequestBody)>,
        retries_left: bool,
        exchange: &Exchange,
        upload: &Upload,
    ) -> (Result<S::Future, BoxError>, Attempt) {
        let Pick { member, in_flight, model, reason, withdrawn, .. } = pick;
        let (parts, body) = request.take().expect("whoever begins another attempt has looked");
        let question = match (withdrawn, &body) {
            (Some(question), _) => question,
            (None, RequestBody::Replay(_, edits)) if edits.include_usage.is_some() => member.question(),
            _ => Question::NONE,
        };
        let is_kept = retries_left || question.is_on_trial();
        *request = body.replay().filter(|_| is_kept).map(|body| (parts.clone(), body));
        let target = Arc::new(Target { backend: member.backend.clone(), model, inject_usage: question.is_asked() });
        let index = exchange.begin_attempt(&target, reason);
        let mut request = Request::from_parts(parts, body);
        request.extensions_mut().insert((*target).clone());
        // From here on a drop ends the flight.
        let flight = Observer::new(Flight::new(in_flight, upload.clone()));
        (ready.map(|()| self.inner.call(request)), Attempt { index, target, question, flight })
    }
}

impl<S, B> Service<Request<RequestBody>> for Balance<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<BalanceBody<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        // The inner service that is ready goes with the request; a fresh one stays.
        let inner = self.inner.clone();
        let ready = mem::replace(&mut self.inner, inner);
        let (mut parts, body) = request.into_parts();
        let exchange = Exchange::of(&mut parts.extensions);
        Box::pin(Balance::new(ready, self.pool.clone(), self.policy.clone()).run(Some((parts, body)), exchange))
    }
}

/// A backend for the next attempt: at once if there is one that has not failed in this request, for the same model or
/// else for one that may stand in for it, or one that has failed with another model only; else, where another one is
/// merely full, once it has room; else one of those that have failed. `None` if no other attempt makes sense.
async fn next(pool: &Pool, view: &View, plan: &Arc<Plan>, stage: usize, tried: &mut Tried) -> Option<Box<Pick>> {
    let now = Instant::now();
    let with_another_model = |at: usize, node: &Arc<Node>| {
        let is_same = |failed: &Failed| plan.stages[failed.stage].model == plan.stages[at].model;
        tried.is_curable(node) && tried.is_due(node, now) && !tried.of(node).any(is_same)
    };
    let pick =
        pool.pick_again(plan, stage, tried.is_other()).or_else(|| pool.pick_again(plan, stage, with_another_model));
    if pick.is_some() {
        return pick;
    }
    let failed: Vec<Arc<Node>> = tried.failed.iter().map(|failed| failed.node.clone()).collect();
    let began = *tried.queued.get_or_insert(now);
    match pool.pick_later(plan, stage, &failed, began).await {
        Some(pick) => Some(pick),
        None => again(pool, view, plan, stage, tried).await,
    }
}

/// After a wait one that has failed, rather not the one that failed last, and none before the time that it asked for.
async fn again(pool: &Pool, view: &View, plan: &Plan, stage: usize, tried: &mut Tried) -> Option<Box<Pick>> {
    let now = Instant::now();
    let curable = tried.failed.iter().filter(|failed| tried.is_curable(&failed.node));
    let floor = curable
        .map(|failed| tried.not_before(&failed.node).map_or(Duration::ZERO, |then| then.saturating_duration_since(now)))
        .min()?;
    sleep(view.retry.wait(tried.waits, floor)?).await;
    let now = Instant::now();
    let worth_it =
        |node: &Arc<Node>| tried.of(node).next().is_some() && tried.is_curable(node) && tried.is_due(node, now);
    let just_failed = |node: &Arc<Node>| tried.failed.last().is_some_and(|failed| Arc::ptr_eq(&failed.node, node));
    let pick = pool
        .pick_again(plan, stage, tried.is_other())
        .or_else(|| pool.pick_again(plan, stage, |_, node| worth_it(node) && !just_failed(node)))
        .or_else(|| pool.pick_again(plan, stage, |_, node| worth_it(node)))
        .or_else(|| pool.insist(plan, stage, worth_it));
    tried.waits += 1;
    pick
}
