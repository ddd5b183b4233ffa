//! The way through the line: in at its end, out when there is room, or when all is different.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{Found, Pick, Pool};
use crate::{
    error::BalanceError,
    line::{Advance, Class, Line, Served, Turn, Wish},
    node::Node,
    plan::Plan,
    view::View,
};

/// How often those in the line look for themselves: time alone may have brought a backend back.
const LOOK: Duration = Duration::from_millis(250);

/// A place in the line, given up when this is dropped.
struct Place<'a> {
    pool: &'a Pool,
    number: u64,
}

// === impl Pool ===

impl Pool {
    /// A backend for a further attempt that is not one of `failed`, once it has room, if it lacks nothing else. `None` where
    /// that is not to be waited for, or was in vain; nobody waits for longer than since `began`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the place in the line up.
    pub(crate) async fn pick_later(
        &self,
        plan: &Arc<Plan>,
        from: usize,
        failed: &[Arc<Node>],
        began: Instant,
    ) -> Option<Box<Pick>> {
        let mut number = None;
        loop {
            let wish = Wish { plan: plan.clone(), first: from, learned: true, failed: failed.to_vec() };
            let class = match self.find(&wish) {
                Found::Pick(pick) => return Some(pick),
                Found::Full { class, .. } => class,
                Found::None { .. } => return None,
            };
            if let Some(pick) = self.wait(class, wish, began, &mut number).await.ok()? {
                return Some(pick);
            }
        }
    }

    /// Gives what room there is to those in the line.
    pub(crate) fn dispatch(&self) {
        let Advance { told, .. } = self.advance(&mut self.line(), &self.view());
        tell(told);
    }

    /// The same, for whoever has the line; those whom to [`tell`] are told when it is free again.
    pub(super) fn advance(&self, line: &mut Line, view: &View) -> Advance {
        let advance = line.advance(Instant::now(), |waiter, kept| match Self::look(kept, view, &waiter.wish) {
            Found::Pick(pick) => Served::Go(pick),
            Found::Full { class, lacking } => Served::Full { class, lacking },
            Found::None { .. } => Served::LookAgain,
        });
        self.hub.set_waiting(line.len());
        advance
    }

    /// Waits in the line for that, among those of `class`, at the place of `number` where it had one before. `None` where there
    /// is nobody to wait for any more.
    pub(super) async fn wait(
        &self,
        class: Class,
        wish: Wish,
        began: Instant,
        number: &mut Option<u64>,
    ) -> Result<Option<Box<Pick>>, BalanceError> {
        let (place, mut turn, deadline) = {
            let mut line = self.line();
            let queue = self.view().queue;
            let (now, deadline) = (Instant::now(), began + queue.timeout);
            if now >= deadline {
                // However often it was told to look again.
                let retry_after = line.retry_after(now);
                return Err(BalanceError::QueueTimeout { waited: now - began, retry_after });
            }
            let entered = line.enter(class, wish, *number, &queue, now);
            self.hub.set_waiting(line.len());
            let Some((entered, turn)) = entered else {
                let retry_after = line.retry_after(now);
                return Err(BalanceError::QueueFull { retry_after });
            };
            *number = Some(entered);
            (Place { pool: self, number: entered }, turn, deadline)
        };
        // There may have come room before anyone could know that we wait.
        self.dispatch();
        loop {
            let next = deadline.min(Instant::now() + LOOK);
            tokio::select! {
                biased;
                told = &mut turn => {
                    return Ok(match told {
                        Ok(Turn::Go(pick)) => Some(pick),
                        Ok(Turn::LookAgain) | Err(_) => None,
                    });
                }
                () = sleep_until(next) => {
                    if next < deadline {
                        if self.line().is_due(next, LOOK) {
                            self.dispatch();
                        }
                        continue;
                    }
                    let retry_after = self.line().retry_after(next);
                    drop(place);
                    // Its turn may have come in this moment.
                    return match turn.try_recv() {
                        Ok(Turn::Go(pick)) => Ok(Some(pick)),
                        _ => Err(BalanceError::QueueTimeout { waited: began.elapsed(), retry_after }),
                    };
                }
            }
        }
    }
}

/// Whoever has left is told nothing, and what was meant for it is dropped: there is room again.
pub(super) fn tell(told: Vec<(oneshot::Sender<Turn>, Turn)>) {
    for (turn, what) in told {
        drop(turn.send(what));
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.pool.line();
        line.leave(self.number);
        self.pool.hub.set_waiting(line.len());
    }
}
