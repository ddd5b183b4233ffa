//! A connection that is given up when its client makes it wait for too long.
//!
//! hyper has one timer for the head, which also runs while a kept connection is idle, and none for a client that stops
//! reading. Here each wait has its own limit, and a timer is touched only when the socket has nothing for us, never per
//! chunk.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::pace::Backlog;

/// What a client reads whose head was not complete in time (RFC 9110, 15.5.9).
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How long a client may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a whole head, from its first byte; for the first head also from the connection's start.
    pub(crate) head: Duration,
    /// For the next request on a kept connection.
    pub(crate) idle: Duration,
    /// For a client that does not read what was written for it.
    pub(crate) write: Duration,
}

/// What the service tells the connection that carries its requests.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests whose answers have not ended.
    busy: AtomicUsize,
    /// Requests so far.
    calls: AtomicUsize,
    /// The reader that waits without a limit while an answer is on its way. hyper does not read again at the end of an
    /// answer when its last read found nothing, so the reader must be woken to begin the wait for the next request.
    reader: AtomicWaker,
    /// What waits to be written to the client.
    pub(crate) backlog: Backlog,
}

/// Counts a request as long as it lives.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

/// The connection.
#[derive(Debug)]
pub(crate) struct PatientIo<T> {
    inner: T,
    patience: Patience,
    activity: Arc<Activity>,
    /// When the first byte of a head came, and how many requests there had been then.
    head: Option<(Instant, usize)>,
    opened: Instant,
    /// When the wait for the next request began, and how many requests there had been then.
    idle: Option<(Instant, usize)>,
    read_timer: Timer,
    write_timer: Timer,
}

/// A timer that is made when it is first needed and moved only when it fires.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

// === impl Activity ===

impl Activity {
    /// A request has begun.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.reader.wake();
        }
    }
}

// === impl PatientIo ===

impl<T> PatientIo<T> {
    pub(crate) fn new(inner: T, patience: Patience, activity: Arc<Activity>) -> Self {
        Self {
            inner,
            patience,
            activity,
            head: None,
            opened: Instant::now(),
            idle: None,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
        }
    }

    /// Until when the next byte must have come, if there is a limit.
    fn read_deadline(&mut self) -> Option<Instant> {
        if self.activity.busy.load(Ordering::Acquire) > 0 {
            // The request's body has limits of its own, further in; an answer may take its time.
            (self.head, self.idle) = (None, None);
            return None;
        }
        let calls = self.activity.calls.load(Ordering::Acquire);
        match self.head {
            Some((began, at)) if at == calls => return Some(began + self.patience.head),
            _ => self.head = None,
        }
        if calls == 0 {
            return Some(self.opened + self.patience.head);
        }
        let began = match self.idle {
            Some((began, at)) if at == calls => began,
            _ => {
                let now = Instant::now();
                self.idle = Some((now, calls));
                now
            }
        };
        Some(began + self.patience.idle)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for PatientIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            if this.head.is_none() && this.activity.busy.load(Ordering::Acquire) == 0 {
                this.head = Some((Instant::now(), this.activity.calls.load(Ordering::Acquire)));
            }
            return Poll::Ready(result);
        }
        // Registered before the count is looked at, so that no end in between is missed.
        this.activity.reader.register(cx.waker());
        let deadline = this.read_deadline();
        let waited = this.read_timer.poll(deadline, cx);
        if waited.is_ready() && this.head.is_some() {
            // Nothing of ours can be on its way to a client whose head is not complete, so this is all that it reads. A
            // client that does not take it gets the close alone.
            let _ = Pin::new(&mut this.inner).poll_write(cx, HEAD_TIMEOUT);
        }
        waited
    }
}

impl<T: AsyncWrite + Unpin> PatientIo<T> {
    fn written<R>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if result.is_ready() {
            self.write_timer.disarm();
            return result;
        }
        let deadline = self.write_timer.armed.unwrap_or_else(|| Instant::now() + self.patience.write);
        match self.write_timer.poll(Some(deadline), cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PatientIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.written(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes once all that it had is written.
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.activity.backlog.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

// === impl Timer ===

impl Timer {
    /// Pending until `deadline`; an error from then on. `None` waits without a limit.
    fn poll(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = deadline else {
            self.disarm();
            return Poll::Pending;
        };
        self.armed = Some(deadline);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            // An earlier deadline than the one that the sleep was made for must not be missed; a later one is set when
            // the sleep fires.
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sleep.as_mut().reset(deadline);
        }
    }

    fn disarm(&mut self) {
        self.armed = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Patience =
        Patience { head: Duration::from_secs(30), idle: Duration::from_secs(120), write: Duration::from_secs(60) };

    async fn seconds_until_given_up(io: &mut PatientIo<tokio::io::DuplexStream>) -> u64 {
        let start = Instant::now();
        let mut buf = [0; 64];
        loop {
            match io.read(&mut buf).await {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return start.elapsed().as_secs();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_given_the_time_of_a_head() {
        let (_client, server) = duplex(1024);
        let mut io = PatientIo::new(server, PATIENCE, Arc::default());
        assert_eq!(seconds_until_given_up(&mut io).await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_does_not_buy_time() {
        let (mut client, server) = duplex(1024);
        let mut io = PatientIo::new(server, PATIENCE, Arc::default());
        tokio::spawn(async move {
            loop {
                client.write_all(b"x").await.expect("the duplex is open");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert_eq!(seconds_until_given_up(&mut io).await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_idle_longer_than_a_head_may_take() {
        let (mut client, server) = duplex(1024);
        let activity = Arc::<Activity>::default();
        let mut io = PatientIo::new(server, PATIENCE, activity.clone());
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("the duplex is open");
        let mut buf = [0; 64];
        assert_eq!(io.read(&mut buf).await.expect("reads"), 18);
        drop(activity.begin());
        assert_eq!(seconds_until_given_up(&mut io).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_its_time() {
        let (_client, server) = duplex(1024);
        let activity = Arc::<Activity>::default();
        let mut io = PatientIo::new(server, PATIENCE, activity.clone());
        let busy = activity.begin();
        let mut buf = [0; 1];
        tokio::time::timeout(Duration::from_secs(3600), io.read(&mut buf)).await.expect_err("waits on");
        // A reader that is not polled again by itself, as hyper's is not.
        let reader = tokio::spawn(async move { seconds_until_given_up(&mut io).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(busy);
        assert_eq!(reader.await.expect("no panic"), 121);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_given_up() {
        let (_client, server) = duplex(8);
        let mut io = PatientIo::new(server, PATIENCE, Arc::default());
        let start = Instant::now();
        let error = io.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not() {
        let (mut client, server) = duplex(8);
        let mut io = PatientIo::new(server, PATIENCE, Arc::default());
        tokio::spawn(async move {
            let mut buf = [0; 8];
            while client.read(&mut buf).await.is_ok_and(|read| read > 0) {
                tokio::time::sleep(Duration::from_secs(50)).await;
            }
        });
        io.write_all(&[0; 64]).await.expect("each wait is short enough");
    }
}
