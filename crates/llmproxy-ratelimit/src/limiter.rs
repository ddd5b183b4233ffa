//! The decision, without HTTP.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use llmproxy_core::{Api, Call, Caller, Work};
use tokio::time::Instant;

use crate::{
    LimitKind, Permit, RateLimitConfig, RateLimitError, Scope, Standing, Window,
    account::{Account, Accounts, InFlight, Key},
    clock::nanos_since,
    learned::Learned,
    limits::{LimitSet, Limits},
    permit::Reservation,
    requests::Charge,
    tokens::Debit,
};

/// Says who may pass, and remembers what everybody has used. Lives as long as the server and through every change of
/// its configuration.
///
/// ```
/// use llmproxy_core::{Call, Caller, Endpoint};
/// use llmproxy_ratelimit::{LimitsConfig, RateLimitConfig, RateLimiter};
///
/// let limiter = RateLimiter::new(&RateLimitConfig {
///     enabled: true,
///     per_key: LimitsConfig { max_concurrent: 1, ..LimitsConfig::default() },
///     ..RateLimitConfig::default()
/// });
/// let alice = Caller::named("alice").with_fingerprint("a1");
/// let call = Call::new(Endpoint::of("/v1/chat/completions"));
/// let permit = limiter.check(Some(&alice), Some(&call), None)?;
/// assert!(limiter.check(Some(&alice), Some(&call), None).is_err());
/// drop(permit);
/// assert!(limiter.check(Some(&alice), Some(&call), None).is_ok());
/// # Ok::<(), llmproxy_ratelimit::RateLimitError>(())
/// ```
pub struct RateLimiter {
    /// What all times in the accounts count from.
    epoch: Instant,
    limits: ArcSwap<Limits>,
    accounts: Accounts,
    everyone: Arc<Account>,
    learned: Learned,
}

/// Tokens that a request may need.
#[derive(Clone, Copy)]
struct Need {
    /// By what the request itself says.
    certain: u64,
    /// With the guess of what it does not say.
    guessed: u64,
    /// Over how many answers.
    answers: u32,
}

/// An account with the limits that hold for it.
struct Side<'a> {
    scope: Scope,
    account: &'a Arc<Account>,
    limits: &'a LimitSet,
}

/// What is said of a full `max_concurrent`, where nobody knows when a request will end.
const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

// === impl RateLimiter ===

impl RateLimiter {
    /// A limiter in which nobody has used anything. What `config` says must be free of mistakes: see
    /// [`RateLimitConfig::validate`].
    pub fn new(config: &RateLimitConfig) -> Arc<Self> {
        let epoch = Instant::now();
        Arc::new(Self {
            epoch,
            limits: ArcSwap::from_pointee(Limits::new(config, epoch)),
            accounts: Accounts::new(),
            everyone: Account::new(Key::Everyone),
            learned: Learned::default(),
        })
    }

    /// Puts new limits into force, in one step. What was used stays used, and what is in flight stays counted.
    pub fn reconfigure(&self, config: &RateLimitConfig) {
        self.limits.store(Arc::new(Limits::new(config, self.epoch)));
    }

    /// Decides about a request, and takes what it needs from every limit or, if one of them refuses, from none.
    ///
    /// A `caller` with a fingerprint has an account of its own; others share one by `client_ip`, or a single one where
    /// that is unknown too. Without a `call`, nothing is known of models and tokens, and neither is limited.
    ///
    /// It never waits, and what it does does not grow with the number of callers.
    ///
    /// # Errors
    ///
    /// If the model is not the caller's, the request could never pass, or a limit is reached.
    pub fn check(
        self: &Arc<Self>,
        caller: Option<&Caller>,
        call: Option<&Call>,
        client_ip: Option<IpAddr>,
    ) -> Result<Permit, RateLimitError> {
        self.decide(caller, call, client_ip, |call, limits| self.need(call, limits))
    }

    /// The same of a request that only looks up what there is already, such as an answer of before: it needs no tokens.
    ///
    /// # Errors
    ///
    /// If the model is not the caller's, or a limit of requests is reached.
    pub fn check_lookup(
        self: &Arc<Self>,
        caller: Option<&Caller>,
        call: Option<&Call>,
        client_ip: Option<IpAddr>,
    ) -> Result<Permit, RateLimitError> {
        self.decide(caller, call, client_ip, |_, _| None)
    }

    fn decide(
        self: &Arc<Self>,
        caller: Option<&Caller>,
        call: Option<&Call>,
        client_ip: Option<IpAddr>,
        need: impl FnOnce(&Call, &Limits) -> Option<Need>,
    ) -> Result<Permit, RateLimitError> {
        if let (Some(caller), Some(call)) = (caller, call) {
            match &call.model {
                Some(model) if !caller.may_use(model) => {
                    return Err(RateLimitError::ModelForbidden { model: model.clone() });
                }
                // The backend would take one by itself, whichever it has.
                None if caller.allowed_models().is_some() && call.takes_model => {
                    return Err(RateLimitError::ModelUnnamed);
                }
                _ => {}
            }
        }
        let limits = self.limits.load();
        let account = self.accounts.find(Key::of(caller, client_ip));
        // The caller's own limits first: who is over them does not touch what all share.
        let sides = [
            Side { scope: Scope::Key, account: &account, limits: &limits.per_key },
            Side { scope: Scope::Global, account: &self.everyone, limits: &limits.global },
        ];
        let need = call.and_then(|call| need(call, &limits));
        for side in &sides {
            side.check_size(need)?;
        }
        self.take(&sides, need).map_err(|refused| {
            // Others may refuse for longer: who comes back when the first would let it pass must not be refused again.
            let now = nanos_since(self.epoch);
            sides.iter().flat_map(|side| side.refusals(need, now)).fold(refused, longer)
        })
    }

    /// Forgets callers that are as if they had never come. To be called every minute or so.
    ///
    /// Takes a moment for each caller known, in small steps between which requests pass.
    pub fn sweep(&self) {
        self.accounts.sweep(nanos_since(self.epoch), self.limits.load().per_key.tokens);
    }

    /// How many callers are known.
    pub fn callers(&self) -> usize {
        self.accounts.len()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> u64 {
        self.everyone.in_flight()
    }

    /// Settles what was taken from the budgets of `account` and of all by what was used in truth.
    pub(crate) fn settle(&self, account: &Account, debits: &[Option<Debit>; 2], used: u64) {
        let (limits, now) = (self.limits.load(), nanos_since(self.epoch));
        let sides = [(account, limits.per_key.tokens), (&*self.everyone, limits.global.tokens)];
        for ((account, budget), debit) in sides.into_iter().zip(debits) {
            if let Some(debit) = debit {
                account.tokens.settle(debit, used, budget, now);
            }
        }
    }

    /// Learns how long an answer of `model` was.
    pub(crate) fn learn(&self, model: &Arc<str>, tokens: u64) {
        self.learned.learn(model, tokens);
    }

    fn take(self: &Arc<Self>, sides: &[Side<'_>; 2], need: Option<Need>) -> Result<Permit, RateLimitError> {
        let [key, global] = sides;
        let in_flight = [key.enter()?, global.enter()?];
        let mut charges: [[Option<Charge<'_>>; 2]; 2] = Default::default();
        for (side, charges) in sides.iter().zip(&mut charges) {
            side.charge(charges, self.epoch)?;
        }
        let now = nanos_since(self.epoch);
        let reservation = need.map(|need| self.reserve(sides, need, now)).transpose()?;
        // From here on nothing refuses.
        charges.into_iter().flatten().flatten().for_each(Charge::keep);
        let standing = Standing {
            requests: sides.iter().filter_map(|side| side.requests(now)).reduce(Window::tighter),
            tokens: sides.iter().filter_map(|side| side.tokens(now)).reduce(Window::tighter),
        };
        Ok(Permit::new(standing, reservation.flatten(), in_flight))
    }

    fn reserve(
        self: &Arc<Self>,
        [key, global]: &[Side<'_>; 2],
        need: Need,
        now: u64,
    ) -> Result<Option<Reservation>, RateLimitError> {
        let own = key.reserve(need, now)?;
        match global.reserve(need, now) {
            Ok(shared) => {
                let any = own.is_some() || shared.is_some();
                Ok(any.then(|| Reservation::new(self.clone(), key.account.clone(), [own, shared], need.answers)))
            }
            Err(error) => {
                self.settle(key.account, &[own, None], 0);
                Err(error)
            }
        }
    }

    /// The tokens that `call` needs; `None` if it is not about tokens, such as a list of models.
    fn need(&self, call: &Call, limits: &Limits) -> Option<Need> {
        let work = call.endpoint.work();
        // What generates nothing is not reserved for. It may come to tokens all the same, a rerank for one, unless it is to
        // count those of a message.
        if work == Work::Other {
            let is_worked_at = call.model.is_some() && call.endpoint.api() != Api::Anthropic;
            return is_worked_at.then_some(Need { certain: 0, guessed: 0, answers: 1 });
        }
        let certain = call.prompt_estimate.saturating_add(call.max_output.unwrap_or(0));
        let guess = match call.max_output {
            Some(_) => 0,
            None if work == Work::Embedding => 0,
            None => {
                let learned = call.model.as_ref().and_then(|model| self.learned.mean(model));
                learned.unwrap_or(limits.default_completion).saturating_mul(call.answers.into())
            }
        };
        Some(Need { certain, guessed: certain.saturating_add(guess), answers: call.answers })
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

// === impl Need ===

impl Need {
    /// What is taken from `budget`: a guess is never what makes a request too large.
    fn within(self, budget: u64) -> u64 {
        self.guessed.min(budget.max(self.certain))
    }
}

// === impl Side ===

impl<'a> Side<'a> {
    fn check_size(&self, need: Option<Need>) -> Result<(), RateLimitError> {
        match (need, self.limits.tokens) {
            (Some(need), Some(budget)) if need.certain > budget => {
                Err(RateLimitError::RequestTooLarge { scope: self.scope, needed: need.certain, budget })
            }
            _ => Ok(()),
        }
    }

    fn enter(&self) -> Result<InFlight, RateLimitError> {
        self.account.enter(self.limits.concurrent).ok_or_else(|| self.crowded())
    }

    fn charge(&self, charges: &mut [Option<Charge<'a>>; 2], epoch: Instant) -> Result<(), RateLimitError> {
        for (limit, charge) in self.limits.requests.iter().zip(charges) {
            if let Some(limit) = limit {
                *charge = Some(limit.charge(self.account).map_err(|wait| {
                    self.limited(limit.kind(), limit.window(self.account, nanos_since(epoch)), wait)
                })?);
            }
        }
        Ok(())
    }

    fn reserve(&self, need: Need, now: u64) -> Result<Option<Debit>, RateLimitError> {
        let Some(budget) = self.limits.tokens else { return Ok(None) };
        self.account
            .tokens
            .take(need.within(budget), budget, now)
            .map(Some)
            .map_err(|wait| self.limited(LimitKind::TokensPerMinute, self.account.tokens.window(budget, now), wait))
    }

    /// All that refuse the request now, without taking anything.
    fn refusals(&self, need: Option<Need>, now: u64) -> impl Iterator<Item = RateLimitError> {
        let full = self.limits.concurrent.is_some_and(|max| self.account.in_flight() >= max);
        let tokens = self.limits.tokens.zip(need).and_then(|(budget, need)| {
            let wait = self.account.tokens.wait(need.within(budget), budget, now);
            let window = || self.account.tokens.window(budget, now);
            (!wait.is_zero()).then(|| self.limited(LimitKind::TokensPerMinute, window(), wait))
        });
        let requests = self.limits.requests.iter().flatten().filter_map(move |limit| {
            let wait = limit.wait(self.account, now);
            (!wait.is_zero()).then(|| self.limited(limit.kind(), limit.window(self.account, now), wait))
        });
        full.then(|| self.crowded()).into_iter().chain(requests).chain(tokens)
    }

    fn crowded(&self) -> RateLimitError {
        let limit = self.limits.concurrent.unwrap_or(u64::MAX);
        let window = Window { limit, remaining: 0, reset: CONCURRENCY_RETRY };
        self.limited(LimitKind::MaxConcurrent, window, CONCURRENCY_RETRY)
    }

    fn limited(&self, kind: LimitKind, window: Window, retry_after: Duration) -> RateLimitError {
        RateLimitError::Limited { scope: self.scope, kind, window, retry_after }
    }

    fn requests(&self, now: u64) -> Option<Window> {
        self.limits.requests.iter().flatten().map(|limit| limit.window(self.account, now)).reduce(Window::tighter)
    }

    fn tokens(&self, now: u64) -> Option<Window> {
        self.limits.tokens.map(|budget| self.account.tokens.window(budget, now))
    }
}

/// Of two refusals, the one that lasts longer; the first if both last as long.
fn longer(first: RateLimitError, second: RateLimitError) -> RateLimitError {
    if second.retry_after() > first.retry_after() { second } else { first }
}

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod tests;
