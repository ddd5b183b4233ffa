//! What becomes of an answer whose client leaves: dropped, or read on within bounds.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use llmproxy_core::{
    OnAbort,
    body::{Drain, DrainLimit, Shaped},
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
        let own = metering.exchange().caller().and_then(|caller| caller.on_abort());
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
