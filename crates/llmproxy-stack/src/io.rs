//! A connection that is given up when its client makes it wait for too long.
//!
//! hyper has one timer for the head, which also runs while a kept connection is idle, and none for a client that stops
//! reading. Here each wait has its own limit, and a timer is touched only when the socket has nothing for us, never per
//! chunk.
//!
//! On HTTP/2 there are no heads to wait for: frames may come at any time, and the client is waited for only while it has no
//! request under way.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{metrics::CLIENT_TIMEOUTS, pace::Backlog, preface::First, timer::Timer};

/// After an HTTP/2 client was told that its connection will be closed, how long it has to agree.
const GOODBYE: Duration = Duration::from_secs(1);

/// How much is read of a client that has asked for more before it has the answer to what it asked for, in bytes.
const MAX_AHEAD: usize = 4096;

/// How often it is looked whether one has left of whom no more is read.
const LOOK: Duration = Duration::from_secs(1);

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

/// What the service tells the connection that carries its requests, and the other way round.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Who is at the other end.
    pub(crate) peer: SocketAddr,
    /// Requests whose answers have not ended.
    busy: AtomicUsize,
    /// Requests so far.
    calls: AtomicUsize,
    /// The reader that waits without a limit while an answer is on its way. hyper does not read again at the end of an
    /// answer when its last read found nothing, so the reader must be woken to begin the wait for the next request.
    reader: AtomicWaker,
    /// What waits to be written to the client.
    pub(crate) backlog: Backlog,
    /// The client has begun HTTP/2; nothing of it was read as anything else.
    preface: AtomicBool,
    /// A head was begun and not finished in time.
    head_late: AtomicBool,
    /// hyper's own answer to a head that it can't read was kept back.
    withheld: AtomicBool,
    /// An HTTP/2 client is to be told that its connection will be closed, or was.
    closing: AtomicBool,
}

/// A connection that knows of its other side more than what is read of it.
pub(crate) trait Peek {
    /// Whether the other side has said that it sends no more, or is gone. There may be something left to be read.
    fn is_read_closed(&self) -> bool;
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
    look_timer: Timer,
    first: First,
    http2: bool,
    /// Nothing that hyper wrote waits for the socket.
    settled: bool,
    /// A reader waits for more, and so would see that the client leaves.
    is_read: bool,
    /// HTTP is over on it.
    is_tunnel: bool,
}

// === impl Activity ===

impl Activity {
    /// Nothing has happened yet.
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            busy: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
            backlog: Backlog::default(),
            preface: AtomicBool::new(false),
            head_late: AtomicBool::new(false),
            withheld: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    /// A request has begun.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    /// Whether the client has begun HTTP/2.
    pub(crate) fn saw_preface(&self) -> bool {
        self.preface.load(Ordering::Relaxed)
    }

    /// Whether the connection was given up over a head that was not complete in time.
    pub(crate) fn is_head_late(&self) -> bool {
        self.head_late.load(Ordering::Relaxed)
    }

    /// Whether an answer of hyper's own was kept back, so that ours can be given in its place.
    pub(crate) fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Relaxed)
    }

    /// From now on an HTTP/2 client without a request is waited for only as long as a good-bye takes. `false` where that
    /// was said before.
    pub(crate) fn close(&self) -> bool {
        !self.closing.swap(true, Ordering::Relaxed)
    }

    /// Whether [`close`](Self::close) was said.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
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
    /// A client that speaks HTTP/1, or HTTP/2 if it `may` and says so.
    pub(crate) fn new(inner: T, patience: Patience, activity: Arc<Activity>, may_http2: bool) -> Self {
        Self {
            inner,
            patience,
            activity,
            head: None,
            opened: Instant::now(),
            idle: None,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
            look_timer: Timer::default(),
            first: if may_http2 { First::Awaited } else { First::Passed },
            http2: false,
            settled: true,
            is_read: false,
            is_tunnel: false,
        }
    }

    /// From now on the bytes are not HTTP, and what a half-close means is not for us to say.
    pub(crate) fn into_tunnel(mut self) -> Self {
        self.is_tunnel = true;
        self
    }

    /// From now on the client speaks HTTP/2; what was read of it comes again.
    pub(crate) fn into_http2(mut self) -> Self {
        (self.http2, self.head) = (true, None);
        self.first.replay();
        self
    }

    /// Until when the next byte must have come, if there is a limit.
    fn read_deadline(&mut self) -> Option<Instant> {
        if self.activity.busy.load(Ordering::Acquire) > 0 {
            // The request's body has limits of its own, further in; an answer may take its time.
            (self.head, self.idle) = (None, None);
            return None;
        }
        if self.activity.is_closing() && self.patience.head > GOODBYE {
            // A request that is on its way is waited for, and nobody who only might send one.
            let now = Instant::now();
            (self.patience.head, self.opened) = (GOODBYE, now);
            self.head = self.head.map(|(_, at)| (now, at));
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
        let closing = self.http2 && self.activity.is_closing();
        Some(began + if closing { GOODBYE.min(self.patience.idle) } else { self.patience.idle })
    }

    /// The wait for the client is over.
    fn expire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.http2 {
            // Of a client that may speak HTTP/2 it is not known in which words to say no.
            let late = self.head.is_some() && !matches!(self.first, First::Doubtful(_));
            self.activity.head_late.store(late, Ordering::Relaxed);
            return Poll::Ready(());
        }
        if !self.activity.close() {
            return Poll::Ready(());
        }
        // The one who drives the connection says good-bye. The rest of the wait begins now, for a first request as well.
        let calls = self.activity.calls.load(Ordering::Acquire);
        let now = Instant::now();
        (self.opened, self.idle) = (now, Some((now, calls)));
        self.patience.head = GOODBYE;
        self.read_timer.poll(Some(now + GOODBYE), cx).map(drop)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for PatientIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = match this.first {
            First::Passed => Pin::new(&mut this.inner).poll_read(cx, buf),
            _ => this.first.poll_read(&mut this.inner, cx, buf),
        };
        if read.is_ready() || matches!(this.first, First::Doubtful(_)) {
            if this.head.is_none() && !this.http2 && this.activity.busy.load(Ordering::Acquire) == 0 {
                this.head = Some((Instant::now(), this.activity.calls.load(Ordering::Acquire)));
            }
            if read.is_ready() {
                this.is_read = false;
                return read;
            }
        }
        this.is_read = true;
        if matches!(this.first, First::Http2(_)) {
            // The one who drives the connection sees to it now.
            this.activity.preface.store(true, Ordering::Relaxed);
            return Poll::Pending;
        }
        // Registered before the count is looked at, so that no end in between is missed.
        this.activity.reader.register(cx.waker());
        let deadline = this.read_deadline();
        let waited = this.read_timer.poll(deadline, cx);
        if waited.is_ready() && this.expire(cx).is_pending() {
            return Poll::Pending;
        }
        waited
    }
}

impl<T: AsyncRead + Peek + Unpin> PatientIo<T> {
    /// Looks whether a client has left whom nobody reads. hyper stops reading during an answer when it has found anything
    /// behind the request, if only a line end, and would not see that until the answer's end. Nor is an upload read on that
    /// has to wait for a backend.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_http1_answer =
            !self.is_read && !self.is_tunnel && !self.http2 && self.activity.busy.load(Ordering::Acquire) > 0;
        if !is_http1_answer {
            return Ok(());
        }
        while self.first.kept() < MAX_AHEAD {
            let mut bytes = [0; 512];
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf)? {
                Poll::Pending => return Ok(()),
                Poll::Ready(()) if buf.filled().is_empty() => return Err(io::ErrorKind::ConnectionAborted.into()),
                Poll::Ready(()) => self.first.keep(buf.filled()),
            }
        }
        // A socket wakes nobody for its end while there is something before it, so that is looked for now and then.
        loop {
            if self.inner.is_read_closed() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let next = self.look_timer.armed().unwrap_or_else(|| Instant::now() + LOOK);
            if self.look_timer.poll(Some(next), cx).is_pending() {
                return Ok(());
            }
            self.look_timer.disarm();
        }
    }
}

impl<T: AsyncWrite + Unpin> PatientIo<T> {
    /// Keeps back what hyper answers by itself to a head that it can't read: such an answer has no id and no word of what is
    /// wrong. It is told from any other by this, that a head was begun after all before it was written, and no request has
    /// come of it.
    fn withholds(&mut self, bytes: &[u8]) -> bool {
        if !std::mem::replace(&mut self.settled, false) || self.http2 {
            return self.activity.is_withheld();
        }
        let calls = self.activity.calls.load(Ordering::Acquire);
        let is_own = self.head.is_some_and(|(_, at)| at == calls)
            && self.activity.busy.load(Ordering::Acquire) == 0
            && bytes.starts_with(b"HTTP/1.1 4");
        if is_own {
            self.activity.withheld.store(true, Ordering::Relaxed);
        }
        is_own
    }

    /// Writes an answer of ours to a client that has none on its way, and nothing else. One that does not take it at once gets
    /// the close alone.
    pub(crate) fn answer(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        if Pin::new(&mut self.inner).poll_write(cx, bytes).is_ready() {
            let _ = Pin::new(&mut self.inner).poll_flush(cx);
        }
        let _ = Pin::new(&mut self.inner).poll_shutdown(cx);
    }

    fn written<R>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if result.is_ready() {
            self.write_timer.disarm();
            return result;
        }
        let deadline = self.write_timer.armed().unwrap_or_else(|| Instant::now() + self.patience.write);
        match self.write_timer.poll(Some(deadline), cx) {
            Poll::Ready(Err(error)) => {
                metrics::counter!(CLIENT_TIMEOUTS, "kind" => "write").increment(1);
                Poll::Ready(Err(error))
            }
            _ => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Peek + Unpin> AsyncWrite for PatientIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.withholds(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.written(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.withholds(bufs.first().map_or(&[], |buf| buf)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.look_ahead(cx)?;
        // TLS takes what the socket does not, up to a buffer's size, and waits here.
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        if matches!(result, Poll::Ready(Ok(()))) {
            // hyper flushes once all that it had is written.
            this.activity.backlog.clear();
            this.settled = true;
        }
        this.written(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.activity.is_withheld() {
            // Something is to be said first.
            return Poll::Ready(Ok(()));
        }
        // TLS has a last word to say.
        let result = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.written(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    impl Peek for tokio::io::DuplexStream {
        fn is_read_closed(&self) -> bool {
            false
        }
    }

    const PATIENCE: Patience =
        Patience { head: Duration::from_secs(30), idle: Duration::from_secs(120), write: Duration::from_secs(60) };

    fn activity() -> Arc<Activity> {
        Arc::new(Activity::new(([127, 0, 0, 1], 50_000).into()))
    }

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
        let mut io = PatientIo::new(server, PATIENCE, activity(), true);
        assert_eq!(seconds_until_given_up(&mut io).await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_does_not_buy_time() {
        let (mut client, server) = duplex(1024);
        let mut io = PatientIo::new(server, PATIENCE, activity(), true);
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
        let activity = activity();
        let mut io = PatientIo::new(server, PATIENCE, activity.clone(), true);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("the duplex is open");
        let mut buf = [0; 64];
        assert_eq!(io.read(&mut buf).await.expect("reads"), 18);
        drop(activity.begin());
        assert_eq!(seconds_until_given_up(&mut io).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_server_closes_a_head_is_waited_for_no_longer_than_a_good_bye_takes() {
        for begun in [&b""[..], b"GET / HT"] {
            let (mut client, server) = duplex(1024);
            let activity = activity();
            let mut io = PatientIo::new(server, PATIENCE, activity.clone(), true);
            client.write_all(begun).await.expect("the duplex is open");
            tokio::time::timeout(Duration::from_secs(10), io.read(&mut [0; 4])).await.ok();
            activity.close();
            assert_eq!(seconds_until_given_up(&mut io).await, GOODBYE.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_its_time() {
        let (_client, server) = duplex(1024);
        let activity = activity();
        let mut io = PatientIo::new(server, PATIENCE, activity.clone(), true);
        let busy = activity.begin();
        let mut buf = [0; 1];
        tokio::time::timeout(Duration::from_secs(3600), io.read(&mut buf)).await.expect_err("waits on");
        // A reader that is not polled again by itself, as hyper's is not.
        let reader = tokio::spawn(async move { seconds_until_given_up(&mut io).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(busy);
        assert_eq!(reader.await.expect("no panic"), 121);
    }

    /// Whether an answer to `asked` that begins like hyper's own is kept back.
    async fn is_withheld(asked: &[u8], calls: usize, is_settled: bool) -> bool {
        let (mut client, server) = duplex(1024);
        let activity = activity();
        let mut io = PatientIo::new(server, PATIENCE, activity.clone(), true);
        if !asked.is_empty() {
            client.write_all(asked).await.expect("the duplex is open");
            assert!(io.read(&mut [0; 64]).await.is_ok_and(|read| read > 0));
        }
        (0..calls).for_each(|_| drop(activity.begin()));
        if !is_settled {
            io.write_all(b"the rest of an answer").await.expect("there is room");
        }
        io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("there is room");
        io.shutdown().await.expect("it is open");
        io.answer(&mut Context::from_waker(std::task::Waker::noop()), b"ours");
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.expect("it is closed");
        assert_eq!(seen.ends_with(b"ours"), activity.is_withheld(), "{}", String::from_utf8_lossy(&seen));
        activity.is_withheld()
    }

    #[tokio::test]
    async fn only_an_answer_that_no_request_has_asked_for_is_kept_back() {
        assert!(is_withheld(b"GET nonsense", 0, true).await);
        assert!(!is_withheld(b"GET / HTTP/1.1\r\n\r\n", 1, true).await, "a request came of it");
        assert!(!is_withheld(b"GET nonsense", 0, false).await, "it may be the middle of something");
        assert!(!is_withheld(b"", 0, true).await, "nothing was asked");
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_buy_no_time_and_its_end_is_announced() {
        for (calls, expected) in [(0, 30), (1, 120)] {
            let (mut client, server) = duplex(1024);
            let activity = activity();
            let mut io = PatientIo::new(server, PATIENCE, activity.clone(), false).into_http2();
            (0..calls).for_each(|_| drop(activity.begin()));
            tokio::spawn(async move {
                while client.write_all(b"a ping").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            let reader = tokio::spawn(async move { seconds_until_given_up(&mut io).await });
            tokio::time::sleep(Duration::from_millis(expected * 1000 - 500)).await;
            assert!(!activity.is_closing());
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(activity.is_closing() && !activity.is_head_late());
            assert_eq!(reader.await.expect("no panic"), expected + 1, "after {calls} requests");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_given_up() {
        let (_client, server) = duplex(8);
        let mut io = PatientIo::new(server, PATIENCE, activity(), true);
        let start = Instant::now();
        let error = io.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not() {
        let (mut client, server) = duplex(8);
        let mut io = PatientIo::new(server, PATIENCE, activity(), true);
        tokio::spawn(async move {
            let mut buf = [0; 8];
            while client.read(&mut buf).await.is_ok_and(|read| read > 0) {
                tokio::time::sleep(Duration::from_secs(50)).await;
            }
        });
        io.write_all(&[0; 64]).await.expect("each wait is short enough");
    }
}
