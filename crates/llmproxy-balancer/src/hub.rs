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
    /// Those that may remember something of a backend: of the newest configuration, and brought by layers.
    policies: Mutex<Vec<Arc<dyn Policy>>>,
    brought: Mutex<Vec<Weak<dyn Policy>>>,
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

    /// A policy that is in no configuration, for as long as somebody has it.
    pub(crate) fn add_policy(&self, policy: &Arc<dyn Policy>) {
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        brought.retain(|policy| policy.strong_count() > 0);
        brought.push(Arc::downgrade(policy));
    }

    /// The backend of this index is gone, or may have come back as another process: what it had is gone.
    pub(crate) fn forget(&self, index: usize) {
        let mut policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        policies.extend(self.brought.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Candidate, Choice, Work,
        sync::atomic::{AtomicUsize, Ordering},
    };

    #[derive(Debug, Default)]
    struct Forgetful(AtomicUsize);

    impl Policy for Forgetful {
        fn pick(&self, _: &Work, _: &[Candidate<'_>]) -> Choice {
            Choice::new(0, "the first")
        }

        fn forget(&self, index: usize) {
            self.0.fetch_add(index, Ordering::Relaxed);
        }
    }

    #[test]
    fn whoever_may_remember_a_backend_is_told_that_it_is_gone() {
        let hub = Hub::default();
        let (configured, brought) = (Arc::new(Forgetful::default()), Arc::new(Forgetful::default()));
        hub.set_policies(vec![configured.clone()]);
        hub.add_policy(&(brought.clone() as Arc<dyn Policy>));
        hub.add_policy(&(Arc::new(Forgetful::default()) as Arc<dyn Policy>));
        hub.forget(7);
        hub.set_policies(Vec::new());
        hub.forget(1);
        let told = [configured, brought].map(|policy| policy.0.load(Ordering::Relaxed));
        assert_eq!(told, [7, 8]);
    }
}
