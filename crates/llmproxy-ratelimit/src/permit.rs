//! What an allowed request holds until it has ended.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue};
use llmproxy_core::{TokenUsage, UsageRecord, UsageSink};

use crate::{
    RateLimiter, Standing,
    account::{Account, InFlight},
    sync::atomic::{AtomicBool, Ordering},
    tokens::Debit,
};

/// An allowed request: it counts as in flight until this is dropped.
///
/// Tokens that were reserved for it are settled once: by the record that [`Permit::sink`] is given, by
/// [`Permit::refund`], or, when the permit and all its sinks are gone without either, by the estimate, which then stays
/// used.
///
/// ```
/// use llmproxy_core::{Call, Caller, Endpoint};
/// use llmproxy_ratelimit::{LimitsConfig, RateLimitConfig, RateLimiter};
///
/// let limiter = RateLimiter::new(&RateLimitConfig {
///     enabled: true,
///     per_key: LimitsConfig { tokens_per_minute: 1000, ..LimitsConfig::default() },
///     ..RateLimitConfig::default()
/// });
/// let alice = Caller::named("alice").with_fingerprint("a1");
/// let call = Call { prompt_estimate: 100, max_output: Some(200), ..Call::new(Endpoint::of("/v1/completions")) };
///
/// let permit = limiter.check(Some(&alice), Some(&call), None)?;
/// assert_eq!(permit.standing().tokens.map(|tokens| tokens.remaining), Some(700));
/// permit.refund(); // No backend was asked.
/// let permit = limiter.check(Some(&alice), Some(&call), None)?;
/// assert_eq!(permit.standing().tokens.map(|tokens| tokens.remaining), Some(700));
/// # Ok::<(), llmproxy_ratelimit::RateLimitError>(())
/// ```
#[derive(Debug)]
#[must_use = "the request counts as in flight only as long as its permit lives"]
pub struct Permit {
    standing: Standing,
    reservation: Option<Arc<Reservation>>,
    // Only held: the caller's and the global count.
    _in_flight: [InFlight; 2],
}

/// Tokens that were taken before it was known how many are needed.
pub(crate) struct Reservation {
    limiter: Arc<RateLimiter>,
    account: Arc<Account>,
    /// From the caller's budget and from the global one, where there is one.
    debits: [Option<Debit>; 2],
    /// How many answers they are for.
    answers: u32,
    settled: AtomicBool,
}

// === impl Permit ===

impl Permit {
    pub(crate) fn new(standing: Standing, reservation: Option<Reservation>, in_flight: [InFlight; 2]) -> Self {
        Self { standing, reservation: reservation.map(Arc::new), _in_flight: in_flight }
    }

    /// How the caller stands with its limits, this request included.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The headers of the answer: see [`Standing::headers`].
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        self.standing.headers()
    }

    /// Settles the reserved tokens by a record; `None` where none were reserved. May outlive the permit.
    pub fn sink(&self) -> Option<Arc<dyn UsageSink>> {
        self.reservation.clone().map(|reservation| reservation as Arc<dyn UsageSink>)
    }

    /// Gives all reserved tokens back: no backend was asked. Does nothing once they are settled.
    pub fn refund(&self) {
        if let Some(reservation) = &self.reservation {
            reservation.settle(0);
        }
    }
}

// === impl Reservation ===

impl Reservation {
    pub(crate) fn new(
        limiter: Arc<RateLimiter>,
        account: Arc<Account>,
        debits: [Option<Debit>; 2],
        answers: u32,
    ) -> Self {
        Self { limiter, account, debits, answers, settled: AtomicBool::new(false) }
    }

    fn settle(&self, used: u64) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            self.limiter.settle(&self.account, &self.debits, used);
        }
    }
}

impl UsageSink for Reservation {
    fn record(&self, record: &Arc<UsageRecord>) {
        self.settle(record.usage.as_ref().map_or(0, TokenUsage::total));
        // How long each of several answers was is not told.
        if let (1, Some(model), Some(usage)) = (self.answers, &record.model, &record.usage) {
            self.limiter.learn(model, usage.completion);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("debits", &self.debits)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}
