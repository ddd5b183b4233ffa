//! An HTTP/2 client on the protocol's own library, which leaves windows and resets to the test.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::Request;
use llmproxy_testkit::{BodyEnd, Response};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};

use crate::harness::within;

/// A connection.
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    authority: String,
}

/// A request, and what has come of it.
pub(crate) struct Stream {
    /// What can be sent of the request's body still.
    pub(crate) upload: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    head: Option<(u16, Vec<(String, String)>)>,
    body: Option<RecvStream>,
    /// How the stream failed.
    pub(crate) failure: Option<h2::Error>,
    /// Keeps the connection.
    send: SendRequest<Bytes>,
}

impl Http2 {
    /// Connects by prior knowledge.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::connect_as(address, &Builder::new()).await
    }

    /// The same, with settings of one's own.
    pub(crate) async fn connect_as(address: SocketAddr, builder: &Builder) -> Self {
        let stream = TcpStream::connect(address).await.expect("connects");
        Self::over(stream, builder, format!("http://{address}")).await
    }

    /// Over a connection that is there already.
    pub(crate) async fn over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        builder: &Builder,
        authority: String,
    ) -> Self {
        let (send, connection) = builder.handshake(io).await.expect("nothing is waited for");
        Self { send, driver: tokio::spawn(connection), authority }
    }

    /// Sends a head; the body follows by the stream's `upload`, unless it `ends` here.
    pub(crate) async fn begin(&mut self, method: &str, path: &str, headers: &[(&str, &str)], ends: bool) -> Stream {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.authority));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let mut send = within("a place for a stream", self.send.clone().ready()).await.expect("the connection is open");
        let (response, upload) = send.send_request(request.body(()).expect("a request"), ends).expect("it can be sent");
        Stream { upload, response: Some(response), head: None, body: None, failure: None, send }
    }

    /// Sends a POST of this JSON.
    pub(crate) async fn post(&mut self, path: &str, headers: &[(&str, &str)], json: &Value) -> Stream {
        let mut all = headers.to_vec();
        all.push(("content-type", "application/json"));
        let mut stream = self.begin("POST", path, &all, false).await;
        stream.upload.send_data(json.to_string().into(), true).expect("it can be sent");
        stream
    }

    /// How many streams the server allows, once it has said so.
    pub(crate) fn max_streams(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// Closes the connection with all its streams.
    pub(crate) fn cut(self) {
        self.driver.abort();
    }

    /// Waits until the server closes the connection, and says how.
    pub(crate) async fn closed(self) -> Result<(), h2::Error> {
        // The handle for new requests would keep it open.
        let Self { send, driver, .. } = self;
        let ended = within("the server to close", driver).await.expect("no panic");
        drop(send);
        ended
    }
}

impl Stream {
    /// The status; the wait fails where the stream does.
    pub(crate) async fn try_head(&mut self) -> Result<u16, h2::Error> {
        if let Some(response) = self.response.take() {
            let (head, body) = within("a head", response).await?.into_parts();
            let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            };
            self.head = Some((head.status.as_u16(), head.headers.iter().map(header).collect()));
            self.body = Some(body);
        }
        Ok(self.head.as_ref().expect("it has come").0)
    }

    pub(crate) async fn head(&mut self) -> u16 {
        self.try_head().await.expect("a head")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, headers) = self.head.as_ref()?;
        headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The next piece of the body, as it was framed; `None` at the end, whichever it is.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        self.head().await;
        let body = self.body.as_mut().expect("the head has come");
        match within("a piece", body.data()).await? {
            Ok(data) => {
                // Asked for again, so that the server may go on.
                let _ = body.flow_control().release_capacity(data.len());
                Some(data)
            }
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
    }

    pub(crate) async fn expect_piece(&mut self, expected: &str) {
        assert_eq!(self.piece().await.as_deref(), Some(expected.as_bytes()));
    }

    pub(crate) async fn read_to_end(&mut self) -> Response {
        let status = self.head().await;
        let mut pieces = Vec::new();
        while let Some(piece) = self.piece().await {
            // The end of a stream may be a frame without data.
            if !piece.is_empty() {
                pieces.push(piece);
            }
        }
        let end = if self.failure.is_some() { BodyEnd::Truncated } else { BodyEnd::Complete };
        let headers = self.head.clone().map(|(_, headers)| headers).unwrap_or_default();
        Response { status, headers, pieces, trailers: Vec::new(), end }
    }

    /// Resets the stream. The connection stays.
    pub(crate) fn leave(self) {
        let Self { send, .. } = self;
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(send);
        });
    }
}
