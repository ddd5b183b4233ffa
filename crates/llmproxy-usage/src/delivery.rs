//! Trying to deliver records until they are delivered or will never be.

use std::{
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::{sync::watch, time::sleep};

use crate::{Entry, Report, Verdict, config::DEFAULT_RETRY};

/// The wait before the second try, doubled for each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Between tries of a reporter that is down.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A receiver that wants more patience than this gets this much.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Records are given up for their age only when the reporter has failed for so long in this process, too: a clock that
/// jumped forward must not cost all that wait.
const LEAST_FAILING: Duration = Duration::from_secs(600);

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
    /// These records are dealt with. Ready when that is sure.
    fn settle<'a>(&'a self, entries: &'a [Entry], end: Result<(), GivenUp>) -> BoxFuture<'a, ()>;

    /// A try has failed, the `tries`th in a row; past `retries` the reporter is down. Returns how long it has failed by now,
    /// whichever records it was given.
    fn failed(&self, why: &str, tries: u32, retries: u32) -> Duration;

    /// A try was answered.
    fn answered(&self);

    /// Changes when what waits to be tried again had better be tried at once, from this call on.
    fn nudges(&self) -> watch::Receiver<u64>;
}

/// What came of one try.
struct Attempt {
    verdict: Verdict,
    /// How many may follow the first before the reporter counts as down.
    retries: u32,
    /// How long records are tried.
    max_age: Duration,
    /// How many of the records it was about.
    sent: usize,
    /// Whether it took too long.
    late: bool,
}

/// Delivers `entries` by `report`, which is looked at anew before each try, and tells `watch` what became of which.
///
/// All of them at once, as a rule. A reporter that takes fewer by now gets no more than it takes. A batch that is
/// refused is halved until it is known which of its records are meant: one that a receiver does not like, or a batch that
/// is too long for it, must not cost the others. One that is not answered in time is halved at each try.
///
/// It ends when all are delivered or given up, which may take as long as the receiver's outage.
pub(crate) async fn deliver(report: impl Fn() -> Arc<dyn Report>, mut entries: &[Entry], watch: &impl Watch) {
    let (mut tries, mut most) = (0_u32, usize::MAX);
    while !entries.is_empty() {
        // Before the report: what is changed during the try is tried at once.
        let mut nudges = watch.nudges();
        let report = report();
        let attempt = try_once(&*report, &entries[..most.min(entries.len())]).await;
        let Attempt { verdict, retries, max_age, sent, late } = attempt;
        let end = match verdict {
            Verdict::Delivered => {
                most = most.saturating_mul(2);
                Ok(())
            }
            Verdict::Refused { why } if sent > 1 => {
                tracing::debug!(%why, sent, "a batch of usage records was refused and will be sent in halves");
                (most, tries) = (sent / 2, 0);
                continue;
            }
            Verdict::Refused { why } => Err(GivenUp { reason: "refused", why, is_all: false }),
            Verdict::RefusedAll { why } => Err(GivenUp { reason: "refused", why, is_all: true }),
            Verdict::Again { why, after } => {
                tries = tries.saturating_add(1);
                let failing = watch.failed(&why, tries, retries);
                let expired = expired(entries, max_age, failing);
                if expired > 0 {
                    let (old, rest) = entries.split_at(expired);
                    watch.settle(old, Err(GivenUp { reason: "expired", why, is_all: false })).await;
                    entries = rest;
                    continue;
                }
                let is_asked = after.is_some();
                let after = after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                let wait = after.max(backoff(tries, retries, fastrand::f64()));
                tracing::debug!(%why, ?wait, tries, sent, "usage records were not taken and will be sent again");
                if late {
                    // There may be more of them than can be taken in time.
                    most = (sent / 2).max(1);
                }
                tokio::select! {
                    () = sleep(wait) => {}
                    // Whoever asks for patience gets it.
                    () = nudged(&mut nudges), if !is_asked => tries = 0,
                }
                continue;
            }
        };
        watch.answered();
        let (settled, rest) = entries.split_at(sent);
        watch.settle(settled, end).await;
        (entries, tries) = (rest, 0);
    }
}

/// Tries as many of `entries` as `report` takes at a time.
async fn try_once(report: &dyn Report, entries: &[Entry]) -> Attempt {
    let mut sent = entries.len();
    let patience = || (report.retries(), report.max_age());
    let patience = catch_unwind(AssertUnwindSafe(patience));
    let (retries, max_age) = patience.unwrap_or((DEFAULT_RETRY, crate::config::DEFAULT_MAX_AGE));
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
    Attempt { verdict, retries, max_age, sent, late }
}

async fn nudged(nudges: &mut watch::Receiver<u64>) {
    if nudges.changed().await.is_err() {
        // Nobody is left who could.
        pending().await
    }
}

/// How many of `entries`, from the first on, are too old to be tried again, by a reporter that has failed for so long.
fn expired(entries: &[Entry], max_age: Duration, failing: Duration) -> usize {
    if failing < max_age.min(LEAST_FAILING) {
        return 0;
    }
    let now = Timestamp::now();
    // A record of the future has no age.
    let age = |entry: &Entry| Duration::try_from(now.duration_since(entry.record.timestamp)).unwrap_or_default();
    entries.iter().take_while(|entry| age(entry) >= max_age).count()
}

/// From half of the step to all of it: many that failed together must not come back together.
fn backoff(tries: u32, retries: u32, random: f64) -> Duration {
    let step = match tries > retries {
        true => LONGEST_WAIT,
        false => FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(LONGEST_WAIT),
    };
    step.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests;
