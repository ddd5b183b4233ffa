//! Asks one backend, again and again, whether it is well and what it serves.
//!
//! Nothing that is asked here costs tokens, but at SGLang, whose `/health` generates one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use llmproxy_core::{Backend, BoxError, HttpClient};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use crate::{config::HealthCheckConfig, models::Models, node::Node, retry::Failure};

const HEALTH: &str = "/health";
const MODELS: &str = "/v1/models";
/// The wait before a backend that has not told its models is asked again, where it is not checked: doubled each time,
/// up to the interval of checks.
const FIRST_RELEARN: Duration = Duration::from_secs(1);

/// Checks one backend.
#[derive(Debug)]
pub(crate) struct Checker {
    node: Arc<Node>,
    client: HttpClient,
    settings: Settings,
}

/// What a check depends on: while it stays the same over a reload, so do the checks.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) backend: Arc<Backend>,
    pub(crate) health: HealthCheckConfig,
    /// Whether the models are to be learned, because no configuration says them.
    pub(crate) learn: bool,
}

/// What runs for one backend; dropped, it ends.
#[derive(Debug)]
pub(crate) struct Task(pub(crate) JoinHandle<()>);

/// Why a check failed.
#[derive(Debug)]
struct Problem {
    refused: bool,
    text: String,
}

// === impl Checker ===

impl Checker {
    pub(crate) fn new(node: Arc<Node>, client: HttpClient, settings: Settings) -> Arc<Self> {
        Arc::new(Self { node, client, settings })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Checks at once and then whenever it is due.
    pub(crate) fn spawn(self: Arc<Self>) -> Task {
        if self.settings.learn {
            self.node.is_first_asked();
        }
        Task(tokio::spawn(async move {
            let mut relearn = FIRST_RELEARN;
            loop {
                self.check().await;
                if self.settings.health.enabled {
                    self.due().await;
                } else if matches!(**self.node.models(), Models::Unknown) {
                    self.pause(relearn.min(self.settings.health.interval)).await;
                    relearn = relearn.saturating_mul(2).min(self.settings.health.interval);
                } else {
                    self.pause(self.settings.health.interval).await;
                }
            }
        }))
    }

    /// One check, and what the backend serves if it is well.
    pub(crate) async fn check(&self) {
        if !self.settings.health.enabled {
            self.learn(self.get(Method::GET, MODELS).await, false);
            return;
        }
        let check = self.node.health().begin_check();
        if let Err(problem) = self.probe().await {
            return self.node.check_failed(check, problem.refused, &problem.text);
        }
        let models =
            if self.settings.learn || check.credentials { Some(self.get(Method::GET, MODELS).await) } else { None };
        // A health page is often open to all; the list of models is not.
        if check.credentials
            && let Some(Ok(answer)) = &models
            && matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        {
            let problem = format!("{MODELS} was answered with {}", answer.status());
            return self.node.credentials_refused(check, &problem);
        }
        if let Some(answer) = models.filter(|_| self.settings.learn) {
            self.learn(answer, true);
        }
        self.node.check_passed(check);
    }

    async fn due(&self) {
        loop {
            let next = self.node.health().next_check();
            tokio::select! {
                () = sleep_until(next) => return,
                () = self.node.rescheduled.notified() => {}
                () = self.node.turn() => {}
                () = self.node.asked() => self.tell().await,
            }
        }
    }

    async fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                () = self.node.rescheduled.notified() => {}
                () = self.node.turn() => {}
                () = self.node.asked() => self.tell().await,
            }
        }
    }

    /// What it serves, which somebody waits for.
    async fn tell(&self) {
        let answer = self.get(Method::GET, MODELS).await;
        if let Some(models) = answer.ok().as_ref().and_then(Models::read) {
            self.node.learned(models);
        }
        self.node.told();
    }

    async fn probe(&self) -> Result<(), Problem> {
        let health = &self.settings.health;
        let method = health.method.parse().unwrap_or(Method::GET);
        if let Some(path) = &health.path {
            let answer = self.get(method, path).await?;
            return if answer.status().as_u16() == health.expected_status {
                Ok(())
            } else {
                Err(Problem::answered(path, answer.status()))
            };
        }
        let text = match self.get(method, HEALTH).await {
            Ok(answer) if !answer.status().is_server_error() => return Ok(()),
            Ok(answer) => Problem::answered(HEALTH, answer.status()).text,
            Err(problem) if problem.refused => return Err(problem),
            Err(problem) => problem.text,
        };
        let answer = self.get(Method::GET, MODELS).await?;
        if answer.status().is_server_error() { Err(Problem { refused: false, text }) } else { Ok(()) }
    }

    /// `answers` says whether the backend is known to be well, so that not telling its models is its way and no trouble.
    fn learn(&self, answer: Result<Response<Bytes>, Problem>, answers: bool) {
        let nothing_known = matches!(**self.node.models(), Models::Unknown);
        match answer {
            Ok(answer) => match Models::read(&answer) {
                Some(models) => self.node.learned(models),
                None if nothing_known => self.node.learned(Models::any()),
                None => {}
            },
            Err(_) if nothing_known && answers => self.node.learned(Models::any()),
            Err(problem) => {
                let backend = &self.settings.backend.name;
                tracing::debug!(%backend, problem = problem.text, "the backend did not tell its models");
            }
        }
    }

    async fn get(&self, method: Method, path: &str) -> Result<Response<Bytes>, Problem> {
        let send = ask(&self.client, &self.settings.backend, method, path);
        match timeout(self.settings.health.timeout, send).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Problem::failed(path, &error)),
            Err(_) => {
                let waited = llmproxy_core::duration::format(self.settings.health.timeout);
                Err(Problem { refused: false, text: format!("{path} was not answered within {waited}") })
            }
        }
    }
}

// === impl Settings ===

impl Settings {
    /// Whether there is anything to ask.
    pub(crate) fn is_needed(&self) -> bool {
        self.health.enabled || self.learn
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.health == other.health && self.learn == other.learn && is_same_server(&self.backend, &other.backend)
    }
}

/// Asks a backend for a page of its own, as requests to it are sent.
pub(crate) async fn ask(
    client: &HttpClient,
    backend: &Arc<Backend>,
    method: Method,
    path: &str,
) -> Result<Response<Bytes>, BoxError> {
    let mut request = Request::builder().method(method).uri(backend.join(path)?);
    if let Some(headers) = request.headers_mut() {
        headers.extend(backend.headers.clone());
    }
    // Its connections may need settings that only it has: whoever asks must know which backend this is.
    client.send(request.extension(backend.clone()).body(Bytes::new())?).await
}

/// Whether both are asked in the same way.
pub(crate) fn is_same_server(a: &Backend, b: &Backend) -> bool {
    a.url == b.url
        && a.headers == b.headers
        && a.connect_timeout == b.connect_timeout
        && a.max_idle_conns == b.max_idle_conns
        && a.http2 == b.http2
        && a.ca == b.ca
}

// === impl Task ===

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Problem ===

impl Problem {
    fn answered(path: &str, status: StatusCode) -> Self {
        Self { refused: false, text: format!("{path} was answered with {status}") }
    }

    fn failed(path: &str, error: &BoxError) -> Self {
        Self { refused: Failure::of(error).is_refusal(), text: format!("{path} was not answered: {error}") }
    }
}
