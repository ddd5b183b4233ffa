//! A model server without a model.

mod answer;
mod ask;
mod embed;
mod engine;
mod text;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use self::{ask::Ask, engine::Engine, text::Source};
use crate::{Backend, Counts, Seen, Wire};

/// A fast reader's pace.
const WORDS_PER_SECOND: f64 = 30.0;
/// What a person takes for "at once".
const PREFILL: Duration = Duration::from_millis(120);

/// A server that speaks OpenAI's API as vLLM does on the wire, and says something at a human pace: chat, completions,
/// embeddings, models, tool calls, streams with and without usage, and vLLM's own measures of its load. Counts true: a word is a token, and the usage that it
/// reports is the number of words that it took and gave. Stops when its client leaves.
///
/// What it says depends on nothing but its seed and the prompt.
///
/// ```
/// use llmproxy_testkit::{Client, ModelServer};
/// use serde_json::json;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let server = ModelServer::builder().model("demo").words_per_second(f64::INFINITY).start().await?;
/// let ask = json!({"model": "demo", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 5});
/// let answer = Client::connect(server.addr()).await.post_json("/v1/chat/completions", &ask).await;
/// assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct ModelServer {
    backend: Backend,
    shared: Arc<Shared>,
}

/// Says what a [`ModelServer`] should be like: unless told otherwise, one model, `demo`, that begins after 120 ms and says
/// 30 words a second. See [`ModelServer`] for an example.
#[derive(Clone, Debug)]
pub struct ModelServerBuilder {
    models: Vec<String>,
    words_per_second: f64,
    prefill: Duration,
    text: Option<String>,
    seed: u64,
    batch: usize,
    prefill_rate: f64,
    cache: usize,
}

#[derive(Debug)]
struct Shared {
    models: Vec<String>,
    /// Between two words; zero for as fast as they go.
    pace: Duration,
    prefill: Duration,
    source: Source,
    seed: u64,
    ids: AtomicU64,
    generated: AtomicU64,
    engine: Engine,
}

/// An answer that is an error, in vLLM's shape.
struct Refusal {
    status: u16,
    kind: &'static str,
    param: Option<&'static str>,
    message: String,
}

// === impl ModelServer ===

impl ModelServer {
    /// Says what the server should be like.
    pub fn builder() -> ModelServerBuilder {
        ModelServerBuilder {
            models: Vec::new(),
            words_per_second: WORDS_PER_SECOND,
            prefill: PREFILL,
            text: None,
            seed: 0,
            batch: usize::MAX,
            prefill_rate: f64::INFINITY,
            cache: 0,
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.backend.addr()
    }

    /// The same as a URL, without a trailing slash.
    pub fn url(&self) -> String {
        self.backend.url()
    }

    /// Words generated since it started.
    pub fn generated(&self) -> u64 {
        self.shared.generated.load(Ordering::Relaxed)
    }

    /// Words of prompts that it had read before, and so did not read again. See [`ModelServerBuilder::cache`].
    pub fn cached(&self) -> u64 {
        self.shared.engine.cached()
    }

    /// Connections and requests; `abandoned` counts the answers whose client left, which stopped them.
    pub fn counts(&self) -> Counts {
        self.backend.counts()
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
        self.backend.when(wanted).await
    }
}

// === impl ModelServerBuilder ===

impl ModelServerBuilder {
    /// Offers this model too. Without any it offers one, `demo`.
    pub fn model(mut self, name: impl Into<String>) -> Self {
        self.models.push(name.into());
        self
    }

    /// How fast it speaks; `f64::INFINITY` for as fast as it can. 30 by default.
    pub fn words_per_second(mut self, words: f64) -> Self {
        self.words_per_second = words;
        self
    }

    /// How long it thinks before it says the first word. 120 ms by default, none at an infinite pace.
    pub fn prefill(mut self, prefill: Duration) -> Self {
        self.prefill = prefill;
        self
    }

    /// What it says, sentence by sentence, from a place that depends on the prompt.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Another seed makes it say other things.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How many answers may be under way at a time; whoever comes then waits, first come first served. Any number by
    /// default.
    pub fn batch(mut self, answers: usize) -> Self {
        self.batch = answers;
        self
    }

    /// How many words of prompts it reads in a second, one prompt after the other. All at once by default.
    pub fn prefill_rate(mut self, words: f64) -> Self {
        self.prefill_rate = words;
        self
    }

    /// How many blocks of 16 words of prompts it remembers: a prompt that begins with what it remembers is read from there.
    /// None by default.
    pub fn cache(mut self, blocks: usize) -> Self {
        self.cache = blocks;
        self
    }

    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    ///
    /// If there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing listens.
    pub async fn start(self) -> io::Result<ModelServer> {
        self.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts it at `addr`.
    ///
    /// # Errors
    ///
    /// If it can't listen there.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing listens.
    pub async fn listen(self, addr: SocketAddr) -> io::Result<ModelServer> {
        let models = if self.models.is_empty() { vec!["demo".to_owned()] } else { self.models };
        // No pace, a negative one and an infinite one all have no time between words.
        let pace = Duration::try_from_secs_f64(self.words_per_second.recip()).unwrap_or_default();
        let shared = Arc::new(Shared {
            models,
            pace,
            prefill: if pace.is_zero() && self.prefill == PREFILL { Duration::ZERO } else { self.prefill },
            source: self.text.map_or_else(Source::default, |text| Source::new(&text)),
            seed: self.seed,
            ids: AtomicU64::new(1),
            generated: AtomicU64::new(0),
            engine: Engine::new(self.batch, self.prefill_rate, self.cache),
        });
        let theirs = shared.clone();
        let script = move |seen, wire| -> futures_util::future::BoxFuture<'static, io::Result<()>> {
            Box::pin(serve(theirs.clone(), seen, wire))
        };
        Ok(ModelServer { backend: Backend::listen(addr, Arc::new(script)).await?, shared })
    }
}

async fn serve(shared: Arc<Shared>, seen: Seen, wire: Wire) -> io::Result<()> {
    let path = seen.path.split('?').next().unwrap_or_default();
    let allowed = match path {
        "/health" | "/v1/models" | "/metrics" => "GET",
        "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" => "POST",
        _ => return respond(wire, &seen, 404, &[], r#"{"detail":"Not Found"}"#).await,
    };
    let method = if seen.method == "HEAD" { "GET" } else { &seen.method };
    if method != allowed {
        return respond(wire, &seen, 405, &[("allow", allowed)], r#"{"detail":"Method Not Allowed"}"#).await;
    }
    match path {
        "/health" => respond(wire, &seen, 200, &[], "").await,
        "/metrics" => {
            let text = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
            wire.respond(200, &text, shared.engine.metrics(&shared.models[0])).await
        }
        "/v1/models" => respond(wire, &seen, 200, &[], &shared.model_list()).await,
        "/v1/embeddings" => match embed::answer(&shared, &seen) {
            Ok(body) => respond(wire, &seen, 200, &[], &body).await,
            Err(refusal) => respond(wire, &seen, refusal.status, &[], &refusal.body()).await,
        },
        _ => match Ask::parse(&shared, &seen, path == "/v1/chat/completions") {
            Ok(ask) => answer::answer(&shared, ask, &seen, wire).await,
            Err(refusal) => respond(wire, &seen, refusal.status, &[], &refusal.body()).await,
        },
    }
}

/// Answers with JSON, or with an empty body, and with the request's id where it has one.
async fn respond(wire: Wire, seen: &Seen, status: u16, headers: &[(&str, &str)], body: &str) -> io::Result<()> {
    let mut headers = headers.to_vec();
    if !body.is_empty() {
        headers.push(("content-type", "application/json"));
    }
    headers.extend(seen.header("x-request-id").map(|id| ("x-request-id", id)));
    wire.respond(status, &headers, body).await
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// As a JSON string, quotes included.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

// === impl Shared ===

impl Shared {
    fn model_list(&self) -> String {
        let created = unix_seconds();
        let entry = |name: &String| {
            let name = quote(name);
            format!(
                r#"{{"id":{name},"object":"model","created":{created},"owned_by":"llmproxy","root":{name},"parent":null}}"#
            )
        };
        let list = self.models.iter().map(entry).collect::<Vec<_>>().join(",");
        format!(r#"{{"object":"list","data":[{list}]}}"#)
    }

    /// The request as JSON and its model, which must be one of ours.
    fn read(&self, seen: &Seen) -> Result<(Value, String), Refusal> {
        let json: Value =
            serde_json::from_slice(&seen.body).map_err(|error| Refusal::bad(format!("Invalid JSON: {error}")))?;
        let model = match &json["model"] {
            Value::Null => self.models[0].clone(),
            Value::String(model) => model.clone(),
            _ => return Err(Refusal::bad("model: must be a string").with_param("model")),
        };
        if !self.models.contains(&model) {
            return Err(Refusal {
                status: 404,
                kind: "NotFoundError",
                param: Some("model"),
                message: format!("The model `{model}` does not exist."),
            });
        }
        Ok((json, model))
    }

    /// An id for an answer: the request's own where it has one.
    fn id(&self, seen: &Seen) -> String {
        match seen.header("x-request-id") {
            Some(id) => id.to_owned(),
            None => format!("{:016x}", text::hash(self.seed, &[self.ids.fetch_add(1, Ordering::Relaxed)])),
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn bad(message: impl Into<String>) -> Self {
        Self { status: 400, kind: "BadRequestError", param: None, message: message.into() }
    }

    fn with_param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    fn body(&self) -> String {
        let param = self.param.map_or_else(|| "null".to_owned(), quote);
        let (message, kind, code) = (quote(&self.message), self.kind, self.status);
        format!(r#"{{"error":{{"message":{message},"type":"{kind}","param":{param},"code":{code}}}}}"#)
    }
}
