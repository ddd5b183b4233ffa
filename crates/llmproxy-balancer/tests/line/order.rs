//! Who in the line is served before whom, where not all wait for the same.

use super::*;

/// Asks for a model by this name, and lets it come as far as it can.
async fn ask_for(proxy: &Proxy, model: &str, prompt: u64) -> Asking {
    let (proxy, model) = (proxy.clone(), model.to_owned());
    let asking = tokio::spawn(async move { proxy.ask_sized(Some(&model), RequestBody::whole("{}"), prompt).await });
    settle().await;
    asking
}

#[tokio::test(start_paused = true)]
async fn names_that_clients_make_up_share_one_place_in_the_line() {
    let mut backends = with_room(&[1, 1]);
    // It takes every name; the other one has its own model.
    backends[0].models.clear();
    backends[1].models = vec!["own".into()];
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    apply(&balancer, &backends, QueueConfig::default());
    settle().await;
    let proxy = named(&balancer);
    let held = proxy.ask_with(Some("x"), RequestBody::whole("{}")).await.1.unwrap();
    let mut waiting = VecDeque::new();
    for number in 0..300 {
        waiting.push_back(ask_for(&proxy, &format!("made-up-{number}"), 0).await);
    }
    assert_eq!(proxy.pool.waiting(), 300);
    // Others are served as though nobody waited.
    assert_eq!(name(ask_for(&proxy, "own", 0).await).await, "b");
    drop(held);
    for asking in waiting {
        assert_eq!(name(asking).await, "a", "in the order in which they came");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_one_that_takes_every_name_rests_while_another_has_not_told_what_it_serves() {
    let checks = Checks::default();
    checks.well("a");
    let balancer = Balancer::new(checks.client());
    let queue = QueueConfig { timeout: Duration::from_secs(10), ..QueueConfig::default() };
    let mut all = backends(&[1, 1, 1]);
    all[0].max_concurrent = Some(1);
    apply(&balancer, &all[..2], queue);
    let proxy = named(&balancer);
    let _held = proxy.ask().await.1.unwrap();
    let waits = ask(&proxy).await;
    advance(Duration::from_secs(1)).await;
    apply(&balancer, &all, queue);
    // It has waited long enough to learn what they serve, and the third has not told.
    advance(Duration::from_secs(1)).await;
    settle().await;
    assert_eq!((waits.is_finished(), proxy.pool.waiting()), (false, 1));
    advance(Duration::from_secs(8)).await;
    settle().await;
    assert!(waits.is_finished());
    assert!(matches!(refusal(&waits.await.unwrap().1), BalanceError::QueueTimeout { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_large_request_is_not_passed_by_small_ones() {
    let mut backends = with_room(&[100]);
    backends[0].max_tokens = Some(2000);
    backends[0].models.push("other".into());
    let balancer = balancer();
    apply(&balancer, &backends, QueueConfig::default());
    let proxy = named(&balancer);
    let held = proxy.ask_sized(Some("m"), RequestBody::whole("{}"), 1500).await.1.unwrap();
    let large = ask_for(&proxy, "m", 1500).await;
    let small = [ask_for(&proxy, "m", 10).await, ask_for(&proxy, "other", 10).await];
    assert!(small.iter().all(|asking| !asking.is_finished()), "there would be room for them");
    drop(held);
    settle().await;
    assert!(large.is_finished());
    assert_eq!(name(large).await, "a");
    for small in small {
        assert_eq!(name(small).await, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_those_in_the_line_would_not_be_given_is_free_for_others() {
    for status in [429, 500] {
        let mut backends = with_room(&[1, 8]);
        backends[1].models.push("other".into());
        let mut routing = RoutingConfig::default();
        routing.retry.enabled = false;
        let balancer = balancer();
        let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
        balancer.apply(&backends, &routing, &health, &QueueConfig::default());
        let refuses = Arc::new(AtomicBool::new(true));
        let script = refuses.clone();
        let proxy = Proxy::new(balancer.pool().clone(), move |target| {
            let status = if script.load(Ordering::Relaxed) { status } else { 200 };
            let mut answer = answer(status, &target.backend.name);
            answer.headers_mut().insert("retry-after", HeaderValue::from_static("40"));
            Reply::Answer(answer)
        });
        balancer.set_draining("a", true).unwrap();
        for _ in 0..20 {
            let _ = proxy.ask().await;
        }
        let state = proxy.pool.snapshot()[1].state;
        assert!(matches!(state, BackendState::Pressured | BackendState::Ejected), "{state:?}");
        balancer.set_draining("a", false).unwrap();
        refuses.store(false, Ordering::Relaxed);
        let held = proxy.ask().await.1.unwrap();
        let waiting = [ask(&proxy).await, ask(&proxy).await];
        assert_eq!((proxy.in_flight(), proxy.pool.waiting()), (vec![1, 0], 2), "{state:?}, for the later one too");
        assert_eq!(name(ask_for(&proxy, "other", 0).await).await, "b");
        drop(held);
        for asking in waiting {
            assert!(asking.await.unwrap().1.is_ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_fallback_gets_its_first_choice_when_that_is_back() {
    let mut backends = with_room(&[1, 1]);
    backends[1].models = vec!["spare".into()];
    let routing: RoutingConfig =
        serde_json::from_str(r#"{"models": {"chat": {"to": "m", "fallbacks": ["spare"]}}}"#).unwrap();
    let balancer = balancer();
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(&backends, &routing, &health, &QueueConfig::default());
    let proxy = named(&balancer);
    balancer.set_draining("a", true).unwrap();
    let _held = proxy.ask_with(Some("chat"), RequestBody::whole("{}")).await.1.unwrap();
    let waits = ask_for(&proxy, "chat", 0).await;
    assert!(!waits.is_finished());
    balancer.set_draining("a", false).unwrap();
    assert_eq!(name(waits).await, "a");
}

#[tokio::test(start_paused = true)]
async fn those_who_turn_to_a_fallback_keep_their_order_and_nobody_comes_in_between() {
    let mut backends = with_room(&[1, 1]);
    backends[1].models = vec!["spare".into()];
    let routing: RoutingConfig =
        serde_json::from_str(r#"{"models": {"chat": {"to": "m", "fallbacks": ["spare"]}}}"#).unwrap();
    let balancer = balancer();
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    balancer.apply(&backends, &routing, &health, &QueueConfig::default());
    let proxy = named(&balancer);
    let _held = proxy.ask_with(Some("chat"), RequestBody::whole("{}")).await.1.unwrap();
    let mut waiting = VecDeque::new();
    for _ in 0..5 {
        waiting.push_back(ask_for(&proxy, "chat", 0).await);
    }
    balancer.set_draining("a", true).unwrap();
    // Before any of them can look for itself.
    let mut later = Box::pin(proxy.ask_with(Some("spare"), RequestBody::whole("{}")));
    assert!(later.as_mut().now_or_never().is_none());
    while let Some(first) = waiting.pop_front() {
        settle().await;
        assert!(first.is_finished() && waiting.iter().all(|other| !other.is_finished()));
        assert_eq!(name(first).await, "b");
    }
    assert!(later.await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn whoever_has_to_look_again_has_its_old_place() {
    let routing = |to: &str| RoutingConfig {
        model_mapping: [("gpt".to_owned(), to.to_owned())].into(),
        ..RoutingConfig::default()
    };
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let balancer = balancer();
    let mut backends = with_room(&[1]);
    // All places are taken, which is not held against who has one.
    let queue = QueueConfig { max_waiting: 1, ..QueueConfig::default() };
    balancer.apply(&backends, &routing("m"), &health, &queue);
    let proxy = named(&balancer);
    let held = proxy.ask_with(Some("gpt"), RequestBody::whole("{}")).await.1.unwrap();
    let first = ask_for(&proxy, "gpt", 0).await;
    backends[0].models = vec!["n".into()];
    balancer.apply(&backends, &routing("n"), &health, &queue);
    let mut later = Box::pin(proxy.ask_with(Some("gpt"), RequestBody::whole("{}")));
    assert!(later.as_mut().now_or_never().is_none());
    settle().await;
    assert_eq!((first.is_finished(), proxy.pool.waiting()), (false, 2));
    drop(held);
    settle().await;
    assert!(first.is_finished() && later.as_mut().now_or_never().is_none());
    drop(first.await.unwrap().1.unwrap());
    assert!(later.await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_means_something_else_now_is_served_by_that() {
    let routing = |to: &str| RoutingConfig {
        model_mapping: [("gpt".to_owned(), to.to_owned())].into(),
        ..RoutingConfig::default()
    };
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    let balancer = balancer();
    let mut backends = with_room(&[1]);
    balancer.apply(&backends, &routing("m"), &health, &QueueConfig::default());
    let proxy = named(&balancer);
    let held = proxy.ask_with(Some("gpt"), RequestBody::whole("{}")).await.1.unwrap();
    let waits = ask_for(&proxy, "gpt", 0).await;
    backends[0].models = vec!["n".into()];
    balancer.apply(&backends, &routing("n"), &health, &QueueConfig::default());
    settle().await;
    drop(held);
    let (exchange, result) = waits.await.unwrap();
    assert!(result.is_ok(), "{}", result.unwrap_err());
    assert_eq!(exchange.served().unwrap().model.as_deref(), Some("n"));
}

#[tokio::test(start_paused = true)]
async fn the_question_for_usage_keeps_its_place() {
    let balancer = balancer();
    apply(&balancer, &with_room(&[1]), QueueConfig::default());
    let pool = balancer.pool().clone();
    let most = pool.clone();
    let proxy = Proxy::new(pool, move |target| {
        assert_eq!(most.snapshot()[0].in_flight, 1, "one at a time");
        let status = if target.inject_usage { 400 } else { 200 };
        Reply::Answer(answer(status, &target.backend.name))
    });
    let all: Vec<Asking> = (0..3)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { proxy.ask_with(Some("m"), common::editable()).await })
        })
        .collect();
    for asking in all {
        assert_eq!(name(asking).await, "a");
    }
}
