//! The model against cases that were computed by hand.

use super::*;

/// A thousand tokens of prompt a second, ten steps a second, no price of context.
const PLAIN: Spec = Spec { prefill: 1000.0, weights: 0.1, context: 0.0, budget: 500, batch: 8, blocks: 1000 };

fn job(ticket: u64, family: u64, prompt: usize, answer: usize) -> Job {
    let hashes = (0..((prompt + answer) / BLOCK) as u64).map(|at| family * 1_000_000 + at).collect();
    Job { ticket, hashes, prompt, answer }
}

/// Works until there is nothing left, and says when what happened, in milliseconds.
fn run(server: &mut Server) -> Vec<(u128, Event)> {
    let (mut now, mut all) = (Duration::ZERO, Vec::new());
    while let Some(took) = server.begin() {
        now += took;
        all.extend(server.finish().into_iter().map(|event| (now.as_millis(), event)));
    }
    all
}

fn server(spec: Spec, jobs: &[Job]) -> Server {
    let mut server = Server::new(spec);
    for job in jobs {
        assert!(server.push(job.clone()));
    }
    server
}

#[test]
fn its_metrics_say_who_works_who_waits_and_what_is_held() {
    let spec = Spec { batch: 1, blocks: 100, ..PLAIN };
    let mut server = server(spec, &[job(1, 1, 400, 80), job(2, 2, 400, 80)]);
    assert!(server.begin().is_some());
    let labels = r#"{engine="0",model_name="m"}"#;
    let expected = format!(
        "vllm:num_requests_running{labels} 1\nvllm:num_requests_waiting{labels} 1\nvllm:kv_cache_usage_perc{labels} 0.3\n"
    );
    assert_eq!(server.metrics(), expected);
    run(&mut server);
    assert_eq!(server.metrics(), expected.replace(" 1\n", " 0\n").replace("0.3", "0"));
}

#[test]
fn one_request_alone_has_its_first_token_after_its_prompt_and_then_one_a_step() {
    let mut server = server(PLAIN, &[job(1, 1, 400, 11)]);
    let events = run(&mut server);
    assert_eq!(events, [(400, Event::First { ticket: 1, cached: 0 }), (1400, Event::Last { ticket: 1 })]);
    // 400 tokens and ten.
    assert_eq!(server.worked(), Duration::from_millis(410));
}

#[test]
fn a_long_prompt_takes_as_many_steps_as_its_budget_wants_and_no_longer() {
    let events = run(&mut server(PLAIN, &[job(1, 1, 1200, 1)]));
    assert_eq!(events, [(1200, Event::First { ticket: 1, cached: 0 }), (1200, Event::Last { ticket: 1 })]);
}

#[test]
fn a_short_prompt_takes_a_step() {
    let events = run(&mut server(PLAIN, &[job(1, 1, 10, 1)]));
    assert_eq!(events[0].0, 100);
}

#[test]
fn two_that_fit_into_a_step_share_it() {
    let events = run(&mut server(PLAIN, &[job(1, 1, 200, 3), job(2, 2, 300, 3)]));
    let first = |ticket| (500, Event::First { ticket, cached: 0 });
    let last = |ticket| (700, Event::Last { ticket });
    // Both answers come in the time of one.
    assert_eq!(events, [first(1), first(2), last(1), last(2)]);
}

#[test]
fn an_answer_goes_on_while_another_prompt_is_read() {
    let mut server = server(PLAIN, &[job(1, 1, 100, 4)]);
    assert_eq!(server.begin(), Some(Duration::from_millis(100)));
    server.finish();
    assert!(server.push(job(2, 2, 1000, 1)));
    // 499 of the new prompt and a token of the answer; twice, and then the two that are left.
    let events = run(&mut server);
    let expected = [
        (1100, Event::Last { ticket: 1 }),
        (1100, Event::First { ticket: 2, cached: 0 }),
        (1100, Event::Last { ticket: 2 }),
    ];
    assert_eq!(events, expected);
}

#[test]
fn what_the_cache_has_of_a_prompt_is_not_computed_again() {
    let mut server = server(PLAIN, &[job(1, 1, 400, 1)]);
    run(&mut server);
    let again = job(2, 1, 400, 1);
    // 25 whole blocks; the last one is computed again, because the answer needs a token to come from.
    assert_eq!(server.cached(&again), 384);
    assert!(server.push(again));
    assert_eq!(run(&mut server), [(100, Event::First { ticket: 2, cached: 384 }), (100, Event::Last { ticket: 2 })]);
}

#[test]
fn the_next_turn_finds_the_answer_too() {
    let mut server = server(PLAIN, &[job(1, 1, 160, 161)]);
    run(&mut server);
    assert_eq!(server.cached(&job(2, 1, 400, 1)), 320, "all but the last token, which nobody has read");
}

#[test]
fn context_costs_time_for_each_token_that_is_made() {
    let spec = Spec { context: 0.001, ..PLAIN };
    let events = run(&mut server(spec, &[job(1, 1, 100, 3)]));
    // 100 for the prompt; then 100 and 100 tokens, 100 and 101 tokens.
    assert_eq!(events[1], (501, Event::Last { ticket: 1 }));
}

#[test]
fn the_line_is_first_come_first_served_even_where_a_later_one_would_fit() {
    // Ten blocks: the first takes six, the second would take eight, the third one.
    let spec = Spec { blocks: 10, ..PLAIN };
    let mut server = server(spec, &[job(1, 1, 90, 6), job(2, 2, 120, 1), job(3, 3, 10, 1)]);
    let firsts: Vec<_> =
        run(&mut server).into_iter().filter(|(_, event)| matches!(event, Event::First { .. })).collect();
    let first = |at, ticket| (at, Event::First { ticket, cached: 0 });
    // The first has its last token at 600; then the others share a step of 130 tokens.
    assert_eq!(firsts, [first(100, 1), first(730, 2), first(730, 3)]);
}

#[test]
fn no_more_than_a_batch_run_at_once() {
    let spec = Spec { batch: 1, ..PLAIN };
    let events = run(&mut server(spec, &[job(1, 1, 100, 2), job(2, 2, 100, 1)]));
    assert_eq!(events[2], (300, Event::First { ticket: 2, cached: 0 }));
}

#[test]
fn what_can_never_fit_is_not_let_into_the_line() {
    let mut server = Server::new(Spec { blocks: 10, ..PLAIN });
    assert!(!server.push(job(1, 1, 160, 2)));
    assert!(server.push(job(1, 1, 160, 1)));
}

#[test]
fn the_backlog_is_what_is_still_to_be_computed() {
    let mut server = server(PLAIN, &[job(1, 1, 600, 1), job(2, 2, 100, 1)]);
    assert_eq!(server.backlog(), 700);
    server.begin();
    server.finish();
    assert_eq!(server.backlog(), 200);
    run(&mut server);
    assert_eq!(server.backlog(), 0);
    assert!(server.push(job(3, 1, 600, 1)));
    assert_eq!(server.backlog(), 8, "the rest is in the cache");
}

#[test]
fn a_crash_leaves_nothing_but_the_work_that_was_done() {
    let mut server = server(PLAIN, &[job(1, 1, 400, 5), job(2, 2, 400, 5)]);
    let took = server.begin().unwrap();
    server.crash();
    assert_eq!((server.finish(), server.begin(), server.worked()), (vec![], None, took));
    assert_eq!(server.cached(&job(3, 1, 400, 5)), 0);
}

#[test]
fn the_numbers_of_the_cards_belong_together() {
    // A step is bound by the weights up to this many tokens: where the roofline bends.
    let bend = |spec: Spec| (spec.weights * spec.prefill) as usize;
    assert!((100..200).contains(&bend(Spec::SMALL)) && (100..200).contains(&bend(Spec::LARGE)));
    let alone = |spec: Spec| 1.0 / (spec.weights + 1000.0 * spec.context);
    assert!((28.0..33.0).contains(&alone(Spec::SMALL)), "tokens a second of one answer: {}", alone(Spec::SMALL));
    assert!((75.0..85.0).contains(&alone(Spec::LARGE)), "{}", alone(Spec::LARGE));
    assert_eq!(Spec::SMALL.at_half_rate().blocks, Spec::SMALL.blocks);
}
