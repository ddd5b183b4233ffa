//! Small runs, of which is known what must come out.

use super::*;
use crate::simulate::{
    server::Spec,
    workload::{ALL, Turn},
};

fn go(workload: &str, policy: &str, length: f64) -> Outcome {
    let workload = ALL.iter().find(|of| of.name == workload).unwrap();
    run(workload, Chooser::named(policy).unwrap(), 5, length).unwrap()
}

#[test]
fn everybody_is_answered_and_each_server_has_its_part() {
    let outcome = go("chat", "round_robin", 30.0);
    assert!(outcome.requests > 200 && outcome.errors == 0 && outcome.first.len() == outcome.requests);
    assert!(outcome.worked.len() == 4 && outcome.worked.iter().all(|worked| *worked > 15.0), "{:?}", outcome.worked);
    assert_eq!((outcome.cached, outcome.to_failing), (0, None), "nobody says what another one said");
    // No step is shorter than the time to read the weights; and a client sees it up to a millisecond later.
    assert!(outcome.first.iter().all(|first| *first >= 0.032));
}

#[test]
fn a_prompt_alone_takes_as_long_as_the_server_s_model_says() {
    const TURN: Turn = Turn { question: 6_000, answer: 11, pause: 0.0 };
    let alone = Workload {
        servers: &[Nature::Sound],
        weights: &[1],
        // After the warm-up.
        make: |_, _| vec![Session { start: 5.0, system: None, id: 1, turns: vec![TURN; 2] }],
        ..*ALL.iter().find(|of| of.name == "agents").unwrap()
    };
    let outcome = run(&alone, Chooser::named("round_robin").unwrap(), 5, 20.0).unwrap();
    // 6,000 tokens; then 12,011, of which 6,010 are known, and 6,000 of them in whole blocks. A client sees both up to a
    // millisecond late.
    let expected = [6_000.0 / 12_000.0, 6_011.0 / 12_000.0];
    assert!(outcome.first.iter().zip(expected).all(|(first, of)| (0.0..=0.001).contains(&(first - of))), "{outcome:?}");
    assert_eq!((outcome.first.len(), outcome.prompt, outcome.cached), (2, 18_011, 6_000));
    // What both prompts take, and ten tokens for each answer, over contexts of 6,000 and of 12,011 and a few more.
    let worked = 12_031.0 / 12_000.0 + (60_045.0 + 120_155.0) * Spec::LARGE.context;
    assert!((outcome.worked[0] - worked).abs() < 1e-6, "{worked}, {outcome:?}");
}

#[test]
fn a_conversation_s_next_turn_finds_what_the_oracle_sent_it_to() {
    let [blind, knows] = ["round_robin", ORACLE_BY_CACHE].map(|policy| go("conversations", policy, 60.0));
    assert_eq!(blind.requests, knows.requests, "the same is asked");
    let hits = |outcome: &Outcome| outcome.cached as f64 / outcome.prompt as f64;
    assert!(hits(&knows) > 0.8 && hits(&knows) > hits(&blind) + 0.1, "{} {}", hits(&knows), hits(&blind));
}

#[test]
fn a_server_that_fails_is_counted_from_its_eleventh_failure() {
    let asked: Vec<bool> = [[true, false].repeat(10), vec![false, true, false, false]].concat();
    assert_eq!(after_known(&asked), (1, 5));
    assert_eq!(after_known(&asked[..18]), (0, 0), "it has failed nine times");
    let outcome = go("failing-500", "round_robin", 30.0);
    let (some, all) = outcome.to_failing.unwrap();
    assert!(some * 50 <= all, "it is ejected by then, or before: {some} of {all}");
    assert!(outcome.errors > 0 && outcome.errors * 20 < outcome.requests, "{} clients saw it", outcome.errors);
    assert_eq!(outcome.worked.len(), 3, "what does no work is not out of balance");
}

#[test]
fn a_server_that_dies_breaks_what_it_had_and_is_asked_again_when_it_is_back() {
    let outcome = go("comes-back", "least_connections", 90.0);
    assert!(outcome.errors > 0, "streams were under way");
    assert!(outcome.errors * 10 < outcome.requests, "the rest went elsewhere: {}", outcome.errors);
    let mean = outcome.worked.iter().sum::<f64>() / 4.0;
    assert!((0.6..0.95).contains(&(outcome.worked[1] / mean)), "{:?}", outcome.worked);
}

#[test]
fn a_slow_server_has_more_to_do_where_nobody_looks() {
    let outcome = go("slow-backend", "round_robin", 60.0);
    let most = outcome.worked.iter().copied().fold(0.0, f64::max);
    assert!(outcome.worked[1] == most, "{:?}", outcome.worked);
}

#[test]
fn weights_are_the_balancer_s() {
    let outcome = go("unequal", "round_robin", 60.0);
    let mean = outcome.worked.iter().sum::<f64>() / 4.0;
    // Half as many requests, each of which takes twice as long.
    assert!(outcome.worked.iter().all(|worked| (worked / mean - 1.0).abs() < 0.15), "{:?}", outcome.worked);
}

#[test]
fn a_name_that_is_no_policy_says_which_are() {
    let error = Chooser::named("fastest").unwrap_err();
    assert!(error.contains("fastest") && error.contains("least_connections"), "{error}");
}

#[test]
fn prefix_aware_has_nearly_the_hits_of_who_knows_every_cache_and_no_longer_waits() {
    for workload in ["conversations", "agents"] {
        let policies = ["least_connections", "prefix_aware", ORACLE_BY_CACHE, ORACLE_BY_WORK];
        let [blind, aware, by_cache, by_work] = policies.map(|policy| go(workload, policy, 120.0));
        let hits = |outcome: &Outcome| outcome.cached as f64 / outcome.prompt as f64;
        let most = hits(&by_cache).max(hits(&by_work));
        assert!(hits(&aware) > 0.95 * most, "{workload}: {} of {most}", hits(&aware));
        let mean = |outcome: &Outcome| outcome.first.iter().sum::<f64>() / outcome.first.len() as f64;
        assert!(mean(&aware) < mean(&blind) / 1.5, "{workload}: {} s, {} s", mean(&aware), mean(&blind));
    }
}
