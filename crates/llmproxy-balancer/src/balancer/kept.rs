//! Backends that no configuration has at the moment: a source that flaps must not undo a drain, nor what is known of failures.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Identity;
use crate::node::Node;

/// How long one is kept of which nothing else says that it is needed.
const KEEP: Duration = Duration::from_secs(600);
/// Of more than these the one that left first goes.
const MAX_KEPT: usize = 1000;

/// Those that have left, the first one first.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<(Identity, Arc<Node>, Instant)>);

// === impl Kept ===

impl Kept {
    /// Keeps one that has left, for which another one may have to go for ever.
    pub(super) fn keep(&mut self, identity: Identity, node: Arc<Node>) -> Option<Arc<Node>> {
        self.0.push((identity, node, Instant::now()));
        (self.0.len() > MAX_KEPT).then(|| self.0.remove(0).1)
    }

    /// Of those that `is_it` says, the one that left last has come back.
    pub(super) fn take(&mut self, is_it: impl Fn(&Identity) -> bool) -> Option<Arc<Node>> {
        let at = self.0.iter().rposition(|(known, ..)| is_it(known))?;
        let (_, node, _) = self.0.remove(at);
        node.unretire();
        Some(node)
    }

    /// Those that are not kept any longer.
    pub(super) fn sweep(&mut self) -> Vec<Arc<Node>> {
        let is_over = |(_, node, left): &mut (Identity, Arc<Node>, Instant)| {
            left.elapsed() >= KEEP && node.in_flight() == 0 && !node.is_drained()
        };
        self.0.extract_if(.., is_over).map(|(_, node, _)| node).collect()
    }

    /// The numbers that nobody else may have.
    pub(super) fn indexes(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(_, node, _)| node.index)
    }
}
