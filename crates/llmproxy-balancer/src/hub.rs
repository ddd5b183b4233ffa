//! What whoever waits for a backend is told by.

use std::sync::{Arc, OnceLock, PoisonError, Weak};

use metrics::gauge;
use tokio::sync::Notify;

use crate::{
    lengths::Lengths,
    metrics::QUEUE_WAITING,
    node::Node,
    policy::Policy,
    pool::Pool,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Between the backends, of which each tells that something has changed there, and the pool, in whose line requests wait
/// for that.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    /// Tells whoever waits to learn what backends serve that something is known that was not.
    pub(crate) changed: Notify,
    /// What answers came to.
    pub(crate) lengths: Lengths,
    /// Requests in the line.
    waiting: AtomicUsize,
    pool: OnceLock<Weak<Pool>>,
    /// Those that may remember something of a backend.
    policies: Mutex<Vec<Arc<dyn Policy>>>,
}

// === impl Hub ===

impl Hub {
    /// The pool whose line it is.
    pub(crate) fn connect(&self, pool: Weak<Pool>) {
        let _ = self.pool.set(pool);
    }

    /// The policies of the newest configuration.
    pub(crate) fn set_policies(&self, policies: Vec<Arc<dyn Policy>>) {
        *self.policies.lock().unwrap_or_else(PoisonError::into_inner) = policies;
    }

    /// The backend of this index may have come back as another process: what it had is gone.
    pub(crate) fn forget(&self, index: usize) {
        let policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        policies.iter().for_each(|policy| policy.forget(index));
    }

    /// The share of requests that failed lately at the best of the backends that do the same work as `node`; `None` where
    /// there is none, or none has had any.
    pub(crate) fn failure_rate_of_others(&self, node: &Node) -> Option<f64> {
        self.pool.get().and_then(Weak::upgrade)?.view().failure_rate_beside(node)
    }

    /// So many requests are in the line. Said before the last look for room, so that either that look or whoever makes room
    /// just then sees the other.
    pub(crate) fn set_waiting(&self, waiting: usize) {
        if self.waiting.swap(waiting, Ordering::SeqCst) != waiting {
            gauge!(QUEUE_WAITING).set(waiting as f64);
        }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// A backend has room that it had not.
    pub(crate) fn released(&self) {
        if !self.is_waiting() {
            return;
        }
        if let Some(pool) = self.pool.get().and_then(Weak::upgrade) {
            pool.dispatch();
        }
    }

    /// More is known of a backend.
    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
        self.released();
    }
}
