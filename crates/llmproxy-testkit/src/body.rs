//! A body made of steps.

use std::{
    collections::VecDeque,
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

/// Any error.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A body that does what it was told, step by step, and afterwards gives `None`.
///
/// ```
/// use llmproxy_testkit::ScriptedBody;
///
/// let body = ScriptedBody::new().data("one").pending().data("two").error("the backend died");
/// let handle = body.handle();
/// drop(body);
/// assert!(handle.is_dropped() && !handle.is_finished());
/// ```
#[derive(Debug)]
pub struct ScriptedBody {
    steps: VecDeque<Step>,
    exact_size: bool,
    ends_with_last_frame: bool,
    log: Arc<Log>,
}

/// Tells what became of a [`ScriptedBody`].
#[derive(Clone, Debug)]
pub struct BodyHandle(Arc<Log>);

#[derive(Debug)]
enum Step {
    Data(Bytes),
    Pending,
    Stall,
    Trailers(HeaderMap),
    Error(BoxError),
}

#[derive(Debug, Default)]
struct Log {
    polls: AtomicUsize,
    polls_after_end: AtomicUsize,
    finished: AtomicBool,
    dropped: AtomicBool,
}

// === impl ScriptedBody ===

impl ScriptedBody {
    /// A body without steps: empty, but it says so only when it is polled.
    pub fn new() -> Self {
        Self { steps: VecDeque::new(), exact_size: false, ends_with_last_frame: false, log: Arc::default() }
    }

    /// Like an answer with a Content-Length: it knows its size, and says that it is at its end right after its last piece.
    pub fn with_content_length<D: Into<Bytes>>(pieces: impl IntoIterator<Item = D>) -> Self {
        Self::chunked(pieces).with_exact_size().ends_with_last_frame()
    }

    /// Like a chunked answer: it does not know its size, and its end is a `None`.
    pub fn chunked<D: Into<Bytes>>(pieces: impl IntoIterator<Item = D>) -> Self {
        pieces.into_iter().fold(Self::new(), |body, piece| body.data(piece))
    }

    /// Then gives this piece.
    pub fn data(self, data: impl Into<Bytes>) -> Self {
        self.step(Step::Data(data.into()))
    }

    /// Then is pending for one poll; wakes its task at once.
    pub fn pending(self) -> Self {
        self.step(Step::Pending)
    }

    /// Then is pending for ever and wakes nobody.
    pub fn stall(self) -> Self {
        self.step(Step::Stall)
    }

    /// Then gives these trailers.
    ///
    /// # Panics
    ///
    /// If one of them can't be a header.
    pub fn trailers<'a>(self, trailers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let header = |(name, value): (&str, &str)| -> Result<_, http::Error> {
            Ok((HeaderName::try_from(name)?, HeaderValue::try_from(value)?))
        };
        let trailers = trailers.into_iter().map(|trailer| header(trailer).expect("trailers are valid headers"));
        self.step(Step::Trailers(trailers.collect()))
    }

    /// Then fails.
    pub fn error(self, error: impl Into<BoxError>) -> Self {
        self.step(Step::Error(error.into()))
    }

    /// Tells its exact size in its size hint.
    pub fn with_exact_size(mut self) -> Self {
        self.exact_size = true;
        self
    }

    /// Answers `is_end_stream` with true as soon as no step is left, also right when it was made; else only after it gave
    /// `None`.
    pub fn ends_with_last_frame(mut self) -> Self {
        self.ends_with_last_frame = true;
        self
    }

    /// Tells later what became of this body.
    pub fn handle(&self) -> BodyHandle {
        BodyHandle(self.log.clone())
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push_back(step);
        self
    }
}

impl Default for ScriptedBody {
    fn default() -> Self {
        Self::new()
    }
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.log.polls.fetch_add(1, Ordering::Relaxed);
        if self.log.finished.load(Ordering::Relaxed) {
            self.log.polls_after_end.fetch_add(1, Ordering::Relaxed);
        }
        let (frame, last) = match self.steps.pop_front() {
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Stall) => {
                self.steps.push_front(Step::Stall);
                return Poll::Pending;
            }
            Some(Step::Data(data)) => (Some(Ok(Frame::data(data))), self.ends_with_last_frame && self.steps.is_empty()),
            Some(Step::Trailers(trailers)) => (Some(Ok(Frame::trailers(trailers))), true),
            Some(Step::Error(error)) => (Some(Err(error)), true),
            None => (None, true),
        };
        if last {
            self.steps.clear();
            self.log.finished.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.log.finished.load(Ordering::Relaxed) || (self.ends_with_last_frame && self.steps.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        if !self.exact_size {
            return SizeHint::default();
        }
        let size = self.steps.iter().map(|step| if let Step::Data(data) = step { data.len() as u64 } else { 0 });
        SizeHint::with_exact(size.sum())
    }
}

impl Drop for ScriptedBody {
    fn drop(&mut self) {
        self.log.dropped.store(true, Ordering::Relaxed);
    }
}

// === impl BodyHandle ===

impl BodyHandle {
    /// How often it was polled.
    pub fn polls(&self) -> usize {
        self.0.polls.load(Ordering::Relaxed)
    }

    /// How often it was polled although it had come to its end.
    pub fn polls_after_end(&self) -> usize {
        self.0.polls_after_end.load(Ordering::Relaxed)
    }

    /// Whether all that it had was taken from it, its end, trailers or error included.
    pub fn is_finished(&self) -> bool {
        self.0.finished.load(Ordering::Relaxed)
    }

    /// Whether it was dropped.
    pub fn is_dropped(&self) -> bool {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn frame(body: &mut ScriptedBody) -> Option<Result<Frame<Bytes>, BoxError>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    #[tokio::test]
    async fn steps_come_in_their_order() {
        let mut body = ScriptedBody::new().data("a").pending().data("b").trailers([("x-n", "2")]);
        let handle = body.handle();
        assert_eq!(frame(&mut body).await.unwrap().unwrap().into_data().unwrap(), "a");
        assert_eq!(frame(&mut body).await.unwrap().unwrap().into_data().unwrap(), "b");
        assert_eq!(handle.polls(), 3);
        assert!(!body.is_end_stream());
        assert_eq!(frame(&mut body).await.unwrap().unwrap().into_trailers().unwrap()["x-n"], "2");
        assert!(body.is_end_stream() && handle.is_finished());
        assert!(frame(&mut body).await.is_none());
        assert_eq!(handle.polls_after_end(), 1);
    }

    #[tokio::test]
    async fn a_body_with_a_length_ends_with_its_last_piece() {
        let mut body = ScriptedBody::with_content_length(["ab", "c"]);
        assert_eq!(body.size_hint().exact(), Some(3));
        frame(&mut body).await;
        assert_eq!(body.size_hint().exact(), Some(1));
        assert!(!body.is_end_stream());
        frame(&mut body).await;
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_chunked_body_ends_with_none_and_not_before() {
        let mut body = ScriptedBody::chunked(["a"]);
        assert_eq!(body.size_hint().exact(), None);
        frame(&mut body).await;
        assert!(!body.is_end_stream());
        assert!(frame(&mut body).await.is_none());
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn an_error_is_the_end() {
        let mut body = ScriptedBody::new().error("dead");
        assert_eq!(frame(&mut body).await.unwrap().unwrap_err().to_string(), "dead");
        assert!(frame(&mut body).await.is_none());
    }
}
