//! A request's body that passes through to a backend, and what the answer must know of it.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use llmproxy_core::{BoxError, End, Ended, RequestBody, cause_ref};
use tokio::{runtime::Handle, time::sleep};

/// After an answer's end, how long nothing may pass of an upload that its backend has not read to the end. A client that
/// sends all before it reads anything has its answer then; a backend that reads no more holds it up no longer.
const LINGER: Duration = Duration::from_secs(5);

/// The body, as the client library has it.
pub(crate) struct Sending(Upload);

/// The same body, as its answer has it.
#[derive(Clone)]
pub(crate) struct Upload(Arc<Mutex<State>>);

/// Held by an answer: when that is over, the rest of the upload has little time.
#[derive(Debug)]
pub(crate) struct Rest(Upload);

struct State {
    /// What has not passed yet; `None` when nothing more will.
    rest: Option<RequestBody>,
    /// Whether it broke off, rather than ended.
    broke: bool,
    /// Why, kept past the client library, which would wrap it into its own error.
    failure: Option<BoxError>,
    /// How many pieces have passed.
    passed: u64,
    /// Whoever waits for more of it.
    waiting: Option<Waker>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request's body broke off")]
struct BrokeOff;

// === impl Upload ===

impl Upload {
    pub(crate) fn new(body: RequestBody) -> Self {
        let state = State { rest: Some(body), broke: false, failure: None, passed: 0, waiting: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// For the client library, once.
    pub(crate) fn sending(&self) -> Sending {
        Sending(self.clone())
    }

    /// For the answer.
    pub(crate) fn rest(self) -> Rest {
        Rest(self)
    }

    /// Why the body broke off, if it did: marked as the client's end unless it says otherwise.
    pub(crate) fn failure(&self) -> Option<BoxError> {
        let error = self.lock().failure.take()?;
        if cause_ref::<Ended>(&*error).is_some() {
            return Some(error);
        }
        Some(Box::new(Ended::new(End::ClientGone, error)))
    }

    /// How many pieces have passed, while there may be more.
    fn passed(&self) -> Option<u64> {
        let state = self.lock();
        state.rest.as_ref().filter(|rest| !rest.is_end_stream()).map(|_| state.passed)
    }

    /// Nothing more of it is wanted.
    fn give_up(&self) {
        let mut state = self.lock();
        state.broke |= state.rest.is_some();
        let (rest, waiting) = (state.rest.take(), state.waiting.take());
        // Both may run code of others'.
        drop(state);
        drop(rest);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Gives the rest up when nothing has passed for a while.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the upload as it is.
    async fn linger(self) {
        let mut before = None;
        while let Some(passed) = self.passed() {
            if before.replace(passed) == Some(passed) {
                tracing::debug!("an upload that was answered early is read no further; its connection is closed");
                return self.give_up();
            }
            sleep(LINGER).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upload").field(&self.passed()).finish()
    }
}

// === impl Rest ===

impl Rest {
    /// As [`Upload::failure`].
    pub(crate) fn failure(&self) -> Option<BoxError> {
        self.0.failure()
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if self.0.passed().is_none() {
            return;
        }
        match Handle::try_current() {
            // A task, for the few that are answered before they are read.
            Ok(runtime) => drop(runtime.spawn(self.0.clone().linger())),
            Err(_) => self.0.give_up(),
        }
    }
}

// === impl Sending ===

impl Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.0.lock();
        let Some(rest) = &mut state.rest else {
            return Poll::Ready(state.broke.then(|| Err(BrokeOff.into())));
        };
        let (passed, over) = match Pin::new(rest).poll_frame(cx) {
            Poll::Pending => {
                match &mut state.waiting {
                    Some(waiting) => waiting.clone_from(cx.waker()),
                    waiting => *waiting = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => {
                state.passed += 1;
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => (None, state.rest.take()),
            Poll::Ready(Some(Err(error))) => {
                (state.broke, state.failure) = (true, Some(error));
                (Some(Err(BrokeOff.into())), state.rest.take())
            }
        };
        drop(state);
        drop(over);
        Poll::Ready(passed)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.rest.as_ref().map_or(!state.broke, Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().rest.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // Also where nobody is left who would read it.
        let rest = mem::take(&mut self.0.lock().rest);
        drop(rest);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::{sync::mpsc, time::Instant};

    use super::*;

    /// An upload whose pieces are the test's to send.
    fn upload() -> (mpsc::Sender<Result<&'static str, &'static str>>, Upload) {
        let (pieces, mut receiver) = mpsc::channel::<Result<&str, &str>>(1);
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let frames = futures_util::StreamExt::map(stream, |piece| {
            piece.map(|piece| Frame::data(Bytes::from(piece))).map_err(BoxError::from)
        });
        (pieces, Upload::new(RequestBody::stream(StreamBody::new(frames))))
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_goes_on_after_its_answer_may_and_one_that_does_not_is_given_up() {
        let (pieces, upload) = upload();
        let mut sending = upload.sending();
        let began = Instant::now();
        drop(upload.rest());
        for _ in 0..10 {
            sleep(LINGER - Duration::from_secs(1)).await;
            pieces.send(Ok("piece")).await.expect("it is wanted");
            sending.frame().await.expect("a piece").expect("no error");
        }
        // Whoever waits for more is woken, and nobody holds on to the client's body.
        assert!(sending.frame().await.is_some_and(|frame| frame.is_err()));
        assert!(pieces.is_closed() && !sending.is_end_stream());
        assert!(began.elapsed() <= 12 * LINGER, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_reads_no_more_does_not_hold_the_client_s_body() {
        let (pieces, upload) = upload();
        let _sending = upload.sending();
        drop(upload.rest());
        tokio::time::timeout(2 * LINGER, pieces.closed()).await.expect("it is let go");
    }

    #[tokio::test(start_paused = true)]
    async fn while_an_answer_lasts_its_upload_has_all_the_time() {
        let (pieces, upload) = upload();
        let _sending = upload.sending();
        let _rest = upload.rest();
        sleep(100 * LINGER).await;
        assert!(!pieces.is_closed());
    }

    #[tokio::test]
    async fn an_upload_that_ends_is_at_its_end_and_one_that_breaks_says_why() {
        let (pieces, upload) = upload();
        let mut sending = upload.sending();
        drop(pieces);
        assert!(sending.frame().await.is_none() && sending.is_end_stream());
        assert!(upload.failure().is_none() && upload.passed().is_none());

        let (pieces, upload) = self::upload();
        let mut sending = upload.sending();
        pieces.send(Err("the client stalled")).await.expect("it is wanted");
        assert!(sending.frame().await.is_some_and(|frame| frame.is_err()) && !sending.is_end_stream());
        let failure = upload.rest().failure().expect("the reason");
        assert_eq!((Ended::of(&*failure), &*failure.to_string()), (End::ClientGone, "the client stalled"));
    }

    #[test]
    fn without_a_runtime_it_is_let_go_at_once() {
        let (pieces, upload) = upload();
        let _sending = upload.sending();
        drop(upload.rest());
        assert!(pieces.is_closed());
    }
}
