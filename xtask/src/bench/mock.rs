//! The model server of the benchmark, and the receiver of usage records.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use memchr::memmem;
use tokio::{net::TcpListener, time::Instant};

use super::{
    script::{Ask, Clock, JSON, Sender},
    wire::{Conn, text},
};

const MODELS: &str =
    r#"{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}]}"#;
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// What the mock knows and the load wants to.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Usage records that were reported.
    pub(crate) records: Cell<u64>,
    /// Streams whose reader left, and when that was seen.
    left: RefCell<HashMap<u64, Instant>>,
}

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
            let records = memmem::find_iter(&request, b"\"request_id\":").count();
            seen.records.set(seen.records.get() + records as u64);
            conn.write(json("{}").as_bytes()).await?;
        } else if let Some(ask) = Ask::parse(&request) {
            drop(request);
            match ask.events {
                0 => conn.write(json(JSON).as_bytes()).await?,
                _ => stream(conn, ask, clock, seen).await?,
            }
        } else {
            conn.write(json(MODELS).as_bytes()).await?;
        }
    }
    Ok(())
}

async fn stream(conn: &mut Conn, ask: Ask, clock: Clock, seen: &Seen) -> Result<(), String> {
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
                    seen.left.borrow_mut().insert(ask.id, Instant::now());
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

/// A listener on a port of loopback.
pub(crate) async fn listen(port: u16) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await;
    listener.map_err(|error| format!("port {port} of loopback can't be had: {}", text(error)))
}
