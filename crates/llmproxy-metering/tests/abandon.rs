//! What a client is billed that leaves, and what becomes of the rest of its answer.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    convert::Infallible,
    io::Write,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use http::{Response, StatusCode};
use llmproxy_core::{BoxError, Caller, End, Exchange, OnAbort, StopFlag, UsageRecord, UsageSource};
use llmproxy_metering::{AbortConfig, Drains, MeterLayer};
use support::{Records, Script, Step, data, events, exchange, json, next, request};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

const CHAT: &str = "/v1/chat/completions";
const DELTA: &str = "data: {\"id\":\"c-1\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A client that leaves after some frames.
struct Client {
    config: AbortConfig,
    drains: Drains,
    reads: usize,
    exchange: Arc<Exchange>,
}

impl Client {
    fn of(on_abort: OnAbort) -> Self {
        let config = AbortConfig { on_abort, ..AbortConfig::default() };
        Self { config, drains: Drains::default(), reads: 1, exchange: exchange(CHAT, false) }
    }

    /// Leaves `answer`; the records are there when they are.
    async fn leave(&self, answer: Response<Script>) -> Records {
        let records = Records::of(&self.exchange);
        let mut answer = Some(answer);
        let inner = service_fn(move |_| std::future::ready(Ok::<_, Infallible>(answer.take().unwrap())));
        let layer = MeterLayer::new().with_abort(&self.config, self.drains.clone());
        let answer = layer.layer(inner).oneshot(request(&self.exchange, CHAT)).await.unwrap();
        let mut body = answer.into_body();
        for _ in 0..self.reads {
            next(&mut body).await.unwrap().unwrap();
        }
        records
    }

    /// Leaves `answer` and waits for its record, which comes when nothing is read any more.
    async fn record_of(&self, answer: Response<Script>) -> Arc<UsageRecord> {
        let records = self.leave(answer).await;
        if records.all().is_empty() {
            assert_eq!(self.exchange.end(), Some(End::ClientGone), "known at once");
        }
        self.drains.finish(Instant::now() + Duration::from_secs(3600)).await;
        let record = records.one();
        assert_eq!(self.exchange.end(), Some(record.end));
        record
    }
}

fn stream() -> Response<Script> {
    events(Script::chunks([DELTA, DELTA, DELTA, USAGE, DONE]))
}

/// End, completion, who counted it, and what was delivered.
fn told(record: &UsageRecord) -> (End, u64, UsageSource, Option<u64>) {
    (record.end, record.usage.unwrap().completion, record.source().unwrap(), record.delivered_tokens)
}

#[tokio::test(start_paused = true)]
async fn delivered_bills_what_the_client_was_given() {
    let client = Client::of(OnAbort::Delivered);
    let records = client.leave(stream()).await;
    assert_eq!(told(&records.one()), (End::ClientGone, 1, UsageSource::Estimated, Some(1)), "there with the drop");
}

#[tokio::test(start_paused = true)]
async fn drain_bills_what_the_backend_made_and_tells_both() {
    let client = Client::of(OnAbort::Drain);
    let records = client.leave(stream()).await;
    assert_eq!(client.exchange.end(), Some(End::ClientGone));
    assert!(records.all().is_empty(), "not before the backend has told");
    client.drains.finish(Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(told(&records.one()), (End::ClientGone, 7, UsageSource::Backend, Some(1)));
    assert_eq!(records.one().usage.unwrap().prompt, 5);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_read_delivered_nothing() {
    let client = Client { reads: 0, ..Client::of(OnAbort::Drain) };
    assert_eq!(told(&*client.record_of(stream()).await), (End::ClientGone, 7, UsageSource::Backend, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_head_leaves_nothing_to_read() {
    let client = Client::of(OnAbort::Drain);
    let records = Records::of(&client.exchange);
    let inner = service_fn(|_| std::future::pending::<Result<Response<Script>, BoxError>>());
    let layer = MeterLayer::new().with_abort(&client.config, client.drains.clone());
    let mut waiting = Box::pin(layer.layer(inner).oneshot(request(&client.exchange, CHAT)));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(waiting);
    assert_eq!(told(&records.one()), (End::ClientGone, 0, UsageSource::Estimated, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_key_says_otherwise() {
    for (configured, own) in [(OnAbort::Delivered, OnAbort::Drain), (OnAbort::Drain, OnAbort::Delivered)] {
        let client = Client::of(configured);
        client.exchange.set_caller(Caller::named("alice").with_on_abort(Some(own)));
        let completion = client.record_of(stream()).await.usage.unwrap().completion;
        assert_eq!(completion, if own == OnAbort::Drain { 7 } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_rest_is_read_for_so_long() {
    let client = Client::of(OnAbort::Drain);
    let record = client.record_of(events(Script::new([data(DELTA), data(DELTA), Step::Hang]))).await;
    assert_eq!(told(&record), (End::ClientGone, 2, UsageSource::Estimated, Some(1)));
    assert_eq!(record.latency, AbortConfig::DEFAULT_DRAIN_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_rest_is_read_up_to_so_many_tokens() {
    let mut client = Client::of(OnAbort::Drain);
    client.config.drain_max_tokens = 5;
    let endless = std::iter::repeat_n(DELTA, 1000);
    let record = client.record_of(events(Script::chunks(endless))).await;
    assert_eq!(told(&record), (End::ClientGone, 6, UsageSource::Estimated, Some(1)));
    // An answer in one piece is made when it comes: there is nothing to save.
    let client = Client { config: client.config, reads: 0, ..Client::of(OnAbort::Drain) };
    let long = format!("{{\"choices\":[\"{}\"],", "x".repeat(1000));
    let whole = [&long, "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}"];
    assert_eq!(told(&*client.record_of(json(Script::chunks(whole))).await).1, 7);
}

#[tokio::test(start_paused = true)]
async fn so_many_are_read_at_a_time() {
    let mut client = Client::of(OnAbort::Drain);
    client.config.drain_max_streams = 1;
    let hanging = || events(Script::new([data(DELTA), Step::Hang]));
    let first = client.leave(hanging()).await;
    let client = Client { exchange: exchange(CHAT, false), ..client };
    let second = client.leave(hanging()).await;
    assert!(first.all().is_empty());
    assert_eq!(told(&second.one()), (End::ClientGone, 1, UsageSource::Estimated, Some(1)));
    tokio::time::sleep(client.config.drain_timeout * 2).await;
    assert_eq!(first.one().end, End::ClientGone);
    // There is room again.
    let client = Client { exchange: exchange(CHAT, false), ..client };
    assert!(client.leave(hanging()).await.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_fails_at_the_rest_is_told_of() {
    let client = Client::of(OnAbort::Drain);
    let dies = Script::new([data(DELTA), data(DELTA), Step::Error("reset".into())]);
    let record = client.record_of(events(dies)).await;
    assert_eq!(told(&record), (End::ClientGone, 2, UsageSource::Estimated, Some(1)));
    assert_eq!(record.error.as_deref(), Some("reset"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_json_is_read_to_its_end() {
    let parts = ["{\"choices\":[\"some text\"],  ", "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}"];
    for script in [Script::chunks(parts), Script::chunks(parts).exact()] {
        let client = Client::of(OnAbort::Drain);
        let record = client.record_of(json(script)).await;
        assert_eq!(told(&record), (End::ClientGone, 7, UsageSource::Backend, Some(parts[0].len() as u64 / 4)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_answer_is_counted_as_it_is_unpacked() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut pieces = Vec::new();
    for event in [DELTA, DELTA, DELTA, USAGE, DONE] {
        encoder.write_all(event.as_bytes()).unwrap();
        encoder.flush().unwrap();
        pieces.push(std::mem::take(encoder.get_mut()));
    }
    for (max_tokens, expected) in [(100, (7, UsageSource::Backend)), (1, (3, UsageSource::Estimated))] {
        let mut client = Client { reads: 2, ..Client::of(OnAbort::Drain) };
        client.config.drain_max_tokens = max_tokens;
        let mut answer = events(Script::chunks(&pieces));
        answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        let record = client.record_of(answer).await;
        assert_eq!(told(&record), (End::ClientGone, expected.0, expected.1, Some(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_say_nothing_more_is_not_read() {
    let hanging = || Script::new([data(DELTA), Step::Hang]);
    let there_with_the_drop = async |client: Client, answer| client.leave(answer).await.one().end;

    let mut failed = json(hanging());
    *failed.status_mut() = StatusCode::BAD_GATEWAY;
    assert_eq!(there_with_the_drop(Client::of(OnAbort::Drain), failed).await, End::ClientGone);

    let mut unreadable = events(hanging());
    unreadable.headers_mut().insert("content-encoding", "br".parse().unwrap());
    assert_eq!(there_with_the_drop(Client::of(OnAbort::Drain), unreadable).await, End::ClientGone);

    let over = events(Script::new([data(format!("{DELTA}{DONE}")), Step::Hang]));
    assert_eq!(there_with_the_drop(Client::of(OnAbort::Drain), over).await, End::Complete);

    let error = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n";
    let error = events(Script::new([data(error), Step::Hang]));
    assert_eq!(there_with_the_drop(Client::of(OnAbort::Drain), error).await, End::BackendFailed);

    // Not the client's doing.
    let stop = StopFlag::default();
    stop.set();
    let stopped = Client { exchange: Exchange::with_stop_flag(stop), ..Client::of(OnAbort::Drain) };
    assert_eq!(there_with_the_drop(stopped, events(hanging())).await, End::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn at_a_stop_rests_are_read_until_the_grace_period_is_over() {
    let client = Client::of(OnAbort::Drain);
    let records = client.leave(events(Script::new([data(DELTA), data(DELTA), Step::Hang]))).await;
    let began = Instant::now();
    client.drains.finish(began + Duration::from_secs(10)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert_eq!(told(&records.one()), (End::ClientGone, 2, UsageSource::Estimated, Some(1)));
    // From now on none begins.
    let client = Client { exchange: exchange(CHAT, false), ..client };
    let records = client.leave(stream()).await;
    assert_eq!(told(&records.one()), (End::ClientGone, 1, UsageSource::Estimated, Some(1)));
}
