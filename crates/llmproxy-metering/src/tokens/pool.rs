//! A few threads for work that takes long, and that comes in steps which belong together.
//!
//! Each [`Lane`] has a state, and its steps run one after the other over that; different lanes take turns, one step at a
//! time, so that a long one does not keep the others waiting. What waits is bounded, by number and by bytes over all lanes.
//! A lane ends in exactly one call of its closure.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::{sync::Notify, time::Instant};

use super::{Uncounted, done::Done};
use crate::metrics;

/// How much may be at work and waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Threads that count.
    pub threads: usize,
    /// Steps that may wait.
    pub queue: usize,
    /// Bytes that may wait in them.
    pub bytes: u64,
}

/// The threads and what waits for them; clones are the same pool. Threads start with the first work and end with the last
/// handle.
pub(super) struct Pool<S: Send + 'static>(Arc<Handle<S>>);

struct Handle<S: Send + 'static>(Arc<Shared<S>>);

/// Work that belongs together. Dropped before its end it is given up, and nobody is told.
pub(super) struct Lane<S: Send + 'static> {
    pool: Pool<S>,
    id: u64,
    /// Set once a step was refused: whatever comes after it would count only a part.
    refused: Option<Uncounted>,
}

struct Shared<S> {
    state: Mutex<State<S>>,
    /// There is work, or the pool is closed.
    work: Condvar,
    /// Nothing waits and nothing is at work.
    idle: Notify,
}

struct State<S> {
    limits: Limits,
    lanes: HashMap<u64, Track<S>>,
    next_id: u64,
    /// Lanes with a step to take and nobody at it.
    ready: VecDeque<u64>,
    /// Steps waiting and at work, ends included.
    steps: usize,
    /// Bytes held by them.
    bytes: u64,
    threads: usize,
    waiting: usize,
    closed: bool,
}

struct Track<S> {
    /// Away while a thread is at a step, and for good after a step that failed.
    state: Option<S>,
    at_work: bool,
    steps: VecDeque<Step<S>>,
}

struct Step<S> {
    bytes: u64,
    work: Work<S>,
}

enum Work<S> {
    Go(Box<dyn FnOnce(&mut S) + Send>),
    End(Done<S>),
}

// === impl Pool ===

impl<S: Send + 'static> Pool<S> {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State {
            limits,
            lanes: HashMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            steps: 0,
            bytes: 0,
            threads: 0,
            waiting: 0,
            closed: false,
        };
        let shared = Shared { state: Mutex::new(state), work: Condvar::new(), idle: Notify::new() };
        Self(Arc::new(Handle(Arc::new(shared))))
    }

    /// Sets other limits. What waits stays; threads above the number end when they have nothing at hand.
    pub(super) fn resize(&self, limits: Limits) {
        self.shared().lock().limits = limits;
        self.shared().work.notify_all();
    }

    pub(super) fn lane(&self, state: S) -> Lane<S> {
        let mut shared = self.shared().lock();
        let id = shared.next_id;
        shared.next_id += 1;
        let refused = shared.closed.then_some(Uncounted::Stopped);
        if refused.is_none() {
            let track = Track { state: Some(state), at_work: false, steps: VecDeque::new() };
            shared.lanes.insert(id, track);
        }
        drop(shared);
        Lane { pool: self.clone(), id, refused }
    }

    /// Steps that wait or are at work.
    pub(super) fn pending(&self) -> usize {
        self.shared().lock().steps
    }

    /// Waits until nothing is left to do, but no longer than until `deadline`. Then the pool is closed: each end that still
    /// waits is told that it was stopped, and so is each that comes later. Gives the number of those that waited.
    ///
    /// # Cancel safety
    ///
    /// A pool whose draining is dropped goes on as before.
    pub(super) async fn drain(&self, deadline: Instant) -> usize {
        loop {
            let idle = self.shared().idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.pending() == 0 || tokio::time::timeout_at(deadline, idle).await.is_err() {
                break;
            }
        }
        self.shared().close()
    }

    fn shared(&self) -> &Arc<Shared<S>> {
        &self.0.0
    }

    /// Puts a step at the end of a lane.
    fn push(&self, id: u64, step: Step<S>) -> Result<(), (Uncounted, Step<S>)> {
        let mut state = self.shared().lock();
        if state.closed {
            return Err((Uncounted::Stopped, step));
        }
        let bytes = state.bytes.saturating_add(step.bytes);
        if state.steps >= state.limits.queue || bytes > state.limits.bytes {
            return Err((Uncounted::Full, step));
        }
        if state.threads < state.limits.threads && state.waiting == 0 {
            let shared = self.shared().clone();
            let started = thread::Builder::new().name("count".into()).spawn(move || shared.work());
            match started {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    tracing::warn!(%error, "no thread for counting tokens could be started; usage is estimated");
                    return Err((Uncounted::Full, step));
                }
                // Those that run do the work.
                Err(_) => {}
            }
        }
        let Some(track) = state.lanes.get_mut(&id) else { return Err((Uncounted::Stopped, step)) };
        track.steps.push_back(step);
        let was_idle = !track.at_work && track.steps.len() == 1;
        if was_idle {
            state.ready.push_back(id);
        }
        state.bytes = bytes;
        state.steps += 1;
        drop(state);
        metrics::count_pending(1);
        self.shared().work.notify_one();
        Ok(())
    }
}

impl<S: Send + 'static> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Send + 'static> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("pending", &self.pending()).finish()
    }
}

// === impl Handle ===

impl<S: Send + 'static> Drop for Handle<S> {
    fn drop(&mut self) {
        self.0.close();
    }
}

// === impl Lane ===

impl<S: Send + 'static> Lane<S> {
    /// Has `work` done over the lane's state, which holds `bytes` until then. Where there is no place for it the lane is given
    /// up, and its end will say so.
    pub(super) fn then(&mut self, bytes: u64, work: impl FnOnce(&mut S) + Send + 'static) {
        if self.refused.is_some() {
            return;
        }
        let step = Step { bytes, work: Work::Go(Box::new(work)) };
        if let Err((why, _)) = self.pool.push(self.id, step) {
            self.refused = Some(why);
            self.give_up();
        }
    }

    /// Whether a step was refused, so that more of them are of no use.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Has `done` called with the state when all steps are through, or with the reason why not: then perhaps at once and
    /// on this thread.
    pub(super) fn finish(self, done: impl FnOnce(Result<S, Uncounted>) + Send + 'static) {
        let done = Done::new(done);
        if let Some(why) = self.refused {
            return done.call(Err(why));
        }
        match self.pool.push(self.id, Step { bytes: 0, work: Work::End(done) }) {
            // The lane is the pool's now.
            Ok(()) => {}
            Err((why, Step { work: Work::End(done), .. })) => done.call(Err(why)),
            Err(_) => {}
        }
    }

    fn give_up(&self) {
        let mut state = self.pool.shared().lock();
        let ends = |track: &Track<S>| matches!(track.steps.back(), Some(Step { work: Work::End(_), .. }));
        if state.lanes.get(&self.id).is_none_or(ends) {
            return;
        }
        let track = state.lanes.remove(&self.id);
        let steps = track.iter().flat_map(|track| &track.steps);
        let (count, bytes) = steps.fold((0, 0), |(count, bytes), step| (count + 1, bytes + step.bytes));
        let idle = state.let_go(count, bytes);
        drop(state);
        metrics::count_pending(-(count as i64));
        if idle {
            self.pool.shared().idle.notify_waiters();
        }
        // What it held is dropped here, without the lock.
        drop(track);
    }
}

impl<S: Send + 'static> Drop for Lane<S> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<S: Send + 'static> fmt::Debug for Lane<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("id", &self.id).field("refused", &self.refused).finish()
    }
}

// === impl Shared ===

impl<S> Shared<S> {
    /// No code of others runs under the lock, so that a poisoned one has nothing torn in it.
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.closed || state.threads > state.limits.threads {
                state.threads -= 1;
                return;
            }
            let Some(id) = state.ready.pop_front() else {
                state.waiting += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
                continue;
            };
            // A lane that was given up meanwhile is gone.
            let Some(track) = state.lanes.get_mut(&id) else { continue };
            let Some(step) = track.steps.pop_front() else { continue };
            track.at_work = true;
            let mut of_lane = track.state.take();
            if matches!(step.work, Work::End(_)) {
                state.lanes.remove(&id);
            }
            drop(state);

            let began = Instant::now();
            let bytes = step.bytes;
            // The library that counts is not ours, and nor is the closure: neither takes a thread away.
            let result = catch_unwind(AssertUnwindSafe(|| match step.work {
                Work::Go(work) => {
                    if let Some(of_lane) = &mut of_lane {
                        work(of_lane);
                    }
                }
                Work::End(done) => done.call(of_lane.take().ok_or(Uncounted::Failed)),
            }));
            if result.is_err() {
                // What a panic has left behind is not to be trusted.
                let _ = catch_unwind(AssertUnwindSafe(|| of_lane = None));
            }
            metrics::count_took(began.elapsed());
            metrics::count_pending(-1);

            state = self.lock();
            let more = state.lanes.get_mut(&id).is_some_and(|track| {
                track.at_work = false;
                track.state = of_lane.take();
                !track.steps.is_empty()
            });
            if more {
                state.ready.push_back(id);
            }
            if state.let_go(1, bytes) {
                self.idle.notify_waiters();
            }
            if of_lane.is_some() {
                drop(state);
                drop(of_lane);
                state = self.lock();
            }
        }
    }

    /// Lets nothing more in, and tells those who wait for their end. Gives their number.
    fn close(&self) -> usize {
        let mut state = self.lock();
        state.closed = true;
        let lanes = std::mem::take(&mut state.lanes);
        let steps = lanes.values().flat_map(|track| &track.steps);
        let (count, bytes) = steps.fold((0, 0), |(count, bytes), step| (count + 1, bytes + step.bytes));
        state.ready.clear();
        state.let_go(count, bytes);
        drop(state);
        metrics::count_pending(-(count as i64));
        self.work.notify_all();
        self.idle.notify_waiters();
        let ends = lanes.into_values().filter_map(|track| track.steps.into_iter().next_back());
        // Each is told as it is dropped.
        ends.filter(|step| matches!(step.work, Work::End(_))).count()
    }
}

// === impl State ===

impl<S> State<S> {
    /// Counts out what waits no longer; whether nothing is left.
    fn let_go(&mut self, steps: usize, bytes: u64) -> bool {
        self.steps -= steps;
        self.bytes -= bytes;
        self.steps == 0
    }
}

#[cfg(test)]
mod tests;
