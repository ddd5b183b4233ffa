//! Trying to deliver records until they are delivered or will never be.

mod gate;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::sync::MutexGuard;

pub(crate) use self::gate::{Failed, Failure, Gate, Wait};
use crate::{Entry, Report, Verdict, config::DEFAULT_RETRY, filter::Filter};

/// Records are given up for their age only when the reporter has failed for so long in this process, too: a clock that
/// jumped forward must not cost all that wait.
const LEAST_FAILING: Duration = Duration::from_secs(600);

/// How a reporter delivers, and what.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) report: Arc<dyn Report>,
    pub(crate) filter: Filter,
    /// Whether it counts as webhooks do.
    pub(crate) is_webhook: bool,
    /// Tells apart where to: what one receiver asks for is nothing to another.
    pub(crate) place: u64,
}

/// Why a record was given up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenUp {
    /// For a metric's label.
    pub(crate) reason: &'static str,
    /// For the log.
    pub(crate) why: String,
    /// Whether whatever else is sent there will be refused as well.
    pub(crate) is_all: bool,
}

/// What is told of a reporter's tries.
pub(crate) trait Watch: Sync {
    /// The reporter's.
    fn gate(&self) -> &Gate;

    /// These records are dealt with. Ready when that is sure.
    fn settle<'a>(&'a self, entries: &'a [Entry], end: Result<(), GivenUp>) -> BoxFuture<'a, ()>;

    /// A try has failed.
    fn failed(&self, failure: &Failure<'_>, failed: &Failed);

    /// A try was answered, for the first time since the reporter was down.
    fn recovered(&self);

    /// How long no try was answered, whichever records it was given, and why not; as long as it is `None`, none is too old.
    fn failing(&self) -> Option<(Duration, String)> {
        self.gate().failing()
    }
}

/// What came of one try.
struct Attempt {
    verdict: Verdict,
    /// How many may follow the first before the reporter counts as down.
    retries: u32,
    /// How many of the records it was about.
    sent: usize,
    /// Whether it took too long.
    late: bool,
}

/// Delivers `entries` as `current` says, which is looked at anew before each try, and tells `watch` what became of which.
///
/// All of them at once, as a rule. A reporter that takes fewer by now gets no more than it takes. A batch that is
/// refused is halved until it is known which of its records are meant: one that a receiver does not like, or a batch that
/// is too long for it, must not cost the others. One that is not answered in time is halved at each try.
///
/// What the filter leaves out by now is not sent, nor a body that is not wanted any more. It ends when all are delivered or
/// given up, which may take as long as the receiver's outage.
pub(crate) async fn deliver(current: impl Fn() -> Delivery, mut entries: Vec<Entry>, watch: &impl Watch) {
    let gate = watch.gate();
    let (mut tries, mut most) = (gate.tries(), usize::MAX);
    let (mut own, mut nudges) = (None, gate.nudges());
    while !entries.is_empty() {
        let Some(turn) = turn(&current, &mut entries, own.take(), watch).await else { return };
        // Before the delivery is looked at: what is changed during the try is tried at once.
        if std::mem::replace(&mut nudges, gate.nudges()) != nudges {
            tries = 0;
        }
        let delivery = current();
        entries.retain(|entry| delivery.filter.wants(&entry.record));
        if !wants_body(&*delivery.report) {
            entries.iter_mut().for_each(|entry| entry.request_body = None);
        }
        let Some(last) = entries.len().checked_sub(1) else { return };
        let attempt = try_once(&*delivery.report, &entries[..most.min(last + 1)]).await;
        let Attempt { verdict, retries, sent, late } = attempt;
        let end = match verdict {
            Verdict::Delivered => {
                most = most.saturating_mul(2);
                Ok(())
            }
            Verdict::Refused { why } if sent > 1 => {
                tracing::debug!(%why, sent, "a batch of usage records was refused and will be sent in halves");
                (most, tries) = (sent / 2, 0);
                answered(watch);
                continue;
            }
            Verdict::Refused { why } => Err(GivenUp { reason: "refused", why, is_all: false }),
            Verdict::RefusedAll { why } => Err(GivenUp { reason: "refused", why, is_all: true }),
            Verdict::Again { why, after } => {
                tries = tries.saturating_add(1);
                let failure = Failure { why: &why, tries, retries, after, place: delivery.place, nudges };
                let failed = gate.failed(&failure, fastrand::f64());
                watch.failed(&failure, &failed);
                let wait = failed.wait;
                tracing::debug!(%why, ?wait, tries, sent, "usage records were not taken and will be sent again");
                own = failed.own;
                // The next in line.
                drop(turn);
                if late {
                    // There may be more of them than can be taken in time.
                    most = (sent / 2).max(1);
                }
                give_up_old(&delivery, &mut entries, watch).await;
                continue;
            }
        };
        answered(watch);
        watch.settle(&entries[..sent], end).await;
        entries.drain(..sent);
        tries = 0;
    }
}

/// Waits until these may be tried. What becomes too old while others are tried is given up meanwhile; `None` where that is all.
async fn turn<'a, W: Watch>(
    current: &impl Fn() -> Delivery,
    entries: &mut Vec<Entry>,
    own: Option<Wait>,
    watch: &'a W,
) -> Option<Option<MutexGuard<'a, ()>>> {
    let mut news = watch.gate().news();
    let mut turn = pin!(watch.gate().turn(own));
    loop {
        tokio::select! {
            biased;
            turn = &mut turn => return Some(turn),
            _ = news.changed() => give_up_old(&current(), entries, watch).await,
        }
        if entries.is_empty() {
            return None;
        }
    }
}

fn answered(watch: &impl Watch) {
    if watch.gate().answered() {
        watch.recovered();
    }
}

/// Gives up what is too old to be tried again, from the first on.
async fn give_up_old(delivery: &Delivery, entries: &mut Vec<Entry>, watch: &impl Watch) {
    let Some((failing, why)) = watch.failing() else { return };
    let old = expired(entries.iter(), max_age(&*delivery.report), failing);
    if old > 0 {
        let rest = entries.split_off(old);
        let old = std::mem::replace(entries, rest);
        settle_old(delivery, old, why, watch).await;
    }
}

/// Gives up `old` ones, but for those that nobody wants any more.
pub(crate) async fn settle_old(delivery: &Delivery, mut old: Vec<Entry>, why: String, watch: &impl Watch) {
    old.retain(|entry| delivery.filter.wants(&entry.record));
    if !old.is_empty() {
        watch.settle(&old, Err(GivenUp { reason: "expired", why, is_all: false })).await;
    }
}

/// Whether it wants requests' bodies.
pub(crate) fn wants_body(report: &dyn Report) -> bool {
    // Someone else's code: what panics wants nothing.
    catch_unwind(AssertUnwindSafe(|| report.wants_request_body())).unwrap_or(false)
}

/// How long it has its records tried.
pub(crate) fn max_age(report: &dyn Report) -> Duration {
    catch_unwind(AssertUnwindSafe(|| report.max_age())).unwrap_or(crate::config::DEFAULT_MAX_AGE)
}

/// Tries as many of `entries` as `report` takes at a time.
async fn try_once(report: &dyn Report, entries: &[Entry]) -> Attempt {
    let mut sent = entries.len();
    let retries = catch_unwind(AssertUnwindSafe(|| report.retries())).unwrap_or(DEFAULT_RETRY);
    // The code may be someone else's, and a panic would end the task that all other records wait for. So all of it is in
    // here, down to the drop of a try that ran out of time.
    let attempt = async {
        let limit = report.timeout();
        let trying = match report.batches() {
            Some(batches) => {
                sent = sent.min(batches.size().max(1));
                batches.report_batch(&entries[..sent])
            }
            None => {
                sent = 1;
                report.report(entries[0].clone())
            }
        };
        match tokio::time::timeout(limit, trying).await {
            Ok(verdict) => (verdict, false),
            Err(_) => (Verdict::again(format!("no answer within {limit:?}")), true),
        }
    };
    let panicked = |_| (Verdict::again("the reporter panicked"), false);
    let (verdict, late) = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(panicked);
    Attempt { verdict, retries, sent, late }
}

/// How many of `entries`, from the first on, are too old to be tried again, by a reporter that has failed for so long.
pub(crate) fn expired<'a>(entries: impl Iterator<Item = &'a Entry>, max_age: Duration, failing: Duration) -> usize {
    if failing < max_age.min(LEAST_FAILING) {
        return 0;
    }
    let now = Timestamp::now();
    // A record of the future has no age.
    let age = |entry: &Entry| Duration::try_from(now.duration_since(entry.record.timestamp)).unwrap_or_default();
    entries.take_while(|entry| age(entry) >= max_age).count()
}

// === impl Delivery ===

impl Delivery {
    /// Everything goes to `report`.
    pub(crate) fn of(report: Arc<dyn Report>) -> Self {
        Self { report, filter: Filter::default(), is_webhook: false, place: 0 }
    }
}
