//! A body whose first frame may have been looked at.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use llmproxy_core::BoxError;
use pin_project_lite::pin_project;

pin_project! {
    /// A body whose first frame may have been awaited before the head was handed on; it is the same body all the same.
    #[derive(Debug)]
    pub struct Peeked<B> {
        first: Option<Box<Frame<Bytes>>>,
        // Whether the inner body has answered `None`: it is not polled again.
        ended: bool,
        #[pin]
        inner: B,
    }
}

// === impl Peeked ===

impl<B> Peeked<B> {
    /// `inner`, not looked at.
    pub(crate) fn new(inner: B) -> Self {
        Self { first: None, ended: false, inner }
    }
}

impl<B> Peeked<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    /// Waits for the first frame, or the end, and keeps it for whoever reads the body.
    ///
    /// # Errors
    ///
    /// If the body fails before its first frame.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn peek(&mut self) -> Result<(), BoxError> {
        if self.first.is_some() || self.ended {
            return Ok(());
        }
        match poll_fn(|cx| Pin::new(&mut self.inner).poll_frame(cx)).await {
            None => self.ended = true,
            Some(Ok(frame)) => self.first = Some(Box::new(frame)),
            Some(Err(error)) => return Err(error.into()),
        }
        Ok(())
    }
}

impl<B: Body<Data = Bytes>> Body for Peeked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(frame) = this.first.take() {
            return Poll::Ready(Some(Ok(*frame)));
        }
        if *this.ended {
            return Poll::Ready(None);
        }
        this.inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(data) = self.first.as_ref().and_then(|first| first.data_ref()) else { return self.inner.size_hint() };
        let (inner, first) = (self.inner.size_hint(), data.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(first));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    #[tokio::test]
    async fn a_body_that_was_looked_at_is_still_the_same() {
        let mut body = Peeked::new(Full::new(Bytes::from("hello")));
        body.peek().await.unwrap();
        body.peek().await.unwrap();
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        let mut body = Peeked::new(StreamBody::new(stream::empty::<Result<Frame<Bytes>, BoxError>>()));
        body.peek().await.unwrap();
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_body_that_breaks_before_its_first_frame_is_found_out() {
        let frames = [Err::<Frame<Bytes>, BoxError>("reset".into())];
        assert!(Peeked::new(StreamBody::new(stream::iter(frames))).peek().await.is_err());
    }
}
