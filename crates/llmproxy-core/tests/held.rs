//! An end that is held: what goes on before it, what waits, and what comes of it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use llmproxy_core::{
    BoxError, EndHold,
    body::{Ending, Out, Shape, Shaped, Shaper},
};
use llmproxy_testkit::ScriptedBody;
use tokio::sync::oneshot;

/// A shape that lets everything pass but the end, and holds all behind a piece that is `stop`.
struct Holding {
    hold: Option<EndHold>,
    changes_length: bool,
    told: Vec<String>,
}

type Release = oneshot::Sender<Result<(), &'static str>>;

impl Holding {
    fn new() -> (Self, Release) {
        let (release, released) = oneshot::channel::<Result<(), &'static str>>();
        let hold = EndHold::new(async move { released.await?.map_err(Into::into) });
        (Self { hold: Some(hold), changes_length: false, told: Vec::new() }, release)
    }

    fn ready(result: Result<(), &'static str>) -> Self {
        let (holding, release) = Self::new();
        release.send(result).unwrap();
        holding
    }
}

impl Shape for Holding {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        if data == "stop" {
            out.hold();
        }
        out.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, _: &mut Out) {
        self.told.push(match ending {
            Ending::Complete => "complete".into(),
            Ending::Failed(error) => format!("failed: {error}"),
            Ending::Dropped => "dropped".into(),
        });
    }

    fn holds_end(&self) -> bool {
        self.hold.is_some()
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Some(hold) = &mut self.hold else { return Poll::Ready(Ok(())) };
        let result = ready!(pin!(hold).poll(cx));
        self.hold = None;
        Poll::Ready(result)
    }

    fn changes_length(&self) -> bool {
        self.changes_length
    }
}

/// What a poll came to, in a word.
fn poll<B: Body<Data = Bytes, Error = BoxError> + Unpin>(body: &mut B) -> String {
    poll_with(body, Waker::noop())
}

fn poll_with<B: Body<Data = Bytes, Error = BoxError> + Unpin>(body: &mut B, waker: &Waker) -> String {
    match pin!(body).poll_frame(&mut Context::from_waker(waker)) {
        Poll::Pending => "pending".into(),
        Poll::Ready(None) => "none".into(),
        Poll::Ready(Some(Err(error))) => format!("error: {error}"),
        Poll::Ready(Some(Ok(frame))) => word(frame),
    }
}

fn word(frame: Frame<Bytes>) -> String {
    match frame.into_data() {
        Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
        Err(_) => "trailers".into(),
    }
}

/// All that comes out until the end, without the polls that are pending; as hyper reads, which asks no more behind the end that
/// the body knows of.
fn rest<B: Body<Data = Bytes, Error = BoxError> + Unpin>(body: &mut B) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..20 {
        if body.is_end_stream() {
            seen.push("end".into());
            return seen;
        }
        let polled = poll(body);
        let is_last = matches!(&*polled, "none" | "trailers") || polled.starts_with("error");
        if polled != "pending" {
            seen.push(polled);
        }
        if is_last {
            return seen;
        }
    }
    panic!("no end: {seen:?}");
}

/// A name, a body, what of it comes before, what is held (with what shows the end), and how it is told.
type Ends = (&'static str, ScriptedBody, &'static [&'static str], &'static [&'static str], &'static str);

/// All the ways to end.
fn ends() -> Vec<Ends> {
    let sized = |pieces: &[&'static str]| ScriptedBody::with_content_length(pieces.to_vec());
    let chunked = |pieces: &[&'static str]| ScriptedBody::chunked(pieces.to_vec());
    vec![
        ("empty", sized(&[]), &[], &["end"], "complete"),
        ("empty, and does not say so", chunked(&[]), &[], &["end"], "complete"),
        ("with a length", sized(&["one", "two"]), &["one"], &["two", "end"], "complete"),
        ("chunked", chunked(&["one", "two"]), &["one", "two"], &["end"], "complete"),
        (
            "ends with its last piece",
            chunked(&["one", "two"]).ends_with_last_frame(),
            &["one"],
            &["two", "end"],
            "complete",
        ),
        ("trailers", chunked(&["one"]).trailers([("x", "y")]), &["one"], &["trailers"], "complete"),
        ("error", chunked(&["one"]).error("dead"), &["one"], &["error: dead"], "failed: dead"),
        ("error at once", ScriptedBody::new().error("dead"), &[], &["error: dead"], "failed: dead"),
        ("a stop", chunked(&["one", "stop", "two"]), &["one"], &["stop", "two", "end"], "complete"),
        ("a stop and a length", sized(&["one", "stop", "two"]), &["one"], &["stop", "two", "end"], "complete"),
        ("a stop and trailers", chunked(&["stop"]).trailers([("x", "y")]), &[], &["stop", "trailers"], "complete"),
        ("a stop and an error", chunked(&["stop"]).error("dead"), &[], &["stop", "error: dead"], "failed: dead"),
    ]
}

#[test]
fn nothing_is_changed_where_the_hold_is_ready() {
    for (name, body, before, held, told) in ends() {
        let mut body = Shaped::new(body, Holding::ready(Ok(())));
        let mut expected = before.to_vec();
        expected.extend(held);
        let found = rest(&mut body);
        // Whoever is polled for it says it by `None`, which is as good.
        let found: Vec<_> = found.iter().map(|word| if word == "none" { "end" } else { word }).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(body.get_mut().told, [told], "{name}");
        assert!(body.is_end_stream(), "{name}");
    }
}

#[test]
fn the_end_waits_and_what_came_before_does_not() {
    for (name, body, before, held, told) in ends() {
        let (holding, release) = Holding::new();
        let mut body = Shaped::new(body, holding);
        for expected in before {
            assert_eq!(poll(&mut body), *expected, "{name}");
        }
        for _ in 0..3 {
            assert_eq!(poll(&mut body), "pending", "{name}");
            assert!(!body.is_end_stream(), "{name}");
        }
        assert_eq!(body.get_mut().told, [told], "the end is told before it is held: {name}");
        release.send(Ok(())).unwrap();
        let found = rest(&mut body);
        let found: Vec<_> = found.iter().map(|word| if word == "none" { "end" } else { word }).collect();
        assert_eq!(found, held, "{name}");
    }
}

#[test]
fn what_waits_is_woken() {
    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (holding, release) = Holding::new();
    let mut body = Shaped::new(ScriptedBody::with_content_length(["one"]), holding);
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    assert_eq!(poll_with(&mut body, &waker), "pending");
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    release.send(Ok(())).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(poll(&mut body), "one");
    assert!(body.is_end_stream());
}

#[test]
fn where_the_hold_fails_nothing_of_the_end_passes() {
    for (name, body, before, held, told) in ends() {
        let (holding, release) = Holding::new();
        let mut body = Shaped::new(body, holding);
        for expected in before {
            assert_eq!(poll(&mut body), *expected, "{name}");
        }
        assert_eq!(poll(&mut body), "pending", "{name}");
        release.send(Err("the disk is full")).unwrap();
        // It has been flushed, so the error need not wait. A body that failed has failed by its own error.
        let own = held.contains(&"error: dead");
        let expected = if own { "error: dead" } else { "error: the disk is full" };
        assert_eq!(poll(&mut body), expected, "{name}");
        assert!(body.is_end_stream(), "{name}");
        assert_eq!(poll(&mut body), "none", "{name}");
        assert_eq!(body.get_mut().told, [told], "{name}");
    }
}

#[test]
fn hyper_can_flush_before_a_hold_fails_at_once() {
    let mut body = Shaped::new(ScriptedBody::chunked(["one"]), Holding::ready(Err("the disk is full")));
    assert_eq!(poll(&mut body), "one");
    assert_eq!(poll(&mut body), "pending");
    assert_eq!(poll(&mut body), "error: the disk is full");
}

#[test]
fn the_length_counts_what_is_held() {
    let (holding, release) = Holding::new();
    let mut body = Shaped::new(ScriptedBody::with_content_length(["one", "stop", "three"]), holding);
    let exact = |body: &Shaped<_, _>| Body::size_hint(body).exact();
    assert_eq!((exact(&body), poll(&mut body)), (Some(12), "one".into()));
    assert_eq!((exact(&body), poll(&mut body)), (Some(9), "pending".into()));
    assert_eq!(exact(&body), Some(9));
    release.send(Ok(())).unwrap();
    assert_eq!((poll(&mut body), exact(&body)), ("stop".into(), Some(5)));
    assert_eq!((poll(&mut body), exact(&body)), ("three".into(), Some(0)));
    assert!(body.is_end_stream());

    let (holding, _release) = Holding::new();
    let empty = Shaped::new(ScriptedBody::with_content_length([""; 0]), holding);
    assert_eq!((exact(&empty), empty.is_end_stream()), (Some(0), false));
}

#[test]
fn what_is_dropped_while_it_is_held_was_told_before() {
    let (holding, release) = Holding::new();
    let mut body = Shaped::new(ScriptedBody::chunked(["one", "stop"]), holding);
    assert_eq!(poll(&mut body), "one");
    assert_eq!(poll(&mut body), "pending");
    assert_eq!(body.get_mut().told, ["complete"]);
    drop(body);
    assert!(release.is_closed(), "nobody waits");
}

#[test]
fn what_is_held_may_be_released_before_the_end() {
    /// Holds `stop` until more comes.
    struct Until;
    impl Shape for Until {
        fn chunk(&mut self, data: Bytes, out: &mut Out) {
            if data == "stop" {
                out.hold()
            } else {
                out.release()
            }
            out.push(data);
        }
        fn end(&mut self, _: Ending<'_>, _: &mut Out) {}
        fn changes_length(&self) -> bool {
            false
        }
    }
    let inner = ScriptedBody::chunked(["one", "stop"]).pending().data("two").data("stop").pending();
    let mut body = Shaped::new(inner, Until);
    let found: Vec<_> = (0..7).map(|_| poll(&mut body)).collect();
    // What a shape holds that does not hold the end goes out with it.
    assert_eq!(found, ["one", "pending", "stop", "two", "pending", "stop", "none"]);
}

#[test]
fn a_future_may_wait_for_the_end_before_it_gives_the_head() {
    let mut cx = Context::from_waker(Waker::noop());
    let (holding, release) = Holding::new();
    let mut shaper = Shaper::new(holding);
    assert!(shaper.poll_end(&mut cx).is_ready(), "nothing has ended");
    shaper.end(Ending::Complete, &mut Out::default());
    assert!(shaper.poll_end(&mut cx).is_pending());
    release.send(Ok(())).unwrap();
    assert!(shaper.poll_end(&mut cx).is_ready());
    let body = Shaped::with_shaper(ScriptedBody::with_content_length([""; 0]), shaper);
    assert!(body.is_end_stream());
}
