//! Which protocol a client begins that was not asked for one in a handshake.
//!
//! Its first bytes say so, and they are looked at where they are read for HTTP/1, so that HTTP/1 pays nothing for it. If
//! they are HTTP/2's, they are kept for whoever reads that.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first bytes of a connection.
#[derive(Debug)]
pub(crate) enum First {
    /// None have come.
    Awaited,
    /// So far they are the beginning of HTTP/2's preface.
    Doubtful(Vec<u8>),
    /// They are the whole preface, and are to be read by another.
    Http2(Vec<u8>),
    /// They are to be given to whoever reads next.
    Decided(Vec<u8>),
    /// They are read.
    Passed,
}

// === impl First ===

impl First {
    /// Reads them for an HTTP/1 reader. Where they are [`Http2`](Self::Http2)'s nothing comes, and nobody is woken.
    pub(crate) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        inner: &mut T,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            match self {
                Self::Decided(bytes) => {
                    let taken = bytes.len().min(buf.remaining());
                    buf.put_slice(&bytes[..taken]);
                    bytes.drain(..taken);
                    if bytes.is_empty() {
                        *self = Self::Passed;
                    }
                    return Poll::Ready(Ok(()));
                }
                Self::Http2(_) => return Poll::Pending,
                Self::Passed => return Pin::new(inner).poll_read(cx, buf),
                Self::Awaited | Self::Doubtful(_) => {}
            }
            if Pin::new(&mut *inner).poll_read(cx, buf)?.is_pending() {
                return Poll::Pending;
            }
            let new = &buf.filled()[before..];
            let ended = new.is_empty();
            let bytes = match self {
                // As nearly always: the first bytes are no preface, and stay where they are.
                Self::Awaited if ended || !agrees(new) => {
                    *self = Self::Passed;
                    return Poll::Ready(Ok(()));
                }
                Self::Doubtful(bytes) => {
                    bytes.extend_from_slice(new);
                    mem::take(bytes)
                }
                _ => new.to_vec(),
            };
            buf.set_filled(before);
            *self = match bytes.len() {
                _ if ended || !agrees(&bytes) => Self::Decided(bytes),
                length if length < PREFACE.len() => Self::Doubtful(bytes),
                _ => Self::Http2(bytes),
            };
        }
    }

    /// Keeps what was read before its time for whoever reads next.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        match self {
            Self::Decided(kept) => kept.extend_from_slice(bytes),
            _ => *self = Self::Decided(bytes.to_vec()),
        }
    }

    /// How much is kept, in bytes.
    pub(crate) fn kept(&self) -> usize {
        match self {
            Self::Awaited | Self::Passed => 0,
            Self::Doubtful(bytes) | Self::Http2(bytes) | Self::Decided(bytes) => bytes.len(),
        }
    }

    /// Gives HTTP/2's bytes to whoever reads next.
    pub(crate) fn replay(&mut self) {
        if let Self::Http2(bytes) = self {
            *self = Self::Decided(mem::take(bytes));
        }
    }
}

/// Whether these may be the first bytes of an HTTP/2 client, as far as they go.
fn agrees(bytes: &[u8]) -> bool {
    let both = bytes.len().min(PREFACE.len());
    bytes[..both] == PREFACE[..both]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a piece with each read, and nothing after the last.
    struct Pieces(Vec<&'static [u8]>);

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.0.is_empty() {
                buf.put_slice(self.0.remove(0));
            }
            Poll::Ready(Ok(()))
        }
    }

    /// What an HTTP/1 reader with little room reads of these pieces, and what is kept from it.
    fn check(pieces: &[&'static [u8]], read: &[u8], kept: Option<&[u8]>) {
        let mut inner = Pieces(pieces.to_vec());
        let mut first = First::Awaited;
        let mut all = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            let mut space = [0; 40];
            let mut buf = ReadBuf::new(&mut space);
            let Poll::Ready(result) = first.poll_read(&mut inner, &mut cx, &mut buf) else { break };
            assert!(result.is_ok());
            if buf.filled().is_empty() {
                break;
            }
            all.extend_from_slice(buf.filled());
        }
        assert_eq!(all, read, "{pieces:?}");
        match (first, kept) {
            (First::Http2(bytes), Some(kept)) => assert_eq!(bytes, kept, "{pieces:?}"),
            (first, kept) => assert!(kept.is_none() && matches!(first, First::Passed), "{pieces:?}: {first:?}"),
        }
    }

    #[test]
    fn http1_is_read_as_it_came_however_it_begins() {
        check(&[b"GET / HTTP/1.1\r\n"], b"GET / HTTP/1.1\r\n", None);
        check(&[b"P", b"O", b"ST / HTTP/1.1\r\n"], b"POST / HTTP/1.1\r\n", None);
        check(&[b"PRI", b" * HTTP/1.1\r\n", b"more"], b"PRI * HTTP/1.1\r\nmore", None);
        check(
            &[b"PRI * HTTP/2.0\r\n\r\n", b"no preface at all, and longer than one"],
            b"PRI * HTTP/2.0\r\n\r\nno preface at all, and longer than one",
            None,
        );
        check(&[b"PRI * HT"], b"PRI * HT", None);
        check(&[], b"", None);
    }

    #[test]
    fn http2_is_kept_with_what_came_with_it() {
        check(&[PREFACE], b"", Some(PREFACE));
        check(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest", b"later"], b"", Some(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"));
        check(&[b"PRI *", b" HTTP/2.0\r\n\r\nSM\r", b"\n\r\nrest"], b"", Some(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"));
    }
}
