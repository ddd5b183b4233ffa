//! A body that is watched.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response, response::Parts};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::Ending;
use crate::BoxError;

/// Watches one answer.
///
/// Every method runs on the path of the bytes: it must not block. `end` may run inside a drop: it must not panic.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
/// use llmproxy_core::body::{Ending, Observe, Observed};
///
/// /// Prints how long an answer was, and whether it was whole.
/// #[derive(Default)]
/// struct Length(usize);
///
/// impl Observe for Length {
///     fn chunk(&mut self, data: &Bytes) {
///         self.0 += data.len();
///     }
///     fn end(self, ending: Ending<'_>) {
///         println!("{} bytes, {ending:?}", self.0);
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let body = Observed::new(Full::new(Bytes::from("hello")), Length::default());
/// assert_eq!(body.collect().await?.to_bytes(), "hello");
/// # Ok(())
/// # }
/// ```
pub trait Observe: Send + 'static {
    /// The head has come. Told at most once, before anything of the body, and not at all where none came.
    fn head(&mut self, _head: &Parts) {}

    /// A piece of the body passes.
    fn chunk(&mut self, _data: &Bytes) {}

    /// Trailers pass; the end follows at once.
    fn trailers(&mut self, _trailers: &HeaderMap) {}

    /// The end, once: the last that is told.
    fn end(self, ending: Ending<'_>)
    where
        Self: Sized;
}

/// Keeps something alive until the answer has ended: a permit, a count.
///
/// ```
/// use llmproxy_core::body::{Hold, Observed};
///
/// let permit = std::sync::Arc::new(());
/// let body = Observed::new(http_body_util::Full::new(bytes::Bytes::from("hello")), Hold(permit.clone()));
/// assert_eq!(std::sync::Arc::strong_count(&permit), 2);
/// drop(body);
/// assert_eq!(std::sync::Arc::strong_count(&permit), 1);
/// ```
#[derive(Debug)]
pub struct Hold<T>(pub T);

/// An observer that is certain to be told the end: when it is dropped before, it tells [`Ending::Dropped`].
///
/// Held by a future until the head has come, then moved into [`Observed`]. Only a layer whose future is not simply its
/// inner service's needs it; for all others there is [`observe`].
///
/// ```
/// use std::sync::Arc;
/// use llmproxy_core::body::{Hold, Observed, Observer};
///
/// let permit = Arc::new(());
/// let observer = Observer::new(Hold(permit.clone()));
/// // ... the head came: from here on the body keeps the permit.
/// let body = Observed::with_observer(http_body_util::Full::<bytes::Bytes>::from("hello"), observer);
/// assert_eq!(Arc::strong_count(&permit), 2);
/// # drop(body);
/// ```
#[derive(Debug)]
pub struct Observer<O: Observe>(Option<O>);

pin_project! {
    /// A body that is watched by an observer.
    ///
    /// The bytes, the trailers and the length are the inner body's. Only the answer to `is_end_stream` may differ: it is
    /// `true` no sooner than the observer was told, since whoever hears `true` may never poll again.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body::Body;
    /// use http_body_util::Full;
    /// use llmproxy_core::body::{Hold, Observed};
    ///
    /// let body = Observed::new(Full::new(Bytes::from("hello")), Hold(()));
    /// assert_eq!(body.size_hint().exact(), Some(5));
    /// ```
    #[derive(Debug)]
    pub struct Observed<B, O: Observe> {
        #[pin]
        inner: B,
        // After the body: fields drop in this order, so that what is further in has ended before. The wrapper itself
        // must not implement Drop, which would run first.
        observer: Observer<O>,
    }
}

pin_project! {
    /// Made by [`observe`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it before the head has come tells the observer [`Ending::Dropped`].
    #[derive(Debug)]
    pub struct ObserveFuture<F, O: Observe> {
        #[pin]
        inner: F,
        observer: Option<Observer<O>>,
    }
}

/// Has `observer` watch the answer that `future` comes to: from now on, a drop included.
///
/// # Errors
///
/// The future fails as `future` does; the observer was told [`Ending::Failed`] before.
///
/// # Cancel safety
///
/// Dropping the future tells the observer [`Ending::Dropped`].
///
/// ```
/// use std::sync::Arc;
/// use llmproxy_core::{BoxError, body::{Hold, observe}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let permit = Arc::new(());
/// let refused = async { Err::<http::Response<String>, _>("connection refused") };
/// assert!(observe(refused, Hold(permit.clone())).await.is_err());
/// assert_eq!(Arc::strong_count(&permit), 1);
/// # }
/// ```
pub fn observe<F, O: Observe>(future: F, observer: O) -> ObserveFuture<F, O> {
    ObserveFuture { inner: future, observer: Some(Observer::new(observer)) }
}

// === impl Hold ===

impl<T: Send + 'static> Observe for Hold<T> {
    fn end(self, _: Ending<'_>) {}
}

// === impl Observer ===

impl<O: Observe> Observer<O> {
    /// Takes on the duty of telling the end.
    pub fn new(observer: O) -> Self {
        Self(Some(observer))
    }

    /// Passes on the head.
    pub fn head(&mut self, head: &Parts) {
        if let Some(observer) = &mut self.0 {
            observer.head(head);
        }
    }

    /// Tells the end, unless it was told before.
    pub fn end(&mut self, ending: Ending<'_>) {
        if let Some(observer) = self.0.take() {
            observer.end(ending);
        }
    }

    /// The observer; `None` once it was told the end.
    pub fn get_mut(&mut self) -> Option<&mut O> {
        self.0.as_mut()
    }
}

impl<O: Observe> Drop for Observer<O> {
    fn drop(&mut self) {
        self.end(Ending::Dropped);
    }
}

// === impl Observed ===

impl<B: Body, O: Observe> Observed<B, O> {
    /// Watches `body` from here on. A body that is at its end already ends at once: nobody would poll it.
    pub fn new(body: B, observer: O) -> Self {
        Self::with_observer(body, Observer::new(observer))
    }

    /// Watches `body` with an observer that has watched the wait for it.
    pub fn with_observer(body: B, mut observer: Observer<O>) -> Self {
        // A body that is at its end already is never polled by hyper.
        if body.is_end_stream() {
            observer.end(Ending::Complete);
        }
        Self { inner: body, observer }
    }
}

impl<B, O> Body for Observed<B, O>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
    O: Observe,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        match ready!(this.inner.as_mut().poll_frame(cx)) {
            None => {
                this.observer.end(Ending::Complete);
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                let error = error.into();
                this.observer.end(Ending::Failed(&error));
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                if let Some(observer) = this.observer.get_mut() {
                    if let Some(data) = frame.data_ref() {
                        observer.chunk(data);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        observer.trailers(trailers);
                    }
                    if frame.is_trailers() || this.inner.is_end_stream() {
                        this.observer.end(Ending::Complete);
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // Only once the observer knows: whoever hears "true" here may never poll again.
        self.observer.0.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl ObserveFuture ===

impl<F, B, E, O> Future for ObserveFuture<F, O>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: Into<BoxError>,
    O: Observe,
{
    type Output = Result<Response<Observed<B, O>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let mut observer = this.observer.take().expect("a future is not polled after it was ready");
        Poll::Ready(match result {
            Ok(response) => {
                let (head, body) = response.into_parts();
                observer.head(&head);
                Ok(Response::from_parts(head, Observed::with_observer(body, observer)))
            }
            Err(error) => {
                let error = error.into();
                observer.end(Ending::Failed(&error));
                Err(error)
            }
        })
    }
}
