//! Asks one backend, again and again, for its load.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response};
use llmproxy_core::{Backend, BoxError, HttpClient};
use tokio::time::{Instant, sleep, timeout};

use super::Page;
use crate::{
    check::{Task, ask, is_same_server},
    config::{BackendConfig, LoadSignalsConfig},
    health::BackendState,
    node::Node,
};

/// Where servers tell it; the second is llama-server's, which has the first only when it is told to.
const PLACES: [&str; 2] = ["/metrics", "/slots"];
/// The longest wait before a backend that tells nothing is asked again.
const LONGEST: Duration = Duration::from_secs(60);

/// Asks one backend.
#[derive(Debug)]
pub(crate) struct Scraper {
    node: Arc<Node>,
    client: HttpClient,
    settings: Settings,
    /// The places, the one that has told something first.
    places: Vec<String>,
}

/// What asking depends on: while it stays the same over a reload, so does what asks.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    backend: Arc<Backend>,
    path: Option<String>,
    interval: Duration,
    timeout: Duration,
}

/// What asking once comes to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Told,
    /// It did not answer.
    Failed,
    /// It answered, and tells nothing.
    Nothing,
}

// === impl Scraper ===

impl Scraper {
    pub(crate) fn new(node: Arc<Node>, client: HttpClient, settings: Settings) -> Self {
        let places = match &settings.path {
            Some(path) => vec![path.clone()],
            None => PLACES.map(str::to_owned).to_vec(),
        };
        Self { node, client, settings, places }
    }

    /// Asks at once and then after each interval. A backend that tells nothing is asked less and less often, until it has
    /// been out: it may be another server then.
    pub(crate) fn spawn(mut self) -> Task {
        Task(tokio::spawn(async move {
            let interval = self.settings.interval;
            let mut wait = interval;
            loop {
                // One that is out has other troubles, and is asked by its checks.
                if self.node.state() != BackendState::Down {
                    wait = match self.scrape().await {
                        Outcome::Told | Outcome::Failed => interval,
                        Outcome::Nothing => wait.saturating_mul(2).min(LONGEST.max(interval)),
                    };
                }
                let signals = self.node.signals();
                signals.show(&self.node.name(), Instant::now());
                tokio::select! {
                    () = sleep(wait) => {}
                    () = signals.restarted.notified() => wait = interval,
                }
            }
        }))
    }

    async fn scrape(&mut self) -> Outcome {
        let era = self.node.signals().begin();
        for at in 0..self.places.len() {
            match self.get(&self.places[at]).await {
                Ok(answer) if answer.status().is_success() => {
                    if let Some(page) = Page::read(answer.body()) {
                        let (in_flight, now) = (self.node.in_flight(), Instant::now());
                        self.node.signals().said(era, page, in_flight, self.settings.interval, now);
                        self.places[..=at].rotate_right(1);
                        return Outcome::Told;
                    }
                }
                // Whatever it says instead: llama-server, say, has a 501 where it was not told to have the page.
                Ok(_) => {}
                Err(error) => {
                    let (backend, path) = (&self.settings.backend.name, &self.places[at]);
                    tracing::debug!(%backend, path, %error, "the backend did not tell its load");
                    // The other places are at the same server.
                    return Outcome::Failed;
                }
            }
        }
        Outcome::Nothing
    }

    async fn get(&self, path: &str) -> Result<Response<Bytes>, BoxError> {
        timeout(self.settings.timeout, ask(&self.client, &self.settings.backend, Method::GET, path)).await?
    }
}

// === impl Settings ===

impl Settings {
    pub(crate) fn new(backend: Arc<Backend>, config: &BackendConfig, signals: &LoadSignalsConfig) -> Self {
        let path = config.metrics_path.clone();
        Self { backend, path, interval: signals.interval, timeout: signals.timeout }
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
            && self.interval == other.interval
            && self.timeout == other.timeout
            && is_same_server(&self.backend, &other.backend)
    }
}
