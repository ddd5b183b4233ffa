//! What lives longer than a configuration, and how a stack is put together over it.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::body::Body;
use http::{Request, Response};
use llmproxy_auth::{AuthLayer, Authenticator, KeyStore};
use llmproxy_balancer::{BalanceLayer, Balancer, Commit, Policy, Pool};
use llmproxy_config::{AccessLogConfig, Config, Live, LiveHandle};
use llmproxy_core::{BoxError, HttpClient, StopFlag, UsageSink};
use llmproxy_metering::{
    BodyBudget, Counters, Drains, InspectLayer, MeterLayer, Pricing,
    tokens::{Asker, Tokenizers},
};
use llmproxy_ratelimit::{RateLimitLayer, RateLimiter};
use llmproxy_sse::SseLayer;
use llmproxy_upstream::{Clients, Upstream, check_certificates};
use llmproxy_usage::{OpeningLayer, Report, Reporters, Stores, UsageLayer};
use tokio::{task::JoinHandle, time::Instant};
use tower::{Service, ServiceBuilder};

use crate::{
    access::{AccessLayer, AccessSettings},
    access_log::AccessLog,
    admin::Admin,
    around::AroundLayer,
    cors::CorsLayer,
    counting::Counting,
    error::StartError,
    measures::MetricsSink,
    metrics::RELOADS,
    models::Models,
    paths::{Paths, PathsLayer},
    refusals::Refusals,
    respond::RespondLayer,
    routes::{Beside, Routes},
};

/// Answers of small requests of our own (health, lists of models, webhooks) are read up to this size.
const MAX_SMALL_ANSWER: usize = 4 << 20;
/// How long the last lines of the access log may take; whoever should read them may have stopped reading.
const ACCESS_LOG_GRACE: Duration = Duration::from_secs(2);
/// How long counts may take that are still to be made when the last exchange has ended.
const COUNT_GRACE: Duration = Duration::from_secs(5);
/// How often limits forget idle keys.
const SWEEP: Duration = Duration::from_secs(60);
/// The most that the bodies of one answer may take, in bytes.
const MAX_BODY: usize = 512;

/// Renders the metrics in the text format, for `/metrics`.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What an embedder may add.
#[derive(Clone, Default)]
pub struct Options {
    /// Renders `/metrics`; without it the path answers 404.
    pub render_metrics: Option<RenderMetrics>,
    /// Each gets the record of every exchange.
    pub sinks: Vec<Arc<dyn UsageSink>>,
    /// Chooses among backends in the place of `routing.load_balance`; the same one through all reloads.
    pub policy: Option<Arc<dyn Policy>>,
    /// Each is given the record of every exchange besides the configuration's reporters, whatever `usage.enabled` says, from
    /// the ledger at `usage.ledger.path`.
    pub reporters: Vec<Arc<dyn Report>>,
}

/// Everything that a reload must not touch: connections to backends, their health and what is in flight there, buckets
/// and permits, keys, the usage ledger. Stacks are built over it and swapped.
///
/// ```
/// use llmproxy_stack::{Options, Runtime, Server};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let text = "server: {listen: '127.0.0.1:0'}\nbackends: [{url: 'http://127.0.0.1:11434'}]\n";
/// let loaded = llmproxy_config::load_str(text, &Default::default())?;
/// let runtime = Runtime::start(&loaded.config, Options::default()).await?;
/// let server = Server::bind(&loaded.config.server, runtime.stop_flag()).await?.with_refusals(runtime.refusals());
/// println!("listening on {}", server.local_addr()?);
///
/// let until = async { /* tokio::signal::ctrl_c().await.ok(); */ };
/// server.run(runtime.service(), until).await;
/// runtime.shutdown(std::time::Duration::from_secs(5)).await;
/// # Ok(())
/// # }
/// ```
pub struct Runtime {
    shared: Arc<Shared>,
    clients: Arc<Clients>,
    balancer: Arc<Balancer>,
    admin: Admin,
    policy: Option<Arc<dyn Policy>>,
    limiter: Arc<RateLimiter>,
    budget: BodyBudget,
    drains: Drains,
    counting: Counting,
    /// How long what is under way at a stop may take, and when that began.
    grace: Duration,
    stopping_since: OnceLock<Instant>,
    reporters: Arc<Reporters>,
    stop: StopFlag,
    access: AccessLayer,
    measures: Arc<MetricsSink>,
    live: Live<Routes>,
    handle: LiveHandle<Routes>,
    /// What belongs to the configuration in force; held by whoever reloads.
    current: tokio::sync::Mutex<Current>,
    sweeper: JoinHandle<()>,
}

/// What the routes beside the stack must know.
pub(crate) struct Shared {
    pub(crate) render_metrics: Option<RenderMetrics>,
    stopping: AtomicBool,
    pool: ArcSwap<Option<Arc<Pool>>>,
}

/// The client that reporters send through, for a program beside the proxy that sends as they do. Of an answer the status counts;
/// there may be less of its body than was sent.
///
/// ```
/// use http::Request;
/// use llmproxy_testkit::Receiver;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let receiver = Receiver::start().await;
/// let request = Request::post(receiver.url()).body(r#"{"request_id": "1"}"#.into())?;
/// assert_eq!(llmproxy_stack::http_client().send(request).await?.status(), 200);
/// # Ok(())
/// # }
/// ```
pub fn http_client() -> HttpClient {
    Clients::new().status_client()
}

#[derive(Default)]
struct Current {
    keys: Option<(PathBuf, KeyStore)>,
    access: Option<(AccessLogConfig, Arc<AccessLog>)>,
    tokenizers: Tokenizers,
}

// === impl Runtime ===

impl Runtime {
    /// Builds the state and a first stack.
    ///
    /// # Errors
    ///
    /// If the key store or a log can't be opened. The configuration itself was validated when it was loaded.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, a key store's file may have been made; starting again goes on from there.
    pub async fn start(config: &Config, options: Options) -> Result<Arc<Self>, StartError> {
        let clients = Clients::new();
        let client = clients.http_client(MAX_SMALL_ANSWER);
        let reporters = Reporters::with_own(clients.status_client(), options.reporters);
        let counting = Counting::new(&config.metering, clients.http_client(Asker::MAX_ANSWER));
        let shared = Arc::new(Shared {
            render_metrics: options.render_metrics,
            stopping: AtomicBool::new(false),
            pool: ArcSwap::default(),
        });
        let balancer = Balancer::new(client);
        balancer.check_authorities(|pem| Ok(check_certificates(pem)?));
        // With each reload, and whenever other backends are found.
        balancer.on_change({
            let clients = clients.clone();
            move |backends| clients.retain(backends)
        });
        let limiter = RateLimiter::new(&config.rate_limit);
        let sweeper = tokio::spawn({
            let limiter = limiter.clone();
            async move {
                let mut ticks = tokio::time::interval(SWEEP);
                loop {
                    ticks.tick().await;
                    limiter.sweep();
                }
            }
        });
        let stop = StopFlag::default();
        let mut sinks = options.sinks;
        let measures = Arc::new(MetricsSink::new());
        sinks.push(measures.clone());
        let (live, handle) = Live::new(Routes::none());
        let runtime = Self {
            shared,
            clients,
            balancer,
            admin: Admin::default(),
            policy: options.policy,
            limiter,
            budget: BodyBudget::new(config.inspect.max_buffered_bytes),
            drains: Drains::default(),
            counting,
            grace: config.server.shutdown_timeout,
            stopping_since: OnceLock::new(),
            reporters,
            access: AccessLayer {
                settings: Arc::default(),
                stop: stop.clone(),
                sinks: sinks.into(),
                series: Arc::default(),
            },
            measures,
            stop,
            live,
            handle,
            current: tokio::sync::Mutex::default(),
            sweeper,
        };
        runtime.apply(config).await?;
        Ok(Arc::new(runtime))
    }

    /// Puts `config` in force: what can fail is done first, then the state takes the new settings and a new stack takes
    /// the new requests, while streams in flight finish on theirs.
    ///
    /// # Errors
    ///
    /// As [`Runtime::start`]; then nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing has changed: what may wait comes before the first change.
    pub async fn reload(&self, config: &Config) -> Result<(), StartError> {
        let result = self.apply(config).await;
        metrics::counter!(RELOADS, "result" => if result.is_ok() { "ok" } else { "failed" }).increment(1);
        result
    }

    /// Counts a configuration that was refused before it came here.
    pub fn count_refused_reload() {
        metrics::counter!(RELOADS, "result" => "failed").increment(1);
    }

    /// The proxy as a service: what the server loop, or another service's router, hands its requests to. It follows every
    /// reload. Whoever accepts the connections leaves a [`Peer`](crate::Peer) in each request. Errors are answers already;
    /// an error of the body is the broken end of an answer that had begun. WebSockets are for those that
    /// [`Server`](crate::Server) serves: it alone hands a connection over.
    ///
    /// # Cancel safety
    ///
    /// Dropping a request's future, or its answer's body, is a client that left: the exchange with the backend ends, and
    /// is recorded.
    pub fn service(
        &self,
    ) -> impl Service<
        Request<Body>,
        Response = Response<impl http_body::Body<Data = bytes::Bytes, Error = BoxError> + Send + use<>>,
        Error = BoxError,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + use<> {
        ServiceBuilder::new()
            // Outermost: whatever happens further in has an id, a line in the access log and a count.
            .layer(self.access.clone())
            // What is logged on the way says which request it was, and a panic is one request's end, not the connection's.
            .layer(AroundLayer)
            // The newest stack that validated; streams in flight keep theirs.
            .service(self.live.clone())
    }

    /// Administration as a service, for a listener of its own (`admin.listen`). It follows every reload, but for where it is:
    /// it stays beside the API, or away from there, until a restart. It knows nothing but 404 where it is beside the API.
    pub fn admin_service(
        &self,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
    + Clone
    + Send
    + use<> {
        self.admin.clone()
    }

    /// Set by the server when it cuts what is still open; exchanges end by [`llmproxy_core::End::Shutdown`] then.
    pub fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }

    /// What the server writes down of its own answers; see [`Server::with_refusals`](crate::Server::with_refusals).
    pub fn refusals(&self) -> Refusals {
        Refusals::new(self.access.clone())
    }

    /// From now on `/ready` says no, so that whoever balances over us sends nothing new.
    pub fn begin_shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.stopping_since.get_or_init(Instant::now);
    }

    /// Lets answers whose clients left be read on until the server's grace period is over (`server.shutdown_timeout`, from
    /// [`Runtime::begin_shutdown`] on, or from now where nobody called that), then delivers records to their receivers, at most
    /// for `deadline`, closes the ledger and the access log. Returns how many deliveries were still to be made when the time
    /// was over; they are made after the next start.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is as if the process had ended there.
    pub async fn shutdown(&self, deadline: Duration) -> usize {
        self.sweeper.abort();
        // Before the reporters: each of them ends with a record.
        self.drains.finish(*self.stopping_since.get_or_init(Instant::now) + self.grace).await;
        // And these are records that wait for their count.
        self.counting.finish(Instant::now() + deadline.min(COUNT_GRACE)).await;
        self.reporters.flush(deadline).await;
        // What can't be written even now is not left, but lost.
        let left = self.reporters.close().await;
        let mut current = self.current.lock().await;
        self.access.settings.store(Arc::default());
        if let Some((_, log)) = current.access.take()
            && !log.close(ACCESS_LOG_GRACE).await
        {
            tracing::error!("the access log is not written to its end: whatever it goes to takes nothing more");
        }
        if let Some((_, keys)) = current.keys.take() {
            keys.close().await;
        }
        left
    }

    async fn apply(&self, config: &Config) -> Result<(), StartError> {
        let mut current = self.current.lock().await;

        // What can fail comes first and changes nothing.
        let keys = self.key_store(config, &current).await?;
        let auth = if config.auth.enabled {
            let authenticator = Authenticator::new(&config.auth, keys.as_ref().map(|(_, keys)| keys.clone()))?;
            AuthLayer::new(Arc::new(authenticator))
        } else {
            AuthLayer::disabled()
        };
        let access = access_log(config, &current)?;
        let tokenizers = Counting::load(&config.metering, &current.tokenizers).await?;
        self.reporters.open(&config.usage).await?;
        // Can't fail, but may wait.
        let sources = self.balancer.discover(&config.discovery).await;

        // From here on nothing fails.
        self.limiter.reconfigure(&config.rate_limit);
        let stores = Stores { storage: &config.storage, admin_db: &config.admin.db_path };
        self.reporters.apply_with(&config.usage, stores);
        self.budget.resize(config.inspect.max_buffered_bytes);
        self.balancer.follow(sources);
        let pool = self.balancer.apply(&config.backends, &config.routing, &config.health_check, &config.queue);
        self.measures.apply(pool.clone(), &config.metrics.custom_labels);
        self.shared.pool.store(Arc::new(Some(pool.clone())));
        self.access.settings.store(Arc::new(AccessSettings {
            trusted: config.server.trusted_proxies.clone(),
            explain: config.routing_paths.explain,
            log: access.as_ref().map(|(_, log)| log.clone()),
        }));
        let counters = self.counting.counters(&config.metering, tokenizers.clone());
        let stack = self.stack(config, auth.clone(), pool.clone(), counters);
        let metrics_path = config.metrics.enabled.then_some(config.metrics.path.as_str());
        // Outside of the routes too: a refusal that a page can't read is no answer to it.
        let cors = CorsLayer::new(&config.server.cors);
        let beside = Beside { metrics_path, admin: self.admin.apply(&config.admin, &self.balancer) };
        self.handle.swap(Routes::new(&self.shared, stack, auth, Models(pool), beside, cors.as_ref()));
        *current = Current { keys, access, tokenizers };
        Ok(())
    }

    /// The stack, read from the client inwards.
    fn stack(
        &self,
        config: &Config,
        auth: AuthLayer,
        pool: Arc<Pool>,
        counters: Counters,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + use<> {
        let balance = BalanceLayer::new(pool);
        let balance = match &self.policy {
            Some(policy) => balance.with_policy(policy.clone()),
            None => balance,
        };
        let inner = ServiceBuilder::new()
            // What is not part of the API is nobody's business, known or not.
            .layer(PathsLayer(Arc::new(Paths::new(&config.routing_paths.allow_paths))))
            // From the head alone: a stranger's body is never read.
            .layer(auth)
            // Reads a JSON body once; all further in know what is asked for.
            .layer(InspectLayer::new(&config.inspect, self.budget.clone()))
            // Reserves the record's place before anything is spent.
            .layer(UsageLayer::new(self.reporters.clone()))
            // Who and how big are known now. Settles by the record.
            .layer(RateLimitLayer::new(self.limiter.clone()))
            // What was not refused begins, and is found if this process dies before it ends.
            .layer(OpeningLayer::new(self.reporters.clone()))
            // One record for each request, whatever the retries further in.
            .layer(self.meter(config, counters))
            // Picks a backend for each attempt; in flight until the last byte.
            .layer(balance)
            // Time limits of one attempt, and a visible end when its backend dies.
            .layer(SseLayer::new(&config.sse).with_quiet_start(config.routing.commit == Commit::FirstByte))
            // One exchange with one backend.
            .service(Upstream::new(self.clients.clone()));
        // Errors become answers here, and only here.
        ServiceBuilder::new().layer(RespondLayer::new()).service(with_small_bodies(inner))
    }

    fn meter(&self, config: &Config, counters: Counters) -> MeterLayer {
        MeterLayer::new()
            .with_pricing(Arc::new(Pricing::new(&config.pricing)))
            .with_counters(counters)
            .with_abort(&config.abort, self.drains.clone())
    }

    async fn key_store(&self, config: &Config, current: &Current) -> Result<Option<(PathBuf, KeyStore)>, StartError> {
        if !config.auth.needs_store() {
            let mut sources = config.auth.pipeline.iter().filter(|source| source.enabled);
            if config.auth.enabled && sources.all(|source| source.static_keys.keys.is_empty()) {
                tracing::warn!(
                    "authentication is on and auth.pipeline has no key, so every request is refused; write keys into its static \
                     entry, or leave the pipeline out and make the first with: llmproxy keys create --name NAME --db {}",
                    config.admin.db_path.display()
                );
            }
            return Ok(None);
        }
        let path = &config.admin.db_path;
        if let Some((_, keys)) = current.keys.as_ref().filter(|(open, _)| open == path) {
            return Ok(Some((path.clone(), keys.clone())));
        }
        let keys = KeyStore::open(path).await.map_err(|source| StartError::KeyStore { path: path.clone(), source })?;
        if keys.is_empty() {
            tracing::warn!(
                path = %path.display(),
                "authentication is on and there is no key yet, so every request is refused; make the first with: llmproxy \
                 keys create --name NAME --db {}",
                path.display()
            );
        }
        keys.watch();
        Ok(Some((path.clone(), keys)))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

/// Passes on a service whose answers' bodies, one around the other, are small; with any other this does not compile. There
/// is one for each open stream. What they keep elsewhere is bounded in their own crates.
fn with_small_bodies<S, R>(service: S) -> S
where
    S: Service<Request<Body>, Response = Response<R>>,
{
    const { assert!(size_of::<R>() <= MAX_BODY, "the bodies of an answer have grown") };
    service
}

fn access_log(config: &Config, current: &Current) -> Result<Option<(AccessLogConfig, Arc<AccessLog>)>, StartError> {
    let Some(access) = config.logging.access_log() else { return Ok(None) };
    if let Some((_, log)) = current.access.as_ref().filter(|(open, _)| *open == access) {
        return Ok(Some((access, log.clone())));
    }
    let log = AccessLog::open(access.format, &access.output)
        .map_err(|source| StartError::AccessLog { output: access.output.clone(), source })?;
    Ok(Some((access, Arc::new(log))))
}

// === impl Shared ===

impl Shared {
    /// Brings up to date what metrics say of backends, as far as time alone changes it.
    pub(crate) fn show_states(&self) {
        if let Some(pool) = &**self.pool.load() {
            pool.show_states();
        }
    }

    /// Why new requests should go elsewhere, if they should.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("shutting down");
        }
        match &**self.pool.load() {
            Some(pool) if pool.is_any_up() => None,
            _ => Some("no backend is up"),
        }
    }
}
