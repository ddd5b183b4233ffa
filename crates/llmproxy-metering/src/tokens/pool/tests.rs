//! The pool, with work that a test can hold up.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use super::*;

const LIMITS: Limits = Limits { threads: 1, queue: 100, bytes: 1000 };
/// Longer than anything takes; only a failure waits for it.
const SOON: Duration = Duration::from_secs(20);

type Ended = (&'static str, Result<Vec<u32>, Uncounted>);

/// Hears of ends.
struct Ends(SyncSender<Ended>, Receiver<Ended>);

impl Ends {
    fn new() -> Self {
        let (sender, receiver) = sync_channel(100);
        Self(sender, receiver)
    }

    fn of(&self, name: &'static str) -> impl FnOnce(Result<Vec<u32>, Uncounted>) + Send + 'static {
        let sender = self.0.clone();
        move |result| sender.send((name, result)).unwrap()
    }

    fn next(&self) -> Ended {
        self.1.recv_timeout(SOON).unwrap()
    }
}

/// A step that stays at work until the sender is gone, and a receiver that hears of its beginning.
fn held(lane: &mut Lane<Vec<u32>>) -> (SyncSender<()>, Receiver<()>) {
    let (release, released) = sync_channel::<()>(0);
    let (began, begun) = sync_channel(1);
    lane.then(1, move |_| {
        began.send(()).unwrap();
        let _ = released.recv_timeout(SOON);
    });
    (release, begun)
}

#[test]
fn steps_of_a_lane_run_in_order_and_lanes_take_turns() {
    let pool = Pool::new(LIMITS);
    let ends = Ends::new();
    let mut first = pool.lane(Vec::new());
    let (release, begun) = held(&mut first);
    begun.recv_timeout(SOON).unwrap();
    (0..50).for_each(|step| first.then(1, move |seen| seen.push(step)));
    let mut other = pool.lane(Vec::new());
    other.then(1, |seen| seen.push(7));
    first.finish(ends.of("long"));
    other.finish(ends.of("short"));
    drop(release);
    assert_eq!(ends.next(), ("short", Ok(vec![7])));
    assert_eq!(ends.next(), ("long", Ok((0..50).collect())));
}

#[test]
fn what_finds_no_place_ends_at_once_and_lets_go_of_what_it_had() {
    for (queue, bytes) in [(3, 1000), (100, 30)] {
        let pool = Pool::new(Limits { threads: 1, queue, bytes });
        let ends = Ends::new();
        let mut first = pool.lane(Vec::new());
        let (release, begun) = held(&mut first);
        begun.recv_timeout(SOON).unwrap();
        let mut refused = pool.lane(Vec::new());
        (0..5).for_each(|step| refused.then(12, move |seen| seen.push(step)));
        assert!(refused.is_refused());
        refused.finish(ends.of("refused"));
        assert_eq!(ends.next(), ("refused", Err(Uncounted::Full)));
        assert_eq!(pool.pending(), 1, "only the step at work is left");
        let mut later = pool.lane(Vec::new());
        later.then(20, |seen| seen.push(1));
        later.finish(ends.of("later"));
        drop(release);
        assert_eq!(ends.next(), ("later", Ok(vec![1])));
    }
}

#[test]
fn a_panic_ends_its_lane_alone() {
    let pool = Pool::new(LIMITS);
    let ends = Ends::new();
    let (mut bad, mut good) = (pool.lane(Vec::new()), pool.lane(Vec::new()));
    bad.then(1, |_| panic!("a step of a test fails"));
    bad.then(1, |seen| seen.push(1));
    good.then(1, |seen| seen.push(2));
    bad.finish(ends.of("bad"));
    assert_eq!(ends.next(), ("bad", Err(Uncounted::Failed)));
    let worse = pool.lane(Vec::new());
    worse.finish(|_| panic!("an end of a test fails"));
    good.finish(ends.of("good"));
    assert_eq!(ends.next(), ("good", Ok(vec![2])));
}

#[test]
fn a_lane_that_is_dropped_is_given_up_without_a_word() {
    let pool = Pool::new(LIMITS);
    let ends = Ends::new();
    let mut first = pool.lane(Vec::new());
    let (release, begun) = held(&mut first);
    begun.recv_timeout(SOON).unwrap();
    let mut dropped = pool.lane(Vec::new());
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = ran.clone();
    dropped.then(900, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    drop(dropped);
    assert_eq!(pool.pending(), 1);
    // One that is at work is put nowhere when it is through.
    drop(first);
    drop(release);
    let last = pool.lane(vec![3]);
    last.finish(ends.of("last"));
    assert_eq!(ends.next(), ("last", Ok(vec![3])));
    assert_eq!(ran.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_drain_waits_for_what_is_pending() {
    let pool = Pool::new(LIMITS);
    let ends = Ends::new();
    let mut lane = pool.lane(Vec::new());
    (0..20).for_each(|step| lane.then(1, move |seen| seen.push(step)));
    lane.finish(ends.of("whole"));
    assert_eq!(pool.drain(Instant::now() + SOON).await, 0);
    assert_eq!(ends.next(), ("whole", Ok((0..20).collect())));
    let late = pool.lane(Vec::new());
    late.finish(ends.of("late"));
    assert_eq!(ends.next(), ("late", Err(Uncounted::Stopped)));
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let pool = Pool::new(LIMITS);
    let ends = Ends::new();
    let mut stuck = pool.lane(Vec::new());
    let (release, begun) = held(&mut stuck);
    begun.recv_timeout(SOON).unwrap();
    let open = pool.lane(Vec::new());
    stuck.finish(ends.of("stuck"));
    assert_eq!(pool.drain(Instant::now()).await, 1);
    assert_eq!(ends.next(), ("stuck", Err(Uncounted::Stopped)));
    open.finish(ends.of("open"));
    assert_eq!(ends.next(), ("open", Err(Uncounted::Stopped)));
    drop(release);
}

#[test]
fn whoever_still_waits_when_the_pool_goes_is_told() {
    let pool = Pool::new(Limits { threads: 0, ..LIMITS });
    let ends = Ends::new();
    let lane = pool.lane(Vec::new());
    lane.finish(ends.of("waiting"));
    drop(pool);
    assert_eq!(ends.next(), ("waiting", Err(Uncounted::Stopped)));
}

#[test]
fn each_end_is_told_once_whoever_comes_and_goes_at_the_same_time() {
    let pool = Pool::new(Limits { threads: 2, queue: 12, bytes: 60 });
    let told = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (pool, told) = (&pool, &told);
            scope.spawn(move || {
                for round in 0..500 {
                    let mut lane = pool.lane(Vec::new());
                    for step in 0..round % 5 {
                        lane.then(7, move |seen| {
                            assert!(step + round % 97 > 0, "a step of a test fails");
                            seen.push(step);
                        });
                    }
                    let told = told.clone();
                    if (round + thread) % 11 > 0 {
                        lane.finish(move |_| {
                            told.fetch_add(1, Ordering::Relaxed);
                        });
                    } else {
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let since = std::time::SystemTime::now();
    while pool.pending() > 0 && since.elapsed().unwrap() < SOON {
        std::thread::yield_now();
    }
    assert_eq!(told.load(Ordering::Relaxed), 2000);
    assert_eq!(pool.pending(), 0);
}

#[test]
fn a_smaller_number_of_threads_lets_the_others_go() {
    let pool = Pool::new(Limits { threads: 3, ..LIMITS });
    let ends = Ends::new();
    let mut lanes: Vec<_> = (0..3).map(|_| pool.lane(Vec::new())).collect();
    let helds: Vec<_> = lanes.iter_mut().map(held).collect();
    helds.iter().for_each(|(_, begun)| begun.recv_timeout(SOON).unwrap());
    assert_eq!(pool.shared().lock().threads, 3);
    pool.resize(LIMITS);
    drop(helds);
    lanes.into_iter().for_each(|lane| lane.finish(ends.of("one")));
    (0..3).for_each(|_| assert_eq!(ends.next(), ("one", Ok(Vec::new()))));
    let since = std::time::SystemTime::now();
    while pool.shared().lock().threads > 1 && since.elapsed().unwrap() < SOON {
        std::thread::yield_now();
    }
    assert_eq!(pool.shared().lock().threads, 1);
}
