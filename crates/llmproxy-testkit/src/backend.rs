//! A server on loopback that does what its script says.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{Seen, Wire, http1::Conn, patience::within};

/// After an accept that failed, which happens where file descriptors have run out: trying again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// An HTTP/1.1 server on a free port of loopback. Stops, with all its connections, when it is dropped.
///
/// ```
/// use llmproxy_testkit::{Backend, Client};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let backend = Backend::start(|seen, mut wire| async move {
///     wire.head(200, &[("x-path", &seen.path)]).await?;
///     wire.chunk("first").await?;
///     wire.client_gone().await;
///     Ok(())
/// })
/// .await;
/// let mut client = Client::connect(backend.addr()).await;
/// client.send("GET", "/slow", &[], b"").await;
/// assert_eq!(client.piece().await.unwrap(), "first");
/// client.leave();
/// backend.when(|counts| counts.abandoned == 1).await;
/// # });
/// ```
#[derive(Debug)]
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accept: JoinHandle<()>,
}

/// A port at which nobody listens, kept from others until it is dropped or [started](Refused::start).
///
/// ```
/// use llmproxy_testkit::{Backend, Client, script};
/// use serde_json::json;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let backend = Backend::start(script::json(200, json!("old"))).await;
/// let refused = backend.stop().await;
/// assert!(Client::try_connect(refused.addr()).await.is_err());
/// let backend = refused.start(script::json(200, json!("new")));
/// assert_eq!(Client::connect(backend.addr()).await.get("/").await.json(), "new");
/// # });
/// ```
#[derive(Debug)]
pub struct Refused {
    addr: SocketAddr,
    socket: TcpSocket,
}

/// The requests of a [stepped](Backend::stepped) backend, as they come.
///
/// ```
/// use llmproxy_testkit::{Backend, Client};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (backend, mut requests) = Backend::stepped().await;
/// let mut client = Client::connect(backend.addr()).await;
/// client.send("GET", "/", &[], b"").await;
/// let (seen, mut wire) = requests.next().await;
/// assert_eq!(seen.path, "/");
/// wire.head(200, &[]).await?;
/// wire.chunk("one").await?;
/// client.expect_piece("one").await;
/// wire.chunk("two").await?;
/// client.expect_piece("two").await;
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<(Seen, Wire)>);

/// What a backend has counted since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: usize,
    /// Of these, still open.
    pub open_connections: usize,
    /// Requests read.
    pub requests: usize,
    /// Of these, not answered to the end yet.
    pub in_progress: usize,
    /// Answers whose client left before their end, as far as the script looked or wrote.
    pub abandoned: usize,
}

/// How many requests a backend remembers, and bodies a receiver: enough for any test, and a bound for what runs on.
pub const KEPT: usize = 10_000;

pub(crate) type Script = Arc<dyn Fn(Seen, Wire) -> BoxFuture<'static, io::Result<()>> + Send + Sync>;

pub(crate) struct Shared {
    script: Mutex<Script>,
    counts: watch::Sender<Counts>,
    /// `None` where requests are not remembered.
    seen: Option<Mutex<Vec<Seen>>>,
}

// === impl Backend ===

impl Backend {
    /// Starts a server that answers each request by `script`, which is one of [`crate::script`] or a closure. An error of
    /// the script only says that the client has left.
    ///
    /// # Panics
    ///
    /// If no port is free.
    ///
    /// # Cancel safety
    ///
    /// There is nothing to wait for: it is ready at once.
    pub async fn start<F, R>(script: F) -> Self
    where
        F: Fn(Seen, Wire) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        Refused::new().start(script)
    }

    /// A backend that is led by the test: each request waits in [`Requests`] with the wire to answer it by, so that
    /// piece after piece can be sent when the test has seen the one before.
    ///
    /// # Panics
    ///
    /// If no port is free.
    ///
    /// # Cancel safety
    ///
    /// There is nothing to wait for: it is ready at once.
    pub async fn stepped() -> (Self, Requests) {
        let (sender, requests) = mpsc::channel(1024);
        let backend = Self::start(move |seen, wire| {
            let sender = sender.clone();
            async move {
                // Nobody waits for requests any more: the wire is dropped with them and closes its connection.
                let _ = sender.send((seen, wire)).await;
                Ok(())
            }
        });
        (backend.await, Requests(requests))
    }

    /// Listens at `addr`; remembers no requests.
    pub(crate) async fn listen(addr: SocketAddr, script: Script) -> io::Result<Self> {
        Self::accept_from(TcpListener::bind(addr).await?, script, false)
    }

    /// Answers by another script from the next request on.
    pub fn set_script<F, R>(&self, script: F)
    where
        F: Fn(Seen, Wire) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        *lock(&self.shared.script) = boxed(script);
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a URL, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests so far, oldest first; of more than [`KEPT`] the older ones are forgotten.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.as_ref().map(|seen| lock(seen).clone()).unwrap_or_default()
    }

    /// What it has counted.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until the counts are as `wanted` says.
    ///
    /// # Panics
    ///
    /// If they are not after ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn when(&self, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        let found = within(counts.wait_for(wanted), || format!("the backend has {:?}", self.counts())).await;
        *found.expect("the sender lives as long as self")
    }

    /// Stops and gives its port back as one at which nobody listens.
    ///
    /// # Panics
    ///
    /// If another process took the port meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, the backend stops all the same; its port is free for anyone then.
    pub async fn stop(mut self) -> Refused {
        self.accept.abort();
        // The listener is closed only when the task is gone.
        let _ = (&mut self.accept).await;
        Refused::at(self.addr)
    }

    fn accept_from(listener: TcpListener, script: Script, remember: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            counts: watch::Sender::default(),
            seen: remember.then(Mutex::default),
        });
        let addr = listener.local_addr()?;
        let accept = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { addr, shared, accept })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let open = Open::count(&shared);
                    connections.spawn(serve(stream, open));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, open: Open) {
    let shared = &open.shared;
    let mut conn = Conn::new(stream);
    loop {
        let seen = match Seen::read(&mut conn, open.index).await {
            Ok(Some(seen)) => seen,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let text = format!("{error}\n");
                let length = text.len();
                let head = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = conn.write(format!("{head}{text}").as_bytes()).await;
                return;
            }
            // The client has closed its connection.
            Ok(None) | Err(_) => return,
        };
        if let Some(all) = &shared.seen {
            remember(&mut lock(all), seen.clone());
        }
        shared.count(|counts| {
            counts.requests += 1;
            counts.in_progress += 1;
        });
        let (wire, returned) = Wire::new(conn, &seen, shared.clone());
        let script = lock(&shared.script).clone();
        // The wire has counted a client that left.
        let _ = script(seen, wire).await;
        match returned.await {
            Ok(back) => conn = back,
            Err(_) => return,
        }
    }
}

/// Adds to what is remembered; forgets the older half when there is too much.
pub(crate) fn remember<T>(all: &mut Vec<T>, new: T) {
    if all.len() >= KEPT {
        all.drain(..KEPT / 2);
    }
    all.push(new);
}

fn boxed<F, R>(script: F) -> Script
where
    F: Fn(Seen, Wire) -> R + Send + Sync + 'static,
    R: Future<Output = io::Result<()>> + Send + 'static,
{
    Arc::new(move |seen, wire| Box::pin(script(seen, wire)))
}

/// A connection that is counted as open.
struct Open {
    shared: Arc<Shared>,
    index: usize,
}

impl Open {
    fn count(shared: &Arc<Shared>) -> Self {
        let index = shared.counts.borrow().connections;
        shared.count(|counts| {
            counts.connections += 1;
            counts.open_connections += 1;
        });
        Self { shared: shared.clone(), index }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.count(|counts| counts.open_connections -= 1);
    }
}

// === impl Refused ===

impl Refused {
    /// A free port.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[expect(clippy::new_without_default, reason = "it takes a port from the system")]
    pub fn new() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn at(addr: SocketAddr) -> Self {
        let bind = || {
            let socket = TcpSocket::new_v4()?;
            // Connections of the one that listened here before may still be in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            io::Result::Ok((socket.local_addr()?, socket))
        };
        let (addr, socket) = bind().expect("loopback has a free port");
        Self { addr, socket }
    }

    /// The port, with loopback's address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a URL, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Starts a backend at this port.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start<F, R>(self, script: F) -> Backend
    where
        F: Fn(Seen, Wire) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = self.socket.listen(1024).expect("a bound socket can listen");
        Backend::accept_from(listener, boxed(script), true).expect("a listener knows its address")
    }
}

// === impl Requests ===

impl Requests {
    /// The next request and the wire to answer it by.
    ///
    /// # Panics
    ///
    /// If none comes within ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> (Seen, Wire) {
        let next = within(self.0.recv(), || "no request came to the backend".into()).await;
        next.expect("the backend was stopped")
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("counts", &*self.counts.borrow()).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
