//! A reporter of someone's own: the same ledger, tries and flush as a webhook's.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;
#[path = "../src/scratch.rs"]
mod scratch;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::record;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use llmproxy_core::{BoxError, Exchange, HttpClient, RequestBody};
use llmproxy_usage::{Entry, Report, ReportBatch, Reporters, UsageConfig, UsageLayer, Verdict};
use scratch::Folder;
use tower::{Layer, ServiceExt, service_fn};

const LONG: Duration = Duration::from_secs(20);

/// Takes everything; the first try panics.
#[derive(Debug, Default)]
struct Own {
    seen: Mutex<Vec<Entry>>,
    panics: Mutex<usize>,
    wants_body: bool,
    in_flight: usize,
    gate: Option<tokio::sync::Semaphore>,
}

impl Report for Own {
    fn name(&self) -> &str {
        "own"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        Box::pin(async move { self.report_batch(&[entry]).await })
    }

    fn max_in_flight(&self) -> usize {
        self.in_flight
    }

    fn wants_request_body(&self) -> bool {
        self.wants_body
    }
}

impl ReportBatch for Own {
    fn size(&self) -> usize {
        4
    }

    fn interval(&self) -> Duration {
        Duration::MAX
    }

    fn report_batch<'a>(&'a self, entries: &'a [Entry]) -> BoxFuture<'a, Verdict> {
        self.seen.lock().unwrap().extend_from_slice(entries);
        let panics = {
            let mut panics = self.panics.lock().unwrap();
            let before = *panics;
            *panics = before.saturating_sub(1);
            before > 0
        };
        Box::pin(async move {
            assert!(!panics, "a mistake of the embedder's");
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            Verdict::Delivered
        })
    }
}

fn nobody() -> HttpClient {
    HttpClient::new(service_fn(async |_: Request<Bytes>| Err::<Response<Bytes>, BoxError>("no webhook".into())))
}

async fn start(own: Arc<dyn Report>, folder: &Folder) -> Arc<Reporters> {
    let reporters = Reporters::with_own(nobody(), vec![own]);
    reload(&reporters, UsageConfig::default(), folder).await;
    reporters
}

async fn reload(reporters: &Reporters, mut config: UsageConfig, folder: &Folder) {
    config.ledger.path = folder.ledger();
    reporters.open(&config).await.unwrap();
    reporters.apply(&config);
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

async fn eventually(what: &str, check: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn it_is_in_use_where_the_configuration_switches_reports_off() {
    let (own, folder) = (Arc::new(Own { panics: Mutex::new(1), ..Own::default() }), Folder::new());
    let reporters = start(own.clone(), &folder).await;
    end(&admit(&reporters).await.unwrap());
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(own.seen.lock().unwrap().len(), 2, "what panics is tried again");
}

#[tokio::test]
async fn a_reload_leaves_it_what_it_has_yet_to_deliver() {
    let (own, folder) = (Arc::new(Own::default()), Folder::new());
    let reporters = start(own.clone(), &folder).await;
    let running = admit(&reporters).await.unwrap();
    // Sizes that no queue can have were checked by nobody, as reports are off.
    for queue_size in [0, usize::MAX, 10] {
        reload(&reporters, UsageConfig { queue_size, ..UsageConfig::default() }, &folder).await;
    }
    end(&running);
    end(&admit(&reporters).await.unwrap());
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(own.seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn it_has_prompts_only_where_it_wants_them() {
    for wants_body in [false, true] {
        let (own, folder) = (Arc::new(Own { wants_body, ..Own::default() }), Folder::new());
        let reporters = start(own.clone(), &folder).await;
        end(&admit(&reporters).await.unwrap());
        assert_eq!(reporters.flush(LONG).await, 0);
        assert_eq!(own.seen.lock().unwrap()[0].request_body.is_some(), wants_body);
    }
}

#[tokio::test]
async fn no_more_are_on_their_way_than_it_says() {
    for in_flight in [0, 1, 3] {
        let gate = Some(tokio::sync::Semaphore::new(0));
        let (own, folder) = (Arc::new(Own { in_flight, gate, ..Own::default() }), Folder::new());
        let reporters = start(own.clone(), &folder).await;
        for _ in 0..5 {
            end(&admit(&reporters).await.unwrap());
        }
        let expected = in_flight.max(1);
        eventually("they are on their way", || own.seen.lock().unwrap().len() == expected).await;
        // Nothing moves until one is there.
        assert_eq!(reporters.flush(Duration::from_millis(50)).await, 5);
        assert_eq!(own.seen.lock().unwrap().len(), expected);
        own.gate.as_ref().unwrap().add_permits(5);
        assert_eq!(reporters.flush(LONG).await, 0);
        assert_eq!(own.seen.lock().unwrap().len(), 5);
    }
}

/// Takes what an own one takes, four at a time; or panics when it is asked how many.
#[derive(Debug)]
struct Many(Arc<Own>, bool);

impl Report for Many {
    fn name(&self) -> &str {
        "many"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        self.0.report(entry)
    }

    fn batches(&self) -> Option<&dyn ReportBatch> {
        assert!(!self.1, "a mistake of the embedder's");
        Some(&*self.0)
    }
}

#[tokio::test]
async fn one_that_takes_many_has_them_together() {
    let (own, folder) = (Arc::new(Own { panics: Mutex::new(1), ..Own::default() }), Folder::new());
    let reporters = start(Arc::new(Many(own.clone(), false)), &folder).await;
    for _ in 0..4 {
        end(&admit(&reporters).await.unwrap());
    }
    eventually("all are delivered", || reporters.pending() == 0).await;
    let seen = own.seen.lock().unwrap();
    let ids: Vec<_> = seen.iter().map(|entry| entry.record.request_id).collect();
    assert_eq!((ids.len(), &ids[..4]), (8, &ids[4..]), "the same ones again");
}

#[tokio::test]
async fn one_that_panics_when_it_is_asked_costs_no_record() {
    let (own, folder) = (Arc::new(Own::default()), Folder::new());
    let reporters = start(Arc::new(Many(own.clone(), true)), &folder).await;
    end(&admit(&reporters).await.unwrap());
    assert_eq!(reporters.flush(Duration::from_millis(100)).await, 1);
    reporters.close().await;
    // The mistake is mended.
    let reporters = start(Arc::new(Many(own.clone(), false)), &folder).await;
    assert_eq!(reporters.flush(LONG).await, 0);
    assert_eq!(own.seen.lock().unwrap().len(), 1);
}
