//! How many attempts may follow others, over all requests: a share of the traffic, so that backends which fail because they
//! have too much to do do not get several times as much.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// So many seconds count.
const WINDOW: usize = 10;
/// So many retries for each second of the window may be made whatever the share: of little traffic a share is nothing.
const FLOOR: u32 = 3;

/// The requests and the retries of the last seconds. One for the life of the process, whatever the configuration.
#[derive(Debug)]
pub(crate) struct Budget {
    began: Instant,
    window: Mutex<Window>,
}

/// A ring: a second stands where its number says.
#[derive(Debug, Default)]
struct Window {
    /// The newest second.
    now: u64,
    requests: [u32; WINDOW],
    retries: [u32; WINDOW],
}

// === impl Budget ===

impl Budget {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), window: Mutex::default() }
    }

    /// Counts a request.
    pub(crate) fn request(&self) {
        let (mut window, at) = self.window();
        window.requests[at] = window.requests[at].saturating_add(1);
    }

    /// Whether one more retry is within `share` of the requests, or within what is always allowed; it is counted if so.
    pub(crate) fn take(&self, share: f64) -> bool {
        let (mut window, at) = self.window();
        let sum = |seconds: &[u32]| seconds.iter().map(|count| u64::from(*count)).sum::<u64>();
        let floor = u64::from(FLOOR) * WINDOW as u64;
        // Beyond what a float can say, a share is all there is.
        let allowed = (sum(&window.requests) as f64 * share) as u64;
        let is_allowed = sum(&window.retries) < allowed.saturating_add(floor);
        window.retries[at] = window.retries[at].saturating_add(u32::from(is_allowed));
        is_allowed
    }

    /// A retry that was counted is not made.
    pub(crate) fn give_back(&self) {
        let (mut window, at) = self.window();
        window.retries[at] = window.retries[at].saturating_sub(1);
    }

    /// The window up to now, and where this second stands in it.
    fn window(&self) -> (MutexGuard<'_, Window>, usize) {
        let second = self.began.elapsed().as_secs();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waited for the lock may be late; then this second is the newest one.
        for gone in (window.now..second).take(WINDOW) {
            let at = slot(gone + 1);
            window.requests[at] = 0;
            window.retries[at] = 0;
        }
        window.now = window.now.max(second);
        let at = slot(window.now);
        (window, at)
    }
}

fn slot(second: u64) -> usize {
    (second % WINDOW as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    /// How many retries are allowed at once.
    fn takes(budget: &Budget, share: f64) -> u64 {
        (0..).take_while(|_| budget.take(share)).count() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_may_always() {
        let budget = Budget::new();
        assert_eq!(takes(&budget, 0.0), 30);
        advance(Duration::from_secs(9)).await;
        assert_eq!(takes(&budget, 0.0), 0);
        advance(Duration::from_secs(1)).await;
        assert_eq!(takes(&budget, 0.0), 30, "ten seconds later all is as at first");
    }

    #[tokio::test(start_paused = true)]
    async fn of_much_traffic_a_share_may() {
        let budget = Budget::new();
        for _ in 0..10 {
            (0..100).for_each(|_| budget.request());
            advance(Duration::from_secs(1)).await;
        }
        // The first of the ten seconds is over.
        assert_eq!(takes(&budget, 0.2), 900 / 5 + 30);
        assert_eq!(takes(&budget, 0.3), 90, "another configuration counts at once");
        advance(Duration::from_secs(1000)).await;
        assert_eq!(takes(&budget, 1.0), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_made_is_not_counted() {
        let budget = Budget::new();
        assert_eq!(takes(&budget, 0.0), 30);
        budget.give_back();
        assert_eq!(takes(&budget, 0.0), 1);
    }

    proptest! {
        #[test]
        fn retries_of_any_ten_seconds_stay_within_the_budget(
            steps in prop::collection::vec((0_u64..2500, 0_u32..40, 0_u32..40), 1..80),
            share in 0.0_f64..1.0,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let (budget, began) = (Budget::new(), Instant::now());
                let (mut requests, mut retries) = (Vec::new(), Vec::new());
                for (millis, asked, failed) in steps {
                    advance(Duration::from_millis(millis)).await;
                    let second = began.elapsed().as_secs();
                    for _ in 0..asked {
                        budget.request();
                        requests.push(second);
                    }
                    let recent = |seconds: &[u64]| seconds.iter().filter(|then| **then + 10 > second).count() as f64;
                    for _ in 0..failed {
                        let is_allowed = recent(&retries) < (recent(&requests) * share).floor() + 30.0;
                        prop_assert_eq!(budget.take(share), is_allowed);
                        if is_allowed {
                            retries.push(second);
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
}
