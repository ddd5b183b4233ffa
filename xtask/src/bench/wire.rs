//! As much of HTTP/1.1 (RFC 9112) as the load and the mock need, at a cost that leaves the proxies the bottleneck.

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What one read may take.
const READ: usize = 16 * 1024;
/// A head that is larger than this is none.
const MAX_HEAD: usize = 16 * 1024;

/// One connection, of either side.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: TcpStream,
    buf: Vec<u8>,
    /// How much of `buf` was taken already.
    taken: usize,
}

/// The head of a message.
#[derive(Debug)]
pub(crate) struct Head {
    /// Request line or status line.
    pub(crate) line: String,
    /// The names of those headers that are the sender's own, in lines.
    pub(crate) names: String,
    pub(crate) body: Body,
}

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Done,
}

// === impl Conn ===

impl Conn {
    pub(crate) fn new(stream: TcpStream) -> Result<Self, String> {
        stream.set_nodelay(true).map_err(text)?;
        Ok(Self { stream, buf: Vec::new(), taken: 0 })
    }

    pub(crate) async fn connect(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        Self::new(stream.map_err(|error| format!("no connection to port {port}: {error}"))?)
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).await.map_err(text)
    }

    /// The next message's head; `None` if the other side has closed instead.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn head(&mut self) -> Result<Option<Head>, String> {
        loop {
            let rest = &self.buf[self.taken..];
            if let Some(end) = memmem::find(rest, b"\r\n\r\n") {
                let head = Head::parse(&rest[..end])?;
                self.taken += end + 4;
                return Ok(Some(head));
            }
            if rest.len() > MAX_HEAD {
                return Err("a head has no end".to_owned());
            }
            if self.fill().await? == 0 {
                return match self.buf.len() - self.taken {
                    0 => Ok(None),
                    _ => Err("a head was broken off".to_owned()),
                };
            }
        }
    }

    /// The next piece of a body, as much of it as has come; `None` at its end.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn piece(&mut self, body: &mut Body) -> Result<Option<&[u8]>, String> {
        loop {
            let rest = &self.buf[self.taken..];
            match *body {
                Body::Done | Body::Length(0) => return Ok(None),
                Body::Length(left) | Body::Chunk(left) if !rest.is_empty() => {
                    let take = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - take as u64;
                    *body = match body {
                        Body::Length(_) => Body::Length(left),
                        _ if left == 0 => Body::ChunkEnd,
                        _ => Body::Chunk(left),
                    };
                    let from = self.taken;
                    self.taken += take;
                    return Ok(Some(&self.buf[from..from + take]));
                }
                Body::ChunkEnd if rest.len() >= 2 => {
                    self.taken += 2;
                    *body = Body::ChunkSize;
                    continue;
                }
                Body::ChunkSize => {
                    if let Some(end) = memchr::memchr(b'\n', rest) {
                        let size = std::str::from_utf8(&rest[..end]).ok().map(str::trim_end);
                        let size = size.and_then(|size| u64::from_str_radix(size, 16).ok());
                        let size = size.ok_or("a chunk has no size")?;
                        if size > 0 {
                            self.taken += end + 1;
                            *body = Body::Chunk(size);
                            continue;
                        }
                        // No trailers here: an empty line follows.
                        if rest.len() >= end + 3 {
                            self.taken += end + 3;
                            *body = Body::Done;
                            continue;
                        }
                    }
                }
                _ => {}
            }
            if self.fill().await? == 0 {
                return Err("a body was broken off".to_owned());
            }
        }
    }

    /// Waits until the other side has closed, or sends something, which is not expected.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn closed(&mut self) -> Result<(), String> {
        match self.fill().await {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err("a client sends more while it is being answered".to_owned()),
        }
    }

    async fn fill(&mut self) -> Result<usize, String> {
        if self.taken == self.buf.len() {
            self.buf.clear();
            self.taken = 0;
        } else if self.taken > READ {
            self.buf.drain(..self.taken);
            self.taken = 0;
        }
        // Waited for before there is room for it, so that a waiting connection holds little.
        self.stream.readable().await.map_err(text)?;
        self.buf.reserve(READ);
        self.stream.read_buf(&mut self.buf).await.map_err(text)
    }
}

// === impl Head ===

impl Head {
    fn parse(head: &[u8]) -> Result<Self, String> {
        let head = std::str::from_utf8(head).map_err(text)?;
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let (mut body, mut names) = (Body::Length(0), String::new());
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is no header"))?;
            if name.starts_with("x-") {
                names.push_str(name);
                names.push('\n');
            }
            if name.eq_ignore_ascii_case("content-length") {
                body = Body::Length(value.trim().parse().map_err(text)?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                body = Body::ChunkSize;
            }
        }
        Ok(Self { line, names, body })
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.line.split(' ').nth(1) == Some("200")
    }
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// A body as it comes when its bytes do in pieces of `step`.
    async fn read(raw: &'static [u8], step: usize) -> Result<(String, Vec<u8>), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut conn = Conn::connect(listener.local_addr().unwrap().port()).await?;
        let (mut other, _) = listener.accept().await.unwrap();
        other.set_nodelay(true).unwrap();
        let send = async move {
            for bytes in raw.chunks(step) {
                other.write_all(bytes).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let receive = async {
            let mut head = conn.head().await?.ok_or("closed")?;
            let mut all = Vec::new();
            while let Some(piece) = conn.piece(&mut head.body).await? {
                all.extend_from_slice(piece);
            }
            Ok((head.line, all))
        };
        tokio::join!(send, receive).1
    }

    #[test]
    fn a_body_is_read_however_it_is_cut() {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n11\r\n, how are you at \r\n0\r\n\r\n";
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        for step in 1..chunked.len() {
            let (line, body) = block_on(read(chunked, step)).unwrap();
            assert_eq!((line.as_str(), &*body), ("HTTP/1.1 200 OK", &b"hello, how are you at "[..]), "{step}");
            assert_eq!(block_on(read(sized, step)).unwrap().1, b"hello", "{step}");
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_an_error() {
        assert!(block_on(read(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", 9)).is_err());
        assert!(block_on(read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 9)).is_err());
        assert!(block_on(read(b"HTTP/1.1 200", 9)).is_err());
    }
}
