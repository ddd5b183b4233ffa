//! The model server of the benchmark, and the receiver of usage records.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    time::Duration,
};

use memchr::memmem;
use tokio::{net::TcpListener, time::Instant};

use super::{
    script::{Ask, Clock, JSON, JSON_TOKENS, STREAM_TOKENS, Sender},
    wire::{Conn, text},
};

const MODELS: &str =
    r#"{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}]}"#;
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// What the mock knows and the load wants to.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) records: RefCell<Records>,
    /// Streams whose reader left, and when that was seen.
    left: RefCell<HashMap<u64, Instant>>,
}

/// The usage records that were reported.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) ids: HashSet<[u8; ID]>,
    /// How many had an id that had come before.
    pub(crate) twice: u64,
    /// How many have the tokens that the mock says.
    pub(crate) counted: u64,
}

/// A UUID in words.
const ID: usize = 36;
const ID_KEY: &[u8] = b"\"request_id\":\"";

/// Serves on `listener` until the runtime ends; each connection on a task of its own.
pub(crate) async fn serve(listener: TcpListener, clock: Clock, seen: Rc<Seen>) {
    while let Ok((stream, _)) = listener.accept().await {
        let seen = seen.clone();
        tokio::task::spawn_local(async move {
            // A proxy may close whenever it likes; what it owed its client is checked there.
            if let Ok(mut conn) = Conn::new(stream) {
                let _ = answer_all(&mut conn, clock, &seen).await;
            }
        });
    }
}

async fn answer_all(conn: &mut Conn, clock: Clock, seen: &Seen) -> Result<(), String> {
    while let Some(mut head) = conn.head().await? {
        let mut request = Vec::new();
        while let Some(piece) = conn.piece(&mut head.body).await? {
            request.extend_from_slice(piece);
        }
        let path = head.line.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/usage") {
            seen.records.borrow_mut().take(&request);
            conn.write(json("{}").as_bytes()).await?;
        } else if let Some(ask) = Ask::parse(&request) {
            drop(request);
            match ask.events {
                0 => {
                    if ask.gap > 0 {
                        tokio::time::sleep(Duration::from_micros(ask.gap)).await;
                    }
                    conn.write(json(JSON).as_bytes()).await?;
                }
                _ => stream(conn, ask, clock, seen).await?,
            }
        } else {
            conn.write(json(MODELS).as_bytes()).await?;
        }
    }
    Ok(())
}

async fn stream(conn: &mut Conn, ask: Ask, clock: Clock, seen: &Seen) -> Result<(), String> {
    let sent = send(conn, ask, clock).await;
    // Be it between two events or in the middle of one: nothing else makes it fail.
    if sent.is_err() {
        seen.left.borrow_mut().insert(ask.id, Instant::now());
    }
    sent
}

async fn send(conn: &mut Conn, ask: Ask, clock: Clock) -> Result<(), String> {
    conn.write(STREAM_HEAD).await?;
    let mut sender = Sender::default();
    let (mut events, mut chunk) = (Vec::new(), Vec::new());
    let began = Instant::now();
    let mut sent = 0;
    while sent < ask.events {
        if ask.gap > 0 {
            let next = began + Duration::from_micros(ask.gap * sent);
            tokio::select! {
                () = tokio::time::sleep_until(next), if sent > 0 => {}
                closed = conn.closed(), if sent > 0 => {
                    closed?;
                    return Err("left".to_owned());
                }
                else => {}
            }
        }
        let burst = ask.burst.min(ask.events - sent);
        events.clear();
        for _ in 0..burst {
            sender.event(clock.now(), &mut events);
        }
        sent += burst;
        write_chunk(conn, &events, &mut chunk).await?;
    }
    events.clear();
    sender.end(ask.usage, &mut events);
    write_chunk(conn, &events, &mut chunk).await?;
    conn.write(b"0\r\n\r\n").await
}

async fn write_chunk(conn: &mut Conn, events: &[u8], chunk: &mut Vec<u8>) -> Result<(), String> {
    chunk.clear();
    chunk.extend_from_slice(format!("{:x}\r\n", events.len()).as_bytes());
    chunk.extend_from_slice(events);
    chunk.extend_from_slice(b"\r\n");
    conn.write(chunk).await
}

fn json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

// === impl Seen ===

impl Seen {
    /// When the reader of the stream `id` was seen to leave; waits for it, at most `patience`.
    pub(crate) async fn left(&self, id: u64, patience: Duration) -> Result<Instant, String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.left.borrow_mut().remove(&id) {
                return Ok(at);
            }
            if Instant::now() > deadline {
                return Err(format!("the backend did not see its client leave within {patience:?}"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

// === impl Records ===

impl Records {
    /// Takes a report of one or more of them.
    fn take(&mut self, report: &[u8]) {
        for at in memmem::find_iter(report, ID_KEY) {
            if let Some(id) = report[at + ID_KEY.len()..].first_chunk::<ID>()
                && !self.ids.insert(*id)
            {
                self.twice += 1;
            }
        }
        let told = [JSON_TOKENS, STREAM_TOKENS].map(|tokens| format!("\"total_tokens\":{tokens},"));
        // Once in each record: the one inside of `usage` is the last there, and no comma follows it.
        self.counted += told.iter().map(|told| memmem::find_iter(report, told.as_bytes()).count() as u64).sum::<u64>();
    }
}

/// A listener on a port of loopback.
pub(crate) async fn listen(port: u16) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await;
    listener.map_err(|error| format!("port {port} of loopback can't be had: {}", text(error)))
}
