//! What becomes of a connection that is one too many.

use std::time::Duration;

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{metrics::CONNECTIONS_REFUSED, transport::drain};

/// What it reads.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
/// So many of them are kept for a moment, until they have read it. The others are closed at once.
const MAX_LINGERING: usize = 64;
/// How long that moment is at most.
const LINGER: Duration = Duration::from_secs(1);
/// How often it is said in the log.
const SAY: Duration = Duration::from_secs(10);

/// Those that were refused and have not left yet.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    lingering: JoinSet<()>,
    said: Option<Instant>,
}

// === impl Crowd ===

impl Crowd {
    /// Refuses a connection: by an answer where it is not encrypted, since a handshake is work that there is too much of.
    pub(crate) fn refuse(&mut self, stream: TcpStream, tls: bool, most: usize) {
        metrics::counter!(CONNECTIONS_REFUSED).increment(1);
        if self.said.is_none_or(|said| said.elapsed() >= SAY) {
            self.said = Some(Instant::now());
            tracing::warn!(
                most,
                "connections are refused: as many are open as server.max_connections allows; raise it if the machine has \
                 room for more"
            );
        }
        while self.lingering.try_join_next().is_some() {}
        // Into the empty buffer of a new socket all of it goes at once.
        if tls || stream.try_write(FULL).is_err() || self.lingering.len() >= MAX_LINGERING {
            return;
        }
        self.lingering.spawn(async move {
            let _ = timeout(LINGER, part(stream)).await;
        });
    }
}

/// Says that nothing more comes, and reads until the client has left: to close with bytes unread would break the connection,
/// and what was written might be lost.
async fn part(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        drain(stream).await;
    }
}
