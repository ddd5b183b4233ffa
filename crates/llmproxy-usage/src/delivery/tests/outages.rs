//! What a receiver that is down costs, and what it asks for.

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::*;

fn later(secs: u64) -> Next {
    Next::Say(Verdict::Again { why: "later".into(), after: Some(Duration::from_secs(secs)) })
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_finds_out_whether_a_receiver_is_there_again() {
    let (report, told) = (Arc::new(script((0..1000).map(|_| again()))), Told::default());
    let lanes = || join_all((0..16).map(|_| deliver(|| to(&report), entries(1), &told)));
    timeout(Duration::from_secs(600), lanes()).await.unwrap_err();
    let tries = report.tries.lock().unwrap().len();
    // Some seconds for which all are tried, and then one in fifteen to thirty.
    assert!((16..16 * 4 + 45).contains(&tries), "{tries}");
    assert_eq!((told.down.lock().unwrap().len(), *told.recovered.lock().unwrap()), (1, 0));
    report.script.lock().unwrap().truncate(1);
    let started = Instant::now();
    lanes().await;
    assert!(started.elapsed() < Duration::from_secs(61), "{:?}", started.elapsed());
    assert_eq!((told.settled.lock().unwrap().len(), *told.recovered.lock().unwrap()), (16, 1));
    assert_eq!(report.tries.lock().unwrap().len(), tries + 1 + 16);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_fails_for_ever_does_not_keep_others_from_finding_out() {
    let stuck = entries(1);
    let report = Arc::new(Scripted { stuck: ids(&stuck).into_iter().collect(), ..script([]) });
    let told = Told::default();
    let fine = async {
        // The other one is down by now, as far as anybody knows.
        sleep(Duration::from_secs(60)).await;
        assert_eq!(told.down.lock().unwrap().len(), 1);
        join_all((0..3).map(|_| deliver(|| to(&report), entries(1), &told))).await;
    };
    tokio::select! {
        () = deliver(|| to(&report), stuck, &told) => unreachable!("it fails"),
        done = timeout(Duration::from_secs(120), fine) => done.unwrap(),
    }
    assert_eq!(told.settled.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_has_become_too_old_is_given_up_without_a_try_of_its_own_and_the_wait_is_kept() {
    let max_age = Some(Duration::from_secs(60));
    let report = Arc::new(Scripted { max_age, ..script((0..1000).map(|_| again())) });
    let told = Told::default();
    // All but the last have long been too old; each is a batch.
    let mut batches: Vec<_> = (0..50).map(|_| vec![aged(1)]).collect();
    batches.push(vec![aged(-1)]);
    let all = join_all(batches.into_iter().map(|batch| deliver(|| to(&report), batch, &told)));
    timeout(Duration::from_secs(300), all).await.unwrap_err();
    assert_eq!(told.settled.lock().unwrap().len(), 50);
    let tries = report.tries.lock().unwrap().len();
    assert!(tries < 51 * 4 + 25, "{tries}");
    // The next one finds a receiver that is known to be down.
    let started = Instant::now();
    timeout(Duration::from_secs(5), deliver(|| to(&report), entries(1), &told)).await.unwrap_or_default();
    let more = report.tries.lock().unwrap().len() - tries;
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert!(more <= 1, "{more}: none but the one that may be due");
}

#[tokio::test(start_paused = true)]
async fn patience_that_one_receiver_asks_for_is_not_kept_with_another() {
    let check = async |place: u64, expected: Duration| {
        let (report, told) = (Arc::new(script([later(600)])), Told::default());
        let current = || Delivery { place: told.gate.nudges() * place, ..to(&report) };
        let reload = async {
            sleep(Duration::from_millis(100)).await;
            told.gate.set_place(place);
            told.gate.nudge();
        };
        let started = Instant::now();
        tokio::join!(deliver(current, entries(1), &told), reload);
        assert_eq!(started.elapsed(), expected, "{place}");
    };
    check(0, Duration::from_secs(600)).await;
    check(7, Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_receiver_that_was_replaced_meanwhile_binds_nobody() {
    let (report, told) = (Arc::new(script([Next::Hang, later(600)])), Told::default());
    told.gate.set_place(7);
    // It says 600 s in the name of a place that is not the reporter's any more.
    let started = Instant::now();
    deliver(|| to(&report), entries(1), &told).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_that_wants_to_be_left_alone_for_long_is_down_at_once() {
    let check = async |next: Next, expected: &[u32]| {
        let (report, told) = (Arc::new(script([next])), Told::default());
        deliver(|| to(&report), entries(1), &told).await;
        assert_eq!(*told.down.lock().unwrap(), expected);
        assert_eq!(*told.recovered.lock().unwrap(), expected.len());
    };
    check(later(31), &[1]).await;
    check(later(30), &[]).await;
    check(again(), &[]).await;
}

fn filter(models: &str) -> Filter {
    Filter::compile(&serde_json::from_value(serde_json::json!({ "models": [models] })).unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_the_newest_configuration_does_not_want_is_not_sent() {
    let two = [entries(1), entries(1)].concat();
    let report = Arc::new(Scripted { size: Some(Some(2)), ..script([again()]) });
    let told = Told::default();
    let current = || match report.tries.lock().unwrap().len() {
        0 => to(&report),
        _ => Delivery { filter: filter("gpt*"), ..to(&report) },
    };
    deliver(current, two, &told).await;
    let sizes: Vec<usize> = report.tries.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [2], "no second try");
    assert!(told.settled.lock().unwrap().is_empty(), "neither delivered nor given up");
}

#[tokio::test(start_paused = true)]
async fn what_the_newest_configuration_does_not_want_is_no_dead_letter_either() {
    let check = async |models: &str, expected: usize| {
        let told = Told::default();
        let failure = Failure { why: "busy", tries: 1, retries: 3, after: None, place: 0, nudges: 0 };
        told.gate.failed(&failure, 0.0);
        sleep(LEAST_FAILING).await;
        let max_age = Some(Duration::from_secs(60));
        let report = Arc::new(Scripted { max_age, ..script([]) });
        let delivery = Delivery { filter: filter(models), ..to(&report) };
        let mut entries = vec![aged(1), aged(1), aged(-1)];
        give_up_old(&delivery, &mut entries, &told).await;
        assert_eq!((entries.len(), told.settled.lock().unwrap().len()), (1, expected), "{models}");
    };
    check("*", 2).await;
    check("gpt*", 0).await;
}
