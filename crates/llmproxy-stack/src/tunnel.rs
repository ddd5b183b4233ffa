//! A client's connection that becomes a WebSocket (RFC 6455): whether it may, and what goes through it.
//!
//! Everything further in sees the tunnel as an answer whose body is what the backend sends, so that permits, counts and the
//! record end with it. The client is given that answer's head and no body; then HTTP is over on its connection, whose
//! task moves the bytes.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE},
};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use llmproxy_core::{BoxError, Endpoint, Tunnel, Upgrade};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::timeout,
};

use crate::{metrics::TUNNELS, transport::drain};

/// What is read of a client at a time, in bytes.
const PIECE: usize = 8 * 1024;
/// When one side has said all, how long the other has for the rest.
const GOODBYE: Duration = Duration::from_secs(5);

pin_project! {
    /// An answer on its way to a client: with its body, or without where that is a tunnel's.
    #[project = HandedProjection]
    pub(crate) enum Handed<B> {
        Answer { #[pin] body: B },
        Tunnel,
    }
}

pin_project! {
    /// Takes the body of an answer that begins a tunnel.
    pub(crate) struct Handing<F> {
        #[pin]
        pub(crate) inner: F,
    }
}

/// Who ended the way from the client to the backend.
enum Left {
    Client(io::Error),
    Backend,
}

/// Counts a tunnel as long as it lives.
struct Open;

/// Whether the client asks for a WebSocket where there may be one.
pub(crate) fn is_wanted(request: &Request<Body>) -> bool {
    let headers = request.headers();
    headers.contains_key(UPGRADE)
        && has_token(headers, UPGRADE, "websocket")
        && has_token(headers, CONNECTION, "upgrade")
        && request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && Endpoint::of(request.uri().path()).template() == "/v1/realtime"
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// Moves bytes both ways until one side has said all and the other had a moment for the rest, or one is gone. `first` is what
/// the client has sent already.
///
/// # Cancel safety
///
/// Dropping it ends the tunnel: both connections are closed.
pub(crate) async fn run<T: AsyncRead + AsyncWrite>(client: T, first: Bytes, tunnel: Tunnel) {
    let _open = Open::new();
    let Tunnel { from_backend, to_backend } = tunnel;
    let (mut read, mut write) = split(client);
    {
        let mut up = pin!(up(first, &mut read, to_backend));
        let mut down = pin!(async {
            let mut from_backend = from_backend;
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut from_backend).poll_frame(cx)).await {
                let Ok(data) = frame?.into_data() else { continue };
                write.write_all(&data).await?;
                write.flush().await?;
            }
            // The exchange has ended here, whatever the client does with the rest of the time.
            drop(from_backend);
            write.shutdown().await?;
            Ok::<_, BoxError>(())
        });
        let ended = tokio::select! {
            ended = &mut down => ended,
            left = &mut up => match left {
                Err(Left::Client(error)) => Err(error.into()),
                // What was sent before still comes, and says how it ended.
                Ok(()) | Err(Left::Backend) => timeout(GOODBYE, down).await.unwrap_or_else(|late| Err(late.into())),
            },
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a tunnel broke");
            return;
        }
    }
    // A close while something is unread would be a reset, and the client might lose what it has not read itself.
    let _ = timeout(GOODBYE, drain(read)).await;
}

async fn up<R: AsyncRead + Unpin>(
    first: Bytes,
    read: &mut R,
    mut to_backend: Pin<Box<dyn AsyncWrite + Send>>,
) -> Result<(), Left> {
    let mut buffer = BytesMut::from(first);
    loop {
        if !buffer.is_empty() {
            to_backend.write_all_buf(&mut buffer).await.map_err(|_| Left::Backend)?;
            to_backend.flush().await.map_err(|_| Left::Backend)?;
        }
        buffer.reserve(PIECE);
        if read.read_buf(&mut buffer).await.map_err(Left::Client)? == 0 {
            return to_backend.shutdown().await.map_err(|_| Left::Backend);
        }
    }
}

// === impl Handed ===

impl<B> http_body::Body for Handed<B>
where
    B: http_body::Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            HandedProjection::Answer { body } => body.poll_frame(cx),
            HandedProjection::Tunnel => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Answer { body } => body.is_end_stream(),
            Self::Tunnel => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Answer { body } => body.size_hint(),
            Self::Tunnel => SizeHint::with_exact(0),
        }
    }
}

// === impl Handing ===

impl<F, B, E> Future for Handing<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<Response<Handed<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (mut head, body) = ready!(self.project().inner.poll(cx))?.into_parts();
        let upgrade = match head.status {
            StatusCode::SWITCHING_PROTOCOLS => head.extensions.remove::<Upgrade>(),
            _ => None,
        };
        let body = match upgrade {
            Some(upgrade) => {
                upgrade.begin(body.map_err(Into::into).boxed_unsync());
                Handed::Tunnel
            }
            None => Handed::Answer { body },
        };
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

// === impl Open ===

impl Open {
    fn new() -> Self {
        metrics::gauge!(TUNNELS).increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(TUNNELS).decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tokio::io::duplex;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn only_a_websocket_for_a_realtime_session_is_one() {
        let check = |change: fn(http::request::Builder) -> http::request::Builder, expected: bool| {
            let request = Request::get("/v1/realtime?model=m")
                .header(UPGRADE, "WebSocket")
                .header(CONNECTION, "keep-alive, Upgrade");
            let request = change(request).body(Body::empty()).expect("a request");
            assert_eq!(is_wanted(&request), expected, "{request:?}");
        };
        check(|request| request, true);
        check(|request| request.uri("/v1/chat/completions"), false);
        check(|request| request.uri("/v1/realtime/sessions"), false);
        check(|request| request.method("POST"), false);
        check(|request| request.version(Version::HTTP_10), false);
        let plain = |name: HeaderName, value: &'static str| {
            let mut request = Request::get("/v1/realtime").body(Body::empty()).expect("a request");
            request.headers_mut().insert(UPGRADE, http::HeaderValue::from_static("websocket"));
            request.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(name, http::HeaderValue::from_static(value));
            is_wanted(&request)
        };
        assert!(plain(UPGRADE, "h2c, websocket") && !plain(UPGRADE, "h2c") && !plain(CONNECTION, "close"));
    }

    type Piece = Result<Frame<Bytes>, BoxError>;

    /// A tunnel with its ends: the client, what the backend sends, what it gets, and the task.
    fn tunnel() -> (tokio::io::DuplexStream, mpsc::Sender<Piece>, tokio::io::DuplexStream, tokio::task::JoinHandle<()>)
    {
        let (client, ours) = duplex(64);
        let (to_backend, backend) = duplex(64);
        let (sender, mut receiver) = mpsc::channel::<Piece>(1);
        let from_backend =
            StreamBody::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx))).boxed_unsync();
        let tunnel = Tunnel { from_backend, to_backend: Box::pin(to_backend) };
        let task = tokio::spawn(run(ours, Bytes::from_static(b"first "), tunnel));
        (client, sender, backend, task)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_go_both_ways_until_the_backend_has_said_all() {
        let (mut client, sender, mut backend, task) = tunnel();
        let mut buffer = [0; 9];
        client.write_all(b"two").await.expect("open");
        backend.read_exact(&mut buffer).await.expect("open");
        assert_eq!(&buffer, b"first two");
        sender.send(Ok(Frame::data(Bytes::from_static(b"answer")))).await.expect("open");
        client.read_exact(&mut buffer[..6]).await.expect("open");
        assert_eq!(&buffer[..6], b"answer");
        drop(sender);
        assert_eq!(client.read(&mut buffer).await.expect("a clean end"), 0);
        drop(client);
        task.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_client_has_said_all_the_backend_has_a_moment_and_no_more() {
        let (mut client, sender, mut backend, task) = tunnel();
        client.shutdown().await.expect("open");
        let mut all = Vec::new();
        backend.read_to_end(&mut all).await.expect("a clean end");
        assert_eq!(all, b"first ");
        sender.send(Ok(Frame::data(Bytes::from_static(b"rest")))).await.expect("still listened to");
        let mut buffer = [0; 4];
        client.read_exact(&mut buffer).await.expect("open");
        let began = tokio::time::Instant::now();
        task.await.expect("no panic");
        assert!(began.elapsed() <= GOODBYE && sender.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_breaks_or_a_backend_that_fails_ends_it_at_once() {
        let (client, sender, _backend, task) = tunnel();
        sender.send(Err("reset".into())).await.expect("open");
        task.await.expect("no panic");
        drop(client);
        let (client, sender, backend, task) = tunnel();
        drop(backend);
        drop(client);
        let began = tokio::time::Instant::now();
        task.await.expect("no panic");
        assert!(began.elapsed() <= GOODBYE && sender.is_closed());
    }
}
