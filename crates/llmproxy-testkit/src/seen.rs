//! What a backend sees of a request.

use std::io;

use bytes::Bytes;
use serde_json::Value;

use crate::http1::{self, Conn, Framing};

/// A request as a backend saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The target, its query included.
    pub path: String,
    /// The headers in their order and with their case.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Bytes,
    /// The head as it was sent, the empty line included.
    pub head: Bytes,
    /// Which of the backend's connections it came by, from 0.
    pub connection: usize,
}

// === impl Seen ===

impl Seen {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        http1::find(&self.headers, name)
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn is_http10(&self) -> bool {
        let line = self.head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        line.ends_with(b"HTTP/1.0")
    }

    /// The next request; `None` if the connection ends before it.
    pub(crate) async fn read(conn: &mut Conn, connection: usize) -> io::Result<Option<Self>> {
        let Some(head) = conn.head().await? else { return Ok(None) };
        let mut words = head.first_line.split(' ');
        let (Some(method), Some(path), Some("HTTP/1.1" | "HTTP/1.0"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request line that is none of HTTP/1"));
        };
        if http1::has_token(&head.headers, "expect", "100-continue") {
            conn.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = conn.body(http1::framing(&head.headers)?.unwrap_or(Framing::Length(0))).await?;
        let (method, path) = (method.to_owned(), path.to_owned());
        Ok(Some(Self { method, path, headers: head.headers, body, head: head.raw, connection }))
    }
}
