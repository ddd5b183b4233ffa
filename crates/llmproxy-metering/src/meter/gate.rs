//! What of an answer waits until its record is kept.
//!
//! Where a hold was left in the exchange, a client sees no end of an answer before it is ready: not the frame that completes a
//! length, not the event that says that nothing follows, nor anything behind it, not the end of the body. What comes before
//! goes on as it comes.
//!
//! An event that comes in pieces is held as soon as its first lines say that it is the last, and while the line that it breaks
//! off in may still come to say so. Where only its JSON says it, as Ollama's does and that of a TGI, what has come of it is
//! nothing to a client before its last piece, and that one is held; lines of JSON are held whole.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use llmproxy_core::{BoxError, EndHold, body::Out};
use tokio::time::{Sleep, sleep};

use crate::answer::{Dialect, Suspect};

/// Holds the end of one answer.
#[derive(Debug)]
pub(super) struct Gate {
    hold: EndHold,
    /// Of the length that was promised, what has not come yet.
    left: Option<u64>,
    /// Whether the last event that has come is one that nothing follows.
    is_last: bool,
    /// So many bytes came behind it.
    after: usize,
    is_overrun: bool,
    /// Until when the end of the body may come behind the last event.
    patience: Option<Pin<Box<Sleep>>>,
    is_over: bool,
    /// What of the event that is on its way has come.
    suspect: Suspect,
}

/// So many bytes behind the last event are kept. None are known to be sent but comments.
const MAX_AFTER: usize = 64 * 1024;

/// How long the end of the body is waited for behind the last event. Backends send both at once; one that keeps its stream open
/// must not keep the client from what it has sent last.
const PATIENCE: Duration = Duration::from_millis(250);

/// The bytes of a chunk on their way out.
pub(super) struct Cut<'a> {
    data: &'a Bytes,
    /// Before it all was pushed.
    passed: usize,
}

// === impl Gate ===

impl Gate {
    pub(super) fn new(hold: EndHold) -> Self {
        Self {
            hold,
            left: None,
            is_last: false,
            after: 0,
            is_overrun: false,
            patience: None,
            is_over: false,
            suspect: Suspect::default(),
        }
    }

    /// The head has come, and this is how the body is read.
    pub(super) fn head(&mut self, length: Option<u64>, dialect: Dialect, is_lines: bool) {
        self.left = length;
        self.suspect = Suspect::new(dialect, is_lines);
    }

    /// A chunk has come. Says whether it is to be looked at, or is more than what may follow the last event.
    pub(super) fn admit(&mut self, data: &Bytes, out: &mut Out) -> bool {
        if self.is_last {
            self.after = self.after.saturating_add(data.len());
            self.is_overrun |= self.after > MAX_AFTER;
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(data.len() as u64);
            if *left == 0 {
                out.hold();
            }
        }
        !self.is_overrun
    }

    /// An event has ended that begins, in this chunk, at `begun`.
    pub(super) fn event(&mut self, is_last: bool, begun: usize, cut: &mut Cut<'_>, out: &mut Out) {
        if is_last {
            // What has come of it before is held already.
            cut.pass(begun, out);
        }
        self.see(is_last, out);
        self.suspect.forget();
    }

    /// The chunk has ended, in an event that begins at `begun` or between two.
    pub(super) fn tail(&mut self, begun: usize, mut cut: Cut<'_>, out: &mut Out) {
        if !self.is_last {
            if self.suspect.may_be_last(&cut.data[begun..]) {
                cut.pass(begun, out);
                out.hold();
            } else {
                self.release(out);
            }
        }
        cut.pass(cut.data.len(), out);
    }

    /// The same of a stream whose pieces are held elsewhere. Says whether they are to be.
    pub(super) fn saw(&mut self, is_last: bool) -> bool {
        self.is_last = is_last;
        is_last
    }

    /// What comes from now on is of the last event, or behind it; or it was not the last.
    pub(super) fn see(&mut self, is_last: bool, out: &mut Out) {
        self.is_last = is_last;
        if is_last {
            out.hold();
        } else {
            self.after = 0;
            self.release(out);
        }
    }

    /// Whether the client has not been given an event that the backend has sent as the last.
    pub(super) fn has_last(&self) -> bool {
        self.is_last
    }

    /// Nothing comes. Ready when the last event has come and the body does not end by itself: then it is over all the same.
    /// Where a length was promised it can't be.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_last || self.left.is_some() {
            self.patience = None;
            return Poll::Pending;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        ready!(patience.as_mut().poll(cx));
        self.is_over = true;
        Poll::Ready(())
    }

    /// Whether nothing more is waited for.
    pub(super) fn is_over(&self) -> bool {
        self.is_over || self.is_overrun
    }

    /// Waits until the end may pass.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(Pin::new(&mut self.hold).poll(cx))?;
        Poll::Ready(match self.left {
            Some(_) if self.is_overrun => {
                Err(format!("the backend sent more than {MAX_AFTER} bytes after the last event of its stream").into())
            }
            _ => Ok(()),
        })
    }

    /// What is held was not the end, unless it completes the length.
    fn release(&self, out: &mut Out) {
        if self.left != Some(0) {
            out.release();
        }
    }
}

// === impl Cut ===

impl<'a> Cut<'a> {
    pub(super) fn new(data: &'a Bytes) -> Self {
        Self { data, passed: 0 }
    }

    fn pass(&mut self, end: usize, out: &mut Out) {
        match (self.passed, end) {
            (0, end) if end == self.data.len() => out.push(self.data.clone()),
            (passed, end) if passed < end => out.push(self.data.slice(passed..end)),
            _ => {}
        }
        self.passed = self.passed.max(end);
    }
}
