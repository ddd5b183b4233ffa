//! A backend that speaks HTTP/2, by the protocol's own library, which leaves streams and connections to the test.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::harness::within;

/// A server on loopback; its requests are the test's to answer.
pub(crate) struct Http2Backend {
    address: SocketAddr,
    requests: mpsc::Receiver<Asked>,
}

/// One request.
pub(crate) struct Asked {
    pub(crate) head: Request<()>,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// Which of the backend's connections it came by, from 0.
    pub(crate) connection: usize,
    /// Closes that connection.
    close: watch::Sender<Close>,
}

/// An answer that has begun.
pub(crate) struct Answer {
    stream: SendStream<Bytes>,
    close: watch::Sender<Close>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    Not,
    /// Takes no new streams, and finishes those that there are.
    Gracefully,
    /// Without a word, as a process that dies.
    AtOnce,
}

// === impl Http2Backend ===

impl Http2Backend {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (sender, requests) = mpsc::channel(10_000);
        tokio::spawn(async move {
            for index in 0.. {
                let (stream, _) = listener.accept().await.expect("accepts");
                tokio::spawn(serve(stream, index, sender.clone()));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn asked(&mut self) -> Asked {
        within("a request of HTTP/2", self.requests.recv()).await.expect("the backend goes on")
    }
}

/// Hands over the requests of one connection, the `index`th.
pub(crate) async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, index: usize, requests: mpsc::Sender<Asked>) {
    let mut builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.max_concurrent_streams(100).handshake(io).await else { return };
    let (close, mut closed) = watch::channel(Close::Not);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Ok(()) = closed.changed() => match *closed.borrow_and_update() {
                Close::AtOnce => return,
                Close::Not => continue,
                Close::Gracefully => {
                    connection.graceful_shutdown();
                    continue;
                }
            },
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let asked = Asked { head, body, respond, connection: index, close: close.clone() };
        if requests.send(asked).await.is_err() {
            return;
        }
    }
}

// === impl Asked ===

impl Asked {
    pub(crate) async fn body(&mut self) -> String {
        let mut body = Vec::new();
        while let Some(data) = within("a body", self.body.data()).await {
            let data = data.expect("the proxy goes on");
            let _ = self.body.flow_control().release_capacity(data.len());
            body.extend_from_slice(&data);
        }
        String::from_utf8(body).expect("text")
    }

    /// Waits until the request turns out not to be whole.
    pub(crate) async fn broken_off(mut self) {
        while let Some(Ok(data)) = within("the end of an upload", self.body.data()).await {
            let _ = self.body.flow_control().release_capacity(data.len());
        }
        assert!(!self.body.is_end_stream());
    }

    pub(crate) fn answer(self, status: u16, kind: &str) -> Answer {
        self.answer_with(status, &[("content-type", kind)])
    }

    pub(crate) fn answer_with(mut self, status: u16, headers: &[(&'static str, &str)]) -> Answer {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        for (name, value) in headers {
            response.headers_mut().append(*name, value.parse().expect("a value"));
        }
        let stream = self.respond.send_response(response, false).expect("the proxy waits");
        Answer { stream, close: self.close }
    }

    /// The whole of an answer, from one that reads no more of the request and does not say so.
    pub(crate) fn answer_and_stop_reading(mut self, status: u16) -> RecvStream {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        let mut stream = self.respond.send_response(response, false).expect("the proxy waits");
        stream.send_data(Bytes::from_static(b"{}"), true).expect("the proxy reads");
        self.body
    }

    /// An answer before the answer.
    pub(crate) fn interim(&mut self, status: u16) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        self.respond.send_informational(response).expect("the proxy waits");
    }

    pub(crate) fn json(self) {
        self.answer(200, "application/json").last("{}");
    }

    pub(crate) fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn piece(&mut self, piece: &str) {
        self.stream.send_data(Bytes::copy_from_slice(piece.as_bytes()), false).expect("the proxy reads");
    }

    /// Waits until there is room for more, and fills it; how much that was.
    pub(crate) async fn fill(&mut self) -> usize {
        self.stream.reserve_capacity(64 * 1024);
        let room = std::future::poll_fn(|cx| self.stream.poll_capacity(cx)).await;
        let room = room.expect("the stream goes on").expect("the connection goes on");
        self.stream.send_data(vec![b' '; room].into(), false).expect("there is room");
        room
    }

    pub(crate) fn last(mut self, piece: &str) {
        self.stream.send_data(Bytes::copy_from_slice(piece.as_bytes()), true).expect("the proxy reads");
    }

    pub(crate) fn reset(mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// The connection takes no new streams.
    pub(crate) fn say_goodbye(&self) {
        self.close.send_replace(Close::Gracefully);
    }

    /// The connection ends here and now, with all its streams.
    pub(crate) fn close_connection(self) {
        self.close.send_replace(Close::AtOnce);
    }

    /// Waits until the proxy gives the stream up.
    pub(crate) async fn given_up(mut self) -> Reason {
        let reset = std::future::poll_fn(|cx| self.stream.poll_reset(cx));
        within("the proxy to give up a stream", reset).await.expect("a reset")
    }
}
