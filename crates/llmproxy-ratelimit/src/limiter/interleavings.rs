//! Requests that come at the same time, in many orders of their steps.

use llmproxy_core::Endpoint;
use shuttle::thread;

use super::*;
use crate::LimitsConfig;

/// How many orders of steps are tried, by chance and by few changes of the thread that steps.
const ORDERS: usize = 1000;

fn in_any_order(threads: impl Fn() + Send + Sync + 'static) {
    let threads = Arc::new(threads);
    let again = threads.clone();
    shuttle::check_random(move || again(), ORDERS);
    shuttle::check_pct(move || threads(), ORDERS, 3);
}

fn limiter(per_key: LimitsConfig, global: LimitsConfig) -> Arc<RateLimiter> {
    RateLimiter::new(&RateLimitConfig { enabled: true, per_key, global, ..RateLimitConfig::default() })
}

fn concurrent(max: u32) -> LimitsConfig {
    LimitsConfig { max_concurrent: max, ..LimitsConfig::default() }
}

fn ask(limiter: &Arc<RateLimiter>, key: &str, tokens: u64) -> Result<Permit, RateLimitError> {
    let call = Call { max_output: Some(tokens), ..Call::new(Endpoint::of("/v1/completions")) };
    limiter.check(Some(&Caller::named(key).with_fingerprint(key)), Some(&call), None)
}

/// What each of so many threads gives, all of which ask at the same time.
fn at_once<T: Send + 'static>(count: usize, ask: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let ask = Arc::new(ask);
    let threads: Vec<_> = (0..count)
        .map(|number| {
            let ask = ask.clone();
            thread::spawn(move || ask(number))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

fn remaining(limiter: &Arc<RateLimiter>, key: &str) -> u64 {
    let permit = ask(limiter, key, 0).expect("nothing is asked for");
    permit.standing().tokens.expect("tokens are limited").remaining
}

#[test]
fn no_more_are_in_flight_than_may_be_and_all_are_given_back() {
    in_any_order(|| {
        let limiter = limiter(concurrent(1), concurrent(2));
        let held = limiter.clone();
        let passed = at_once(4, move |number| {
            let permit = ask(&held, ["a", "b"][number % 2], 0).ok()?;
            // This one and at most one other; what is about to be refused may be counted for a moment.
            assert!((1..=2).contains(&held.in_flight()), "{}", held.in_flight());
            drop(permit);
            Some(())
        });
        assert!(passed.iter().any(Option::is_some), "everybody refused everybody");
        assert_eq!(limiter.in_flight(), 0);
        assert!(ask(&limiter, "a", 0).is_ok() && ask(&limiter, "b", 0).is_ok());
    });
}

#[test]
fn as_many_requests_pass_as_may_in_a_minute() {
    in_any_order(|| {
        let limiter = limiter(LimitsConfig { requests_per_minute: 2, ..LimitsConfig::default() }, concurrent(0));
        let asked = limiter.clone();
        let passed = at_once(4, move |_| ask(&asked, "a", 0).is_ok());
        assert_eq!(passed.iter().filter(|passed| **passed).count(), 2);
    });
}

#[test]
fn who_is_refused_has_taken_nothing() {
    in_any_order(|| {
        let own = LimitsConfig { requests_per_minute: 4, tokens_per_minute: 100, ..LimitsConfig::default() };
        let limiter = limiter(own, LimitsConfig { tokens_per_minute: 50, ..LimitsConfig::default() });
        let asked = limiter.clone();
        // The second is refused by what all share, after it has taken from its own.
        let permits: Vec<_> = at_once(2, move |_| ask(&asked, "a", 40).ok()).into_iter().flatten().collect();
        assert!(permits.len() <= 1, "eighty of fifty tokens were given");
        permits.iter().for_each(Permit::refund);
        drop(permits);
        assert_eq!((remaining(&limiter, "a"), limiter.in_flight()), (50, 0));
    });
}

#[test]
fn tokens_are_settled_once_whoever_settles_first() {
    in_any_order(|| {
        let own = LimitsConfig { tokens_per_minute: 100, ..LimitsConfig::default() };
        let limiter = limiter(own, LimitsConfig::default());
        let (first, second) = (ask(&limiter, "a", 40).expect("room"), ask(&limiter, "a", 40).expect("room"));
        let first = Arc::new(first);
        // Twice the one, from two threads, while the other is dropped unsettled and so stays used.
        let threads = [first.clone(), first].map(|permit| thread::spawn(move || permit.refund()));
        drop(second);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!((remaining(&limiter, "a"), limiter.in_flight()), (60, 0));
    });
}

#[test]
fn an_account_is_not_forgotten_while_it_is_used() {
    in_any_order(|| {
        let limiter = limiter(concurrent(1), LimitsConfig::default());
        let held = ask(&limiter, "a", 0).expect("nobody else is there");
        let (sweeping, asked) = (limiter.clone(), limiter.clone());
        let sweep = thread::spawn(move || sweeping.sweep());
        let other = thread::spawn(move || ask(&asked, "a", 0).is_ok());
        sweep.join().expect("no panic");
        assert!(!other.join().expect("no panic"), "one account became two");
        drop(held);
        assert_eq!(limiter.in_flight(), 0);
    });
}
