//! The clients: each does what its plan says and tells what it saw.

use std::{net::SocketAddr, time::Duration};

use llmproxy_testkit::{BodyEnd, Client};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::plan::{Manner, Plan};
use crate::harness::within;

/// What a client saw until the end, or until it left.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) status: Option<u16>,
    /// Which attempt's answer it is; none where it is the proxy's own.
    pub(super) attempt: Option<usize>,
    pub(super) body: Vec<u8>,
    /// How the answer ended; `None` where the client left before that, or no answer came.
    pub(super) end: Option<BodyEnd>,
}

// === impl Outcome ===

impl Outcome {
    /// Plays the client's part of `plan`.
    pub(super) async fn of(plan: &Plan, proxy: SocketAddr) -> Self {
        let mut outcome = Self::default();
        let mut request = head(plan);
        let (_, _, body) = plan.request();
        match plan.client {
            Manner::HalfCloses => {
                request.extend_from_slice(&body);
                outcome.half_close(proxy, &request).await;
                return outcome;
            }
            Manner::HalfHead { .. } => request.truncate(request.len() / 2),
            Manner::HalfBody { .. } => request.extend_from_slice(&body[..body.len() / 2]),
            Manner::Garbage => request.clone_from(&plan.garbage),
            _ => request.extend_from_slice(&body),
        }
        let mut client = Client::connect(proxy).await;
        // A proxy that has answered already may have closed: what it answered is read all the same.
        let _ = client.send_raw(&request).await;
        match plan.client {
            Manner::HalfHead { leaves: true } | Manner::HalfBody { leaves: true } => client.leave(),
            Manner::LeavesAfter(moment) => {
                let _ = timeout(moment, outcome.read(&mut client, usize::MAX, Duration::ZERO)).await;
                client.leave();
            }
            Manner::ResetsAfter(moment) => {
                let _ = timeout(moment, outcome.read(&mut client, usize::MAX, Duration::ZERO)).await;
                client.reset();
            }
            Manner::LeavesAfterPieces(pieces) => outcome.read(&mut client, pieces, Duration::ZERO).await,
            Manner::Slow => outcome.read(&mut client, usize::MAX, Duration::from_millis(10)).await,
            _ => outcome.read(&mut client, usize::MAX, Duration::ZERO).await,
        }
        outcome
    }

    async fn read(&mut self, client: &mut Client, most: usize, pause: Duration) {
        let Ok(head) = client.try_head().await else { return };
        self.status = Some(head.status);
        self.attempt = head.header("x-attempt").and_then(|attempt| attempt.parse().ok());
        for _ in 0..most {
            sleep(pause).await;
            let Some(piece) = client.piece().await else { break };
            self.body.extend_from_slice(&piece);
        }
        self.end = client.end();
    }

    /// What is answered to a client that has closed its side is nothing or HTTP; how much of it, nobody says.
    async fn half_close(&mut self, proxy: SocketAddr, request: &[u8]) {
        let mut stream = TcpStream::connect(proxy).await.expect("the proxy listens");
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = within("the proxy to close", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{}", answer.escape_ascii());
    }
}

/// The head of a request, with what makes the exchange known to both sides.
fn head(plan: &Plan) -> Vec<u8> {
    let (path, kind, body) = plan.request();
    let (id, address, length) = (plan.id, plan.address(), body.len());
    format!(
        "POST {path} HTTP/1.1\r\nhost: chaos\r\nx-chaos: {id}\r\nx-forwarded-for: {address}\r\ncontent-type: {kind}\r\n\
         content-length: {length}\r\n\r\n"
    )
    .into_bytes()
}
