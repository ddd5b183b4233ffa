//! Every end that an answer can have, for every wrapper: each is told exactly one end, the right one, inner ones before
//! outer ones, whoever reads.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Response;
use http_body::Body;
use http_body_util::BodyExt;
use llmproxy_core::{
    BoxBody, BoxError,
    body::{Drain, DrainLimit, Drained, Ending, Hold, Observe, Observed, Out, Shape, Shaped, Shaper, observe},
};
use llmproxy_testkit::ScriptedBody;

type Answer<B> = BoxFuture<'static, Result<Response<B>, BoxError>>;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// An observer and a shape that lets everything pass: both tell the log their end.
struct Tell {
    log: Log,
    name: &'static str,
    changes_length: bool,
}

/// What is held tells the log when it is let go.
struct Released(Log, &'static str);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrapper {
    Observed,
    ObserveFuture,
    Hold,
    Shaped,
    ShapedAnyLength,
    /// Around an observer, by a policy that has no rest read.
    Drained,
}

/// Drops the rest.
struct Never;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    /// At its end when it is wrapped, as hyper's own empty bodies are.
    Empty,
    /// Empty, but known only by its `None`.
    EmptyUnknown,
    ExactLength,
    Chunked,
    Trailers,
    Error,
    ErrorAtOnce,
    NoAnswer,
    DroppedBeforeHead,
    DroppedUnread,
    DroppedInTheMiddle,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reader {
    /// Stops when it hears `is_end_stream`, as hyper does.
    LikeHyper,
    /// Polls until `None`.
    UntilNone,
}

const WRAPPERS: [Wrapper; 6] = [
    Wrapper::Observed,
    Wrapper::ObserveFuture,
    Wrapper::Hold,
    Wrapper::Shaped,
    Wrapper::ShapedAnyLength,
    Wrapper::Drained,
];

const CASES: [(Case, &str); 11] = [
    (Case::Empty, "complete"),
    (Case::EmptyUnknown, "complete"),
    (Case::ExactLength, "complete"),
    (Case::Chunked, "complete"),
    (Case::Trailers, "complete"),
    (Case::Error, "failed: dead"),
    (Case::ErrorAtOnce, "failed: dead"),
    (Case::NoAnswer, "failed: dead"),
    (Case::DroppedBeforeHead, "dropped"),
    (Case::DroppedUnread, "dropped"),
    (Case::DroppedInTheMiddle, "dropped"),
];

#[tokio::test]
async fn each_wrapper_is_told_each_end_once_and_after_what_is_further_in() {
    for (case, ending) in CASES {
        for wrapper in WRAPPERS {
            for reader in [Reader::LikeHyper, Reader::UntilNone] {
                check(case, wrapper, reader, ending).await;
            }
        }
    }
}

async fn check(case: Case, wrapper: Wrapper, reader: Reader, ending: &str) {
    let told = format!("{case:?} {wrapper:?} {reader:?}");
    let log = Log::default();
    let inner: Answer<_> = Box::pin(observe(answer(case), Tell::new(&log, "inner")));
    let mut outer = wrap(wrapper, inner, &log);
    let outer_ending = match wrapper {
        Wrapper::Hold => "outer released".to_owned(),
        _ => format!("outer {ending}"),
    };
    let mut expected = vec![format!("inner {ending}"), outer_ending];
    // It begins with the body: there was nothing to watch before.
    if wrapper == Wrapper::Observed && matches!(case, Case::DroppedBeforeHead | Case::NoAnswer) {
        expected.pop();
    }

    if case == Case::DroppedBeforeHead {
        assert!(poll(outer.as_mut()).is_pending(), "{told}");
        assert_eq!(log.get(), [""; 0], "{told}");
        drop(outer);
        return assert_eq!(log.get(), expected, "{told}");
    }
    let result = outer.await;
    if case == Case::NoAnswer {
        assert_eq!(result.unwrap_err().to_string(), "dead", "{told}");
        return assert_eq!(log.get(), expected, "{told}");
    }
    let mut body = result.unwrap().into_body();
    if case == Case::Empty {
        assert!(body.is_end_stream(), "{told}");
        assert_eq!(log.get(), expected, "{told}");
    } else {
        assert!(log.get().is_empty(), "{told}");
    }
    let dropped = matches!(case, Case::DroppedUnread | Case::DroppedInTheMiddle);
    if case == Case::DroppedInTheMiddle {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one", "{told}");
    }
    if !dropped {
        let read = read(&mut body, reader, &log, &told).await;
        let data = match case {
            Case::Empty | Case::EmptyUnknown | Case::ErrorAtOnce => "",
            _ => "onetwo",
        };
        let after = match case {
            Case::Trailers => " trailers",
            Case::Error | Case::ErrorAtOnce => " error",
            _ => "",
        };
        assert_eq!(read, format!("{data}{after}"), "{told}");
        assert_eq!(log.get(), expected, "before the drop: {told}");
        for _ in 0..2 {
            assert!(body.frame().await.is_none(), "{told}");
        }
    }
    drop(body);
    assert_eq!(log.get(), expected, "{told}");
}

fn answer(case: Case) -> Answer<ScriptedBody> {
    let body = match case {
        Case::DroppedBeforeHead => return Box::pin(pending()),
        Case::NoAnswer => return Box::pin(async { Err("dead".into()) }),
        Case::Empty => ScriptedBody::with_content_length([""; 0]),
        Case::EmptyUnknown => ScriptedBody::new(),
        Case::ExactLength => ScriptedBody::with_content_length(["one", "two"]),
        Case::Chunked | Case::DroppedUnread => {
            ScriptedBody::new().pending().data("one").pending().data("two").pending()
        }
        Case::Trailers => ScriptedBody::chunked(["one", "two"]).trailers([("x-sum", "2")]),
        Case::Error => ScriptedBody::chunked(["one", "two"]).error("dead"),
        Case::ErrorAtOnce => ScriptedBody::new().error("dead"),
        Case::DroppedInTheMiddle => ScriptedBody::with_content_length(["one", "two"]),
    };
    Box::pin(async { Ok(Response::new(body)) })
}

fn wrap<B>(wrapper: Wrapper, inner: Answer<B>, log: &Log) -> Answer<BoxBody>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
{
    let tell = Tell::new(log, "outer");
    match wrapper {
        Wrapper::Observed => Box::pin(async { Ok(inner.await?.map(|body| Observed::new(body, tell).boxed_unsync())) }),
        Wrapper::ObserveFuture => Box::pin(async { Ok(observe(inner, tell).await?.map(BodyExt::boxed_unsync)) }),
        Wrapper::Hold => {
            let held = Hold(Released(log.clone(), "outer"));
            Box::pin(async { Ok(observe(inner, held).await?.map(BodyExt::boxed_unsync)) })
        }
        Wrapper::Drained => {
            Box::pin(async { Ok(observe(inner, tell).await?.map(|body| Drained::new(body, Never).boxed_unsync())) })
        }
        Wrapper::Shaped | Wrapper::ShapedAnyLength => {
            let tell = Tell { changes_length: wrapper == Wrapper::ShapedAnyLength, ..tell };
            Box::pin(async {
                let mut shaper = Shaper::new(tell);
                match inner.await {
                    Ok(response) => Ok(response.map(|body| Shaped::with_shaper(body, shaper).boxed_unsync())),
                    Err(error) => {
                        shaper.end(Ending::Failed(&error), &mut Out::default());
                        Err(error)
                    }
                }
            })
        }
    }
}

/// Reads to the end as `reader` sees it. Whenever the body says that it is at its end, both must have been told.
async fn read(body: &mut BoxBody, reader: Reader, log: &Log, told: &str) -> String {
    let mut read = String::new();
    loop {
        if body.is_end_stream() {
            assert_eq!(log.get().len(), 2, "at its end before all were told: {told}");
            if reader == Reader::LikeHyper {
                return read;
            }
        }
        match body.frame().await {
            None => return read,
            Some(Err(_)) => {
                read.push_str(" error");
                return read;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => read.push_str(std::str::from_utf8(&data).unwrap()),
                Err(_) => {
                    read.push_str(" trailers");
                    // hyper lets go of a body after its trailers.
                    if reader == Reader::LikeHyper {
                        return read;
                    }
                }
            },
        }
    }
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

impl Tell {
    fn new(log: &Log, name: &'static str) -> Self {
        Self { log: log.clone(), name, changes_length: false }
    }
}

impl Observe for Tell {
    fn end(self, ending: Ending<'_>) {
        self.log.push(format!("{} {}", self.name, describe(ending)));
    }
}

impl Shape for Tell {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        out.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, _: &mut Out) {
        self.log.push(format!("{} {}", self.name, describe(ending)));
    }

    fn changes_length(&self) -> bool {
        self.changes_length
    }
}

// === impl Never ===

impl<B> Drain<B> for Never {
    type Limit = Self;

    fn reader_left(self, _: &mut B) -> Option<Self> {
        None
    }
}

impl<B> DrainLimit<B> for Never {
    fn poll_reached(&mut self, _: &mut B, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn ended(&mut self) {}
}

// === impl Released ===

impl Drop for Released {
    fn drop(&mut self) {
        self.0.push(format!("{} released", self.1));
    }
}

fn describe(ending: Ending<'_>) -> String {
    match ending {
        Ending::Complete => "complete".to_owned(),
        Ending::Failed(error) => format!("failed: {error}"),
        Ending::Dropped => "dropped".to_owned(),
    }
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
