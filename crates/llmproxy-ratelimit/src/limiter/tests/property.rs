//! What holds after any sequence of requests.

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Check { who: usize, prompt: u64, max_output: Option<u64> },
    Drop(usize),
    Refund(usize),
    Record(usize, Option<(u64, u64)>),
}

fn step() -> impl Strategy<Value = Step> {
    let check = (0usize..3, 0u64..50, prop::option::of(0u64..100));
    prop_oneof![
        4 => check.prop_map(|(who, prompt, max_output)| Step::Check { who, prompt, max_output }),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Refund),
        2 => (any::<usize>(), prop::option::of((0u64..60, 0u64..200))).prop_map(|(at, usage)| Step::Record(at, usage)),
    ]
}

proptest! {
    /// Whatever happens to requests, afterwards nothing is in flight, and exactly what was settled is used.
    #[test]
    fn afterwards_exactly_what_was_settled_is_used(steps in vec(step(), 1..80)) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _time_stands_still = runtime.enter();
        const BUDGET: u64 = 2000;
        let limits = LimitsConfig { tokens_per_minute: BUDGET, max_concurrent: 3, ..none() };
        let limiter = RateLimiter::new(&RateLimitConfig {
            global: LimitsConfig { tokens_per_minute: 2 * BUDGET, max_concurrent: 7, ..none() },
            default_completion_tokens: 70,
            ..per_key(limits)
        });
        let name = |who: usize| ["alice", "bob", "carol"][who];
        let account = |who| limiter.accounts.find(Key::Fingerprint(name(who).into()));
        let used = |account: &Account| -> u64 {
            // The budget is asked to be large, so that a debt is seen too.
            const LARGE: u64 = 1 << 40;
            LARGE - account.tokens.window(LARGE, nanos_since(limiter.epoch)).remaining
        };
        let mut open = Vec::new();
        let mut truth = [0u64; 3];
        for step in steps {
            match step {
                Step::Check { who, prompt, max_output } => {
                    let before = used(&account(who));
                    let permit = limiter.check(Some(&caller(name(who))), Some(&chat(prompt, max_output)), None);
                    if let Ok(permit) = permit {
                        open.push((who, used(&account(who)) - before, permit));
                    } else {
                        prop_assert_eq!(used(&account(who)), before);
                    }
                }
                Step::Drop(at) if !open.is_empty() => {
                    let (who, reserved, permit) = open.swap_remove(at % open.len());
                    drop(permit);
                    truth[who] += reserved;
                }
                Step::Refund(at) if !open.is_empty() => open.swap_remove(at % open.len()).2.refund(),
                Step::Record(at, usage) if !open.is_empty() => {
                    let (who, _, permit) = open.swap_remove(at % open.len());
                    permit.sink().unwrap().record(&record(usage));
                    truth[who] += usage.map_or(0, |(prompt, completion)| prompt + completion);
                }
                _ => {}
            }
            prop_assert_eq!(limiter.in_flight(), open.len() as u64);
        }
        for (who, reserved, permit) in open {
            drop(permit);
            truth[who] += reserved;
        }
        prop_assert_eq!(limiter.in_flight(), 0);
        for (who, truth) in truth.into_iter().enumerate() {
            prop_assert_eq!(account(who).in_flight(), 0);
            prop_assert_eq!(used(&account(who)), truth);
        }
        prop_assert_eq!(used(&limiter.everyone), truth.into_iter().sum::<u64>());
    }
}
