//! Who in the line is served before whom, where not all may have the same.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{Answer, Proxy, Reply, answer, asked, backends, body, pool_of, settle, text};
use llmproxy_balancer::{BackendState, RoutingConfig};
use llmproxy_core::{BoxError, Exchange, RequestBody};
use tokio::{task::JoinHandle, time::sleep};

type Asking = JoinHandle<(Arc<Exchange>, Result<Answer, BoxError>)>;

/// Asks, and goes on once that is as far as it can be.
async fn ask(proxy: &Proxy, model: &'static str, body: RequestBody, prompt: u64) -> Asking {
    let proxy = proxy.clone();
    let asking = tokio::spawn(async move { proxy.ask_sized(Some(model), body, prompt).await });
    settle().await;
    asking
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_may_not_find_out_whether_a_backend_works_keeps_nobody_else_from_it() {
    let mut backends = backends(&[1, 1]);
    backends.iter_mut().for_each(|backend| backend.models.push("m".into()));
    backends[0].max_concurrent = Some(1);
    let is_broken = Arc::new(AtomicBool::new(true));
    let proxy = Proxy::new(pool_of(&backends, &RoutingConfig::default()), {
        let is_broken = is_broken.clone();
        move |target| match &*target.backend.name {
            "b" if is_broken.load(Ordering::Relaxed) => Reply::Answer(answer(502, "no engine")),
            name => Reply::Answer(answer(200, name)),
        }
    });
    while proxy.pool.snapshot()[1].state != BackendState::Ejected {
        let _ = text(proxy.ask().await.1.unwrap()).await;
    }
    is_broken.store(false, Ordering::Relaxed);
    let held = proxy.ask().await;
    assert_eq!(asked(&held.0), ["a"]);
    let upload = ask(&proxy, "m", RequestBody::stream(body([Ok("form")])), 0).await;
    let chat = ask(&proxy, "m", RequestBody::whole("{}"), 0).await;
    assert!(!upload.is_finished() && !chat.is_finished());
    // A probe is due after six seconds at most, and an upload only ten seconds after that.
    sleep(Duration::from_secs(7)).await;
    assert!(chat.is_finished());
    assert_eq!(text(chat.await.unwrap().1.unwrap()).await.unwrap(), "b");
    settle().await;
    assert_eq!(text(upload.await.unwrap().1.unwrap()).await.unwrap(), "b", "which is back now");
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_does_not_take_the_room_that_a_large_request_waits_for() {
    let mut backends = backends(&[1, 1]);
    backends[0].models = vec!["m".into(), "large".into()];
    backends[0].max_tokens = Some(2500);
    backends[1].models = vec!["m".into()];
    let is_broken = Arc::new(AtomicBool::new(false));
    let proxy = Proxy::new(pool_of(&backends, &RoutingConfig::default()), {
        let is_broken = is_broken.clone();
        move |target| match &*target.backend.name {
            "b" if is_broken.load(Ordering::Relaxed) => Reply::Answer(answer(502, "no engine")),
            name => Reply::Answer(answer(200, name)),
        }
    });
    let held = proxy.ask_sized(Some("large"), RequestBody::whole("{}"), 1500).await.1.unwrap();
    let large = ask(&proxy, "large", RequestBody::whole("{}"), 1500).await;
    is_broken.store(true, Ordering::Relaxed);
    let small = ask(&proxy, "m", RequestBody::whole("{}"), 10).await;
    assert!(!large.is_finished() && !small.is_finished(), "there would be room for the small one");
    drop(held);
    settle().await;
    assert!(large.is_finished());
    assert_eq!(text(large.await.unwrap().1.unwrap()).await.unwrap(), "a");
    let (exchange, answer) = small.await.unwrap();
    assert_eq!((asked(&exchange), answer.unwrap().status().as_u16()), (vec!["b".into(), "a".into()], 200));
}
