//! Trying to deliver one record until it is delivered or given up.

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

/// Delivers `entry` by `report`, which is looked at anew before each try.
pub(crate) async fn deliver(report: impl Fn() -> Arc<dyn Report>, entry: &Entry) -> Result<(), GivenUp> {
    let mut tries = 0;
    loop {
        let report = report();
        let (verdict, retries) = try_once(&*report, entry.clone()).await;
        let (why, after) = match verdict {
            Verdict::Delivered => return Ok(()),
            Verdict::Refused { why } => return Err(GivenUp { reason: "refused", why }),
            Verdict::Again { why, .. } if tries >= retries => return Err(GivenUp { reason: "retries", why }),
            Verdict::Again { why, after } => (why, after),
        };
        tries += 1;
        let after = after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let wait = after.max(backoff(tries, fastrand::f64()));
        tracing::debug!(%why, ?wait, tries, "a usage record was not taken and will be sent again");
        tokio::time::sleep(wait).await;
    }
}

/// What came of one try, and how many may follow the first.
async fn try_once(report: &dyn Report, entry: Entry) -> (Verdict, u32) {
    // The code may be someone else's, and a panic would end the task that all other records wait for. So all of it is in
    // here, down to the drop of a try that ran out of time.
    let attempt = async {
        let (limit, retries) = (report.timeout(), report.retries());
        match tokio::time::timeout(limit, report.report(entry)).await {
            Ok(verdict) => (verdict, retries),
            Err(_) => (Verdict::again(format!("no answer within {limit:?}")), retries),
        }
    };
    let panicked = |_| (Verdict::again("the reporter panicked"), DEFAULT_RETRY);
    AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(panicked)
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
