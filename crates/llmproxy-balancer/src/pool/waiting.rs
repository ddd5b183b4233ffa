//! The way through the line: in at its end, out when there is room, or when all is different.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{Pick, Pool};
use crate::{
    error::BalanceError,
    line::{Advance, Line, Served, Ticket, Turn, Wish},
    node::Node,
    plan::Plan,
    view::{Probing, Standing, Terms, View},
};

/// How often those in the line look for themselves: time alone may have brought a backend back.
const LOOK: Duration = Duration::from_millis(250);

/// A place in the line, given up when this is dropped.
struct Place<'a> {
    pool: &'a Pool,
    ticket: Ticket,
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
        let terms = Terms { probing: Probing::No, doubtful: false, learned: true };
        loop {
            let wish = {
                let _step = self.line();
                let view = self.view();
                if began.elapsed() >= view.queue.timeout {
                    return None;
                }
                let wishes = (from..plan.stages.len()).map(|stage| Wish {
                    plan: plan.clone(),
                    first: from,
                    stage,
                    terms,
                    failed: failed.to_vec(),
                });
                let look = |wish: &Wish| view.look(plan, wish.stage, terms, &HashSet::new(), |node| wish.is_for(node));
                match { wishes }.map(|wish| (look(&wish), wish)).find(|(standing, _)| standing.is_for_now()) {
                    Some((Standing::Picked(pick), _)) => return Some(pick),
                    Some((_, wish)) => wish,
                    None => return None,
                }
            };
            if let Some(pick) = self.wait(wish, began).await.ok()? {
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
        let advance = line.advance(Instant::now(), |waiter, kept| {
            let wish = &waiter.wish;
            let Wish { plan, stage, terms, .. } = wish;
            let look = |at| view.look(plan, at, *terms, kept, |node| wish.is_for(node));
            // What it would rather have may be there again.
            let better = (wish.first..*stage).find_map(|at| match look(at) {
                Standing::Picked(pick) => Some(pick),
                _ => None,
            });
            match better.map_or_else(|| look(*stage), Standing::Picked) {
                Standing::Picked(pick) => Served::Go(pick),
                Standing::Full(lacking) => Served::Full(lacking),
                _ => Served::LookAgain,
            }
        });
        self.hub.set_waiting(line.len());
        advance
    }

    /// Waits in the line for that. `None` where all is different from when it came.
    pub(super) async fn wait(&self, wish: Wish, began: Instant) -> Result<Option<Box<Pick>>, BalanceError> {
        let (place, mut turn, deadline) = {
            let mut line = self.line();
            let queue = self.view().queue;
            let (now, deadline) = (Instant::now(), began + queue.timeout);
            if now >= deadline {
                // However often it was told to look again.
                let retry_after = line.retry_after(now);
                return Err(BalanceError::QueueTimeout { waited: now - began, retry_after });
            }
            let class = self.view().class(&wish);
            let entered = line.enter(class, wish, &queue, now);
            self.hub.set_waiting(line.len());
            let Some((ticket, turn)) = entered else {
                let retry_after = line.retry_after(now);
                return Err(BalanceError::QueueFull { retry_after });
            };
            (Place { pool: self, ticket }, turn, deadline)
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
        line.leave(&self.ticket);
        self.pool.hub.set_waiting(line.len());
    }
}
