//! The server's end of a connection, for the time of one answer.

use std::{io, sync::Arc};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, sync::oneshot};

use crate::{
    Seen,
    backend::Shared,
    http1::{self, Conn, Framing},
};

/// Writes one answer, byte by byte if need be. Given to a script together with the request.
///
/// A wire that is finished gives its connection back for the next request; one that is dropped before closes it, which
/// breaks the answer off. Writing fails once the client has left.
///
/// ```
/// use llmproxy_testkit::{Backend, BodyEnd, Client};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let backend = Backend::start(|_, mut wire| async move {
///     wire.head(200, &[("content-type", "text/event-stream")]).await?;
///     wire.chunk("data: half an ev").await?;
///     wire.close().await;
///     Ok(())
/// })
/// .await;
/// let answer = Client::connect(backend.addr()).await.get("/").await;
/// assert_eq!((&*answer.pieces[0], answer.end), (&b"data: half an ev"[..], BodyEnd::Truncated));
/// # });
/// ```
#[derive(Debug)]
pub struct Wire {
    conn: Option<Conn>,
    back: Option<oneshot::Sender<Conn>>,
    shared: Arc<Shared>,
    framing: Framing,
    keep_alive: bool,
    http10: bool,
    head_only: bool,
    finished: bool,
    gone: bool,
}

// === impl Wire ===

impl Wire {
    /// The wire and where its connection comes back.
    pub(crate) fn new(conn: Conn, seen: &Seen, shared: Arc<Shared>) -> (Self, oneshot::Receiver<Conn>) {
        let (back, returned) = oneshot::channel();
        let http10 = seen.is_http10();
        let keep_alive = !http10 && !http1::has_token(&seen.headers, "connection", "close");
        let wire = Self {
            conn: Some(conn),
            back: Some(back),
            shared,
            framing: Framing::Chunked,
            keep_alive,
            http10,
            head_only: seen.method == "HEAD",
            finished: false,
            gone: false,
        };
        (wire, returned)
    }

    /// Writes the head with exactly these headers. Where they say nothing about how the body is delimited, it is chunked,
    /// unless they say `connection: close`.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a part may have been written; the answer can only be broken off then.
    pub async fn head(&mut self, status: u16, headers: &[(&str, &str)]) -> io::Result<()> {
        let owned = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut out = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Unknown")).into_bytes();
        http1::encode_headers(&mut out, headers);
        if http1::has_token(&owned, "connection", "close") {
            self.keep_alive = false;
        }
        self.framing = match http1::framing(&owned)? {
            Some(framing) => framing,
            None if matches!(status, 204 | 304) => Framing::Length(0),
            None if !self.keep_alive => Framing::Close,
            None => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                Framing::Chunked
            }
        };
        if !self.keep_alive && self.http10 {
            self.framing = Framing::Close;
        }
        out.extend_from_slice(b"\r\n");
        self.raw(out).await
    }

    /// Writes one piece of the body: one chunk, where it is chunked.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a part may have been written; the answer can only be broken off then.
    pub async fn chunk(&mut self, data: impl AsRef<[u8]>) -> io::Result<()> {
        let data = data.as_ref();
        match self.framing {
            _ if self.head_only || data.is_empty() => Ok(()),
            Framing::Chunked => self.raw(http1::encode_chunk(data)).await,
            Framing::Length(_) | Framing::Close => self.raw(data).await,
        }
    }

    /// Writes these bytes as they are.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a part may have been written; the answer can only be broken off then.
    pub async fn raw(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let result = match &mut self.conn {
            Some(conn) => conn.write(bytes.as_ref()).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        self.gone |= result.is_err();
        result
    }

    /// Ends the body as it should end.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the connection is closed and the answer broken off.
    pub async fn finish(self) -> io::Result<()> {
        self.finish_with_trailers(&[]).await
    }

    /// Ends a chunked body with trailers.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the connection is closed and the answer broken off.
    pub async fn finish_with_trailers(mut self, trailers: &[(&str, &str)]) -> io::Result<()> {
        if self.framing == Framing::Chunked && !self.head_only {
            let mut out = b"0\r\n".to_vec();
            http1::encode_headers(&mut out, trailers);
            out.extend_from_slice(b"\r\n");
            self.raw(out).await?;
        }
        self.finished = true;
        if !self.keep_alive {
            self.shutdown().await;
        }
        Ok(())
    }

    /// Ends the body as it should end, then closes the connection without having announced it, as llama-server does.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the connection is closed and the answer broken off.
    pub async fn finish_and_close(mut self) -> io::Result<()> {
        self.keep_alive = false;
        self.finish().await
    }

    /// Answers at once: head, `content-length`, body.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the connection is closed and the answer broken off.
    pub async fn respond(mut self, status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> io::Result<()> {
        let length = body.as_ref().len().to_string();
        let mut headers = headers.to_vec();
        headers.push(("content-length", &length));
        self.head(status, &headers).await?;
        self.chunk(body).await?;
        self.finish().await
    }

    /// Answers with JSON.
    ///
    /// # Errors
    ///
    /// If the client has left.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the connection is closed and the answer broken off.
    pub async fn json(self, status: u16, body: &Value) -> io::Result<()> {
        self.respond(status, &[("content-type", "application/json")], body.to_string()).await
    }

    /// Closes the connection here and now: what was written arrives, then a FIN.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the connection is closed all the same.
    pub async fn close(mut self) {
        self.keep_alive = false;
        self.shutdown().await;
    }

    /// Breaks the connection here and now: a RST.
    ///
    /// # Panics
    ///
    /// If the system can't.
    pub fn reset(mut self) {
        if let Some(conn) = self.conn.take() {
            // Without it the drop is a FIN: a test that asks for a reset must not pass by that.
            conn.stream.set_zero_linger().expect("an open socket takes the option");
        }
    }

    /// Waits until the client closes its side; what it sends meanwhile is kept for the next request.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn client_gone(&mut self) {
        if let Some(conn) = &mut self.conn {
            while conn.fill().await.is_ok_and(|read| read > 0) {}
        }
        self.gone = true;
    }

    async fn shutdown(&mut self) {
        if let Some(mut conn) = self.conn.take() {
            // It fails where the client has closed before, which is as good.
            let _ = conn.stream.shutdown().await;
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let abandoned = self.gone && !self.finished;
        if self.finished
            && self.keep_alive
            && let (Some(back), Some(conn)) = (self.back.take(), self.conn.take())
        {
            // It comes back as an error where the backend was stopped meanwhile.
            let _ = back.send(conn);
        }
        self.shared.count(|counts| {
            counts.in_progress -= 1;
            counts.abandoned += usize::from(abandoned);
        });
    }
}
