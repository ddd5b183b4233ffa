//! The body of a request over HTTP/2, whose end is one only if the client said so.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use llmproxy_core::BoxError;

/// hyper takes RST_STREAM with NO_ERROR for the end of a body. It may follow one (RFC 9113, section 8.1); a client that
/// gives its upload up so, in the middle, would be passed on as one that has sent all of it.
#[derive(Debug)]
pub(crate) struct WholeBody<B>(pub(crate) B);

impl<B: Body<Error: Into<BoxError>> + Unpin> Body for WholeBody<B> {
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        if frame.is_none() && !self.0.is_end_stream() {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the stream was reset before its end");
            return Poll::Ready(Some(Err(error.into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
