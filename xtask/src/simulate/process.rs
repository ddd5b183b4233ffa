//! A server process in virtual time: the [`Server`] with a clock, and what the balancer sees of it.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use llmproxy_core::{BoxBody, BoxError, HttpClient};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tower::service_fn;

use super::{
    server::{Event, Job, Server, Spec},
    workload::Nature,
};

/// How long one takes that fails fast.
const FAST: Duration = Duration::from_millis(1);

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    nature: Nature,
    state: Mutex<State>,
    /// Something has come.
    wake: Notify,
}

#[derive(Debug)]
struct State {
    server: Server,
    condition: Condition,
    /// In order, so that those who are told of a death always are in the same one.
    open: BTreeMap<u64, mpsc::Sender<Result<Bytes, BoxError>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Sound,
    Down,
    /// It answers everything with this status.
    Failing(u16),
}

// === impl Process ===

impl Process {
    pub(crate) fn new(nature: Nature, spec: Spec) -> Arc<Self> {
        let state = State { server: Server::new(spec), condition: Condition::Sound, open: BTreeMap::new() };
        Arc::new(Self { nature, state: Mutex::new(state), wake: Notify::new() })
    }

    /// Works for ever. The clock that is paused moves in milliseconds, so what a step has made is seen up to one of them
    /// late; the next step begins at the exact time all the same.
    pub(crate) async fn work(self: Arc<Self>) {
        let mut now = Instant::now();
        loop {
            let step = self.state().server.begin();
            let Some(took) = step else {
                self.wake.notified().await;
                now = Instant::now();
                continue;
            };
            now += took;
            sleep_until(now).await;
            self.state().finish();
        }
    }

    /// Breaks, or dies and comes back, if that is its nature.
    pub(crate) async fn fate(self: Arc<Self>, length: Duration) {
        match self.nature {
            Nature::Sound | Nature::Slow => {}
            Nature::Failing { status, from } => {
                sleep(length.mul_f64(from)).await;
                self.state().become_of(Condition::Failing(status));
            }
            Nature::Away { from, to } => {
                sleep(length.mul_f64(from)).await;
                self.state().become_of(Condition::Down);
                sleep(length.mul_f64(to - from)).await;
                self.state().condition = Condition::Sound;
            }
        }
    }

    /// What comes of a request here.
    pub(crate) async fn answer(&self, job: Job) -> Result<Response<BoxBody>, BoxError> {
        let condition = self.state().condition;
        if condition == Condition::Down {
            return Err(refused());
        }
        if let Condition::Failing(status) = condition {
            sleep(FAST).await;
            return respond(
                status,
                Full::from(r#"{"error":{"message":"broken"}}"#).map_err(BoxError::from).boxed_unsync(),
            );
        }
        // Its first token and its last, and how it broke.
        let (sender, mut receiver) = mpsc::channel(3);
        {
            let mut state = self.state();
            let ticket = job.ticket;
            if !state.server.push(job) {
                return respond(400, Full::default().map_err(BoxError::from).boxed_unsync());
            }
            state.open.insert(ticket, sender);
        }
        self.wake.notify_one();
        let chunks =
            stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|next| next.map(|chunk| chunk.map(Frame::data))));
        // vLLM sends the head as soon as the request is in its line.
        respond(200, StreamBody::new(chunks).boxed_unsync())
    }

    /// Whether it does what it is asked.
    pub(crate) fn is_sound(&self) -> bool {
        self.state().condition == Condition::Sound
    }

    /// Whether it fails fast now.
    pub(crate) fn is_failing(&self) -> bool {
        matches!(self.state().condition, Condition::Failing(_))
    }

    pub(crate) fn cached(&self, job: &Job) -> usize {
        self.state().server.cached(job)
    }

    pub(crate) fn backlog(&self) -> usize {
        self.state().server.backlog()
    }

    pub(crate) fn worked(&self) -> Duration {
        self.state().server.worked()
    }

    /// What it says to whoever checks it: all is well, until the process is gone, and its load.
    fn page(&self, path: &str) -> Result<Response<Bytes>, BoxError> {
        let state = self.state();
        match (state.condition, path) {
            (Condition::Down, _) => Err(refused()),
            (_, "/metrics") => Ok(Response::new(state.server.metrics().into())),
            _ => Ok(Response::new(Bytes::new())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn finish(&mut self) {
        for event in self.server.finish() {
            match event {
                Event::First { ticket, cached } => {
                    if let Some(sender) = self.open.get(&ticket) {
                        // It may be gone: nobody reads any more.
                        let _ = sender.try_send(Ok(cached.to_string().into()));
                    }
                }
                Event::Last { ticket } => {
                    self.open.remove(&ticket);
                }
            }
        }
    }

    /// The engine dies, and with it all that is under way.
    fn become_of(&mut self, condition: Condition) {
        self.condition = condition;
        self.server.crash();
        for sender in std::mem::take(&mut self.open).into_values() {
            let _ = sender.try_send(Err(io::Error::from(io::ErrorKind::ConnectionReset).into()));
        }
    }
}

/// The address of the server at `index`.
pub(crate) fn url(index: usize) -> String {
    format!("http://{index}.server")
}

/// The index in such an address.
pub(crate) fn index(host: &str) -> Option<usize> {
    host.split('.').next()?.parse().ok()
}

/// What checks the health of these, and asks them for their load.
pub(crate) fn checks(processes: &[Arc<Process>]) -> HttpClient {
    let processes = processes.to_vec();
    HttpClient::new(service_fn(move |request: Request<Bytes>| {
        let process = request.uri().host().and_then(index).and_then(|index| processes.get(index));
        let answer = process.map_or(Err(refused()), |process| process.page(request.uri().path()));
        async move { answer }
    }))
}

fn refused() -> BoxError {
    io::Error::from(io::ErrorKind::ConnectionRefused).into()
}

fn respond(status: u16, body: BoxBody) -> Result<Response<BoxBody>, BoxError> {
    Ok(Response::builder().status(status).header("content-type", "text/event-stream").body(body)?)
}
