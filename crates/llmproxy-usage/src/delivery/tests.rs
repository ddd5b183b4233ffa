//! Tries, waits, halves and verdicts, in paused time.

mod outages;

use std::{
    collections::{HashSet, VecDeque},
    sync::Mutex,
};

use llmproxy_core::{Endpoint, UsageRecord};
use tokio::time::Instant;
use uuid::Uuid;

use super::*;
use crate::ReportBatch;

/// What comes of the tries to come; when the list is over, all are delivered.
enum Next {
    Say(Verdict),
    Hang,
    Panic,
    /// Hangs, and panics when it is dropped.
    PanicInDrop,
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a mistake of the embedder's, late");
    }
}

/// Does what it is told, and remembers what it was given.
#[derive(Default)]
struct Scripted {
    script: Mutex<VecDeque<Next>>,
    tries: Mutex<Vec<Vec<Uuid>>>,
    /// A batch with one of these is refused.
    bad: HashSet<Uuid>,
    /// A batch with one of these fails.
    stuck: HashSet<Uuid>,
    /// More than that are never answered.
    bearable: Option<usize>,
    /// Of a batch; without it takes one at a time, and with `Some(None)` panics when it is asked.
    size: Option<Option<usize>>,
    max_age: Option<Duration>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Report for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move { self.report_batch(&[entry]).await })
    }

    fn max_age(&self) -> Duration {
        self.max_age.unwrap_or(crate::config::DEFAULT_MAX_AGE)
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        self.size.is_some().then_some(self)
    }
}

impl ReportBatch for Scripted {
    fn size(&self) -> usize {
        self.size.unwrap().expect("a mistake of the embedder's")
    }

    fn interval(&self) -> Duration {
        Duration::ZERO
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        self.tries.lock().unwrap().push(ids(entries));
        let next = self.script.lock().unwrap().pop_front();
        Box::pin(async move {
            match next {
                Some(Next::Say(verdict)) => verdict,
                Some(Next::Hang) => std::future::pending().await,
                Some(Next::Panic) => panic!("a mistake of the embedder's"),
                Some(Next::PanicInDrop) => {
                    let _bomb = Bomb;
                    std::future::pending().await
                }
                None if self.bearable.is_some_and(|bearable| entries.len() > bearable) => std::future::pending().await,
                None if ids(entries).iter().any(|id| self.stuck.contains(id)) => Verdict::again("one of them fails"),
                None if ids(entries).iter().any(|id| self.bad.contains(id)) => Verdict::refused("one of them is bad"),
                None => Verdict::Delivered,
            }
        })
    }
}

/// Remembers what it is told.
#[derive(Default)]
struct Told {
    settled: Mutex<Vec<(Uuid, Result<(), &'static str>)>>,
    failed: Mutex<Vec<(u32, u32)>>,
    /// At which failure of a batch the reporter was found to be down.
    down: Mutex<Vec<u32>>,
    recovered: Mutex<usize>,
    gate: Gate,
}

impl Watch for Told {
    fn settle<'a>(&'a self, entries: &'a [Entry], end: Result<(), GivenUp>) -> BoxFuture<'a, ()> {
        let end = end.map_err(|given_up| given_up.reason);
        self.settled.lock().unwrap().extend(ids(entries).into_iter().map(|id| (id, end)));
        std::future::ready(()).boxed()
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn failed(&self, failure: &Failure<'_>, failed: &Failed) {
        self.failed.lock().unwrap().push((failure.tries, failure.retries));
        self.down.lock().unwrap().extend(failed.is_news.then_some(failure.tries));
    }

    fn recovered(&self) {
        *self.recovered.lock().unwrap() += 1;
    }
}

/// What came of it all.
struct Outcome {
    tries: Vec<Vec<Uuid>>,
    settled: Vec<(Uuid, Result<(), &'static str>)>,
    failed: Vec<(u32, u32)>,
    took: Duration,
}

fn ids(entries: &[Entry]) -> Vec<Uuid> {
    entries.iter().map(|entry| entry.record.request_id).collect()
}

/// A record that is so many hours old.
fn aged(hours: i64) -> Entry {
    let timestamp = Timestamp::now() - jiff::SignedDuration::from_hours(hours);
    let record = UsageRecord { request_id: Uuid::now_v7(), timestamp, ..UsageRecord::new(Endpoint::of("")) };
    Entry { record: Arc::new(record), request_body: None }
}

fn entries(count: usize) -> Vec<Entry> {
    (0..count).map(|_| aged(0)).collect()
}

fn script(next: impl IntoIterator<Item = Next>) -> Scripted {
    Scripted { script: Mutex::new(next.into_iter().collect()), ..Scripted::default() }
}

fn again() -> Next {
    Next::Say(Verdict::again("busy"))
}

/// Everything goes there.
fn to(report: &Arc<Scripted>) -> Delivery {
    Delivery::of(report.clone())
}

async fn run(report: Scripted, entries: &[Entry]) -> Outcome {
    let (report, told) = (Arc::new(report), Told::default());
    let started = Instant::now();
    deliver(|| to(&report), entries.to_vec(), &told).await;
    Outcome {
        tries: report.tries.lock().unwrap().clone(),
        settled: told.settled.into_inner().unwrap(),
        failed: told.failed.into_inner().unwrap(),
        took: started.elapsed(),
    }
}

fn delivered(entries: &[Entry]) -> Vec<(Uuid, Result<(), &'static str>)> {
    ids(entries).into_iter().map(|id| (id, Ok(()))).collect()
}

/// One record, whose tries end like this: how many there were, what became of it, how long it took.
async fn tries(next: impl IntoIterator<Item = Next>) -> (usize, Result<(), &'static str>, Duration) {
    let one = entries(1);
    let outcome = run(script(next), &one).await;
    assert!(outcome.tries.iter().all(|tried| *tried == ids(&one)), "the same record each time");
    assert_eq!(outcome.settled.len(), 1);
    (outcome.tries.len(), outcome.settled[0].1, outcome.took)
}

#[tokio::test(start_paused = true)]
async fn tries_follow_the_verdicts() {
    assert_eq!(tries([]).await, (1, Ok(()), Duration::ZERO));
    assert_eq!(tries([Next::Say(Verdict::refused("no"))]).await, (1, Err("refused"), Duration::ZERO));
    let (tried, end, took) = tries([again(), Next::Say(Verdict::refused("no"))]).await;
    assert_eq!((tried, end), (2, Err("refused")));
    assert!((Duration::from_millis(250)..=Duration::from_millis(510)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_never_cost_a_record_but_are_far_between_in_the_end() {
    let one = entries(1);
    let outcome = run(script((0..50).map(|_| again())), &one).await;
    assert_eq!((outcome.tries.len(), outcome.settled), (51, delivered(&one)));
    assert_eq!(outcome.failed.first(), Some(&(1, 3)));
    assert_eq!(outcome.failed.last(), Some(&(50, 3)), "told each time, and how many are meant to be patient");
    // The first three within four seconds, then one in fifteen to thirty.
    let most = Duration::from_secs(4 + 47 * 30);
    assert!((Duration::from_secs(47 * 15)..=most).contains(&outcome.took), "{:?}", outcome.took);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_patience_gets_it_within_reason() {
    let check = async |asked: u64, expected: u64| {
        let patient = Verdict::Again { why: "later".into(), after: Some(Duration::from_secs(asked)) };
        assert_eq!(tries([Next::Say(patient)]).await, (2, Ok(()), Duration::from_secs(expected)), "{asked}");
    };
    check(20, 20).await;
    check(86_400, 3600).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_tried_at_once_when_that_is_asked_for_unless_the_receiver_asked_for_patience() {
    let check = async |after: Option<Duration>, expected: Duration| {
        let (report, told, one) = (Arc::new(script([])), Told::default(), entries(1));
        report.script.lock().unwrap().push_back(Next::Say(Verdict::Again { why: "busy".into(), after }));
        let started = Instant::now();
        let nudge = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            told.gate.nudge();
        };
        tokio::join!(deliver(|| to(&report), one, &told), nudge);
        assert_eq!((report.tries.lock().unwrap().len(), started.elapsed()), (2, expected), "{after:?}");
    };
    check(None, Duration::from_millis(100)).await;
    check(Some(Duration::from_secs(20)), Duration::from_secs(20)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_the_place_is_not_looked_for_in_the_records() {
    let seven = entries(7);
    let report = Scripted { size: Some(Some(5)), ..script([Next::Say(Verdict::refused_all("who are you?"))]) };
    let outcome = run(report, &seven).await;
    let sizes: Vec<usize> = outcome.tries.iter().map(Vec::len).collect();
    assert_eq!(sizes, [5, 2], "not in halves");
    let ends: Vec<_> = outcome.settled.iter().map(|(_, end)| *end).collect();
    assert_eq!(ends, [[Err("refused"); 5].as_slice(), &[Ok(()); 2]].concat());
}

#[tokio::test(start_paused = true)]
async fn a_try_that_hangs_is_dropped_and_one_that_panics_is_made_again() {
    let (tried, end, took) = tries([Next::Hang]).await;
    assert_eq!((tried, end), (2, Ok(())));
    assert!(took >= Duration::from_secs(3), "{took:?}");
    assert_eq!(tries([Next::Panic, Next::Panic]).await.0, 3);
    assert_eq!(tries([Next::PanicInDrop]).await.0, 2, "what panics while it is given up is made again, too");
}

#[tokio::test(start_paused = true)]
async fn batches_are_as_long_as_the_reporter_takes_them() {
    let check = async |size: Option<usize>, expected: &[usize]| {
        let five = entries(5);
        let outcome = run(Scripted { size: size.map(Some), ..Scripted::default() }, &five).await;
        let sizes: Vec<usize> = outcome.tries.iter().map(Vec::len).collect();
        assert_eq!((&*sizes, outcome.settled), (expected, delivered(&five)), "{size:?}");
    };
    check(None, &[1; 5]).await;
    check(Some(2), &[2, 2, 1]).await;
    check(Some(0), &[1; 5]).await;
    check(Some(usize::MAX), &[5]).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_taken_is_sent_again_as_it_was() {
    let four = entries(4);
    let outcome =
        run(Scripted { size: Some(Some(4)), ..script([again(), Next::Panic, again(), again()]) }, &four).await;
    assert_eq!((outcome.tries, outcome.settled), (vec![ids(&four); 5], delivered(&four)));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_costs_none_of_its_batch() {
    for bad in 0..7 {
        let seven = entries(7);
        let report = Scripted { size: Some(Some(7)), bad: [ids(&seven)[bad]].into(), ..Scripted::default() };
        let outcome = run(report, &seven).await;
        let mut expected = delivered(&seven);
        expected[bad].1 = Err("refused");
        assert_eq!(outcome.settled, expected, "each once, in their order");
        assert!(outcome.tries.len() <= 12 && outcome.took.is_zero(), "{} {:?}", outcome.tries.len(), outcome.took);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_takes_too_long_is_sent_in_parts() {
    let eight = entries(8);
    let outcome = run(Scripted { size: Some(Some(8)), bearable: Some(2), ..Scripted::default() }, &eight).await;
    assert_eq!(outcome.settled, delivered(&eight), "each once, in their order");
    let sizes: Vec<usize> = outcome.tries.iter().map(Vec::len).collect();
    assert_eq!(sizes[..3], [8, 4, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_given_up_once_the_receiver_has_failed_for_long() {
    // Eight days, five days, eight days: only the first is before all that may still be delivered.
    let three = [aged(8 * 24), aged(5 * 24), aged(8 * 24)];
    let outcome = run(Scripted { size: Some(Some(3)), ..script((0..60).map(|_| again())) }, &three).await;
    let mut expected = delivered(&three);
    expected[0].1 = Err("expired");
    assert_eq!(outcome.settled, expected);
    let until = outcome.tries.iter().position(|tried| tried.len() == 2).unwrap();
    assert!((20..=44).contains(&until), "after ten minutes of tries, not at once: {until}");
    assert_eq!(outcome.tries.len(), 61);
}

#[tokio::test(start_paused = true)]
async fn without_an_end_nothing_is_given_up_for_its_age() {
    let two = [aged(365 * 24), aged(1)];
    let report = Scripted { max_age: Some(Duration::MAX), size: Some(Some(2)), ..script((0..200).map(|_| again())) };
    assert_eq!(run(report, &two).await.settled, delivered(&two), "after more than an hour of tries");
}

#[tokio::test(start_paused = true)]
async fn a_short_patience_is_kept_to() {
    let one = [aged(1)];
    let report = Scripted { max_age: Some(Duration::from_secs(60)), ..script((0..60).map(|_| again())) };
    let outcome = run(report, &one).await;
    assert_eq!(outcome.settled[0].1, Err("expired"));
    assert!((Duration::from_secs(60)..Duration::from_secs(90)).contains(&outcome.took), "{:?}", outcome.took);
    // A record is never given up without a try.
    assert_eq!(run(Scripted { max_age: Some(Duration::ZERO), ..Scripted::default() }, &one).await.settled[0].1, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_the_count_of_failures() {
    let report = script([again(), again(), Next::Say(Verdict::Delivered), again()]);
    let outcome = run(report, &entries(2)).await;
    assert_eq!(outcome.failed, [(1, 3), (2, 3), (1, 3)]);
}

#[tokio::test(start_paused = true)]
async fn the_reporter_is_looked_up_before_each_try() {
    let (old, new) = (Arc::new(script([again()])), Arc::new(Scripted::default()));
    let (old_too, new_too, told) = (old.clone(), new.clone(), Told::default());
    let current = || match old_too.tries.lock().unwrap().len() {
        0 => to(&old_too),
        _ => to(&new_too),
    };
    deliver(current, entries(3), &told).await;
    assert_eq!((old.tries.lock().unwrap().len(), new.tries.lock().unwrap().len()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn one_that_panics_when_it_is_asked_how_many_is_tried_until_it_is_mended() {
    let (broken, mended) = (Arc::new(Scripted { size: Some(None), ..script([]) }), Arc::new(Scripted::default()));
    let (asked, told, one) = (Mutex::new(0), Told::default(), entries(1));
    let current = || {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        if *asked < 4 { to(&broken) } else { to(&mended) }
    };
    deliver(current, one.clone(), &told).await;
    assert_eq!((told.failed.into_inner().unwrap().len(), told.settled.into_inner().unwrap()), (3, delivered(&one)));
}

#[test]
fn waits_grow_up_to_a_limit() {
    assert_eq!(gate::backoff(1, 9, 0.0), Duration::from_millis(250));
    assert_eq!(gate::backoff(1, 9, 1.0), Duration::from_millis(500));
    assert_eq!(gate::backoff(3, 9, 1.0), Duration::from_secs(2));
    assert_eq!(gate::backoff(1000, 2000, 1.0), Duration::from_secs(30));
    assert_eq!(gate::backoff(4, 3, 1.0), Duration::from_secs(30), "it is down");
}

#[test]
fn a_clock_that_jumps_costs_no_record() {
    let day = Duration::from_secs(24 * 3600);
    let check = |hours: &[i64], failing: Duration, expected: usize| {
        let entries: Vec<Entry> = hours.iter().map(|hours| aged(*hours)).collect();
        assert_eq!(expired(entries.iter(), day, failing), expected, "{hours:?} {failing:?}");
    };
    check(&[30, 25, 1, 30], LEAST_FAILING, 2);
    // It looks as if all were old, a moment after the first failure.
    check(&[9000, 9000], Duration::from_secs(60), 0);
    // The clock was an hour ahead when they were written.
    check(&[-1, 30], LEAST_FAILING, 0);
}
