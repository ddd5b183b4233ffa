//! Who is waited for: the backend, or whoever sends to it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use llmproxy_core::{BoxBody, BoxError, ToBackend};
use tokio::{io::AsyncWrite, time::Instant};

/// A client that has said all keeps nobody waiting: how long the backend has for the rest is whoever moves the bytes to say.
/// This is only so that it ends.
const AFTERWARDS: Duration = Duration::from_secs(60);

/// Since when only the backend is waited for: since the last piece of what passes to it. `None` while it has taken all that
/// came and the client is waited for: a client may take longer to send a recording than a backend may to answer, and one
/// that stalls is no silence of the backend. Whoever reads the request's body bounds that wait.
#[derive(Clone, Debug)]
pub(crate) struct Upload(Arc<Mutex<Option<Instant>>>);

/// A request's body that passes through, with a note of who is waited for.
pub(crate) struct Noted {
    // The drop's note comes before the body goes: by then nobody waits for more of it.
    noted: OnDrop,
    inner: BoxBody,
}

struct OnDrop(Upload);

/// The way to the backend, in a tunnel.
pub(crate) struct NotedWay {
    inner: ToBackend,
    passed: Upload,
}

// === impl Upload ===

impl Upload {
    /// The backend is waited for from now on.
    pub(crate) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    /// When the wait for the backend began; now, where it has not.
    pub(crate) fn last(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now)
    }

    fn passed(&self) {
        self.note(Some(Instant::now()));
    }

    fn note(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

// === impl Noted ===

impl Noted {
    pub(crate) fn new(inner: BoxBody, upload: Upload) -> Self {
        Self { noted: OnDrop(upload), inner }
    }
}

impl Body for Noted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        // The client library asks for more only when there is room for it, so when it asks in vain the backend has what
        // there is, or its system has. When it does not ask, the backend is to blame.
        self.noted.0.note(frame.is_ready().then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.passed();
    }
}

// === impl NotedWay ===

impl NotedWay {
    pub(crate) fn new(inner: ToBackend, passed: Upload) -> Self {
        Self { inner, passed }
    }
}

impl AsyncWrite for NotedWay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.inner.as_mut().poll_write(cx, data));
        self.passed.passed();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.passed.note(Some(Instant::now() + AFTERWARDS));
        self.inner.as_mut().poll_shutdown(cx)
    }
}
