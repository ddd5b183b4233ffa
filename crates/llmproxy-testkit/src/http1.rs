//! HTTP/1.1 as far as both sides need it: heads and chunks are parsed out of a buffer, so that a read that is cancelled
//! loses nothing.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 256 * 1024 * 1024;
const MAX_CHUNK_LINE: usize = 4 * 1024;

pub(crate) type Headers = Vec<(String, String)>;

/// A connection and what was read from it but not used yet.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    pub(crate) buf: BytesMut,
}

/// The first line and the headers of a message.
#[derive(Debug)]
pub(crate) struct RawHead {
    /// All of it as it was sent, the empty line included.
    pub(crate) raw: Bytes,
    pub(crate) first_line: String,
    pub(crate) headers: Headers,
}

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// By the end of the connection.
    Close,
}

#[derive(Debug)]
pub(crate) enum Chunk {
    Data(Bytes),
    Last(Headers),
}

// === impl Conn ===

impl Conn {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Pieces must leave as they are written. Where that can't be set, the connection is dead already.
        let _ = stream.set_nodelay(true);
        Self { stream, buf: BytesMut::with_capacity(4096) }
    }

    /// Reads what there is; 0 at the end. Cancel safe.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        self.buf.reserve(4096);
        self.stream.read_buf(&mut self.buf).await
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next head; `None` if the connection ends before it begins. Cancel safe.
    pub(crate) async fn head(&mut self) -> io::Result<Option<RawHead>> {
        loop {
            if let Some(head) = parse_head(&mut self.buf)? {
                return Ok(Some(head));
            }
            if self.fill().await? == 0 {
                return if self.buf.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next chunk of a chunked body, whole. Cancel safe.
    pub(crate) async fn chunk(&mut self) -> io::Result<Chunk> {
        loop {
            if let Some(chunk) = parse_chunk(&mut self.buf)? {
                return Ok(chunk);
            }
            self.fill_more().await?;
        }
    }

    /// The whole body of a message.
    pub(crate) async fn body(&mut self, framing: Framing) -> io::Result<Bytes> {
        match framing {
            Framing::Length(length) => {
                let length = usize::try_from(length).ok().filter(|length| *length <= MAX_BODY);
                let length = length.ok_or_else(|| invalid("a body of more than 256 MiB"))?;
                while self.buf.len() < length {
                    self.fill_more().await?;
                }
                Ok(self.buf.split_to(length).freeze())
            }
            Framing::Chunked => {
                let mut body = BytesMut::new();
                while let Chunk::Data(data) = self.chunk().await? {
                    if body.len() + data.len() > MAX_BODY {
                        return Err(invalid("a body of more than 256 MiB"));
                    }
                    body.extend_from_slice(&data);
                }
                Ok(body.freeze())
            }
            Framing::Close => {
                while self.fill().await? > 0 {}
                Ok(self.buf.split().freeze())
            }
        }
    }

    async fn fill_more(&mut self) -> io::Result<()> {
        match self.fill().await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The first header of that name, in any case.
pub(crate) fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Whether the comma-separated lists of that name contain `token`.
pub(crate) fn has_token(headers: &Headers, name: &str, token: &str) -> bool {
    let lists = headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
    lists.flat_map(|(_, list)| list.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// How the headers say that the body is delimited, if they do.
pub(crate) fn framing(headers: &Headers) -> io::Result<Option<Framing>> {
    if has_token(headers, "transfer-encoding", "chunked") {
        return Ok(Some(Framing::Chunked));
    }
    match find(headers, "content-length") {
        None => Ok(None),
        Some(length) => match length.trim().parse() {
            Ok(length) => Ok(Some(Framing::Length(length))),
            Err(_) => Err(invalid("a content-length that is no number")),
        },
    }
}

pub(crate) fn encode_headers(out: &mut Vec<u8>, headers: &[(&str, &str)]) {
    for (name, value) in headers {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

pub(crate) fn encode_chunk(data: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
    out
}

fn parse_head(buf: &mut BytesMut) -> io::Result<Option<RawHead>> {
    // RFC 9112, 2.2: empty lines before a message are ignored.
    while buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
    let Some(end) = find_bytes(buf, b"\r\n\r\n") else {
        return if buf.len() > MAX_HEAD { Err(invalid("a head of more than 64 KiB")) } else { Ok(None) };
    };
    let raw = buf.split_to(end + 4).freeze();
    let mut lines = raw[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first_line = text(lines.next().unwrap_or_default());
    let headers = lines.map(parse_header).collect::<io::Result<_>>()?;
    Ok(Some(RawHead { first_line, headers, raw }))
}

fn parse_header(line: &[u8]) -> io::Result<(String, String)> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| invalid("a header line without a colon"))?;
    let name = text(&line[..colon]);
    if name.is_empty() || name.contains(|c: char| c.is_ascii_whitespace()) {
        return Err(invalid("a header name with a space in it"));
    }
    Ok((name, text(line[colon + 1..].trim_ascii())))
}

fn parse_chunk(buf: &mut BytesMut) -> io::Result<Option<Chunk>> {
    let Some(line) = find_bytes(buf, b"\r\n") else {
        return if buf.len() > MAX_CHUNK_LINE {
            Err(invalid("a chunk size line of more than 4 KiB"))
        } else {
            Ok(None)
        };
    };
    let size = buf[..line].split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(size).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
    let size = size.filter(|size| *size <= MAX_BODY).ok_or_else(|| invalid("a chunk size that is none"))?;
    let data = line + 2;
    if size == 0 {
        return parse_trailers(buf, data);
    }
    if buf.len() < data + size + 2 {
        return Ok(None);
    }
    if &buf[data + size..data + size + 2] != b"\r\n" {
        return Err(invalid("a chunk that is longer than it says"));
    }
    buf.advance(data);
    let data = buf.split_to(size).freeze();
    buf.advance(2);
    Ok(Some(Chunk::Data(data)))
}

/// Trailers begin at `start` and end by an empty line.
fn parse_trailers(buf: &mut BytesMut, start: usize) -> io::Result<Option<Chunk>> {
    let (length, skip) = if buf[start..].starts_with(b"\r\n") {
        (0, 2)
    } else {
        match find_bytes(&buf[start..], b"\r\n\r\n") {
            Some(length) => (length, 4),
            None if buf.len() > MAX_HEAD => return Err(invalid("trailers of more than 64 KiB")),
            None => return Ok(None),
        }
    };
    let lines = &buf[start..start + length];
    let lines = lines.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let trailers = lines.filter(|line| !line.is_empty()).map(parse_header).collect::<io::Result<_>>()?;
    buf.advance(start + length + skip);
    Ok(Some(Chunk::Last(trailers)))
}

fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// As UTF-8, or byte by byte where it is none, so that nothing is lost.
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|byte| char::from(*byte)).collect(), str::to_owned)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_chunk(text: &str, expected: Option<&str>, rest: &str) {
        let mut buf = BytesMut::from(text);
        let found = match parse_chunk(&mut buf) {
            Ok(None) => None,
            Ok(Some(Chunk::Data(data))) => Some(String::from_utf8(data.to_vec()).unwrap()),
            Ok(Some(Chunk::Last(trailers))) => Some(format!("last {trailers:?}")),
            Err(error) => Some(format!("error: {error}")),
        };
        assert_eq!(found.as_deref(), expected, "{text:?}");
        assert_eq!(buf, rest, "{text:?}");
    }

    #[test]
    fn chunks_are_whole_or_not_there_yet() {
        check_chunk("", None, "");
        check_chunk("3\r\nab", None, "3\r\nab");
        check_chunk("3\r\nabc\r", None, "3\r\nabc\r");
        check_chunk("3\r\nabc\r\n0\r\n", Some("abc"), "0\r\n");
        check_chunk("A;x=y\r\n0123456789\r\n", Some("0123456789"), "");
        check_chunk("0\r\n", None, "0\r\n");
        check_chunk("0\r\n\r\nGET", Some("last []"), "GET");
        check_chunk("0\r\na: b\r\n", None, "0\r\na: b\r\n");
        check_chunk("0\r\na: b\r\n\r\n", Some(r#"last [("a", "b")]"#), "");
        check_chunk("2\r\nabc\r\n", Some("error: a chunk that is longer than it says"), "2\r\nabc\r\n");
        check_chunk("x\r\n", Some("error: a chunk size that is none"), "x\r\n");
    }

    #[test]
    fn heads_keep_the_case_and_the_order_of_their_headers() {
        let mut buf = BytesMut::from("\r\nGET / HTTP/1.1\r\nHost:a\r\nX-Two:  2 \r\nx-two: 3\r\n\r\nrest");
        let head = parse_head(&mut buf).unwrap().unwrap();
        assert_eq!(head.first_line, "GET / HTTP/1.1");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(head.headers, [pair("Host", "a"), pair("X-Two", "2"), pair("x-two", "3")]);
        assert_eq!(buf, "rest");
    }
}
