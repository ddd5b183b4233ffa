//! The load: closed loops, paced streams, streams that are held, and clients that leave.

use std::{cell::RefCell, rc::Rc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    mock::Seen,
    script::{Ask, Clock, JSON, Receiver},
    wire::{Conn, Head},
};

/// How long a client may take to be seen leaving.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    pub(crate) port: u16,
    pub(crate) path: String,
    /// A header line without its end, or nothing.
    pub(crate) header: String,
}

/// What a run came to. Times are in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Answers that came whole and right.
    pub(crate) requests: u64,
    /// Events that came in them.
    pub(crate) events: u64,
    /// From the request to the end of a JSON answer, or to the first event of a stream.
    pub(crate) first: Vec<u64>,
    /// From the backend's sending of an event to its being here; without the first.
    pub(crate) delays: Vec<u64>,
}

/// The streams that [`hold`] has open.
pub(crate) struct Held {
    tasks: JoinSet<Result<(), String>>,
    opened: tokio::sync::watch::Receiver<usize>,
    count: usize,
}

// === impl Aim ===

impl Aim {
    /// A request's bytes.
    fn request(&self, ask: Ask, size: usize) -> Vec<u8> {
        let body = ask.body(size);
        let Self { port, path, header } = self;
        let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: bench\r\naccept: application/json\r\n\
             {header}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// `clients` connections, each of which asks for one JSON answer after another until `length` is over. Stops after `most` of
/// them where that comes sooner.
pub(crate) async fn json(
    aim: &Aim,
    clients: usize,
    size: usize,
    length: Duration,
    most: u64,
) -> Result<Outcome, String> {
    json_apart(aim, clients, size, length, most, Duration::ZERO).await
}

/// The same, where each answer takes `apart`, and as long passes until the next request.
pub(crate) async fn json_apart(
    aim: &Aim,
    clients: usize,
    size: usize,
    length: Duration,
    most: u64,
    apart: Duration,
) -> Result<Outcome, String> {
    let gap = u64::try_from(apart.as_micros()).unwrap_or(u64::MAX);
    let request: Rc<[u8]> = aim.request(Ask { id: 0, events: 0, gap, burst: 0, usage: false }, size).into();
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let until = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (request, outcome, port) = (request.clone(), outcome.clone(), aim.port);
        tasks.spawn_local(async move {
            let mut conn = Conn::connect(port).await?;
            let mut answer = Vec::with_capacity(JSON.len());
            while Instant::now() < until && outcome.borrow().requests < most {
                let began = Instant::now();
                conn.write(&request).await?;
                let mut head = conn.head().await?.ok_or("a connection was closed instead of an answer")?;
                answer.clear();
                while let Some(piece) = conn.piece(&mut head.body).await? {
                    answer.extend_from_slice(piece);
                }
                if !head.is_ok() || answer != JSON.as_bytes() {
                    return Err(format!("a wrong answer: {}: {}", head.line, String::from_utf8_lossy(&answer)));
                }
                {
                    let mut outcome = outcome.borrow_mut();
                    outcome.requests += 1;
                    outcome.first.push(nanos(began.elapsed()));
                }
                if !apart.is_zero() {
                    sleep(apart).await;
                }
            }
            Ok(())
        });
    }
    all(tasks).await?;
    Ok(outcome.take())
}

/// `clients` connections, each of which reads one stream like `ask` after another; all of them at a time for `length`.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) async fn streams(
    aim: &Aim,
    clients: u64,
    ask: Ask,
    length: Duration,
    clock: Clock,
) -> Result<Outcome, String> {
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    // All are there for `length`; they come before that and go after it.
    let spread = Duration::from_micros(ask.gap * ask.events) * u32::from(clients > 1);
    let until = Instant::now() + spread + length;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (aim, outcome) = (aim.clone(), outcome.clone());
        tasks.spawn_local(async move {
            // Evenly over a whole stream, as clients that know nothing of each other would be.
            sleep(spread.mul_f64(client as f64 / clients as f64)).await;
            let request = aim.request(ask, 1024);
            let mut conn = Conn::connect(aim.port).await?;
            loop {
                read_stream(&mut conn, &request, ask, clock, &outcome).await?;
                if Instant::now() >= until {
                    return Ok(());
                }
            }
        });
    }
    all(tasks).await?;
    Ok(outcome.take())
}

/// The head of the answer to one small request.
pub(crate) async fn head(aim: &Aim) -> Result<Head, String> {
    let mut conn = Conn::connect(aim.port).await?;
    conn.write(&aim.request(Ask { id: 0, events: 0, gap: 0, burst: 0, usage: false }, 1024)).await?;
    let mut head = conn.head().await?.ok_or("a connection was closed instead of an answer")?;
    while conn.piece(&mut head.body).await?.is_some() {}
    Ok(head)
}

/// Opens `count` streams like `ask`, some thousand in a second, each on a connection of its own.
pub(crate) fn hold(aim: &Aim, count: usize, ask: Ask) -> Held {
    let (opened, watch) = tokio::sync::watch::channel(0);
    let opened = Rc::new(opened);
    let mut tasks = JoinSet::new();
    for client in 0..count {
        let (aim, opened) = (aim.clone(), opened.clone());
        tasks.spawn_local(async move {
            sleep(Duration::from_micros(500) * u32::try_from(client).unwrap_or(u32::MAX)).await;
            let mut conn = Conn::connect(aim.port).await?;
            conn.write(&aim.request(ask, 1024)).await?;
            let mut head = conn.head().await?.ok_or("a connection was closed instead of a stream")?;
            if !head.is_ok() {
                return Err(format!("a stream was refused: {}", head.line));
            }
            let mut receiver = Receiver::default();
            while let Some(piece) = conn.piece(&mut head.body).await? {
                let before = receiver.events;
                receiver.take(piece, |_| ())?;
                if before < 2 && receiver.events >= 2 {
                    opened.send_modify(|opened| *opened += 1);
                }
            }
            receiver.finish(ask.events)
        });
    }
    Held { tasks, opened: watch, count }
}

/// One client after another opens a stream and leaves in the middle of it; how long it took until the backend saw that.
pub(crate) async fn leave(aim: &Aim, clients: u64, first_id: u64, seen: &Seen) -> Result<Vec<u64>, String> {
    let mut took = Vec::new();
    for client in 0..clients {
        let ask = Ask { id: first_id + client, events: 1000, gap: 50_000, burst: 1, usage: false };
        let mut conn = Conn::connect(aim.port).await?;
        conn.write(&aim.request(ask, 1024)).await?;
        let mut head = conn.head().await?.ok_or("a connection was closed instead of a stream")?;
        let mut receiver = Receiver::default();
        while receiver.events < 2 {
            let piece = conn.piece(&mut head.body).await?.ok_or("a stream ended early")?;
            receiver.take(piece, |_| ())?;
        }
        // Not at the same time as an event.
        sleep(Duration::from_millis(5)).await;
        let left = Instant::now();
        drop(conn);
        let seen_at = seen.left(ask.id, PATIENCE).await?;
        took.push(nanos(seen_at.saturating_duration_since(left)));
    }
    Ok(took)
}

async fn read_stream(
    conn: &mut Conn,
    request: &[u8],
    ask: Ask,
    clock: Clock,
    outcome: &RefCell<Outcome>,
) -> Result<(), String> {
    let began = clock.now();
    conn.write(request).await?;
    let mut head = conn.head().await?.ok_or("a connection was closed instead of a stream")?;
    if !head.is_ok() {
        return Err(format!("a stream was refused: {}", head.line));
    }
    let mut receiver = Receiver::default();
    let mut is_first = true;
    while let Some(piece) = conn.piece(&mut head.body).await? {
        let now = clock.now();
        let mut outcome = outcome.borrow_mut();
        receiver.take(piece, |sent| {
            if std::mem::take(&mut is_first) {
                outcome.first.push(now.saturating_sub(began));
            } else {
                outcome.delays.push(now.saturating_sub(sent));
            }
        })?;
    }
    receiver.finish(ask.events)?;
    let mut outcome = outcome.borrow_mut();
    outcome.requests += 1;
    outcome.events += ask.events;
    Ok(())
}

/// Waits for all, and stops at the first that fails.
async fn all(mut tasks: JoinSet<Result<(), String>>) -> Result<(), String> {
    while let Some(task) = tasks.join_next().await {
        task.map_err(|error| error.to_string())??;
    }
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Held ===

impl Held {
    /// Waits until each of them is open and has sent more than once.
    pub(crate) async fn open(&mut self) -> Result<(), String> {
        let count = self.count;
        tokio::select! {
            opened = self.opened.wait_for(|opened| *opened == count) => opened.map(drop).map_err(|error| error.to_string()),
            Some(task) = self.tasks.join_next() => {
                Err(task.map_err(|error| error.to_string())?.err().unwrap_or_else(|| "a stream ended too soon".to_owned()))
            }
        }
    }

    /// Reads them to their ends.
    pub(crate) async fn finish(self) -> Result<(), String> {
        all(self.tasks).await
    }
}
