//! What an answer may be ahead of its client.
//!
//! hyper takes frames from a body until a megabyte of them waits, as much as a head may be large: both have one setting.
//! A client that reads slowly would cost that much memory, and its backend would go on for as long. Here the body says
//! Pending once enough waits, and goes on when the socket has taken it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::io::Activity;

/// What hyper was given of an answer and the socket has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: AtomicUsize,
    body: AtomicWaker,
}

pin_project! {
    /// A body that waits while there is a backlog.
    #[derive(Debug)]
    pub(crate) struct PacedBody<B> {
        #[pin]
        inner: B,
        activity: Arc<Activity>,
    }
}

pin_project! {
    /// An answer whose body will wait.
    #[derive(Debug)]
    pub(crate) struct PacedFuture<F> {
        #[pin]
        inner: F,
        activity: Option<Arc<Activity>>,
    }
}

// === impl Backlog ===

impl Backlog {
    /// Beyond this nothing is added, in bytes: more than a socket takes at a time, and little beside what its kernel holds.
    const LIMIT: usize = 64 * 1024;

    /// All has been written.
    pub(crate) fn clear(&self) {
        if self.bytes.swap(0, Ordering::AcqRel) >= Self::LIMIT {
            self.body.wake();
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.load(Ordering::Acquire) < Self::LIMIT {
            return Poll::Ready(());
        }
        self.body.register(cx.waker());
        // It may have been cleared in between.
        if self.bytes.load(Ordering::Acquire) < Self::LIMIT { Poll::Ready(()) } else { Poll::Pending }
    }
}

// === impl PacedFuture ===

impl<F> PacedFuture<F> {
    pub(crate) fn new(inner: F, activity: Arc<Activity>) -> Self {
        Self { inner, activity: Some(activity) }
    }
}

impl<F, B, E> Future for PacedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<PacedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let activity = this.activity.take().expect("a future is not polled after it was ready");
        Poll::Ready(Ok(response.map(|inner| PacedBody { inner, activity })))
    }
}

// === impl PacedBody ===

impl<B: Body<Data = Bytes>> Body for PacedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let backlog = &this.activity.backlog;
        if backlog.poll_room(cx).is_pending() {
            return Poll::Pending;
        }
        let polled = this.inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            backlog.bytes.fetch_add(frame.data_ref().map_or(0, Bytes::len), Ordering::AcqRel);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
