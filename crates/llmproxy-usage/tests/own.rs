//! A reporter of someone's own: the same queue, tries and flush as a webhook's.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::record;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use llmproxy_core::{BoxError, Exchange, HttpClient, RequestBody};
use llmproxy_usage::{Entry, Report, ReportBatch, Reporters, UsageConfig, UsageError, UsageLayer, Verdict};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

const LONG: Duration = Duration::from_secs(3600);

/// What it does with the tries to come; it delivers when the list is over.
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

struct Own {
    script: Mutex<VecDeque<Next>>,
    seen: Mutex<Vec<Entry>>,
    wants_body: bool,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Own")
    }
}

impl Report for Own {
    fn name(&self) -> &str {
        "own"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        self.seen.lock().unwrap().push(entry);
        let next = self.script.lock().unwrap().pop_front();
        Box::pin(async move {
            match next {
                None => Verdict::Delivered,
                Some(Next::Say(verdict)) => verdict,
                Some(Next::Hang) => std::future::pending().await,
                Some(Next::Panic) => panic!("a mistake of the embedder's"),
                Some(Next::PanicInDrop) => {
                    let _bomb = Bomb;
                    std::future::pending().await
                }
            }
        })
    }

    fn wants_request_body(&self) -> bool {
        self.wants_body
    }
}

fn own(script: impl IntoIterator<Item = Next>) -> Arc<Own> {
    Arc::new(Own { script: Mutex::new(script.into_iter().collect()), seen: Mutex::default(), wants_body: false })
}

fn with(own: &Arc<Own>) -> Arc<Reporters> {
    let nobody =
        HttpClient::new(service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("no webhook".into())));
    Reporters::with_own(nobody, vec![own.clone()])
}

async fn admit(reporters: &Arc<Reporters>) -> Result<Arc<Exchange>, BoxError> {
    let mut request = Request::new(RequestBody::whole("{}"));
    let exchange = Exchange::of(request.extensions_mut());
    let inner = service_fn(async |_: Request<RequestBody>| Ok::<_, BoxError>(Response::new(())));
    UsageLayer::new(reporters.clone()).layer(inner).oneshot(request).await?;
    Ok(exchange)
}

fn end(exchange: &Exchange) {
    let record = record();
    exchange.take_sinks().iter().for_each(|sink| sink.record(&record));
}

/// A record, whose tries end like this; returns how many there were and how long they took.
async fn tries(script: impl IntoIterator<Item = Next>) -> (usize, Duration) {
    let own = own(script);
    let reporters = with(&own);
    reporters.apply(&UsageConfig::default());
    let started = Instant::now();
    end(&admit(&reporters).await.unwrap());
    assert_eq!(reporters.flush(LONG).await, 0);
    let seen = own.seen.lock().unwrap();
    assert!(seen.iter().all(|entry| entry.record.request_id == seen[0].record.request_id));
    (seen.len(), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn it_is_in_use_where_the_configuration_switches_reports_off() {
    assert_eq!(tries([]).await, (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn tries_follow_its_verdicts() {
    let again = || Next::Say(Verdict::again("busy"));
    assert_eq!(tries([Next::Say(Verdict::refused("no"))]).await.0, 1);
    assert_eq!(tries([again(), Next::Say(Verdict::refused("no"))]).await.0, 2);
    assert_eq!(tries([again(), again(), again(), again(), again()]).await.0, 4, "three more, then it is given up");
    let patient = |secs| Next::Say(Verdict::Again { why: "later".into(), after: Some(Duration::from_secs(secs)) });
    assert_eq!(tries([patient(20)]).await, (2, Duration::from_secs(20)));
    assert_eq!(tries([patient(86_400)]).await, (2, Duration::from_secs(300)), "patience has an end");
}

#[tokio::test(start_paused = true)]
async fn a_try_that_hangs_is_dropped_and_one_that_panics_is_made_again() {
    let (tried, took) = tries([Next::Hang]).await;
    assert!(tried == 2 && took >= Duration::from_secs(3), "{tried} {took:?}");
    assert_eq!(tries([Next::Panic, Next::Panic]).await.0, 3);
    assert_eq!(tries([Next::PanicInDrop]).await.0, 2, "what panics while it is given up is made again, too");
}

#[tokio::test(start_paused = true)]
async fn without_a_place_in_its_queue_no_request_passes() {
    let own = own([]);
    let reporters = with(&own);
    reporters.apply(&UsageConfig { queue_size: 1, ..UsageConfig::default() });
    let first = admit(&reporters).await.unwrap();
    let error = admit(&reporters).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&UsageError::Full));
    end(&first);
    admit(&reporters).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reload_leaves_it_its_queue() {
    let own = own([]);
    let reporters = with(&own);
    let config = UsageConfig { queue_size: 1, admit_timeout: Duration::ZERO, ..UsageConfig::default() };
    reporters.apply(&config);
    let running = admit(&reporters).await.unwrap();
    reporters.apply(&config);
    assert!(admit(&reporters).await.is_err(), "the place is still taken");
    end(&running);
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(own.seen.lock().unwrap().len(), 1);
    // A size that no queue can have was checked by nobody, as reports are off.
    reporters.apply(&UsageConfig { queue_size: 0, ..config.clone() });
    reporters.apply(&UsageConfig { queue_size: usize::MAX, ..config });
    admit(&reporters).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_has_prompts_only_where_it_wants_them() {
    for wants_body in [false, true] {
        let own = Arc::new(Own { script: Mutex::default(), seen: Mutex::default(), wants_body });
        let reporters = with(&own);
        reporters.apply(&UsageConfig::default());
        end(&admit(&reporters).await.unwrap());
        assert_eq!(reporters.flush(LONG).await, 0);
        assert_eq!(own.seen.lock().unwrap()[0].request_body.is_some(), wants_body);
    }
}

/// Takes what an own one takes, up to so many at a time; with none it panics when it is asked how many.
#[derive(Debug)]
struct Many(Arc<Own>, Option<usize>);

impl Report for Many {
    fn name(&self) -> &str {
        "many"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        self.0.report(entry)
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        Some(self)
    }
}

impl ReportBatch for Many {
    fn size(&self) -> usize {
        self.1.expect("a mistake of the embedder's")
    }

    fn interval(&self) -> Duration {
        Duration::MAX
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        self.0.seen.lock().unwrap().extend_from_slice(&entries[1..]);
        self.0.report(entries[0].clone())
    }
}

/// Four records at once for one that takes so many; returns how many it has seen, and how many are left a moment later.
async fn many(size: Option<usize>, script: impl IntoIterator<Item = Next>) -> (usize, usize) {
    let own = own(script);
    let nobody =
        HttpClient::new(service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("no webhook".into())));
    let reporters = Reporters::with_own(nobody, vec![Arc::new(Many(own.clone(), size))]);
    reporters.apply(&UsageConfig { queue_size: 4, ..UsageConfig::default() });
    let running: Vec<_> = futures_util::future::join_all((0..4).map(|_| admit(&reporters))).await;
    running.iter().for_each(|exchange| end(exchange.as_ref().unwrap()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    (own.seen.lock().unwrap().len(), reporters.pending())
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_many_has_them_together_whatever_it_says_of_their_number() {
    assert_eq!(many(Some(4), []).await, (4, 0));
    assert_eq!(many(Some(4), [Next::Panic, Next::Hang]).await, (12, 0), "the same ones again");
    assert_eq!(many(Some(0), []).await, (4, 0));
    assert_eq!(many(Some(usize::MAX), []).await, (4, 0), "never more than the queue has places");
    assert_eq!(many(None, []).await, (0, 0), "given up");
}
