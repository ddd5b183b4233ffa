//! Backends that do what a test tells them, without a socket.
#![allow(dead_code)] // Each file of tests uses its own part.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use llmproxy_balancer::{
    BackendConfig, BalanceBody, BalanceError, BalanceLayer, Balancer, HealthCheckConfig, Pool, QueueConfig,
    RoutingConfig,
};
use llmproxy_core::{
    BoxBody, BoxError, Call, Edits, End, Ended, Endpoint, Exchange, HttpClient, RequestBody, Target, cause_ref,
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

pub(crate) type Answer = Response<BalanceBody<BoxBody>>;
type Script = Arc<Mutex<dyn FnMut(&Target) -> Reply + Send>>;

/// What a backend does with a request.
pub(crate) enum Reply {
    /// Answers.
    Answer(Response<BoxBody>),
    /// There is no connection.
    Refused,
    /// The connection breaks before the head.
    Reset,
    /// The connection breaks before the head, and there is no other one then.
    Died,
    /// What comes is no answer.
    Nonsense,
    /// A limit of time is passed before the head.
    Timeout,
    /// Nothing, ever.
    Stall,
}

/// What a backend's checks find, by host; a host that is not there refuses connections.
#[derive(Clone, Default)]
pub(crate) struct Checks(Arc<Mutex<HashMap<String, Health>>>, Arc<Mutex<Pages>>);

/// What backends tell of their load, at which of the two places, and how often they were asked there, by host.
#[derive(Default)]
struct Pages {
    told: HashMap<(String, String), (u16, String)>,
    asked: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) status: u16,
    pub(crate) models: (u16, String),
    pub(crate) asked: Vec<String>,
}

impl Checks {
    pub(crate) fn set(&self, host: &str, status: u16, models_status: u16, models: &str) {
        let mut all = self.0.lock().expect("no test panics in here");
        let asked = all.remove(host).map(|health| health.asked).unwrap_or_default();
        all.insert(host.into(), Health { status, models: (models_status, models.into()), asked });
    }

    /// Well, and without a list of models.
    pub(crate) fn well(&self, host: &str) {
        self.set(host, 200, 404, "");
    }

    /// Well, and serving these.
    pub(crate) fn serves(&self, host: &str, models: &[&str]) {
        let data: Vec<_> = models.iter().map(|id| serde_json::json!({ "id": id })).collect();
        self.set(host, 200, 200, &serde_json::json!({ "data": data }).to_string());
    }

    /// Well, with this one model under whatever name it is asked for, as llama-server is.
    pub(crate) fn takes_any_name(&self, host: &str, model: &str) {
        let data = serde_json::json!([{ "id": model, "owned_by": "llamacpp" }]);
        self.set(host, 200, 200, &serde_json::json!({ "data": data }).to_string());
    }

    pub(crate) fn refuse(&self, host: &str) {
        self.0.lock().expect("no test panics in here").remove(host);
    }

    pub(crate) fn asked(&self, host: &str) -> Vec<String> {
        self.0.lock().expect("no test panics in here")[host].asked.clone()
    }

    /// Tells its load at `path`.
    pub(crate) fn tells(&self, host: &str, path: &str, status: u16, page: &str) {
        let mut pages = self.1.lock().expect("no test panics in here");
        pages.told.insert((host.into(), path.into()), (status, page.into()));
    }

    /// Tells its load in vLLM's words.
    pub(crate) fn runs(&self, host: &str, running: u64, waiting: u64, usage: f64) {
        let labels = r#"{engine="0",model_name="m"}"#;
        let page = format!(
            "vllm:num_requests_running{labels} {running}.0\nvllm:num_requests_waiting{labels} {waiting}.0\n\
             vllm:kv_cache_usage_perc{labels} {usage}\n"
        );
        self.tells(host, "/metrics", 200, &page);
    }

    /// The questions for load so far, each as host and path; from here on counted anew.
    pub(crate) fn scraped(&self) -> Vec<String> {
        std::mem::take(&mut self.1.lock().expect("no test panics in here").asked)
    }

    pub(crate) fn client(&self) -> HttpClient {
        let all = self.0.clone();
        let pages = self.1.clone();
        HttpClient::new(service_fn(move |request: Request<Bytes>| {
            let mut all = all.lock().expect("no test panics in here");
            let host = request.uri().host().expect("an absolute URI");
            let path = request.uri().path();
            let mut pages = pages.lock().expect("no test panics in here");
            let page = pages.told.get(&(host.into(), path.into())).cloned();
            let is_page = page.is_some() || ["/metrics", "/slots"].contains(&path);
            if is_page {
                pages.asked.push(format!("{host}{path}"));
            }
            let answer = match all.get_mut(host) {
                None => Err(refused()),
                Some(_) if is_page => {
                    let (status, body) = page.unwrap_or((404, String::new()));
                    Ok(Response::builder().status(status).body(Bytes::from(body)).expect("a good status"))
                }
                Some(health) => {
                    health.asked.push(request.uri().path().to_owned());
                    let (status, body) = match request.uri().path() {
                        "/v1/models" => health.models.clone(),
                        _ => (health.status, String::new()),
                    };
                    Ok(Response::builder().status(status).body(Bytes::from(body)).expect("a good status"))
                }
            };
            async move { answer }
        }))
    }
}

pub(crate) fn refused() -> BoxError {
    io::Error::from(io::ErrorKind::ConnectionRefused).into()
}

/// Backends `http://a`, `http://b`, ..., named like their hosts.
pub(crate) fn backends(weights: &[u32]) -> Vec<BackendConfig> {
    weights
        .iter()
        .zip('a'..)
        .map(|(weight, name)| BackendConfig {
            name: Some(name.into()),
            weight: *weight,
            ..BackendConfig::new(format!("http://{name}"))
        })
        .collect()
}

/// A pool of backends that are not checked and serve the model `m`.
pub(crate) fn unchecked(weights: &[u32], routing: &RoutingConfig) -> Arc<Pool> {
    let mut backends = backends(weights);
    for backend in &mut backends {
        backend.models.push("m".into());
    }
    pool_of(&backends, routing)
}

/// A pool of these, without checks.
pub(crate) fn pool_of(backends: &[BackendConfig], routing: &RoutingConfig) -> Arc<Pool> {
    let health = HealthCheckConfig { enabled: false, ..HealthCheckConfig::default() };
    Balancer::new(Checks::default().client()).apply(backends, routing, &health, &QueueConfig::default())
}

/// A proxy over `pool`, whose backends do what `script` says.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) pool: Arc<Pool>,
    script: Script,
}

impl Proxy {
    pub(crate) fn new(pool: Arc<Pool>, script: impl FnMut(&Target) -> Reply + Send + 'static) -> Self {
        Self { pool, script: Arc::new(Mutex::new(script)) }
    }

    /// Sends a replayable request for the model `m`.
    pub(crate) async fn ask(&self) -> (Arc<Exchange>, Result<Answer, BoxError>) {
        self.ask_with(Some("m"), RequestBody::whole("{}")).await
    }

    pub(crate) async fn ask_with(
        &self,
        model: Option<&str>,
        body: RequestBody,
    ) -> (Arc<Exchange>, Result<Answer, BoxError>) {
        self.ask_sized(model, body, 0).await
    }

    /// The same, with a prompt of so many tokens.
    pub(crate) async fn ask_sized(
        &self,
        model: Option<&str>,
        body: RequestBody,
        prompt_estimate: u64,
    ) -> (Arc<Exchange>, Result<Answer, BoxError>) {
        let exchange = Exchange::new();
        let mut call = Call::new(Endpoint::of("/v1/chat/completions"));
        call.model = model.map(Into::into);
        call.prompt_estimate = prompt_estimate;
        exchange.set_call(call);
        let mut request = Request::post(Uri::from_static("/v1/chat/completions")).body(body).expect("a good request");
        request.extensions_mut().insert(exchange.clone());
        let script = self.script.clone();
        let inner = service_fn(move |request: Request<RequestBody>| {
            let script = script.clone();
            async move {
                // The request's body is read, as an upstream would.
                let target = request.extensions().get::<Target>().expect("the balancer picks").clone();
                request.into_body().collect().await?;
                let reply = (script.lock().expect("no test panics in here"))(&target);
                match reply {
                    Reply::Answer(response) => Ok(response),
                    Reply::Refused => Err(refused()),
                    Reply::Reset => Err(BoxError::from(io::Error::from(io::ErrorKind::ConnectionReset))),
                    Reply::Died => Err(Ended::new(End::BackendFailed, refused()).into()),
                    Reply::Nonsense => Err(BoxError::from(io::Error::from(io::ErrorKind::InvalidData))),
                    Reply::Timeout => Err(Ended::new(End::Timeout, "no byte in time").into()),
                    Reply::Stall => std::future::pending().await,
                }
            }
        });
        // Boxed, so that whoever asks may be a task of its own.
        let proxy = BoxCloneSyncService::new(BalanceLayer::new(self.pool.clone()).layer(inner));
        (exchange, proxy.oneshot(request).await)
    }

    /// Requests in flight at each backend.
    pub(crate) fn in_flight(&self) -> Vec<usize> {
        self.pool.snapshot().iter().map(|status| status.in_flight).collect()
    }
}

/// An answer with a small body.
pub(crate) fn answer(status: u16, text: &str) -> Response<BoxBody> {
    Response::builder().status(status).body(body([Ok(text)])).expect("a good status")
}

/// An event stream of these frames.
pub(crate) fn events<const N: usize>(frames: [Result<&str, &'static str>; N]) -> Response<BoxBody> {
    let mut response = answer(200, "");
    response.headers_mut().insert("content-type", "text/event-stream; charset=utf-8".parse().expect("a good value"));
    *response.body_mut() = body(frames);
    response
}

pub(crate) fn body<const N: usize>(frames: [Result<&str, &'static str>; N]) -> BoxBody {
    let frames = frames.map(|frame| match frame {
        Ok(text) => Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes()))),
        Err(error) => Err(BoxError::from(error)),
    });
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// A replayable body with places for both edits.
pub(crate) fn editable() -> RequestBody {
    RequestBody::Replay(
        Bytes::from_static(br#"{"model":"m"}"#),
        Edits {
            model: Some(9..12),
            include_usage: Some(llmproxy_core::Insertion {
                at: 1..1,
                with: r#""stream_options":{"include_usage":true},"#,
            }),
        },
    )
}

pub(crate) async fn text(answer: Answer) -> Result<String, BoxError> {
    Ok(String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()).into_owned())
}

/// The backends that were asked, in order.
pub(crate) fn asked(exchange: &Exchange) -> Vec<String> {
    exchange.attempts().iter().map(|attempt| attempt.backend.name.to_string()).collect()
}

/// Longer than a check takes, shorter than the wait for the next.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Which of them are up.
pub(crate) fn ups(pool: &Pool) -> Vec<bool> {
    pool.snapshot().iter().map(|status| status.up).collect()
}

/// The status and the code that a client is told.
pub(crate) fn code(error: &BoxError) -> (u16, &'static str) {
    let error = cause_ref::<BalanceError>(&**error).expect("an error of ours");
    (error.status().as_u16(), error.code())
}

/// A proxy before backends that answer with their names.
pub(crate) fn named(pool: Arc<Pool>) -> Proxy {
    Proxy::new(pool, |target| Reply::Answer(answer(200, &target.backend.name)))
}
