//! A limit of time that is not met nearly always.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is made when it is first needed and moved only when it fires.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

// === impl Timer ===

impl Timer {
    /// Pending until `deadline`; an error from then on. `None` waits without a limit.
    pub(crate) fn poll(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = deadline else {
            self.disarm();
            return Poll::Pending;
        };
        self.armed = Some(deadline);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            // An earlier deadline than the one that the sleep was made for must not be missed; a later one is set when
            // the sleep fires.
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sleep.as_mut().reset(deadline);
        }
    }

    /// The deadline that was polled last, unless it was disarmed since.
    pub(crate) fn armed(&self) -> Option<Instant> {
        self.armed
    }

    pub(crate) fn disarm(&mut self) {
        self.armed = None;
    }
}
