//! A body whose chunks may be withheld, replaced or added to.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{Ending, Out};
use crate::BoxError;

/// Decides what of one body passes.
///
/// Every method runs on the path of the bytes: it must not block. `end` may run inside a drop: it must not panic.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
/// use llmproxy_core::body::{Ending, Out, Shape, Shaped};
///
/// /// Says so where a stream broke.
/// struct Say;
///
/// impl Shape for Say {
///     fn chunk(&mut self, data: Bytes, out: &mut Out) {
///         out.push(data);
///     }
///     fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
///         out.push(Bytes::from_static(match ending {
///             Ending::Complete => b" - and that was all",
///             _ => b" - and here it broke",
///         }));
///     }
///     fn changes_length(&self) -> bool {
///         true
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let body = Shaped::new(Full::new(Bytes::from("hello")), Say);
/// assert_eq!(body.collect().await?.to_bytes(), "hello - and that was all");
/// # Ok(())
/// # }
/// ```
pub trait Shape: Send + 'static {
    /// Data has come; what may go on is pushed to `out`. What is not pushed is withheld and the shape's to keep.
    fn chunk(&mut self, data: Bytes, out: &mut Out);

    /// The end, told once. What was withheld, or should follow, is pushed to `out`; after a failure the error follows
    /// it. After a drop nobody reads `out` any more.
    fn end(&mut self, ending: Ending<'_>, out: &mut Out);

    /// Nothing has come: the place for timers. The shape registers `cx` with whatever should wake it.
    ///
    /// `Ok` says that something was pushed to `out`; an error ends the body, and `end` is told of it.
    ///
    /// # Errors
    ///
    /// Where the body must not go on, because it was silent for too long. What was pushed to `out` goes out before it.
    fn poll_silent(&mut self, _cx: &mut Context<'_>, _out: &mut Out) -> Poll<Result<(), BoxError>> {
        Poll::Pending
    }

    /// Asked when `poll_silent` was ready, and when the inner body failed: whether the body is complete though the inner one
    /// does not end, or broke. `end` is told so, and the inner body is polled no more.
    fn is_over(&self) -> bool {
        false
    }

    /// Whether the end, once it was told, is to wait: `poll_end` is asked then, until it is ready, which makes this `false`.
    ///
    /// Until then the body is not at its end, and what the piece that was the last came to is held, as is what `end` has
    /// pushed. Only what was pushed before a call of [`Out::hold`] goes on.
    fn holds_end(&self) -> bool {
        false
    }

    /// Waits before the end passes. The shape registers `cx` with whatever should wake it, and bounds the wait.
    ///
    /// # Errors
    ///
    /// Where the end must not pass. What is held is dropped, trailers included, and the body fails: with this error, or with
    /// the one that it had failed with already.
    fn poll_end(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    /// Whether more or fewer bytes may come out than go in, so that the length is not known. hyper chooses the framing by
    /// the length, and would cut off what is past it.
    fn changes_length(&self) -> bool;
}

/// A body moves from layer to layer by value: a shape with much state is better boxed.
impl<S: Shape> Shape for Box<S> {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        (**self).chunk(data, out);
    }

    fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        (**self).end(ending, out);
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Poll<Result<(), BoxError>> {
        (**self).poll_silent(cx, out)
    }

    fn is_over(&self) -> bool {
        (**self).is_over()
    }

    fn holds_end(&self) -> bool {
        (**self).holds_end()
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        (**self).poll_end(cx)
    }

    fn changes_length(&self) -> bool {
        (**self).changes_length()
    }
}

/// A shape that is certain to be told the end: when it is dropped before, it tells [`Ending::Dropped`].
///
/// Held by a future until the head has come, then moved into [`Shaped`].
///
/// ```
/// # use bytes::Bytes;
/// # use llmproxy_core::body::{Ending, Out, Shape};
/// use llmproxy_core::body::{Shaped, Shaper};
///
/// # struct Whole;
/// # impl Shape for Whole {
/// #     fn chunk(&mut self, data: Bytes, out: &mut Out) { out.push(data); }
/// #     fn end(&mut self, _: Ending<'_>, _: &mut Out) {}
/// #     fn changes_length(&self) -> bool { false }
/// # }
/// let shaper = Shaper::new(Whole);
/// // ... the head came:
/// let body = Shaped::with_shaper(http_body_util::Full::<bytes::Bytes>::from("hello"), shaper);
/// # drop(body);
/// ```
#[derive(Debug)]
pub struct Shaper<S: Shape> {
    shape: S,
    ended: bool,
}

pin_project! {
    /// A body that is shaped; see [`Shape`] for an example.
    ///
    /// An error never follows the head or a frame at once: hyper throws away what it has buffered when a body fails. The
    /// body says Pending once, so that hyper flushes, and then fails.
    ///
    /// The end passes when the shape lets it ([`Shape::holds_end`]): up to then the body is not at its end, and its length
    /// counts what is held.
    #[derive(Debug)]
    pub struct Shaped<B, S: Shape> {
        #[pin]
        inner: B,
        // After the body: see `Observed`.
        shaper: Shaper<S>,
        out: Out,
        last: Last,
        // Whether the poll before this one returned a frame that hyper has not flushed yet; at first, whether it has the head.
        unflushed: bool,
    }
}

/// What comes after the chunks in `out`.
#[derive(Debug)]
enum Last {
    /// More of the inner body.
    Body,
    /// Trailers, then nothing.
    Trailers(Box<HeaderMap>),
    /// An error, then nothing.
    Error(BoxError),
    /// Nothing.
    Nothing,
}

// === impl Shaper ===

impl<S: Shape> Shaper<S> {
    /// Takes on the duty of telling the end.
    pub fn new(shape: S) -> Self {
        Self { shape, ended: false }
    }

    /// The shape.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.shape
    }

    /// Tells the end, unless it was told before.
    pub fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        if !std::mem::replace(&mut self.ended, true) {
            self.shape.end(ending, out);
        }
    }

    /// Waits until the end that was told may pass; see [`Shape::poll_end`]. Ready where none was told.
    ///
    /// For a future that comes to an end before there is a body, or to a body that is at its end: whoever reads that one does
    /// not poll it, so the head has to wait.
    ///
    /// # Errors
    ///
    /// The shape's.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.ended && self.shape.holds_end() { self.shape.poll_end(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: Shape> Drop for Shaper<S> {
    fn drop(&mut self) {
        self.end(Ending::Dropped, &mut Out::default());
    }
}

// === impl Shaped ===

impl<B: Body, S: Shape> Shaped<B, S> {
    /// Shapes `body` from here on.
    pub fn new(body: B, shape: S) -> Self {
        Self::with_shaper(body, Shaper::new(shape))
    }

    /// Shapes `body` with a shape that has watched the wait for it.
    ///
    /// A body that is at its end already ends at once. Where the shape holds that end, its reader should not be given the
    /// head before [`Shaper::poll_end`] is ready: of a body whose size is 0, hyper writes the head and polls no more.
    pub fn with_shaper(body: B, mut shaper: Shaper<S>) -> Self {
        let mut out = Out::default();
        let mut last = Last::Body;
        if body.is_end_stream() {
            shaper.end(Ending::Complete, &mut out);
            last = Last::Nothing;
        }
        Self { inner: body, shaper, out, last, unflushed: true }
    }
}

impl<B, S: Shape> Shaped<B, S> {
    /// The shape.
    pub fn get_mut(&mut self) -> &mut S {
        self.shaper.get_mut()
    }
}

impl<B, S> Body for Shaped<B, S>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
    S: Shape,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        loop {
            let is_told = !matches!(this.last, Last::Body);
            let is_held = is_told && this.shaper.shape.holds_end();
            match is_told {
                true if is_held => this.out.hold_all(),
                true => this.out.release(),
                false => {}
            }
            if let Some(data) = this.out.pop() {
                *this.unflushed = true;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if is_held {
                match this.shaper.shape.poll_end(cx) {
                    Poll::Pending => {
                        *this.unflushed = false;
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => {
                        this.out.release();
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        *this.out = Out::default();
                        if !matches!(this.last, Last::Error(_)) {
                            *this.last = Last::Error(error);
                        }
                    }
                }
            }
            match this.last {
                Last::Body => {}
                // hyper closes the connection on an error without writing what it has buffered. Pending makes it flush
                // first; the error follows in the next poll.
                Last::Error(_) if std::mem::take(this.unflushed) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                last => {
                    return Poll::Ready(match std::mem::replace(last, Last::Nothing) {
                        Last::Trailers(trailers) => Some(Ok(Frame::trailers(*trailers))),
                        Last::Error(error) => Some(Err(error)),
                        Last::Body | Last::Nothing => None,
                    });
                }
            }
            match this.inner.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        this.shaper.shape.chunk(data, this.out);
                        if this.inner.is_end_stream() {
                            this.shaper.end(Ending::Complete, this.out);
                            *this.last = Last::Nothing;
                        }
                    }
                    Err(frame) => {
                        this.shaper.end(Ending::Complete, this.out);
                        *this.last =
                            frame.into_trailers().map_or(Last::Nothing, |trailers| Last::Trailers(Box::new(trailers)));
                    }
                },
                Poll::Ready(Some(Err(_))) if this.shaper.shape.is_over() => {
                    this.shaper.end(Ending::Complete, this.out);
                    *this.last = Last::Nothing;
                }
                Poll::Ready(Some(Err(error))) => {
                    let error = error.into();
                    this.shaper.end(Ending::Failed(&error), this.out);
                    *this.last = Last::Error(error);
                }
                Poll::Ready(None) => {
                    this.shaper.end(Ending::Complete, this.out);
                    *this.last = Last::Nothing;
                }
                Poll::Pending => match this.shaper.shape.poll_silent(cx, this.out) {
                    Poll::Ready(Ok(())) if this.shaper.shape.is_over() => {
                        this.shaper.end(Ending::Complete, this.out);
                        *this.last = Last::Nothing;
                    }
                    Poll::Ready(Ok(())) if this.out.is_ready() => {}
                    Poll::Ready(Err(error)) => {
                        this.shaper.end(Ending::Failed(&error), this.out);
                        *this.last = Last::Error(error);
                    }
                    Poll::Pending | Poll::Ready(Ok(())) => {
                        // Only now: the shape may have failed in the poll right after a frame.
                        *this.unflushed = false;
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // `Nothing` is reached only after the shape was told.
        self.out.is_empty() && matches!(self.last, Last::Nothing) && !self.shaper.shape.holds_end()
    }

    fn size_hint(&self) -> SizeHint {
        if self.shaper.shape.changes_length() {
            return SizeHint::default();
        }
        let inner = if matches!(self.last, Last::Body) { self.inner.size_hint() } else { SizeHint::with_exact(0) };
        let queued = self.out.len();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(queued));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(queued));
        }
        hint
    }
}
