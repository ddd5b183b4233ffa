//! Bodies on their way to and from a backend.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use llmproxy_core::{BoxError, End, Ended, cause_ref};

use crate::{UpstreamError, pool::Stream, tunnel::FromBackend};

/// The body of a backend's answer: its chunks as they arrive, its trailers, its exact size in bytes where it told one.
/// Dropping it before its end closes the connection, or over HTTP/2 resets the stream.
#[derive(Debug)]
pub struct UpstreamBody {
    inner: Inner,
    backend: Arc<str>,
    /// Whether it came over HTTP/2, where `None` is not always the end.
    http2: bool,
    /// After the body: its place is free when it has ended.
    _stream: Option<Stream>,
}

#[derive(Debug)]
enum Inner {
    Answer(reqwest::Body),
    /// In a box: few answers are one.
    Tunnel(Box<FromBackend>),
}

/// A request's body that passes through.
pub(crate) struct Sending<B> {
    // The client library shares bodies between threads, which this one can't be; the lock is only taken for the size hint.
    inner: Mutex<B>,
    failure: Failure,
}

/// Why a request's body broke off, kept past the client library, which would wrap it into its own error.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<BoxError>>>);

#[derive(Debug, thiserror::Error)]
#[error("the request's body broke off")]
struct BrokeOff;

// === impl UpstreamBody ===

impl UpstreamBody {
    /// The body of an answer that came by `version`.
    pub(crate) fn new(inner: reqwest::Body, backend: Arc<str>, version: Version, stream: Option<Stream>) -> Self {
        Self { inner: Inner::Answer(inner), backend, http2: version == Version::HTTP_2, _stream: stream }
    }

    pub(crate) fn tunnel(inner: FromBackend, backend: Arc<str>) -> Self {
        Self { inner: Inner::Tunnel(Box::new(inner)), backend, http2: false, _stream: None }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match &mut this.inner {
            Inner::Answer(inner) => {
                let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
                if frame.is_none() && this.http2 && !inner.is_end_stream() {
                    // hyper takes a reset without an error for an end. It may follow one (RFC 9113, section 8.1); here none
                    // came.
                    let (backend, source) = (this.backend.clone(), h2::Error::from(h2::Reason::NO_ERROR).into());
                    return Poll::Ready(Some(Err(UpstreamError::Broken { backend, source }.boxed())));
                }
                Poll::Ready(
                    frame.map(|frame| frame.map_err(|error| UpstreamError::in_body(&this.backend, error).boxed())),
                )
            }
            Inner::Tunnel(inner) => {
                let piece = ready!(inner.poll_piece(cx));
                Poll::Ready(piece.map(|piece| match piece {
                    Ok(piece) => Ok(Frame::data(piece)),
                    Err(error) => {
                        let (backend, source) = (this.backend.clone(), error.into());
                        Err(UpstreamError::Broken { backend, source }.boxed())
                    }
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Answer(inner) => inner.is_end_stream(),
            Inner::Tunnel(inner) => inner.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Answer(inner) => inner.size_hint(),
            Inner::Tunnel(_) => SizeHint::default(),
        }
    }
}

// === impl Sending ===

impl<B> Sending<B> {
    pub(crate) fn new(inner: B, failure: Failure) -> Self {
        Self { inner: Mutex::new(inner), failure }
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Body for Sending<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let inner = this.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                this.failure.set(error);
                BrokeOff.into()
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

// === impl Failure ===

impl Failure {
    fn set(&self, error: BoxError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// The error, marked as the client's end unless it says otherwise.
    pub(crate) fn take(&self) -> Option<BoxError> {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        if cause_ref::<Ended>(&*error).is_some() {
            return Some(error);
        }
        Some(Box::new(Ended::new(End::ClientGone, error)))
    }
}
