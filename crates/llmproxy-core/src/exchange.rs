//! One request and everything that becomes known about it.

use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Extensions, HeaderValue};
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::{Builder, Uuid};

use crate::{Attempt, Backend, Call, Caller, End, EndHold, FlowKey, Hop, Target, UsageSink};

/// One request on its way through the layers: an `Arc` in the request's extensions.
///
/// Every cell has one writer and is written once, so that no reader ever sees a fact change. A layer that is used alone
/// finds some cells empty and enforces less; its documentation says what.
///
/// Readers never wait. In a debug build a second write of a cell panics, in a release build the first one stands: two
/// writers are two layers of one kind in a stack.
///
/// ```
/// use llmproxy_core::{Call, Caller, Endpoint, Exchange};
///
/// // Whoever comes first makes it; everybody further in finds the same one.
/// let mut request = http::Request::new(());
/// let exchange = Exchange::of(request.extensions_mut());
/// assert!(exchange.caller().is_none(), "nobody has asked yet");
///
/// exchange.set_caller(Caller::named("alice"));
/// let call = Call { model: Some("qwen2.5".into()), ..Call::new(Endpoint::of("/v1/chat/completions")) };
/// exchange.set_call(call);
///
/// let found = Exchange::of(request.extensions_mut());
/// assert_eq!(found.id(), exchange.id());
/// assert_eq!(found.call().and_then(|call| call.model.as_deref()), Some("qwen2.5"));
/// ```
pub struct Exchange {
    id: Uuid,
    started: Instant,
    timestamp: Timestamp,
    stop: StopFlag,
    panicked: AtomicBool,
    client: OnceLock<Client>,
    hop: OnceLock<Hop>,
    caller: OnceLock<Caller>,
    call: OnceLock<Call>,
    flow: OnceLock<FlowKey>,
    /// Present from the moment that a balancer took the request: then a backend was asked only if there is an attempt.
    attempts: OnceLock<Mutex<Vec<Attempt>>>,
    asked: Arc<AtomicBool>,
    queued: Time,
    served: OnceLock<Arc<Target>>,
    first_byte: Time,
    first_token: Time,
    end: OnceLock<End>,
    sinks: Mutex<Vec<Arc<dyn UsageSink>>>,
    hold: Mutex<Option<EndHold>>,
}

/// A cell for a time, in nanoseconds; one like the others would take three times the room.
struct Time(AtomicU64);

/// Stands where no time was written.
const NO_TIME: u64 = u64::MAX;

// There is one for each open stream: it must not grow unnoticed.
const _: () = assert!(size_of::<Exchange>() <= 640);

/// Set when the proxy stops and its grace period is over: bodies dropped after that were not left by their clients. A
/// handle: all clones are one flag.
///
/// ```
/// use llmproxy_core::{Exchange, StopFlag};
///
/// let stop = StopFlag::default();
/// let exchange = Exchange::with_stop_flag(stop.clone());
/// stop.set();
/// assert!(exchange.is_stopped());
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

struct Client {
    ip: Option<IpAddr>,
    request_id: Option<Arc<str>>,
}

// === impl Exchange ===

impl Exchange {
    /// A new exchange with an id of its own, starting now.
    pub fn new() -> Arc<Self> {
        Self::with_stop_flag(StopFlag::default())
    }

    /// A new exchange that ends by [`End::Shutdown`] when its body is dropped after `stop` was set.
    pub fn with_stop_flag(stop: StopFlag) -> Arc<Self> {
        let timestamp = Timestamp::now();
        Arc::new(Self {
            id: new_id(timestamp),
            started: Instant::now(),
            timestamp,
            stop,
            panicked: AtomicBool::new(false),
            client: OnceLock::new(),
            hop: OnceLock::new(),
            caller: OnceLock::new(),
            call: OnceLock::new(),
            flow: OnceLock::new(),
            attempts: OnceLock::new(),
            asked: Arc::default(),
            queued: Time::default(),
            served: OnceLock::new(),
            first_byte: Time::default(),
            first_token: Time::default(),
            end: OnceLock::new(),
            sinks: Mutex::default(),
            hold: Mutex::default(),
        })
    }

    /// The exchange that a request carries; a new one is left there if it carries none.
    pub fn of(extensions: &mut Extensions) -> Arc<Self> {
        if let Some(exchange) = extensions.get::<Arc<Self>>() {
            return exchange.clone();
        }
        let exchange = Self::new();
        extensions.insert(exchange.clone());
        exchange
    }

    /// Our id: unique, a UUIDv7 (RFC 9562, section 5.7: it sorts by the time), and what backends get as `x-request-id`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The id as a header has it.
    ///
    /// # Panics
    ///
    /// Never: it is digits and hyphens.
    pub fn id_value(&self) -> HeaderValue {
        let mut text = Uuid::encode_buffer();
        let text = self.id.hyphenated().encode_lower(&mut text);
        HeaderValue::from_str(text).expect("digits and hyphens are visible ASCII")
    }

    /// When the request's head had been read, on tokio's clock.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The same moment on the wall's clock.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// How long ago that was.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the proxy has stopped and given up on what was still running.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_set()
    }

    /// Written by whoever catches a panic, before the rest of the exchange is dropped: that is no leaving of the client's.
    pub fn set_panicked(&self) {
        self.panicked.store(true, Ordering::Release);
    }

    /// Whether a panic ends the exchange: one that was caught, or one that is on its way through the caller.
    pub fn is_panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire) || std::thread::panicking()
    }

    /// Written by the server: where the request came from and the id that the client gave it.
    pub fn set_client(&self, ip: Option<IpAddr>, request_id: Option<Arc<str>>) {
        set(&self.client, Client { ip, request_id });
    }

    /// Where the request came from, as far as the proxies before us are believed.
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client.get().and_then(|client| client.ip)
    }

    /// Written by the server: the connection that the request came by.
    pub fn set_hop(&self, hop: Hop) {
        set(&self.hop, hop);
    }

    /// The connection that the request came by; `None` where nobody wrote down its address.
    pub fn hop(&self) -> Option<Hop> {
        self.hop.get().copied()
    }

    /// The id that the client gave.
    pub fn client_request_id(&self) -> Option<&Arc<str>> {
        self.client.get().and_then(|client| client.request_id.as_ref())
    }

    /// Written by auth.
    ///
    /// # Panics
    ///
    /// In a debug build, if it was written before; so do all that write a cell.
    pub fn set_caller(&self, caller: Caller) {
        set(&self.caller, caller);
    }

    /// Who is calling; `None` where no auth layer has seen the request.
    pub fn caller(&self) -> Option<&Caller> {
        self.caller.get()
    }

    /// Written by inspect.
    pub fn set_call(&self, call: Call) {
        set(&self.call, call);
    }

    /// What is asked for; `None` where no inspect layer has seen the request.
    pub fn call(&self) -> Option<&Call> {
        self.call.get()
    }

    /// Written by the rate limit, where it knows of a caller what whoever routes may know.
    pub fn set_flow(&self, flow: FlowKey) {
        set(&self.flow, flow);
    }

    /// The flow that the request belongs to; `None` where nothing is known.
    pub fn flow(&self) -> Option<&FlowKey> {
        self.flow.get()
    }

    /// Written by the balancer before anything else: from here on, a backend was asked only if there is an attempt.
    pub fn expect_attempts(&self) {
        set(&self.attempts, Mutex::default());
    }

    /// Written by the balancer as an attempt begins, with why this backend; returns its index for
    /// [`Self::finish_attempt`].
    pub fn begin_attempt(&self, target: &Target, reason: Cow<'static, str>) -> usize {
        self.asked.store(true, Ordering::Release);
        let mut attempts = lock(self.attempts.get_or_init(Mutex::default));
        let backend = target.backend.clone();
        attempts.push(Attempt { backend, reason, began: Instant::now(), status: None, error: None });
        attempts.len() - 1
    }

    /// Written by the balancer when the attempt's head has come, or will not come.
    pub fn finish_attempt(&self, index: usize, result: Result<http::StatusCode, Arc<str>>) {
        let mut attempts = lock(self.attempts.get_or_init(Mutex::default));
        if let Some(attempt) = attempts.get_mut(index) {
            match result {
                Ok(status) => attempt.status = Some(status),
                Err(error) => attempt.error = Some(error),
            }
        }
    }

    /// The attempts so far, oldest first; none where no balancer has the request.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.attempts.get().map(|attempts| lock(attempts).clone()).unwrap_or_default()
    }

    /// Whether a balancer has the request but has asked no backend (yet): then there is nothing to record.
    pub fn is_unasked(&self) -> bool {
        self.attempts.get().is_some() && !self.asked.load(Ordering::Acquire)
    }

    /// A handle that tells whether a backend was asked, for those who must not keep the exchange itself (a sink that
    /// kept it would keep itself alive).
    pub fn asked(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }

    /// Written by the balancer when the first attempt's backend is found: how long that took.
    pub fn set_queue_time(&self, waited: Duration) {
        self.queued.set(waited);
    }

    /// How long the request waited for a backend to be found; `None` where none was, or no balancer has seen the request.
    pub fn queue_time(&self) -> Option<Duration> {
        self.queued.get()
    }

    /// How long the proxy itself took until a backend was asked: from the request's arrival to the first attempt, without
    /// the waits for the request's body and for a backend. `None` where none was asked.
    pub fn proxy_time(&self) -> Option<Duration> {
        let began = self.attempts.get().and_then(|attempts| lock(attempts).first().map(|attempt| attempt.began))?;
        let read = self.call().map_or(Duration::ZERO, |call| call.read_time);
        let waited = read.saturating_add(self.queue_time().unwrap_or_default());
        Some(began.duration_since(self.started).saturating_sub(waited))
    }

    /// Written by the balancer when an attempt's answer becomes the client's.
    pub fn set_served(&self, target: Arc<Target>) {
        set(&self.served, target);
    }

    /// The attempt whose answer the client gets.
    pub fn served(&self) -> Option<&Arc<Target>> {
        self.served.get()
    }

    /// The backend whose answer the client gets; where there is none, the one that was asked last.
    pub fn backend(&self) -> Option<Arc<Backend>> {
        if let Some(target) = self.served() {
            return Some(target.backend.clone());
        }
        self.attempts.get().and_then(|attempts| lock(attempts).last().map(|attempt| attempt.backend.clone()))
    }

    /// Written by the meter when the first byte of the answer's body passes.
    pub fn set_first_byte(&self) {
        self.first_byte.set(self.elapsed());
    }

    /// How long the first byte of the answer's body took.
    pub fn time_to_first_byte(&self) -> Option<Duration> {
        self.first_byte.get()
    }

    /// Written by the meter when the first token of a stream passes.
    pub fn set_first_token(&self) {
        self.first_token.set(self.elapsed());
    }

    /// How long the first token of a stream took.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.first_token.get()
    }

    /// Written by the meter at the end.
    pub fn set_end(&self, end: End) {
        set(&self.end, end);
    }

    /// How it ended; `None` before that, and where no meter has seen it.
    pub fn end(&self) -> Option<End> {
        self.end.get().copied()
    }

    /// Leaves someone who wants the record. Before the meter's end: whoever comes later hears nothing.
    pub fn add_sink(&self, sink: Arc<dyn UsageSink>) {
        lock(&self.sinks).push(sink);
    }

    /// Takes the sinks out, to give each the record or to drop them; done once, by the meter.
    pub fn take_sinks(&self) -> Vec<Arc<dyn UsageSink>> {
        std::mem::take(&mut *lock(&self.sinks))
    }

    /// Written by whoever keeps the records, before the meter sees the answer's head: the end of the answer is not handed to
    /// the client before `hold` is ready.
    pub fn hold_end(&self, hold: EndHold) {
        let before = lock(&self.hold).replace(hold);
        debug_assert!(before.is_none(), "a cell of the exchange was written twice");
    }

    /// Takes out what the end of the answer waits for; done once, by the meter. `None` where it waits for nothing.
    pub fn take_end_hold(&self) -> Option<EndHold> {
        lock(&self.hold).take()
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("id", &self.id).field("end", &self.end()).finish_non_exhaustive()
    }
}

// === impl Time ===

impl Time {
    fn set(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(NO_TIME - 1);
        let first = self.0.compare_exchange(NO_TIME, nanos, Ordering::AcqRel, Ordering::Acquire).is_ok();
        debug_assert!(first, "a cell of the exchange was written twice");
    }

    fn get(&self) -> Option<Duration> {
        let nanos = self.0.load(Ordering::Acquire);
        (nanos != NO_TIME).then(|| Duration::from_nanos(nanos))
    }
}

impl Default for Time {
    fn default() -> Self {
        Self(AtomicU64::new(NO_TIME))
    }
}

// === impl StopFlag ===

impl StopFlag {
    /// Says that what is dropped from now on is dropped by the proxy, not by clients.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was said.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A UUIDv7 whose time goes on below the millisecond (RFC 9562, section 6.2, method 3), so that ids sort by the time to a
/// quarter of a microsecond. Its random part is a count under a random key: the system is asked for that key, once, and not
/// for every id, which it takes longer for than all else here.
fn new_id(timestamp: Timestamp) -> Uuid {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let random = KEY.hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
    let nanos = u32::try_from(timestamp.subsec_nanosecond()).unwrap_or_default() % 1_000_000;
    let fraction = u64::from(nanos) * 4096 / 1_000_000;
    let mut rest = [0; 10];
    rest[1] = fraction as u8;
    rest[0] = (fraction >> 8) as u8;
    rest[2..].copy_from_slice(&random.to_be_bytes());
    Builder::from_unix_timestamp_millis(u64::try_from(timestamp.as_millisecond()).unwrap_or_default(), &rest)
        .into_uuid()
}

fn set<T>(cell: &OnceLock<T>, value: T) {
    // Two writers of one cell are two layers of one kind in a stack: a mistake to find in tests, harmless in service,
    // where the outer one's word stands.
    let first = cell.set(value).is_ok();
    debug_assert!(first, "a cell of the exchange was written twice");
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_balancer_every_exchange_counts_as_asked() {
        assert!(!Exchange::new().is_unasked());
    }

    #[test]
    fn ids_differ_and_sort_by_the_time() {
        let at = |nanos: i128| Timestamp::from_nanosecond(1_700_000_000_123_000_000 + nanos).expect("a time");
        let ids = [0, 999, 500_000, 999_999, 1_000_000].map(|nanos| new_id(at(nanos)));
        assert!(ids[1..].is_sorted(), "{ids:?}");
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
        assert_eq!(ids[3].get_timestamp().map(|time| time.to_unix()), Some((1_700_000_000, 123_000_000)));
        let same: std::collections::HashSet<Uuid> = (0..1000).map(|_| new_id(at(0))).collect();
        assert_eq!(same.len(), 1000);
    }

    #[test]
    fn with_a_balancer_only_an_attempt_counts() {
        let exchange = Exchange::new();
        exchange.expect_attempts();
        assert!(exchange.is_unasked() && exchange.backend().is_none());
        let backend = Arc::new(Backend::new("http://a").expect("a good URL"));
        let attempt =
            exchange.begin_attempt(&Target { backend, model: None, inject_usage: false }, "least busy".into());
        assert!(!exchange.is_unasked());
        exchange.finish_attempt(attempt, Ok(http::StatusCode::OK));
        assert_eq!(exchange.attempts()[0].status, Some(http::StatusCode::OK));
        assert_eq!(exchange.backend().map(|backend| backend.name.to_string()), Some("http://a".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_proxy_answers_for_no_wait_of_others() {
        let pass = |millis| tokio::time::advance(Duration::from_millis(millis));
        let exchange = Exchange::new();
        exchange.expect_attempts();
        assert_eq!(exchange.proxy_time(), None, "no backend was asked");
        pass(100).await;
        exchange.set_call(Call { read_time: Duration::from_millis(80), ..Call::new(crate::Endpoint::of("")) });
        pass(50).await;
        exchange.set_queue_time(Duration::from_millis(45));
        let backend = Arc::new(Backend::new("http://a").expect("a good URL"));
        exchange.begin_attempt(&Target { backend, model: None, inject_usage: false }, "least busy".into());
        pass(500).await;
        assert_eq!(exchange.proxy_time(), Some(Duration::from_millis(25)));
    }

    #[tokio::test]
    async fn what_holds_the_end_is_taken_once() {
        let exchange = Exchange::new();
        assert!(exchange.take_end_hold().is_none());
        exchange.hold_end(EndHold::new(async { Err("the disk is full".into()) }));
        let hold = exchange.take_end_hold().expect("it was left there");
        assert!(exchange.take_end_hold().is_none());
        assert_eq!(hold.await.unwrap_err().to_string(), "the disk is full");
    }

    #[test]
    #[should_panic(expected = "written twice")]
    #[cfg(debug_assertions)]
    fn a_second_writer_is_a_mistake() {
        let exchange = Exchange::new();
        exchange.set_end(End::Complete);
        exchange.set_end(End::Timeout);
    }
}
