//! A body whose rest may be read though whoever read it has left.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{runtime::Handle, task::coop::consume_budget};

use crate::BoxError;

/// Decides what becomes of a body whose reader left before its end.
///
/// Asked inside of a drop: it must not await, block or panic.
///
/// ```
/// use std::{sync::{Arc, atomic::{AtomicBool, Ordering}}, task::{Context, Poll}};
///
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
/// use llmproxy_core::{BoxError, body::{Drain, DrainLimit, Drained, Hold, Observed}};
///
/// /// Reads on to the end, however long that takes.
/// struct Always;
/// struct Unlimited;
///
/// impl<B> Drain<B> for Always {
///     type Limit = Unlimited;
///     fn reader_left(self, _: &mut B) -> Option<Unlimited> {
///         Some(Unlimited)
///     }
/// }
///
/// impl<B> DrainLimit<B> for Unlimited {
///     fn poll_reached(&mut self, _: &mut B, _: &mut Context<'_>) -> Poll<()> {
///         Poll::Pending
///     }
///     fn ended(&mut self) {}
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let permit = Arc::new(());
/// let body = Full::new(Bytes::from("hello")).map_err(|never| BoxError::from(never));
/// drop(Drained::new(Observed::new(body, Hold(permit.clone())), Always));
/// assert_eq!(Arc::strong_count(&permit), 2, "there is a task that reads on");
/// while Arc::strong_count(&permit) > 1 {
///     tokio::task::yield_now().await;
/// }
/// # }
/// ```
pub trait Drain<B>: Send + 'static {
    /// What bounds the reading on.
    type Limit: DrainLimit<B>;

    /// The reader has left a body that has not ended; nothing of it has been dropped yet. `None` drops it now.
    fn reader_left(self, body: &mut B) -> Option<Self::Limit>;
}

/// Bounds the reading of a rest. Dropped after the body.
pub trait DrainLimit<B>: Send + 'static {
    /// Asked before each frame and whenever what it registers `cx` with says so: ready when no more is to be read. The body
    /// is then dropped where it is.
    fn poll_reached(&mut self, body: &mut B, cx: &mut Context<'_>) -> Poll<()>;

    /// The body came to its end, or failed, by itself; told before it is dropped.
    fn ended(&mut self);
}

/// A body that may outlive its reader: where it is dropped before its end, its [`Drain`] is asked whether a task is to read
/// the rest, so that what watches the body further in sees its true end.
///
/// It passes everything as it is. Nothing is asked of a body that has ended, and no task is there before the drop. What is
/// further out ends with the drop, as ever; what is further in ends with the task. Dropped outside of a tokio runtime, or
/// when that stops, it is a body that was dropped. See [`Drain`] for an example.
#[derive(Debug)]
pub struct Drained<B, D>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
    D: Drain<B>,
{
    // There until the drop.
    inner: Option<B>,
    // There until the end.
    drain: Option<D>,
}

/// What a task reads. The order of the fields matters: they drop in it, also where the task itself is dropped.
struct Rest<B, L> {
    body: B,
    limit: L,
}

// === impl Drained ===

impl<B, D> Drained<B, D>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
    D: Drain<B>,
{
    /// `body`, whose rest is `drain`'s.
    pub fn new(body: B, drain: D) -> Self {
        Self { inner: Some(body), drain: Some(drain) }
    }
}

impl<B, D> Body for Drained<B, D>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
    D: Drain<B> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let polled = Pin::new(inner).poll_frame(cx);
        if let Poll::Ready(frame) = &polled
            && frame.as_ref().is_none_or(is_last)
        {
            self.drain = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl<B, D> Drop for Drained<B, D>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
    D: Drain<B>,
{
    fn drop(&mut self) {
        let (Some(mut body), Some(drain)) = (self.inner.take(), self.drain.take()) else { return };
        // Whoever hears of the end by this, as hyper does, does not poll for `None`.
        if body.is_end_stream() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if let Some(limit) = drain.reader_left(&mut body) {
            runtime.spawn(read_on(Rest { body, limit }));
        }
    }
}

async fn read_on<B, L>(mut rest: Rest<B, L>)
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
    L: DrainLimit<B>,
{
    loop {
        let Rest { body, limit } = &mut rest;
        let next = poll_fn(|cx| match limit.poll_reached(body, cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut *body).poll_frame(cx).map(|frame| Some(frame.as_ref().is_none_or(is_last))),
        });
        let Some(is_last) = next.await else { return };
        if is_last || rest.body.is_end_stream() {
            return rest.limit.ended();
        }
        // Nobody's client slows this down.
        consume_budget().await;
    }
}

fn is_last(frame: &Result<Frame<Bytes>, BoxError>) -> bool {
    frame.as_ref().map_or(true, Frame::is_trailers)
}
