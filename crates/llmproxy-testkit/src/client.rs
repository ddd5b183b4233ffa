//! A client that sees what is on the wire.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    http1::{self, Chunk, Conn, Framing},
    patience::within,
};

/// One connection of an HTTP/1.1 client. Reads an answer piece by piece, as it was framed.
///
/// Every wait ends after ten seconds, by a panic that says what had come until then.
///
/// ```
/// use llmproxy_testkit::{Backend, BodyEnd, Client, DONE, script};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let backend = Backend::start(script::sse([DONE])).await;
/// let mut client = Client::connect(backend.addr()).await;
/// client.send_json("/v1/chat/completions", &[("x-api-key", "k")], &serde_json::json!({"stream": true})).await;
/// assert_eq!(client.head().await.status, 200);
/// while let Some(piece) = client.piece().await {
///     println!("{piece:?}");
/// }
/// assert_eq!(client.end(), Some(BodyEnd::Complete));
/// # });
/// ```
#[derive(Debug)]
pub struct Client {
    conn: Conn,
    host: String,
    /// Whether a HEAD was sent, whose answer has no body.
    head_only: bool,
    answer: Answer,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The headers in their order and with their case.
    pub headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The headers in their order and with their case.
    pub headers: Vec<(String, String)>,
    /// The body's pieces, each as it was framed.
    pub pieces: Vec<Bytes>,
    /// What came after a chunked body.
    pub trailers: Vec<(String, String)>,
    /// How the body ended.
    pub end: BodyEnd,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// As its framing says that it should.
    Complete,
    /// The connection was closed before that.
    Truncated,
    /// The connection was broken before that.
    Reset,
}

#[derive(Debug, Default)]
struct Answer {
    head: Option<Head>,
    framing: Option<Framing>,
    /// Bytes of a body with a length that have come.
    read: u64,
    pieces: usize,
    trailers: Vec<(String, String)>,
    end: Option<BodyEnd>,
}

// === impl Client ===

impl Client {
    /// Connects.
    ///
    /// # Panics
    ///
    /// If nobody listens there.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the connection up.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).await.unwrap_or_else(|error| panic!("no connection to {addr}: {error}"))
    }

    /// Connects, where it may be refused.
    ///
    /// # Errors
    ///
    /// If it was.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the connection up.
    pub async fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        let conn = Conn::new(TcpStream::connect(addr).await?);
        Ok(Self { conn, host: addr.to_string(), head_only: false, answer: Answer::default() })
    }

    /// Sends these bytes as they are.
    ///
    /// # Errors
    ///
    /// If the other side has closed.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a part may have been sent; the connection is of no use any more.
    pub async fn send_raw(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.answer = Answer::default();
        self.conn.write(bytes.as_ref()).await
    }

    /// Sends a request with a `host`, a `content-length` where there is a body, and these headers.
    ///
    /// # Panics
    ///
    /// If the other side has closed.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a part may have been sent; the connection is of no use any more.
    pub async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut out = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
        let mut all = headers.to_vec();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            all.insert(0, ("host", &self.host));
        }
        let length = body.len().to_string();
        if !body.is_empty() {
            all.push(("content-length", &length));
        }
        http1::encode_headers(&mut out, &all);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        self.head_only = method == "HEAD";
        self.send_raw(out).await.unwrap_or_else(|error| panic!("`{method} {path}` could not be sent: {error}"));
    }

    /// Sends a POST of this JSON.
    ///
    /// # Panics
    ///
    /// If the other side has closed.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a part may have been sent; the connection is of no use any more.
    pub async fn send_json(&mut self, path: &str, headers: &[(&str, &str)], json: &Value) {
        let mut all = headers.to_vec();
        all.push(("content-type", "application/json"));
        self.send("POST", path, &all, json.to_string().as_bytes()).await;
    }

    /// Sends a GET and reads the whole answer.
    ///
    /// # Panics
    ///
    /// If there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropped before all was sent, the connection is of no use any more. Dropped later, the pieces that it had read are
    /// lost, and the rest can be read by [`piece`](Self::piece).
    pub async fn get(&mut self, path: &str) -> Response {
        self.send("GET", path, &[], b"").await;
        self.read_to_end().await
    }

    /// Sends a POST of this JSON and reads the whole answer.
    ///
    /// # Panics
    ///
    /// If there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropped before all was sent, the connection is of no use any more. Dropped later, the pieces that it had read are
    /// lost, and the rest can be read by [`piece`](Self::piece).
    pub async fn post_json(&mut self, path: &str, json: &Value) -> Response {
        self.send_json(path, &[], json).await;
        self.read_to_end().await
    }

    /// The head of the answer; interim ones (1xx) are passed over.
    ///
    /// # Panics
    ///
    /// If none comes.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn head(&mut self) -> Head {
        self.try_head().await.unwrap_or_else(|error| panic!("no head came: {error}"))
    }

    /// The head of the answer, where the connection may end before it.
    ///
    /// # Errors
    ///
    /// If it does, or what comes is no HTTP.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn try_head(&mut self) -> io::Result<Head> {
        if let Some(head) = &self.answer.head {
            return Ok(head.clone());
        }
        loop {
            let raw = within(self.conn.head(), || "no head came".into()).await?;
            let raw = raw.ok_or(io::ErrorKind::UnexpectedEof)?;
            let mut words = raw.first_line.splitn(3, ' ');
            let status = match (words.next(), words.next().and_then(|status| status.parse().ok())) {
                (Some("HTTP/1.1" | "HTTP/1.0"), Some(status)) => status,
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, raw.first_line)),
            };
            if (100..200).contains(&status) {
                continue;
            }
            let bodiless = self.head_only || matches!(status, 204 | 304);
            let framing = http1::framing(&raw.headers)?.unwrap_or(Framing::Close);
            let framing = if bodiless { Framing::Length(0) } else { framing };
            self.answer.framing = Some(framing);
            let head = Head { status, headers: raw.headers };
            self.answer.head = Some(head.clone());
            return Ok(head);
        }
    }

    /// The next piece of the body as it was framed: a chunk where it is chunked, else what one read brought. Of a chunk
    /// that breaks off, what came of it. `None` at the end; [`end`](Self::end) then says how it ended.
    ///
    /// # Panics
    ///
    /// If none comes within ten seconds, or what comes is no HTTP.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn piece(&mut self) -> Option<Bytes> {
        self.head().await;
        if self.answer.end.is_some() {
            return None;
        }
        let count = self.answer.pieces;
        let piece = within(self.next_piece(), || format!("no piece came after the first {count}")).await;
        match piece {
            Ok(Some(data)) => {
                self.answer.pieces += 1;
                Some(data)
            }
            Ok(None) => {
                self.answer.end = Some(BodyEnd::Complete);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => panic!("the body is no HTTP: {error}"),
            Err(error) => {
                let eof = error.kind() == io::ErrorKind::UnexpectedEof;
                self.answer.end = Some(if eof { BodyEnd::Truncated } else { BodyEnd::Reset });
                self.rest_of_a_chunk()
            }
        }
    }

    /// The next piece has come, and is this.
    ///
    /// # Panics
    ///
    /// If it is another.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn expect_piece(&mut self, expected: impl AsRef<[u8]>) {
        let expected = Bytes::copy_from_slice(expected.as_ref());
        assert_eq!(self.piece().await, Some(expected));
    }

    /// How the body ended, once it has.
    pub fn end(&self) -> Option<BodyEnd> {
        self.answer.end
    }

    /// The answer from where it was read to until now, to its end.
    ///
    /// # Panics
    ///
    /// If it does not end.
    ///
    /// # Cancel safety
    ///
    /// The pieces that it had read are lost; the rest can be read by [`piece`](Self::piece).
    pub async fn read_to_end(&mut self) -> Response {
        let Head { status, headers } = self.head().await;
        let mut pieces = Vec::new();
        while let Some(piece) = self.piece().await {
            pieces.push(piece);
        }
        let end = self.answer.end.unwrap_or(BodyEnd::Complete);
        Response { status, headers, pieces, trailers: self.answer.trailers.clone(), end }
    }

    /// Waits until the other side closes the connection.
    ///
    /// # Panics
    ///
    /// If it does not within ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn closed(&mut self) {
        within(async { while self.conn.fill().await.is_ok_and(|read| read > 0) {} }, || "still open".into()).await;
    }

    /// Closes the connection: a FIN, or a RST where something was left unread.
    pub fn leave(self) {}

    /// Breaks the connection: a RST.
    ///
    /// # Panics
    ///
    /// If the system can't.
    pub fn reset(self) {
        self.conn.stream.set_zero_linger().expect("an open socket takes the option");
    }

    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        match self.answer.framing.unwrap_or(Framing::Close) {
            Framing::Chunked => match self.conn.chunk().await? {
                Chunk::Data(data) => Ok(Some(data)),
                Chunk::Last(trailers) => {
                    self.answer.trailers = trailers;
                    Ok(None)
                }
            },
            Framing::Length(length) => {
                let left = length - self.answer.read;
                if left == 0 {
                    return Ok(None);
                }
                if self.conn.buf.is_empty() && self.conn.fill().await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let take = self.conn.buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.answer.read += take as u64;
                Ok(Some(self.conn.buf.split_to(take).freeze()))
            }
            Framing::Close => {
                let ended = self.conn.buf.is_empty() && self.conn.fill().await? == 0;
                Ok((!ended).then(|| self.conn.buf.split().freeze()))
            }
        }
    }

    fn rest_of_a_chunk(&mut self) -> Option<Bytes> {
        let rest = self.conn.buf.split().freeze();
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let data = rest.slice(line + 2..);
        (self.answer.framing == Some(Framing::Chunked) && !data.is_empty()).then_some(data)
    }
}

// === impl Head ===

impl Head {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        http1::find(&self.headers, name)
    }
}

// === impl Response ===

impl Response {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        http1::find(&self.headers, name)
    }

    /// The whole body.
    pub fn body(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    /// The whole body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }

    /// The whole body as JSON.
    ///
    /// # Panics
    ///
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body()).unwrap_or_else(|error| panic!("`{}` is not JSON: {error}", self.text()))
    }

    /// The JSON of the body's events, in order; `[DONE]` and comments are passed over.
    pub fn events(&self) -> Vec<Value> {
        self.text().lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok()).collect()
    }
}
