//! Bytes on sockets, with no HTTP in between that could hide what is on the wire.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::within;

/// One end of a connection.
pub(crate) struct Raw {
    stream: TcpStream,
    came: Vec<u8>,
}

/// A backend that does what the test does.
pub(crate) struct RawBackend(TcpListener);

// === impl Raw ===

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("connects"))
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an open socket takes the option");
        Self { stream, came: Vec::new() }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the proxy reads");
    }

    /// As [`Raw::write`], where the other side may be gone.
    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Writes until the other side is gone.
    pub(crate) async fn write_until_closed(&mut self) {
        let block = [b'x'; 65_536];
        within("the end of a connection", async { while self.stream.write_all(&block).await.is_ok() {} }).await;
    }

    /// Ends with a reset rather than a FIN.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().expect("an open socket takes the option");
    }

    /// All that came up to `end` and with it.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        loop {
            let found = self.came.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                return String::from_utf8(self.came.drain(..at + end.len()).collect()).expect("text");
            }
            let read = within(end, self.stream.read_buf(&mut self.came)).await.expect("reads");
            assert!(read > 0, "the end came before {end:?}: {:?}", String::from_utf8_lossy(&self.came));
        }
    }

    /// The next request: its head, and its body as it was framed.
    pub(crate) async fn request(&mut self) -> String {
        let head = self.read_until("\r\n\r\n").await;
        if head.contains("transfer-encoding: chunked\r\n") {
            // The last chunk, then trailers up to an empty line.
            let mut message = head + &self.read_until("\r\n0\r\n").await;
            while !message.ends_with("\r\n\r\n") {
                message += &self.read_until("\r\n").await;
            }
            return message;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        while self.came.len() < length {
            assert!(within("a body", self.stream.read_buf(&mut self.came)).await.expect("reads") > 0, "{head}");
        }
        head + &String::from_utf8(self.came.drain(..length).collect()).expect("text")
    }

    /// What comes up to the end of the connection, however it ends.
    pub(crate) async fn read_to_end(&mut self) -> String {
        // A reset is an end as well.
        let _ = within("the end of a connection", self.stream.read_to_end(&mut self.came)).await;
        String::from_utf8_lossy(&std::mem::take(&mut self.came)).into_owned()
    }
}

// === impl RawBackend ===

impl RawBackend {
    pub(crate) async fn bind() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("bound")
    }

    /// A configuration with this backend alone, and more about it.
    pub(crate) fn config(&self, more: &str) -> String {
        let url = format!("http://{}", self.address());
        format!("backends: [{{url: '{url}', models: [m]{more}}}]\nhealth_check: {{enabled: false}}\n")
    }

    pub(crate) async fn accept(&self) -> Raw {
        Raw::new(within("a connection", self.0.accept()).await.expect("accepts").0)
    }
}
