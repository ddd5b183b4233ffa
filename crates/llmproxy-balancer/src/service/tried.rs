//! What came of the attempts at one request so far, and what that says of the next.

use std::sync::Arc;

use llmproxy_core::BoxError;
use tokio::time::Instant;

use super::Answer;
use crate::{
    health::Admission,
    node::Node,
    retry::{Failure, retry_after},
    view::Member,
};

/// What came of the attempts so far.
#[derive(Default)]
pub(super) struct Tried {
    pub(super) failed: Vec<Failed>,
    pub(super) waits: u32,
    /// When it first looked for room at another one.
    pub(super) queued: Option<Instant>,
}

/// An attempt that came to nothing.
pub(super) struct Failed {
    /// Of the plan.
    pub(super) stage: usize,
    pub(super) node: Arc<Node>,
    pub(super) failure: Failure,
    /// When the backend wants to be asked again, if it said so.
    pub(super) not_before: Option<Instant>,
}

// === impl Tried ===

impl Tried {
    pub(super) fn note<B>(
        &mut self,
        stage: usize,
        member: &Member,
        failure: Failure,
        last: &Result<Box<Answer<B>>, BoxError>,
    ) {
        let asked = last.as_ref().ok().and_then(|answer| retry_after(answer.response.headers()));
        let not_before = asked.and_then(|after| Instant::now().checked_add(after));
        self.failed.push(Failed { stage, node: member.node.clone(), failure, not_before });
    }

    /// The attempts at this backend.
    pub(super) fn of(&self, node: &Arc<Node>) -> impl Iterator<Item = &Failed> {
        self.failed.iter().filter(move |failed| Arc::ptr_eq(&failed.node, node))
    }

    /// The time before which it does not want to be asked again.
    pub(super) fn not_before(&self, node: &Arc<Node>) -> Option<Instant> {
        self.of(node).filter_map(|failed| failed.not_before).max()
    }

    /// Whether asking once more may help: credentials do not get better by waiting, nor by another model.
    pub(super) fn is_curable(&self, node: &Arc<Node>) -> bool {
        self.of(node).all(|failed| failed.failure != Failure::Credentials)
    }

    /// Whether the request may be what kills those that it is sent to: one that broke off may have had bad luck, two have not.
    /// One that was gone before it came has no part in that.
    pub(super) fn is_deadly(&self) -> bool {
        self.failed.iter().filter(|failed| failed.failure.may_be_deadly()).count() > 1
    }

    /// Whether it has had the time that it asked for.
    pub(super) fn is_due(&self, node: &Arc<Node>, now: Instant) -> bool {
        self.not_before(node).is_none_or(|then| then <= now)
    }

    /// Which backends have not failed in this request, with whatever model.
    pub(super) fn is_other(&self) -> impl Fn(usize, &Arc<Node>) -> bool {
        |_, node| self.of(node).next().is_none()
    }

    /// Which of these are not out.
    pub(super) fn is_open(&self) -> impl Fn(usize, &Arc<Node>) -> bool {
        let is_other = self.is_other();
        move |stage, node| is_other(stage, node) && node.sight().admission == Admission::Open
    }
}
