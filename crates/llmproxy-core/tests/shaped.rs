//! What a shape withholds, adds and fails, in its order and where it can be flushed.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use llmproxy_core::{
    BoxError,
    body::{Ending, Hold, Observe, Observed, Out, Shape, Shaped},
};
use llmproxy_testkit::ScriptedBody;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// An observer that tells the log its end.
struct Tell(Log);

/// A shape that lets everything pass.
struct Pass {
    changes_length: bool,
}

const PASS: Pass = Pass { changes_length: false };

#[test]
fn the_length_is_told_on_where_it_stays() {
    let check = |changes_length: bool, expected: Option<u64>| {
        let pass = Pass { changes_length };
        let mut body = Shaped::new(ScriptedBody::with_content_length(["one", "three"]), pass);
        assert_eq!(body.size_hint().exact(), expected);
        assert!(poll_frame(&mut body).is_ready());
        assert_eq!(body.size_hint().exact(), expected.map(|_| 5));
    };
    check(false, Some(8));
    check(true, None);
    let observed = Observed::new(ScriptedBody::with_content_length(["one"]), Hold(()));
    assert_eq!(observed.size_hint().exact(), Some(3));
    let observed = Observed::new(ScriptedBody::chunked(["one"]), Hold(()));
    assert_eq!(observed.size_hint().exact(), None);
}

#[test]
fn hyper_can_flush_before_it_sees_an_error() {
    let body = ScriptedBody::chunked(["one", "two"]).error("dead");
    let mut body = Shaped::new(body, PASS);
    assert_eq!(data(poll_frame(&mut body)), "one");
    assert_eq!(data(poll_frame(&mut body)), "two");
    assert!(poll_frame(&mut body).is_pending());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(Some(Err(_)))));
    assert!(matches!(poll_frame(&mut body), Poll::Ready(None)));
}

#[test]
fn hyper_can_flush_the_head_before_it_sees_an_error() {
    let mut body = Shaped::new(ScriptedBody::new().error("dead"), PASS);
    assert!(poll_frame(&mut body).is_pending());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(Some(Err(_)))));
}

#[test]
fn an_error_that_comes_after_silence_is_not_delayed() {
    let body = ScriptedBody::chunked(["one"]).pending().error("dead");
    let mut body = Shaped::new(body, PASS);
    assert_eq!(data(poll_frame(&mut body)), "one");
    assert!(poll_frame(&mut body).is_pending());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(Some(Err(_)))));
}

/// A shape that ends the body as soon as it is silent, and says goodbye.
struct Impatient(Log);

impl Shape for Impatient {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        out.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        self.0.push(format!("outer {}", describe(ending)));
        out.push("bye".into());
    }

    fn poll_silent(&mut self, _: &mut Context<'_>, _: &mut Out) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Err("silent".into()))
    }

    fn changes_length(&self) -> bool {
        true
    }
}

#[test]
fn hyper_can_flush_before_a_shape_fails_too() {
    let log = Log::default();
    let inner = Observed::new(ScriptedBody::chunked(["one"]).stall(), Tell(log.clone()));
    let mut body = Shaped::new(inner, Impatient(log.clone()));
    assert_eq!(data(poll_frame(&mut body)), "one");
    assert_eq!(data(poll_frame(&mut body)), "bye");
    assert!(poll_frame(&mut body).is_pending());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(Some(Err(_)))));
    assert_eq!(log.get(), ["outer failed: silent"]);
    drop(body);
    assert_eq!(log.get(), ["outer failed: silent", "inner dropped"]);
}

/// A shape that fails at once when it is silent, without a word.
struct Abrupt;

impl Shape for Abrupt {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        out.push(data);
    }

    fn end(&mut self, _: Ending<'_>, _: &mut Out) {}

    fn poll_silent(&mut self, _: &mut Context<'_>, _: &mut Out) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Err("silent".into()))
    }

    fn changes_length(&self) -> bool {
        false
    }
}

#[test]
fn a_shape_that_fails_right_after_a_frame_lets_it_be_flushed() {
    let mut body = Shaped::new(ScriptedBody::chunked(["one"]).stall(), Abrupt);
    assert_eq!(data(poll_frame(&mut body)), "one");
    assert!(poll_frame(&mut body).is_pending());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(Some(Err(_)))));
}

/// A shape that has heard enough as soon as it is silent.
struct Satisfied(Log);

impl Shape for Satisfied {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        out.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        self.0.push(format!("outer {}", describe(ending)));
        out.push("bye".into());
    }

    fn poll_silent(&mut self, _: &mut Context<'_>, _: &mut Out) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn is_over(&self) -> bool {
        true
    }

    fn changes_length(&self) -> bool {
        true
    }
}

#[test]
fn a_shape_may_end_a_body_that_does_not_end() {
    let log = Log::default();
    let inner = Observed::new(ScriptedBody::chunked(["one"]).stall(), Tell(log.clone()));
    let mut body = Shaped::new(inner, Box::new(Satisfied(log.clone())));
    assert_eq!(data(poll_frame(&mut body)), "one");
    assert_eq!(data(poll_frame(&mut body)), "bye");
    assert!(body.is_end_stream());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(None)));
    drop(body);
    assert_eq!(log.get(), ["outer complete", "inner dropped"]);
}

#[test]
fn what_breaks_when_all_has_come_is_complete() {
    let log = Log::default();
    let inner = Observed::new(ScriptedBody::chunked(["one"]).error("dead"), Tell(log.clone()));
    let mut body = Shaped::new(inner, Satisfied(log.clone()));
    assert_eq!(data(poll_frame(&mut body)), "one");
    assert_eq!(data(poll_frame(&mut body)), "bye");
    assert!(body.is_end_stream());
    assert!(matches!(poll_frame(&mut body), Poll::Ready(None)));
    drop(body);
    assert_eq!(log.get(), ["inner failed: dead", "outer complete"]);
}

/// A shape that keeps everything until the end.
struct Keeper(Vec<Bytes>);

impl Shape for Keeper {
    fn chunk(&mut self, data: Bytes, _: &mut Out) {
        self.0.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        self.0.drain(..).for_each(|data| out.push(data));
        out.push(describe(ending).into());
    }

    fn changes_length(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn what_was_withheld_comes_before_the_end() {
    let check = async |body: ScriptedBody, expected: &[&str], failed: bool| {
        let mut body = Shaped::new(body, Keeper(Vec::new()));
        let mut read = Vec::new();
        let mut error = false;
        while !body.is_end_stream() {
            match body.frame().await {
                Some(Ok(frame)) => read.extend(frame.into_data().ok()),
                Some(Err(_)) => error = true,
                None => break,
            }
        }
        assert_eq!((read, error), (expected.iter().map(|text| Bytes::from((*text).to_owned())).collect(), failed));
    };
    check(ScriptedBody::with_content_length(["a", "b"]), &["a", "b", "complete"], false).await;
    check(ScriptedBody::with_content_length([""; 0]), &["complete"], false).await;
    check(ScriptedBody::chunked(["a"]).trailers([("x", "y")]), &["a", "complete"], false).await;
    check(ScriptedBody::chunked(["a", "b"]).error("dead"), &["a", "b", "failed: dead"], true).await;
}

#[tokio::test]
async fn trailers_follow_what_was_withheld() {
    let body = ScriptedBody::chunked(["a"]).trailers([("x-sum", "1")]);
    let collected = Shaped::new(body, Keeper(Vec::new())).collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "1");
    assert_eq!(collected.to_bytes(), "acomplete");
}

// === impl Log ===

impl Log {
    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn get(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

// === impl Tell ===

impl Observe for Tell {
    fn end(self, ending: Ending<'_>) {
        self.0.push(format!("inner {}", describe(ending)));
    }
}

// === impl Pass ===

impl Shape for Pass {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        out.push(data);
    }

    fn end(&mut self, _: Ending<'_>, _: &mut Out) {}

    fn changes_length(&self) -> bool {
        self.changes_length
    }
}

fn describe(ending: Ending<'_>) -> String {
    match ending {
        Ending::Complete => "complete".to_owned(),
        Ending::Failed(error) => format!("failed: {error}"),
        Ending::Dropped => "dropped".to_owned(),
    }
}

fn poll_frame<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    pin!(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn data<E>(frame: Poll<Option<Result<Frame<Bytes>, E>>>) -> Bytes {
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => panic!("no frame"),
    }
}
