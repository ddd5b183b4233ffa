//! What becomes of an answer whose client leaves: dropped, or read on within bounds.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use llmproxy_core::{
    End, OnAbort,
    body::{Drain, DrainLimit, Ending, Shaped},
};
use tokio::time::{Sleep, sleep};

use super::Metering;
use crate::{AbortConfig, Drains, drains::Place, metrics::DRAINS};

/// How long and how many, for all answers of a layer.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) config: AbortConfig,
    pub(super) drains: Drains,
}

/// Decides about the rest of one answer. Made by [`Meter`](crate::Meter).
#[derive(Clone, Debug)]
pub struct Abandon(Option<Arc<Bounds>>);

/// Bounds the reading of one rest. Made by [`Meter`](crate::Meter).
pub struct AbandonLimit {
    bounds: Arc<Bounds>,
    deadline: Pin<Box<Sleep>>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    result: &'static str,
    // After the body, which ends with its record: whoever waits for the places waits for the records.
    _place: Place,
}

/// Where a client left.
#[derive(Clone, Copy)]
pub(super) struct Left {
    /// The completion's tokens until then.
    pub(super) delivered: u64,
    /// The pieces until then.
    deltas: u64,
}

// === impl Abandon ===

impl Abandon {
    pub(super) fn new(bounds: Option<Arc<Bounds>>) -> Self {
        Self(bounds)
    }
}

impl<B: 'static> Drain<Shaped<B, Box<Metering>>> for Abandon {
    type Limit = AbandonLimit;

    fn reader_left(self, body: &mut Shaped<B, Box<Metering>>) -> Option<AbandonLimit> {
        let bounds = self.0?;
        let metering = body.get_mut();
        let own = metering.exchange.caller().and_then(|caller| caller.on_abort());
        if own.unwrap_or(bounds.config.on_abort) != OnAbort::Drain || !metering.is_worth_reading() {
            return None;
        }
        let Some(place) = bounds.drains.begin(bounds.config.drain_max_streams) else {
            count("full");
            return None;
        };
        metering.leave();
        let deadline = Box::pin(sleep(bounds.config.drain_timeout));
        let stopped = Box::pin(place.stopped());
        // What stands where the task itself is dropped.
        Some(AbandonLimit { bounds, deadline, stopped, result: "stopped", _place: place })
    }
}

// === impl Metering ===

impl Metering {
    /// Asked when the client leaves: whether the rest of the answer would say more of what it came to.
    fn is_worth_reading(&self) -> bool {
        // All has come where the end was told; it is only held.
        self.exchange.end().is_none()
            && self.head.as_ref().is_some_and(|head| head.status.is_success())
            // Of what is not read there would only be more of it.
            && !self.is_opaque()
            && !self.exchange.is_unasked()
            && self.outcome(Ending::Dropped) == Some(End::ClientGone)
            && self.summary(End::ClientGone).completion().is_some()
    }

    /// The client has left, and the rest is read: what follows is not delivered to anybody.
    fn leave(&mut self) {
        self.exchange.set_end(End::ClientGone);
        // Nobody is there who could see the end too soon.
        self.gate = None;
        let delivered = self.summary(End::ClientGone).completion().unwrap_or(0);
        if let Some(heard) = &mut self.tally().heard {
            heard.leave();
        }
        self.left = Some(Box::new(Left { delivered, deltas: self.so_far().0.deltas }));
    }

    /// The pieces of a stream that have passed since. An answer in one piece has none: it is whole when it comes.
    fn deltas_since_left(&self) -> u64 {
        self.left.as_ref().map_or(0, |left| self.so_far().0.deltas.saturating_sub(left.deltas))
    }
}

// === impl AbandonLimit ===

impl<B: 'static> DrainLimit<Shaped<B, Box<Metering>>> for AbandonLimit {
    fn poll_reached(&mut self, body: &mut Shaped<B, Box<Metering>>, cx: &mut Context<'_>) -> Poll<()> {
        if body.get_mut().deltas_since_left() >= self.bounds.config.drain_max_tokens {
            self.result = "tokens";
        } else if self.deadline.as_mut().poll(cx).is_ready() {
            self.result = "time";
        } else if self.stopped.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn ended(&mut self) {
        self.result = "finished";
    }
}

impl Drop for AbandonLimit {
    fn drop(&mut self) {
        count(self.result);
    }
}

impl std::fmt::Debug for AbandonLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AbandonLimit")
            .field("bounds", &self.bounds)
            .field("result", &self.result)
            .finish_non_exhaustive()
    }
}

fn count(result: &'static str) {
    metrics::counter!(DRAINS, "result" => result).increment(1);
}
