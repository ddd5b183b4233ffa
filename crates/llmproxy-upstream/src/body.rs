//! The body of an answer, on its way from a backend.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use llmproxy_core::BoxError;

use crate::{UpstreamError, head, pool::Stream, sending::Rest, tunnel::FromBackend};

/// The body of a backend's answer: its chunks as they arrive, its trailers but for those that are not for the client, its
/// exact size in bytes where it told one. Dropping it before its end closes the connection, or over HTTP/2 resets the
/// stream.
#[derive(Debug)]
pub struct UpstreamBody {
    inner: Inner,
    backend: Arc<str>,
    /// Whether it came over HTTP/2, where `None` is not always the end.
    http2: bool,
    /// After the body: of a request whose own body passes through, what is left of that.
    rest: Option<Rest>,
    /// After the body: its place is free when it has ended.
    _stream: Option<Stream>,
}

#[derive(Debug)]
enum Inner {
    Answer(reqwest::Body),
    /// In a box: few answers are one.
    Tunnel(Box<FromBackend>),
}

// === impl UpstreamBody ===

impl UpstreamBody {
    /// The body of an answer that came by `version`.
    pub(crate) fn new(inner: reqwest::Body, backend: Arc<str>, version: Version, stream: Option<Stream>) -> Self {
        Self { inner: Inner::Answer(inner), backend, http2: version == Version::HTTP_2, rest: None, _stream: stream }
    }

    /// The answer to a request whose own body passes through.
    pub(crate) fn with_rest(mut self, rest: Option<Rest>) -> Self {
        self.rest = rest;
        self
    }

    /// What goes to the client: an upload that broke off takes its answer with it, and says more of why.
    fn failed(&self, error: UpstreamError) -> BoxError {
        self.rest.as_ref().and_then(Rest::failure).unwrap_or_else(|| error.boxed())
    }

    pub(crate) fn tunnel(inner: FromBackend, backend: Arc<str>) -> Self {
        Self { inner: Inner::Tunnel(Box::new(inner)), backend, http2: false, rest: None, _stream: None }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match &mut this.inner {
            Inner::Answer(inner) => {
                let mut frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
                if frame.is_none() && this.http2 && !inner.is_end_stream() {
                    // hyper takes a reset without an error for an end. It may follow one (RFC 9113, section 8.1); here none
                    // came.
                    let (backend, source) = (this.backend.clone(), h2::Error::from(h2::Reason::NO_ERROR).into());
                    return Poll::Ready(Some(Err(this.failed(UpstreamError::Broken { backend, source }))));
                }
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    head::trailers_for_client(trailers);
                }
                Poll::Ready(
                    frame.map(|frame| frame.map_err(|error| this.failed(UpstreamError::in_body(&this.backend, error)))),
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
