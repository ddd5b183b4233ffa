//! The clients, kept for as long as their backends are.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use llmproxy_core::{Backend, BoxError, Endpoint, HttpClient};
use reqwest::Url;
use tokio::time::timeout;

use crate::{
    UpstreamBody, UpstreamError,
    pool::{Pool, Settings},
    url,
};

/// The clients of all backends. Lives as long as the process: a reload that leaves a backend's URL, `connect_timeout`,
/// `max_idle_conns`, `http2` and certificates as they are leaves its connections as they are.
///
/// ```
/// let clients = llmproxy_upstream::Clients::new();
/// let for_health_checks = clients.http_client(64 * 1024);
/// // After a reload, what no backend needs any more is let go.
/// clients.retain(&[]);
/// ```
#[derive(Debug)]
pub struct Clients {
    pools: Arc<Pools>,
    /// One for each backend that was asked, by its address in memory: found without hashing or parsing a URL.
    places: ArcSwap<Vec<Arc<Place>>>,
}

/// What is worked out once for each backend, rather than for each request.
#[derive(Debug)]
pub(crate) struct Place {
    /// Keeps the address from being another's, not the backend.
    backend: Weak<Backend>,
    /// How people may see it.
    pub(crate) origin: Arc<str>,
    pub(crate) pool: Pool,
    /// The URLs of known endpoints: clients can't make them more.
    urls: ArcSwap<Vec<(&'static str, Url)>>,
}

#[derive(Debug, Default)]
struct Pools(Mutex<HashMap<Identity, Pool>>);

/// What makes two backends share their connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    /// `None` for small questions to anyone.
    url: Option<Uri>,
    settings: Settings,
}

/// How a URL is asked: worked out anew only where it is another than the last time. Webhooks ask the same one for every
/// request that is served.
struct Asked {
    uri: Uri,
    origin: Arc<str>,
    url: Url,
    pool: Pool,
}

/// How much of an answer is read.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// All of it; more than so many bytes are an error.
    Whole { max: usize },
    /// What comes soon.
    AsItComes,
}

/// Of a body that nobody needs, so much is read, in bytes, and for so long, to use its connection again.
const MAX_REST: usize = 64 * 1024;
const REST: Duration = Duration::from_millis(250);

// === impl Clients ===

impl Clients {
    /// For small questions: as a backend's without a word about it.
    const SMALL_CONNECT_TIMEOUT: Duration = Backend::DEFAULT_CONNECT_TIMEOUT;
    /// For small questions: connections kept to each server.
    const SMALL_MAX_IDLE: usize = 4;

    /// No clients yet: each is made when it is first needed. Makes ring the process's TLS provider if none is set.
    ///
    /// Sharing them shares the connections: make them once.
    pub fn new() -> Arc<Self> {
        // An error says that whoever embeds us has chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Arc::new(Self { pools: Arc::default(), places: ArcSwap::default() })
    }

    /// Lets go of the clients that none of `backends` needs. Exchanges that run go on undisturbed.
    pub fn retain(&self, backends: &[Arc<Backend>]) {
        let wanted: HashSet<Identity> = backends.iter().map(|backend| Identity::of(backend)).collect();
        self.pools.lock().retain(|identity, _| identity.url.is_none() || wanted.contains(identity));
        self.places.rcu(|places| {
            let is_wanted = |place: &&Arc<Place>| backends.iter().any(|backend| place.is_of(backend));
            places.iter().filter(is_wanted).cloned().collect::<Vec<_>>()
        });
    }

    /// A client for small questions, health checks and the like, that reads at most `max_answer` bytes of an answer.
    /// It asks whatever URL a request has, follows no redirects, and needs an executor of tokio's. A larger answer is an
    /// error, [`UpstreamError::TooLarge`].
    ///
    /// A request with an `Arc<Backend>` in its extensions goes over that backend's connections, by its settings: one that
    /// has a CA of its own, or speaks only HTTP/2, can't be asked in any other way.
    ///
    /// ```
    /// use http::Request;
    /// use llmproxy_testkit::{Backend, script};
    /// use llmproxy_upstream::Clients;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), llmproxy_core::BoxError> {
    /// let server = Backend::start(script::json(200, serde_json::json!({"status": "ok"}))).await;
    /// let client = Clients::new().http_client(64 * 1024);
    /// let answer = client.send(Request::get(format!("{}/health", server.url())).body(bytes::Bytes::new())?).await?;
    /// assert_eq!(answer.body(), r#"{"status":"ok"}"#);
    /// # Ok(())
    /// # }
    /// ```
    pub fn http_client(&self, max_answer: usize) -> HttpClient {
        self.client(Reading::Whole { max: max_answer })
    }

    /// The same for those who go by the status alone, such as webhooks: what has come of the answer's body within a quarter of a second, up
    /// to 64 KiB, is there, and whatever is wrong with the rest is no error. A receiver that has said 200 has said all.
    pub fn status_client(&self) -> HttpClient {
        self.client(Reading::AsItComes)
    }

    fn client(&self, reading: Reading) -> HttpClient {
        let pools = self.pools.clone();
        let last = Arc::new(ArcSwapOption::<Asked>::empty());
        HttpClient::new(tower::service_fn(move |request: Request<Bytes>| {
            let asked = match (request.extensions().get::<Arc<Backend>>(), last.load_full()) {
                (Some(backend), _) => pools.asked(request.uri(), Identity::of(backend)),
                (None, Some(asked)) if asked.uri == *request.uri() => Ok(asked),
                (None, _) => {
                    let asked = pools.asked(request.uri(), Identity::small(request.uri()));
                    asked.inspect(|asked| last.store(Some(asked.clone())))
                }
            };
            ask(asked, request, reading)
        }))
    }

    pub(crate) fn place(&self, backend: &Arc<Backend>) -> Result<Arc<Place>, UpstreamError> {
        if let Some(place) = self.places.load().iter().find(|place| place.is_of(backend)) {
            return Ok(place.clone());
        }
        let origin = url::origin(&backend.url);
        let pool = self.pools.get(Identity::of(backend), &origin)?;
        let place = Arc::new(Place { backend: Arc::downgrade(backend), origin, pool, urls: ArcSwap::default() });
        self.places.rcu(|places| {
            // Backends that are gone take theirs along.
            let others = places.iter().filter(|other| other.backend.strong_count() > 0 && !other.is_of(backend));
            others.chain([&place]).cloned().collect::<Vec<_>>()
        });
        Ok(place)
    }

    /// Connections over which a backend can be asked to switch protocols, which HTTP/2 does not have.
    pub(crate) fn http1(&self, backend: &Backend) -> Result<Pool, UpstreamError> {
        let mut identity = Identity::of(backend);
        identity.settings.http2 = false;
        self.pools.get(identity, &url::origin(&backend.url))
    }
}

// === impl Place ===

impl Place {
    fn is_of(&self, backend: &Arc<Backend>) -> bool {
        std::ptr::eq(self.backend.as_ptr(), Arc::as_ptr(backend))
    }

    /// The URL of what `uri` asks for, on this backend.
    pub(crate) fn url(&self, uri: &Uri, backend: &Backend) -> Result<Url, UpstreamError> {
        let known = Some(Endpoint::of(uri.path())).filter(|known| known.is_known() && uri.query().is_none());
        let Some(known) = known.map(|known| known.template()) else { return self.render(uri, backend) };
        if let Some((_, url)) = self.urls.load().iter().find(|(template, _)| *template == known) {
            return Ok(url.clone());
        }
        let url = self.render(uri, backend)?;
        self.urls.rcu(|urls| {
            let others = urls.iter().filter(|(template, _)| *template != known);
            others.cloned().chain([(known, url.clone())]).collect::<Vec<_>>()
        });
        Ok(url)
    }

    fn render(&self, uri: &Uri, backend: &Backend) -> Result<Url, UpstreamError> {
        let path_and_query = uri.path_and_query().map_or("/", |path_and_query| path_and_query.as_str());
        let joined = backend.join(path_and_query).map_err(|_| UpstreamError::Path { backend: self.origin.clone() })?;
        url::render(&joined, &self.origin)
    }
}

// === impl Pools ===

impl Pools {
    fn get(&self, identity: Identity, origin: &Arc<str>) -> Result<Pool, UpstreamError> {
        if let Some(pool) = self.lock().get(&identity) {
            return Ok(pool.clone());
        }
        // Reading certificates takes a while, so not under the lock; of two made at once, the first stays.
        let pool = Pool::new(identity.settings.clone())
            .map_err(|source| UpstreamError::Client { backend: origin.clone(), source })?;
        Ok(self.lock().entry(identity).or_insert(pool).clone())
    }

    fn asked(&self, uri: &Uri, identity: Identity) -> Result<Arc<Asked>, UpstreamError> {
        let origin = url::origin(uri);
        let pool = self.get(identity, &origin)?;
        let url = url::render(uri, &origin)?;
        Ok(Arc::new(Asked { uri: uri.clone(), origin, url, pool }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Identity ===

impl Identity {
    fn of(backend: &Backend) -> Self {
        let settings = Settings {
            tls: url::is_tls(&backend.url),
            connect_timeout: backend.connect_timeout,
            max_idle: backend.max_idle_conns,
            http2: backend.http2,
            ca: backend.ca.clone(),
            named: !url::is_address(&backend.url),
        };
        Self { url: Some(backend.url.clone()), settings }
    }

    /// For small questions to anyone.
    fn small(uri: &Uri) -> Self {
        let settings = Settings {
            tls: url::is_tls(uri),
            connect_timeout: Clients::SMALL_CONNECT_TIMEOUT,
            max_idle: Clients::SMALL_MAX_IDLE,
            http2: false,
            ca: None,
            named: true,
        };
        Self { url: None, settings }
    }
}

async fn ask(
    asked: Result<Arc<Asked>, UpstreamError>,
    request: Request<Bytes>,
    reading: Reading,
) -> Result<Response<Bytes>, BoxError> {
    let asked = asked.map_err(UpstreamError::boxed)?;
    let (backend, url) = (asked.origin.clone(), &asked.url);
    let (head, body) = request.into_parts();
    let request = || {
        let mut request = reqwest::Request::new(head.method.clone(), url.clone());
        request.headers_mut().clone_from(&head.headers);
        *request.body_mut() = Some(body.clone().into());
        request
    };
    let (response, stream) = asked.pool.send(&backend, request).await.map_err(UpstreamError::boxed)?;
    let (head, body) = response.into_parts();
    let mut body = UpstreamBody::new(body, backend.clone(), head.version, stream);
    let bytes = match reading {
        Reading::Whole { max } => {
            let bytes = Limited::new(body, max).collect().await.map_err(|error| {
                match error.downcast::<LengthLimitError>() {
                    Ok(_) => UpstreamError::TooLarge { backend, max }.boxed(),
                    Err(error) => error,
                }
            })?;
            bytes.to_bytes()
        }
        Reading::AsItComes => {
            let mut bytes = BytesMut::new();
            let read = async {
                while let Some(Ok(frame)) = body.frame().await {
                    bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                    if bytes.len() > MAX_REST {
                        break;
                    }
                }
            };
            // The connection is used again where the body has ended by then.
            let _ = timeout(REST, read).await;
            bytes.freeze()
        }
    };
    Ok(Response::from_parts(head, bytes))
}
