//! Every way to leave a body whose rest may be read: who is asked, what those further in are told and when, and who lets go
//! of what first.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use llmproxy_core::{
    BoxError,
    body::{Drain, DrainLimit, Drained, Ending, Observe, Observed},
};
use llmproxy_testkit::ScriptedBody;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// Tells the log its end.
struct Tell(Log, &'static str);

/// Has the rest read, up to a number of looks at it.
struct Policy {
    log: Log,
    looks: usize,
    goes_on: bool,
}

struct Limit {
    log: Log,
    looks: usize,
}

/// What the client reads before it leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Nothing,
    One,
    /// As hyper does: until it hears `is_end_stream`, `None`, an error or trailers.
    All,
}

#[tokio::test]
async fn a_body_at_its_end_is_nobody_s_business() {
    let bodies = [
        ScriptedBody::with_content_length([""; 0]),
        ScriptedBody::with_content_length(["one", "two"]),
        ScriptedBody::chunked(["one", "two"]),
        ScriptedBody::chunked(["one", "two"]).trailers([("x-sum", "2")]),
        ScriptedBody::chunked(["one", "two"]).error("dead"),
        ScriptedBody::new(),
    ];
    for body in bodies {
        let log = left(body, Client::All, usize::MAX, true).await;
        assert_eq!(log.len(), 2, "{log:?}");
        assert!(log[0].starts_with("inner ") && log[0] != "inner dropped", "{log:?}");
        assert_eq!(log[1], log[0].replace("inner", "outer"));
    }
    // The last byte of a known length is the end, though nobody asked for more.
    let log = left(ScriptedBody::with_content_length(["one"]), Client::One, usize::MAX, true).await;
    assert_eq!(log, ["inner complete", "outer complete"]);
}

#[tokio::test]
async fn the_rest_is_read_and_those_further_in_see_its_end() {
    let whole = || ScriptedBody::with_content_length(["one", "two", "three"]);
    for (body, client, read, end) in [
        (whole(), Client::Nothing, 3, "complete"),
        (whole(), Client::One, 2, "complete"),
        // `None` is one look more.
        (ScriptedBody::chunked(["one", "two", "three"]), Client::One, 3, "complete"),
        (ScriptedBody::chunked(["one", "two"]).trailers([("x-sum", "2")]), Client::One, 2, "complete"),
        (ScriptedBody::chunked(["one", "two"]).error("dead"), Client::One, 2, "failed: dead"),
    ] {
        let log = left(body, client, usize::MAX, true).await;
        let mut expected = vec!["asked".to_owned(), "outer dropped".to_owned()];
        expected.extend(vec!["looked".to_owned(); read]);
        // The end is told when it comes; the limit hears of it before the body goes, and goes itself after it.
        expected.extend([format!("inner {end}"), "ended by itself".to_owned(), "limit released".to_owned()]);
        assert_eq!(log, expected, "{client:?}");
    }
}

#[tokio::test]
async fn enough_is_enough() {
    let log = left(ScriptedBody::chunked(["one", "two", "three"]), Client::One, 1, true).await;
    assert_eq!(log, ["asked", "outer dropped", "looked", "looked", "inner dropped", "limit released"]);
    let log = left(ScriptedBody::chunked(["one", "two", "three"]), Client::Nothing, 0, true).await;
    assert_eq!(log, ["asked", "outer dropped", "looked", "inner dropped", "limit released"]);
}

#[tokio::test]
async fn a_policy_that_declines_makes_it_a_drop() {
    let log = left(ScriptedBody::chunked(["one", "two"]), Client::One, 9, false).await;
    assert_eq!(log, ["asked", "inner dropped", "outer dropped"], "nothing was kept");
}

#[test]
fn without_a_runtime_or_when_it_stops_it_is_a_drop() {
    let log = Log::default();
    drop(drained(ScriptedBody::chunked(["one"]), &log, 9, true));
    assert_eq!(log.get(), ["inner dropped", "outer dropped"]);

    let log = Log::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = drained(ScriptedBody::new().data("one").pending(), &log, 9, true);
    runtime.block_on(async move { drop(body) });
    drop(runtime);
    assert_eq!(log.get(), ["asked", "outer dropped", "inner dropped", "limit released"]);
}

#[tokio::test]
async fn lengths_pass() {
    let body = drained(ScriptedBody::with_content_length(["one", "two"]), &Log::default(), 9, true);
    assert_eq!(body.size_hint().exact(), Some(6));
    assert!(!body.is_end_stream());
}

/// What is told of `body` once `client` has left it and all tasks are over.
async fn left(body: ScriptedBody, client: Client, looks: usize, goes_on: bool) -> Vec<String> {
    let log = Log::default();
    let mut body = drained(body, &log, looks, goes_on);
    match client {
        Client::Nothing => {}
        Client::One => {
            body.frame().await.unwrap().unwrap();
        }
        Client::All => while !body.is_end_stream() && matches!(body.frame().await, Some(Ok(_))) {},
    }
    drop(body);
    // The task, where there is one, runs on this thread: it is over when nobody else holds the log.
    while Arc::strong_count(&log.0) > 1 {
        tokio::task::yield_now().await;
    }
    log.get()
}

fn drained(
    body: ScriptedBody,
    log: &Log,
    looks: usize,
    goes_on: bool,
) -> impl Body<Data = Bytes, Error = BoxError> + Unpin + use<> {
    let policy = Policy { log: log.clone(), looks, goes_on };
    let inner = Observed::new(body, Tell(log.clone(), "inner"));
    Observed::new(Drained::new(inner, policy), Tell(log.clone(), "outer"))
}

// === impl Log ===

impl Log {
    fn push(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    fn get(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observe for Tell {
    fn end(self, ending: Ending<'_>) {
        let ending = match ending {
            Ending::Complete => "complete".to_owned(),
            Ending::Failed(error) => format!("failed: {error}"),
            Ending::Dropped => "dropped".to_owned(),
        };
        self.0.push(format!("{} {ending}", self.1));
    }
}

impl<B> Drain<B> for Policy {
    type Limit = Limit;

    fn reader_left(self, _: &mut B) -> Option<Limit> {
        self.log.push("asked");
        self.goes_on.then(|| Limit { log: self.log, looks: self.looks })
    }
}

impl<B> DrainLimit<B> for Limit {
    fn poll_reached(&mut self, _: &mut B, _: &mut Context<'_>) -> Poll<()> {
        self.log.push("looked");
        if self.looks == 0 {
            return Poll::Ready(());
        }
        self.looks -= 1;
        Poll::Pending
    }

    fn ended(&mut self) {
        self.log.push("ended by itself");
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.log.push("limit released");
    }
}
