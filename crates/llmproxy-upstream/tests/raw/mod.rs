//! A backend in full control of its bytes, and requests to it.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use llmproxy_core::{Backend, BoxError, RequestBody, Target};
use llmproxy_upstream::{Clients, Upstream, UpstreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower::ServiceExt;

/// Longer than anything here takes; what does not come within it never does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Raw {
    listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

/// One connection that the backend has accepted.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    pub(crate) async fn accept(&self) -> Conn {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("a connection comes").unwrap();
        Conn { stream, buffer: Vec::new() }
    }

    pub(crate) fn backend(&self) -> Backend {
        Backend::new(&format!("http://{}", self.addr)).unwrap()
    }
}

impl Conn {
    /// The next request's head; `None` if the connection was closed instead.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The next request: its head, and its body by Content-Length or up to the last chunk.
    pub(crate) async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head().await?;
        let length = header(&head, "content-length").map_or(0, |value| value.parse().unwrap());
        let chunked = header(&head, "transfer-encoding").is_some();
        while self.buffer.len() < length || (chunked && !self.buffer.ends_with(b"0\r\n\r\n")) {
            assert!(self.read().await, "the request's body is complete");
        }
        let length = if chunked { self.buffer.len() } else { length };
        Some((head, self.buffer.drain(..length).collect()))
    }

    /// Everything that comes up to these bytes.
    pub(crate) async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        while !self.buffer.ends_with(end) {
            assert!(self.read().await, "the end comes");
        }
        std::mem::take(&mut self.buffer)
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Waits until the other side closes or resets.
    pub(crate) async fn closed(&mut self) {
        while self.read().await {}
    }

    /// Closes with a RST instead of a FIN.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    async fn read(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await.expect("bytes or the end come");
        read.unwrap_or(0) > 0
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name).map(|(_, v)| v)
}

pub(crate) fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

pub(crate) struct Sender {
    pub(crate) clients: Arc<Clients>,
    pub(crate) target: Target,
}

impl Sender {
    pub(crate) fn to(backend: Backend) -> Self {
        let target = Target { backend: Arc::new(backend), model: None, inject_usage: false };
        Self { clients: Clients::new(), target }
    }

    pub(crate) async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, BoxError> {
        request.extensions_mut().insert(self.target.clone());
        let answer = Upstream::new(self.clients.clone()).oneshot(request);
        timeout(PATIENCE, answer).await.expect("an answer or an error comes")
    }

    pub(crate) async fn post(&self, body: impl Into<Bytes>) -> Result<Response<UpstreamBody>, BoxError> {
        self.send(post(RequestBody::whole(body))).await
    }
}

pub(crate) fn post(body: RequestBody) -> Request<RequestBody> {
    Request::post("/v1/chat/completions").body(body).unwrap()
}
