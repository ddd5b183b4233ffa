//! Stories of callers and their limits.

use llmproxy_core::{Endpoint, Exchange, TokenUsage, UsageRecord};
use tokio::time::advance;

use super::*;
use crate::LimitsConfig;

mod property;

fn per_key(per_key: LimitsConfig) -> RateLimitConfig {
    RateLimitConfig { enabled: true, per_key, ..RateLimitConfig::default() }
}

fn none() -> LimitsConfig {
    LimitsConfig::default()
}

fn caller(name: &str) -> Caller {
    Caller::named(name).with_fingerprint(name)
}

fn chat(prompt: u64, max_output: Option<u64>) -> Call {
    Call {
        model: Some("m".into()),
        prompt_estimate: prompt,
        max_output,
        ..Call::new(Endpoint::of("/v1/chat/completions"))
    }
}

fn record(usage: Option<(u64, u64)>) -> Arc<UsageRecord> {
    let exchange = Exchange::new();
    Arc::new(UsageRecord {
        request_id: exchange.id(),
        timestamp: exchange.timestamp(),
        model: Some("m".into()),
        usage: usage.map(|(prompt, completion)| TokenUsage { prompt, completion, ..TokenUsage::default() }),
        ..UsageRecord::new(Endpoint::of("/v1/chat/completions"))
    })
}

/// A limiter and one caller of it.
struct Alice(Arc<RateLimiter>);

impl Alice {
    fn new(limits: LimitsConfig) -> Self {
        Self(RateLimiter::new(&per_key(limits)))
    }

    fn asks(&self) -> Result<Permit, RateLimitError> {
        self.0.check(Some(&caller("alice")), None, None)
    }

    fn chats(&self, prompt: u64, max_output: Option<u64>) -> Result<Permit, RateLimitError> {
        self.0.check(Some(&caller("alice")), Some(&chat(prompt, max_output)), None)
    }

    fn tokens_used(&self) -> u64 {
        let account = self.0.accounts.find(Key::Fingerprint("alice".into()));
        let budget = self.0.limits.load().per_key.tokens.unwrap();
        budget - account.tokens.window(budget, nanos_since(self.0.epoch)).remaining
    }
}

/// Who comes back exactly when told passes, and a nanosecond earlier does not.
async fn check_retry_after(error: RateLimitError, ask: impl Fn() -> bool) {
    let wait = error.retry_after().unwrap();
    advance(wait - Duration::from_nanos(1)).await;
    assert!(!ask(), "too early after {wait:?}");
    advance(Duration::from_nanos(1)).await;
    assert!(ask(), "refused after {wait:?}");
}

fn kind(error: &RateLimitError) -> (Scope, LimitKind) {
    match error {
        RateLimitError::Limited { scope, kind, .. } => (*scope, *kind),
        other => panic!("{other} is no limit"),
    }
}

#[tokio::test(start_paused = true)]
async fn twice_the_rate_may_come_at_once() {
    let alice = Alice::new(LimitsConfig { requests_per_second: 3, ..none() });
    for _ in 0..6 {
        assert!(alice.asks().is_ok());
    }
    let error = alice.asks().unwrap_err();
    assert_eq!(kind(&error), (Scope::Key, LimitKind::RequestsPerSecond));
    check_retry_after(error, || alice.asks().is_ok()).await;
    assert!(alice.asks().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_burst_size_is_what_may_come_at_once() {
    let alice = Alice::new(LimitsConfig { requests_per_second: 10, burst_size: 1, ..none() });
    assert!(alice.asks().is_ok());
    assert_eq!(alice.asks().unwrap_err().retry_after(), Some(Duration::from_millis(100)));
}

#[tokio::test(start_paused = true)]
async fn a_minutes_requests_may_come_at_once() {
    let alice = Alice::new(LimitsConfig { requests_per_minute: 7, ..none() });
    for left in (0..7).rev() {
        assert_eq!(alice.asks().unwrap().standing().requests.unwrap().remaining, left);
    }
    let error = alice.asks().unwrap_err();
    assert_eq!(kind(&error), (Scope::Key, LimitKind::RequestsPerMinute));
    check_retry_after(error, || alice.asks().is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn tokens_come_back_at_the_moment_that_was_told() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 700, ..none() });
    drop(alice.chats(100, Some(500)).unwrap());
    let error = alice.chats(100, Some(100)).unwrap_err();
    assert_eq!(kind(&error), (Scope::Key, LimitKind::TokensPerMinute));
    let RateLimitError::Limited { window, .. } = &error else { unreachable!() };
    assert_eq!((window.limit, window.remaining), (700, 100));
    check_retry_after(error, || alice.chats(100, Some(100)).is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn the_refusal_that_lasts_longest_is_told() {
    let limits = LimitsConfig { requests_per_second: 1, burst_size: 2, requests_per_minute: 2, ..none() };
    let alice = Alice::new(limits);
    for _ in 0..2 {
        drop(alice.asks().unwrap());
    }
    // The second's limit would pass it after one second, the minute's after thirty.
    let error = alice.asks().unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    check_retry_after(error, || alice.asks().is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn what_one_limit_took_is_given_back_when_another_refuses() {
    let limits = LimitsConfig { requests_per_second: 5, requests_per_minute: 100, tokens_per_minute: 10, ..none() };
    let alice = Alice::new(limits);
    drop(alice.chats(10, Some(0)).unwrap());
    for _ in 0..1000 {
        assert_eq!(kind(&alice.chats(1, Some(0)).unwrap_err()).1, LimitKind::TokensPerMinute);
    }
    // Nine of the burst are left, as if the thousand had never come.
    for _ in 0..9 {
        drop(alice.asks().unwrap());
    }
    assert_eq!(kind(&alice.asks().unwrap_err()).1, LimitKind::RequestsPerSecond);
    assert_eq!(alice.0.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_limits_are_given_back_when_a_global_one_refuses() {
    let limiter = RateLimiter::new(&RateLimitConfig {
        global: LimitsConfig { tokens_per_minute: 100, ..none() },
        ..per_key(LimitsConfig { requests_per_minute: 2, tokens_per_minute: 1000, max_concurrent: 2, ..none() })
    });
    let _bob = limiter.check(Some(&caller("bob")), Some(&chat(100, Some(0))), None).unwrap();
    let alice = Alice(limiter);
    for _ in 0..10 {
        assert_eq!(kind(&alice.chats(50, Some(0)).unwrap_err()), (Scope::Global, LimitKind::TokensPerMinute));
    }
    assert_eq!(alice.tokens_used(), 0);
    let _both = [alice.asks().unwrap(), alice.asks().unwrap()];
}

#[tokio::test(start_paused = true)]
async fn one_callers_flood_leaves_the_global_limit_to_others() {
    let limiter = RateLimiter::new(&RateLimitConfig {
        global: LimitsConfig { requests_per_minute: 10, ..none() },
        ..per_key(LimitsConfig { requests_per_minute: 5, ..none() })
    });
    for _ in 0..100 {
        let _ = limiter.check(Some(&caller("alice")), None, None);
    }
    for _ in 0..5 {
        assert!(limiter.check(Some(&caller("bob")), None, None).is_ok());
    }
    let carol = limiter.check(Some(&caller("carol")), None, None);
    assert_eq!(kind(&carol.unwrap_err()), (Scope::Global, LimitKind::RequestsPerMinute));
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_free_when_the_permit_is_gone() {
    let alice = Alice::new(LimitsConfig { max_concurrent: 2, ..none() });
    let first = alice.asks().unwrap();
    let _second = alice.asks().unwrap();
    let error = alice.asks().unwrap_err();
    assert_eq!(kind(&error), (Scope::Key, LimitKind::MaxConcurrent));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    assert!(alice.0.check(Some(&caller("bob")), None, None).is_ok());
    drop(first);
    assert!(alice.asks().is_ok());
}

#[tokio::test(start_paused = true)]
async fn anonymous_callers_are_told_apart_by_address() {
    let limiter = RateLimiter::new(&per_key(LimitsConfig { requests_per_minute: 1, ..none() }));
    let anonymous = Caller::anonymous();
    let asks = |ip: Option<[u8; 4]>| limiter.check(Some(&anonymous), None, ip.map(Into::into)).is_ok();
    assert!(asks(Some([10, 0, 0, 1])));
    assert!(asks(Some([10, 0, 0, 2])));
    assert!(!asks(Some([10, 0, 0, 1])));
    assert!(asks(None));
    assert!(!asks(None));
    assert!(limiter.check(None, None, None).is_err(), "no caller is an anonymous one");
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_model_is_refused_whether_or_not_limits_are_on() {
    let limiter = RateLimiter::new(&RateLimitConfig::default());
    let limited = caller("alice").with_allowed_models(["other".to_owned()]);
    let error = limiter.check(Some(&limited), Some(&chat(1, None)), None).unwrap_err();
    assert_eq!(error, RateLimitError::ModelForbidden { model: "m".into() });
    assert_eq!(error.headers().count(), 0);
    let allowed = caller("bob").with_allowed_models(["m".to_owned()]);
    assert!(limiter.check(Some(&allowed), Some(&chat(1, None)), None).is_ok());
}

#[tokio::test(start_paused = true)]
async fn whoever_may_use_certain_models_must_name_one() {
    let limiter = RateLimiter::new(&RateLimitConfig::default());
    let restricted = caller("alice").with_allowed_models(["m".to_owned()]);
    let check = |caller: &Caller, path: &str, passes: bool| {
        let result = limiter.check(Some(caller), Some(&Call::new(Endpoint::of(path))), None);
        assert_eq!(result.err(), (!passes).then_some(RateLimitError::ModelUnnamed), "{path}");
    };
    let of_servers = ["/generate", "/generate_stream", "/completion", "/embed", "/rerank", "/score", "/tokenize"];
    for path in ["/v1/audio/transcriptions", "/v1/images/edits", "/v1/chat/completions", "/v1/messages", "/api/chat"]
        .into_iter()
        .chain(of_servers)
    {
        check(&restricted, path, false);
        check(&caller("bob"), path, true);
    }
    for path in ["/v1/models", "/v1/files", "/api/tags"] {
        check(&restricted, path, true);
    }
    // What came with a body is known to inspect alone.
    let call = Call { takes_model: true, ..Call::new(Endpoint::of("/v1/anything")) };
    assert_eq!(limiter.check(Some(&restricted), Some(&call), None).err(), Some(RateLimitError::ModelUnnamed));
    assert!(limiter.check(Some(&caller("bob")), Some(&call), None).is_ok());
    let named = Call { model: Some("m".into()), ..call };
    assert!(limiter.check(Some(&restricted), Some(&named), None).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_larger_than_the_budget_is_told_so() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 100, ..none() });
    let error = alice.chats(50, Some(51)).unwrap_err();
    assert_eq!(error, RateLimitError::RequestTooLarge { scope: Scope::Key, needed: 101, budget: 100 });
    assert_eq!(error.retry_after(), None);
    assert!(error.to_string().contains("100 tokens per minute"), "{error}");
    assert!(matches!(alice.chats(1, Some(u64::MAX)), Err(RateLimitError::RequestTooLarge { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_guess_never_makes_a_request_too_large() {
    // Less than the 1024 that are set aside for an unbounded answer.
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 100, ..none() });
    let permit = alice.chats(50, None).unwrap();
    assert_eq!(alice.tokens_used(), 100);
    permit.refund();
}

#[tokio::test(start_paused = true)]
async fn an_unbounded_answer_is_guessed_by_what_the_model_did_before() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 100_000, ..none() });
    let permit = alice.chats(10, None).unwrap();
    assert_eq!(alice.tokens_used(), 10 + 1024);
    permit.sink().unwrap().record(&record(Some((12, 200))));
    assert_eq!(alice.tokens_used(), 212);
    let _second = alice.chats(10, None).unwrap();
    assert_eq!(alice.tokens_used(), 212 + 10 + 200);
}

#[tokio::test(start_paused = true)]
async fn several_answers_are_guessed_to_be_as_long_each_and_teach_nothing() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 100_000, ..none() });
    let call = Call { answers: 4, ..chat(0, None) };
    let permit = alice.0.check(Some(&caller("alice")), Some(&call), None).unwrap();
    assert_eq!(alice.tokens_used(), 4 * 1024);
    permit.sink().unwrap().record(&record(Some((0, 800))));
    assert_eq!(alice.tokens_used(), 800);
    let _next = alice.chats(0, None).unwrap();
    assert_eq!(alice.tokens_used(), 800 + 1024);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_about_tokens_reserves_none() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 100, ..none() });
    let models = Call::new(Endpoint::of("/v1/models"));
    let ask = |call: &Call| alice.0.check(Some(&caller("alice")), Some(call), None).unwrap();
    assert!(ask(&models).sink().is_none());
    let of = |path| Call { model: Some("m".into()), prompt_estimate: 30, ..Call::new(Endpoint::of(path)) };
    assert!(ask(&of("/v1/messages/count_tokens")).sink().is_none());
    // What reads may come to tokens, of which nothing is known before.
    let rerank = ask(&of("/v1/rerank"));
    assert_eq!(alice.tokens_used(), 0);
    rerank.sink().unwrap().record(&record(Some((20, 0))));
    assert_eq!(alice.tokens_used(), 20);
    let embedding = Call { prompt_estimate: 30, ..Call::new(Endpoint::of("/v1/embeddings")) };
    drop(ask(&embedding));
    assert_eq!(alice.tokens_used(), 50, "vectors come out, no tokens");
}

#[tokio::test(start_paused = true)]
async fn a_debt_is_paid_before_the_next_request() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 600, ..none() });
    alice.chats(10, Some(0)).unwrap().sink().unwrap().record(&record(Some((10, 1190))));
    let error = alice.chats(10, Some(0)).unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(61)));
    check_retry_after(error, || alice.chats(10, Some(0)).is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_settled_once() {
    let alice = Alice::new(LimitsConfig { tokens_per_minute: 600, ..none() });
    let permit = alice.chats(100, Some(100)).unwrap();
    let sink = permit.sink().unwrap();
    drop(permit);
    assert_eq!(alice.tokens_used(), 200, "the record may come after the answer");
    sink.record(&record(Some((90, 10))));
    sink.record(&record(None));
    drop(sink);
    assert_eq!(alice.tokens_used(), 100);

    let refunded = alice.chats(100, Some(100)).unwrap();
    refunded.refund();
    assert_eq!(alice.tokens_used(), 100);
    drop(alice.chats(100, Some(100)).unwrap());
    assert_eq!(alice.tokens_used(), 300, "without a record the estimate stays");
    alice.chats(100, Some(100)).unwrap().sink().unwrap().record(&record(None));
    assert_eq!(alice.tokens_used(), 300, "a record without usage used nothing");
}

#[tokio::test(start_paused = true)]
async fn new_limits_keep_what_was_used() {
    let limits = LimitsConfig { requests_per_minute: 10, tokens_per_minute: 600, max_concurrent: 3, ..none() };
    let alice = Alice::new(limits.clone());
    let held: Vec<_> = (0..3).map(|_| alice.chats(100, Some(0)).unwrap()).collect();

    alice.0.reconfigure(&per_key(LimitsConfig { tokens_per_minute: 400, max_concurrent: 4, ..limits }));
    assert_eq!(alice.tokens_used(), 300);
    let fourth = alice.chats(100, Some(0)).unwrap();
    assert_eq!(fourth.standing().requests.unwrap().remaining, 6);
    assert_eq!(fourth.standing().tokens.unwrap().remaining, 0);
    assert_eq!(kind(&alice.asks().unwrap_err()).1, LimitKind::MaxConcurrent);
    drop((held, fourth));
    assert_eq!(alice.0.in_flight(), 0);

    alice.0.reconfigure(&RateLimitConfig::default());
    assert!(alice.asks().unwrap().standing().headers().next().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_faster_limit_does_not_inherit_a_slower_ones_wait() {
    let alice = Alice::new(LimitsConfig { requests_per_second: 1, burst_size: 60, ..none() });
    for _ in 0..60 {
        drop(alice.asks().unwrap());
    }
    alice.0.reconfigure(&per_key(LimitsConfig { requests_per_second: 10, ..none() }));
    assert_eq!(alice.asks().unwrap_err().retry_after(), Some(Duration::from_millis(100)));
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_switched_off_stays_off() {
    let limits = LimitsConfig { enabled: Some(false), requests_per_minute: 1, ..none() };
    let alice = Alice::new(limits.clone());
    let off = RateLimiter::new(&RateLimitConfig {
        enabled: false,
        ..per_key(LimitsConfig { enabled: Some(true), ..limits })
    });
    for _ in 0..5 {
        drop(alice.asks().unwrap());
        drop(off.check(None, None, None).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn idle_callers_are_forgotten() {
    let limits = LimitsConfig { requests_per_minute: 60, tokens_per_minute: 600, ..none() };
    let alice = Alice::new(limits);
    drop(alice.chats(300, Some(0)).unwrap());
    alice.0.sweep();
    assert_eq!(alice.0.callers(), 1, "300 tokens take half a minute to drain");
    advance(Duration::from_secs(30)).await;
    alice.0.sweep();
    assert_eq!(alice.0.callers(), 0);

    let permit = alice.asks().unwrap();
    advance(Duration::from_secs(60)).await;
    alice.0.sweep();
    assert_eq!(alice.0.callers(), 1, "a caller with an answer on its way is not idle");
    drop(permit);
    alice.0.sweep();
    assert_eq!(alice.0.callers(), 0);
}

#[test]
fn no_more_than_allowed_pass_at_a_time_from_many_threads() {
    let alice = Alice::new(LimitsConfig { max_concurrent: 3, ..none() });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let permit = alice.asks();
                    assert!(alice.0.accounts.find(Key::Fingerprint("alice".into())).in_flight() <= 3);
                    drop(permit);
                    alice.0.sweep();
                }
            });
        }
    });
    assert_eq!(alice.0.in_flight(), 0);
}
