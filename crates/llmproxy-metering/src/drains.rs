//! How many rests are read, and their common end.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::metrics::DRAINS_RUNNING;

/// How long those that were told to stop may take to do so.
const GRACE: Duration = Duration::from_secs(1);

/// The rests of answers that are being read after their clients left. Outlives the layers, so that a reload counts those
/// before it. Clones are the same.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let drains = llmproxy_metering::Drains::default();
/// // ... the layers are at work, until the program is to end: none may take longer than this.
/// drains.finish(tokio::time::Instant::now() + std::time::Duration::from_secs(10)).await;
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Drains(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    running: usize,
    /// Whether they are to stop where they are.
    stopped: bool,
}

/// One of them; counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Drains);

// === impl Drains ===

impl Drains {
    /// Waits until none runs. Those that still do at `deadline` are stopped where they are and have their records, and no
    /// other begins.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the deadline, nothing was stopped.
    pub async fn finish(&self, deadline: Instant) {
        let mut state = self.0.subscribe();
        let none = |state: &State| state.running == 0;
        if timeout_at(deadline, state.wait_for(none)).await.is_err() {
            tracing::warn!(
                running = self.0.borrow().running,
                "answers whose clients left are still read after the grace period, and are cut"
            );
        }
        self.0.send_modify(|state| state.stopped = true);
        let _ = timeout(GRACE, state.wait_for(none)).await;
    }

    /// A place among at most `max`; `None` where all are taken, or it is too late.
    pub(crate) fn begin(&self, max: usize) -> Option<Place> {
        let begun = self.0.send_if_modified(|state| {
            let has_room = state.running < max && !state.stopped;
            state.running += usize::from(has_room);
            has_room
        });
        begun.then(|| {
            gauge!(DRAINS_RUNNING).increment(1.0);
            Place(self.clone())
        })
    }
}

// === impl Place ===

impl Place {
    /// Ready when all are to stop.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut state = self.0.0.subscribe();
        async move {
            let _ = state.wait_for(|state| state.stopped).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.running -= 1);
        gauge!(DRAINS_RUNNING).decrement(1.0);
    }
}
