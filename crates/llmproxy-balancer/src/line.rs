//! The line in which requests wait while every backend that could take them is full.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    config::QueueConfig,
    node::Node,
    plan::Plan,
    pool::Pick,
    view::{Probing, Terms},
};

/// A grant weighs this much in the mean time between two of them.
const SHARE: f64 = 0.1;
/// The shortest and the longest time after which a client is asked to come back.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// First come, first served, among those that the same backends can serve.
#[derive(Debug, Default)]
pub(crate) struct Line {
    classes: HashMap<Class, VecDeque<Waiter>>,
    len: usize,
    next_number: u64,
    rate: Rate,
    /// When it was last looked for room.
    looked: Option<Instant>,
}

/// Requests of one class can be served by the same backends on the same terms: where there is nothing for the first there is
/// nothing for the others. How many classes there are depends on the configuration and not on what clients ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Class {
    /// The numbers of those that could as things stand, in their order.
    pub(crate) backends: Arc<[usize]>,
    /// Whether a backend that is out may be tried by them.
    pub(crate) probing: Probing,
}

/// What a request in the line waits for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) plan: Arc<Plan>,
    /// The first stage that it may have.
    pub(crate) first: usize,
    /// Whether it has waited for backends to tell what they serve.
    pub(crate) learned: bool,
    /// Not these: they have failed in this request.
    pub(crate) failed: Vec<Arc<Node>>,
}

/// A request in the line.
#[derive(Debug)]
pub(crate) struct Waiter {
    number: u64,
    pub(crate) wish: Wish,
    turn: oneshot::Sender<Turn>,
}

/// What a request in the line is told.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Here is room.
    Go(Box<Pick>),
    /// There is nobody to wait for any more: it must look for itself.
    LookAgain,
}

/// What trying to serve the first of a class comes to.
pub(crate) enum Served {
    Go(Box<Pick>),
    /// It is of this class now, and `lacking` would do, once they have room.
    Full {
        class: Class,
        lacking: Vec<usize>,
    },
    LookAgain,
}

/// What looking for room comes to.
#[derive(Debug, Default)]
pub(crate) struct Advance {
    /// Whom to tell what.
    pub(crate) told: Vec<(oneshot::Sender<Turn>, Turn)>,
    /// The backends that those who still wait would have: they are not for whoever comes later.
    pub(crate) kept: HashSet<usize>,
}

/// How often a request leaves the line for a backend.
#[derive(Debug, Default)]
struct Rate {
    mean: Option<f64>,
    /// Of the last grant, or when the line began.
    last: Option<Instant>,
}

// === impl Wish ===

impl Wish {
    /// On which terms its stages are looked at, each time all of them.
    pub(crate) fn rounds(&self) -> impl Iterator<Item = Terms> {
        let is_first = self.failed.is_empty();
        // Another one waits for what lacks nothing but room.
        let further = Terms { probing: Probing::No, doubtful: false, learned: self.learned };
        self.plan.rounds(self.learned).filter(move |_| is_first).chain((!is_first).then_some(further))
    }

    /// Whether a backend that is out may be tried by it.
    pub(crate) fn probing(&self) -> Probing {
        self.rounds().next().map_or(Probing::No, |terms| terms.probing)
    }

    pub(crate) fn is_for(&self, node: &Arc<Node>) -> bool {
        !self.failed.iter().any(|failed| Arc::ptr_eq(failed, node))
    }
}

// === impl Line ===

impl Line {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes a place at the end, or that of `number` for whoever had one, and tells its number. `None` where so many wait that
    /// it would only be a wait for nothing.
    pub(crate) fn enter(
        &mut self,
        class: Class,
        wish: Wish,
        number: Option<u64>,
        config: &QueueConfig,
        now: Instant,
    ) -> Option<(u64, oneshot::Receiver<Turn>)> {
        if number.is_none() && self.len >= config.max_waiting {
            return None;
        }
        if self.len == 0 {
            self.rate.last = Some(now);
        }
        let (turn, receiver) = oneshot::channel();
        let number = number.unwrap_or(self.next_number);
        self.next_number = self.next_number.max(number + 1);
        self.len += 1;
        self.insert(class, Waiter { number, wish, turn });
        Some((number, receiver))
    }

    fn insert(&mut self, class: Class, waiter: Waiter) {
        let waiters = self.classes.entry(class).or_default();
        // They stand in the order of their numbers.
        let at = waiters.partition_point(|other| other.number < waiter.number);
        waiters.insert(at, waiter);
    }

    /// Gives a place up, unless its turn had come.
    pub(crate) fn leave(&mut self, number: u64) {
        let left = self.classes.iter_mut().find_map(|(class, waiters)| {
            let at = waiters.binary_search_by_key(&number, |waiter| waiter.number).ok()?;
            waiters.remove(at);
            Some((class.clone(), waiters.is_empty()))
        });
        let Some((class, is_empty)) = left else { return };
        self.len -= 1;
        if is_empty {
            self.classes.remove(&class);
        }
    }

    /// Serves the first of each class for as long as `serve` can, the oldest of all first. A backend that is full for one is
    /// not for those who came later: `serve` is told of these, so that a large request does not wait for ever while small
    /// ones go past it. What would not do for one now is free for all others, whoever could serve it otherwise. Whoever has
    /// to turn to others than it came for is served with those who wait for these, as though it had done so from the start.
    pub(crate) fn advance(
        &mut self,
        now: Instant,
        mut serve: impl FnMut(&Waiter, &HashSet<usize>) -> Served,
    ) -> Advance {
        self.looked = Some(now);
        let Advance { mut told, mut kept } = Advance::default();
        let front = |class: &Class, waiters: &VecDeque<Waiter>| Some(Reverse((waiters.front()?.number, class.clone())));
        let mut fronts: BinaryHeap<_> =
            self.classes.iter().filter_map(|(class, waiters)| front(class, waiters)).collect();
        while let Some(Reverse((number, class))) = fronts.pop() {
            let Some(waiters) = self.classes.get_mut(&class) else { continue };
            let Some(first) = waiters.front().filter(|first| first.number == number) else { continue };
            let served = match serve(first, &kept) {
                Served::Full { class: now, lacking } if now == class => {
                    kept.extend(lacking);
                    continue;
                }
                served => served,
            };
            let Some(waiter) = waiters.pop_front() else { continue };
            fronts.extend(front(&class, waiters));
            if waiters.is_empty() {
                self.classes.remove(&class);
            }
            match served {
                Served::Full { class, .. } => {
                    self.insert(class.clone(), waiter);
                    fronts.push(Reverse((number, class)));
                }
                Served::Go(pick) => {
                    self.rate.granted(now);
                    self.len -= 1;
                    told.push((waiter.turn, Turn::Go(pick)));
                }
                Served::LookAgain => {
                    self.len -= 1;
                    told.push((waiter.turn, Turn::LookAgain));
                }
            }
        }
        Advance { told, kept }
    }

    /// Whether nobody has looked for so long that time alone may have changed something.
    pub(crate) fn is_due(&self, now: Instant, after: Duration) -> bool {
        self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= after)
    }

    /// When whoever finds no place, or has waited too long, may come back: when those who wait now will have gone.
    pub(crate) fn retry_after(&self, now: Instant) -> Duration {
        let each = self.rate.between(now).unwrap_or_default();
        let seconds = (each * (self.len + 1) as f64).min(RETRY_AFTER.1.as_secs_f64());
        Duration::from_secs_f64(seconds.ceil()).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

// === impl Rate ===

impl Rate {
    fn granted(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let sample = now.saturating_duration_since(last).as_secs_f64();
            self.mean = Some(self.mean.map_or(sample, |mean| mean * (1.0 - SHARE) + sample * SHARE));
        }
        self.last = Some(now);
    }

    /// Seconds between two grants; where the last one was longer ago than they usually are apart, that.
    fn between(&self, now: Instant) -> Option<f64> {
        let since = now.saturating_duration_since(self.last?).as_secs_f64();
        Some(self.mean.map_or(since, |mean| mean.max(since)))
    }
}
