//! Time for governor: tokio's, which tests can pause.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// Tells the time since an epoch.
///
/// A governor counts its states from the first reading of its clock. Here that reading is zero: the epoch is set only
/// after it, so that all governors on one epoch, those of an earlier configuration too, understand each other's states.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    epoch: OnceLock<Instant>,
}

// === impl Clock ===

impl Clock {
    /// Starts telling the time since `epoch`.
    pub(crate) fn start(&self, epoch: Instant) {
        self.epoch.get_or_init(|| epoch);
    }
}

impl governor::clock::Clock for Clock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.epoch.get().map_or(Duration::ZERO, Instant::elapsed)
    }
}

/// Nanoseconds since `epoch`; enough for 584 years.
pub(crate) fn nanos_since(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
