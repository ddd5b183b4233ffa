//! Trying to deliver records until they are delivered or given up.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;

use crate::{Entry, Report, Verdict, config::DEFAULT_RETRY};

/// The wait before the second try, doubled for each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A receiver that wants more patience than this gets this much.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Why a record was given up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenUp {
    /// For a metric's label.
    pub(crate) reason: &'static str,
    /// For the log.
    pub(crate) why: String,
}

/// What came of one try.
struct Attempt {
    verdict: Verdict,
    /// How many may follow the first.
    retries: u32,
    /// How many of the records it was about.
    sent: usize,
    /// Whether it took too long.
    late: bool,
}

/// Delivers `entries` by `report`, which is looked at anew before each try, and tells `settle` what became of which.
///
/// All of them at once, as a rule. A reporter that takes fewer by now gets no more than it takes. A batch that is
/// refused is halved until it is known which of its records are meant: one that a receiver does not like, or a batch that
/// is too long for it, must not cost the others. One that is not answered in time is halved at each try.
pub(crate) async fn deliver(
    report: impl Fn() -> Arc<dyn Report>,
    mut entries: &[Entry],
    settle: impl Fn(&[Entry], Result<(), GivenUp>),
) {
    let (mut tries, mut most) = (0, usize::MAX);
    while !entries.is_empty() {
        let report = report();
        let Attempt { verdict, retries, sent, late } = try_once(&*report, &entries[..most.min(entries.len())]).await;
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
            Verdict::Refused { why } => Err(GivenUp { reason: "refused", why }),
            Verdict::Again { why, .. } if tries >= retries => Err(GivenUp { reason: "retries", why }),
            Verdict::Again { why, after } => {
                tries += 1;
                let after = after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                let wait = after.max(backoff(tries, fastrand::f64()));
                tracing::debug!(%why, ?wait, tries, sent, "usage records were not taken and will be sent again");
                if late {
                    // There may be more of them than can be taken in time.
                    most = (sent / 2).max(1);
                }
                tokio::time::sleep(wait).await;
                continue;
            }
        };
        let (settled, rest) = entries.split_at(sent);
        settle(settled, end);
        (entries, tries) = (rest, 0);
    }
}

/// Tries as many of `entries` as `report` takes at a time.
async fn try_once(report: &dyn Report, entries: &[Entry]) -> Attempt {
    let mut sent = entries.len();
    // The code may be someone else's, and a panic would end the task that all other records wait for. So all of it is in
    // here, down to the drop of a try that ran out of time.
    let attempt = async {
        let (limit, retries) = (report.timeout(), report.retries());
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
            Ok(verdict) => (verdict, retries, false),
            Err(_) => (Verdict::again(format!("no answer within {limit:?}")), retries, true),
        }
    };
    let panicked = |_| (Verdict::again("the reporter panicked"), DEFAULT_RETRY, false);
    let (verdict, retries, late) = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(panicked);
    Attempt { verdict, retries, sent, late }
}

/// From half of the step to all of it: many that failed together must not come back together.
fn backoff(tries: u32, random: f64) -> Duration {
    let step = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries - 1)).min(LONGEST_WAIT);
    step.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit() {
        assert_eq!(backoff(1, 0.0), Duration::from_millis(250));
        assert_eq!(backoff(1, 1.0), Duration::from_millis(500));
        assert_eq!(backoff(3, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(1000, 1.0), Duration::from_secs(30));
    }
}
