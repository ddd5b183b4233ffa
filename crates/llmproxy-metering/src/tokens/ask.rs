//! Asking a backend how many tokens something is.
//!
//! vLLM, SGLang, llama.cpp and TGI each have a `/tokenize`, and each its own way to be asked. Which a backend is, is learned
//! with one short text that is put in all their ways at once, from the shape of the answer; it is remembered for a while,
//! and so is that a backend has none. What is asked then is in `ask/question.rs`.

mod question;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use llmproxy_core::{Backend, HttpClient};
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{Counted, Uncounted, done::Done};
use crate::metrics;

pub use question::Question;

/// The longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that a question takes, waiting for its turn included.
const PATIENCE: Duration = Duration::from_secs(15);
/// Questions that are put at once, to all backends together.
const AT_ONCE: usize = 4;
/// Questions that may be open, those that wait included.
const PLACES: usize = 256;
/// How long questions that are cut may take to tell so; it is a turn of their tasks.
const CUT: Duration = Duration::from_secs(1);
/// How long it is remembered what a backend is.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How long one that offers nothing is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(300);
/// How long one that could not answer is left alone.
const BREATHER: Duration = Duration::from_secs(10);
/// So many backends are remembered.
const MAX_BACKENDS: usize = 1024;

/// Asks backends for numbers of tokens. Clones are the same; it outlives reloads.
///
/// It never keeps a request waiting: what is [submitted](Self::submit) is asked in a task of its own, a few at once over all
/// backends, each within two seconds. What finds no place is [`Uncounted::Full`].
#[derive(Clone)]
pub struct Asker(Arc<Shared>);

struct Shared {
    client: HttpClient,
    /// What each backend is, by its URL.
    known: Mutex<HashMap<String, Known>>,
    at_once: Semaphore,
    places: Arc<Semaphore>,
    /// A place has become free.
    idle: Notify,
    /// True from the end of the proxy on.
    stopped: watch::Sender<bool>,
}

/// The place of a question that is open.
struct Place {
    /// Taken only to be let go before anybody hears of it.
    permit: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// `None` where it offers nothing, or not now.
    server: Option<Server>,
    until: Instant,
}

/// What is known of a backend that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    kind: Kind,
    /// Whether a text that begins with a space is given another one, as Llama 2's tokenizer does.
    doubles_space: bool,
}

/// Whose `/tokenize` it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// vLLM's, and SGLang's.
    Vllm,
    LlamaCpp,
    Tgi,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// It offers no such thing.
    Unknown,
    /// It could not be asked, or its answer makes no sense.
    Failed,
    /// It can't be asked for this.
    Unfit,
}

// === impl Asker ===

impl Asker {
    /// The largest answer that comes, in bytes, which `client` should read: vLLM lists each token.
    pub const MAX_ANSWER: usize = 4 * 1024 * 1024;

    /// One that asks through `client`.
    pub fn new(client: HttpClient) -> Self {
        Self(Arc::new(Shared {
            client,
            known: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
            places: Arc::new(Semaphore::new(PLACES)),
            idle: Notify::new(),
            stopped: watch::Sender::new(false),
        }))
    }

    /// Asks `backend`, where the model is called `model`.
    ///
    /// # Errors
    ///
    /// [`Uncounted::Failed`] if it offers no such thing or did not answer in time, or the question is none for a backend.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost but the answer.
    pub async fn ask(
        &self,
        backend: &Arc<Backend>,
        model: Option<&str>,
        question: &Question,
    ) -> Result<Counted, Uncounted> {
        let counted = timeout(PATIENCE, self.counted(backend, model, question)).await.unwrap_or(Err(Problem::Failed));
        metrics::asked(match counted {
            Ok(_) => "counted",
            Err(Problem::Unknown) => "unknown",
            Err(Problem::Failed) => "failed",
            Err(Problem::Unfit) => "unfit",
        });
        counted.map_err(|_| Uncounted::Failed)
    }

    /// [`ask`](Self::ask) in a task of its own, after which `done` is called once; at once where there is no place. Outside of a
    /// runtime it can't be asked.
    pub fn submit(
        &self,
        backend: Arc<Backend>,
        model: Option<Arc<str>>,
        question: Question,
        done: impl FnOnce(Result<Counted, Uncounted>) + Send + 'static,
    ) {
        let done = Done::new(done);
        let Ok(runtime) = Handle::try_current() else { return done.call(Err(Uncounted::Failed)) };
        if *self.0.stopped.borrow() {
            metrics::asked("stopped");
            return done.call(Err(Uncounted::Stopped));
        }
        let Ok(permit) = self.0.places.clone().try_acquire_owned() else {
            metrics::asked("busy");
            return done.call(Err(Uncounted::Full));
        };
        let place = Place { permit: Some(permit), shared: self.0.clone() };
        let asker = self.clone();
        runtime.spawn(async move {
            let mut stopped = asker.0.stopped.subscribe();
            let counted = tokio::select! {
                counted = asker.ask(&backend, model.as_deref(), &question) => counted,
                _ = stopped.wait_for(|stopped| *stopped) => {
                    metrics::asked("stopped");
                    Err(Uncounted::Stopped)
                }
            };
            // Whoever hears of it may have another question, so the place is let go after that.
            done.call(counted);
            drop(place);
        });
    }

    /// Waits until nothing is open, but no longer than until `deadline`; for the end of the proxy. Until then more may be
    /// asked, as what comes after an answer. Then all that is open ends at once, and what comes later too, as
    /// [`Uncounted::Stopped`]. Gives the number of those that were cut; each has been told by then.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is through it goes on as before.
    pub async fn drain(&self, deadline: Instant) -> usize {
        let _ = timeout_at(deadline, self.idle()).await;
        let cut = self.open();
        self.0.stopped.send_replace(true);
        if timeout(CUT, self.idle()).await.is_err() {
            tracing::warn!(left = self.open(), "questions to backends did not end when they were cut");
        }
        cut
    }

    /// Waits until nothing is open.
    async fn idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Questions that are open.
    fn open(&self) -> usize {
        PLACES - self.0.places.available_permits()
    }

    async fn counted(
        &self,
        backend: &Arc<Backend>,
        model: Option<&str>,
        question: &Question,
    ) -> Result<Counted, Problem> {
        if let Some(counted) = question.answered_here() {
            return Ok(counted);
        }
        let Ok(_turn) = self.0.at_once.acquire().await else { return Err(Problem::Failed) };
        let url = backend.url_text();
        let server = match self.known(&url) {
            Some(Known { server, .. }) => server.ok_or(Problem::Unknown)?,
            None => {
                let server = self.learn(backend, model).await;
                let (server, lasts) = match server {
                    Ok(server) => (Ok(server), REMEMBERED),
                    Err(Problem::Unknown) => (Err(Problem::Unknown), LEFT_ALONE),
                    Err(problem) => (Err(problem), BREATHER),
                };
                self.remember(url.clone(), server.ok(), lasts);
                server?
            }
        };
        let counted = question.put(self, server, backend, model).await;
        if matches!(counted, Err(Problem::Unknown | Problem::Failed)) {
            // Perhaps something else is there now.
            self.remember(url, None, BREATHER);
        }
        counted
    }

    async fn learn(&self, backend: &Arc<Backend>, model: Option<&str>) -> Result<Server, Problem> {
        let answer = self.post(backend, "/tokenize", question::for_anybody(model)).await?;
        question::server(&answer).ok_or(Problem::Unknown)
    }

    fn known(&self, url: &str) -> Option<Known> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(url).copied().filter(|known| known.until > Instant::now())
    }

    fn remember(&self, url: String, server: Option<Server>, lasts: Duration) {
        let now = Instant::now();
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_BACKENDS && !known.contains_key(&url) {
            known.retain(|_, known| known.until > now);
            if known.len() >= MAX_BACKENDS {
                return;
            }
        }
        known.insert(url, Known { server, until: now + lasts });
    }

    async fn post(&self, backend: &Arc<Backend>, path: &str, body: Vec<u8>) -> Result<Bytes, Problem> {
        let send = async {
            let mut request = Request::builder().method(Method::POST).uri(backend.join(path)?);
            if let Some(headers) = request.headers_mut() {
                headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
                headers.extend(backend.headers.clone());
            }
            // Its connections may need settings that only it has: whoever asks must know which backend this is.
            let request = request.extension(backend.clone()).body(Bytes::from(body))?;
            self.0.client.send(request).await
        };
        let answer = match timeout(TIMEOUT, send).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(backend = %backend.name, %error, path, "the backend could not be asked to count");
                return Err(Problem::Failed);
            }
            Err(_) => {
                tracing::debug!(backend = %backend.name, path, "the backend did not count in time");
                return Err(Problem::Failed);
            }
        };
        match answer.status() {
            status if status.is_success() => Ok(answer.into_body()),
            // What it was asked for is wrong, not who was asked.
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Problem::Unfit)
            }
            StatusCode::NOT_IMPLEMENTED => Err(Problem::Unknown),
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Err(Problem::Unknown),
            _ => Err(Problem::Failed),
        }
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("open", &self.open()).finish()
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.shared.idle.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
