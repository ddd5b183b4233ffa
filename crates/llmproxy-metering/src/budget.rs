//! How much memory the bodies of all requests may take together.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use metrics::Gauge;

use crate::metrics::BUFFERED_BYTES;

/// The memory that bodies of requests may take, over all requests: a handle, all clones are one budget.
///
/// It is made once and given to every [`InspectLayer`](crate::InspectLayer) that is built, so that what a request holds
/// stays counted when the layers are built anew.
///
/// ```
/// use llmproxy_metering::BodyBudget;
///
/// let budget = BodyBudget::new(256 * 1024 * 1024);
/// assert_eq!(budget.used(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: AtomicU64,
    used: AtomicU64,
    /// Where that is shown; found with the first body, not by each.
    shown: OnceLock<Gauge>,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: BodyBudget,
    bytes: u64,
}

/// Memory together with its reservation; both are gone with the last handle of the `Bytes` made of it.
struct Owned<T> {
    data: T,
    _reservation: Reservation,
}

// === impl BodyBudget ===

impl BodyBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Shared { limit: AtomicU64::new(limit), used: AtomicU64::new(0), shown: OnceLock::new() }))
    }

    /// Sets another limit, in bytes. What is reserved stays so, even where it is more than that.
    pub fn resize(&self, limit: u64) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// The bytes that are taken now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// A reservation of nothing yet.
    pub(crate) fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }

    fn take(&self, bytes: u64) -> bool {
        let limit = self.0.limit.load(Ordering::Relaxed);
        let taken = self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= limit)
        });
        if taken.is_ok() {
            self.shown().increment(bytes as f64);
        }
        taken.is_ok()
    }

    fn shown(&self) -> &Gauge {
        self.0.shown.get_or_init(|| metrics::gauge!(BUFFERED_BYTES))
    }
}

// === impl Reservation ===

impl Reservation {
    /// Makes the reservation as large as `bytes`; false where the budget does not have them.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let granted = more == 0 || self.budget.take(more);
        if granted {
            self.bytes += more;
        }
        granted
    }

    /// `data` as bytes that keep the reservation for as long as they are used.
    pub(crate) fn attach<T: AsRef<[u8]> + Send + 'static>(self, data: T) -> Bytes {
        Bytes::from_owner(Owned { data, _reservation: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.shown().decrement(self.bytes as f64);
        }
    }
}

// === impl Owned ===

impl<T: AsRef<[u8]>> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_over_all_requests_is_bounded() {
        let budget = BodyBudget::new(100);
        let (mut one, mut other) = (budget.reservation(), budget.reservation());
        assert!(one.grow_to(60));
        assert!(!other.grow_to(50));
        assert!(other.grow_to(40));
        drop(one);
        assert!(other.grow_to(100));
        assert_eq!(budget.used(), 100);
    }

    #[test]
    fn the_sum_is_bounded_whoever_takes_at_the_same_time() {
        const LIMIT: u64 = 1000;
        let budget = BodyBudget::new(LIMIT);
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut granted = 0;
                    for round in 0..5000 {
                        let mut reservation = budget.reservation();
                        // In two steps, as a body grows.
                        for size in [thread * 50 + round % 7, thread * 120] {
                            granted += u64::from(reservation.grow_to(size));
                            assert!(budget.used() <= LIMIT);
                        }
                    }
                    assert!(granted > 0, "everybody was refused");
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn memory_is_counted_until_the_last_handle_is_gone() {
        let budget = BodyBudget::new(100);
        let mut reservation = budget.reservation();
        assert!(reservation.grow_to(5));
        let bytes = reservation.attach(b"hello".to_vec());
        let slice = bytes.slice(1..2);
        drop(bytes);
        assert_eq!(budget.used(), 5);
        drop(slice);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_smaller_limit_takes_nothing_away() {
        let budget = BodyBudget::new(100);
        let mut reservation = budget.reservation();
        assert!(reservation.grow_to(80));
        budget.resize(50);
        assert!(reservation.grow_to(80));
        assert!(!reservation.grow_to(81));
    }
}
