//! Backends that are found rather than written down: each source is asked again and again, by a task of its own, and what it
//! told last stays until it tells something else.
//!
//! A source that can't be asked has told nothing: what it told before stays, so that no outage of a registry is one of the
//! backends.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use llmproxy_core::{Backend, HttpClient};
use metrics::{counter, gauge};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    balancer::Balancer,
    config::{BackendConfig, DiscoveryConfig, DiscoveryMode},
    metrics::{DISCOVERED, DISCOVERY_FAILURES},
};

mod dns;
mod entry;
mod lenient;
mod source;

#[cfg(test)]
mod tests;

use source::{Answer, Source};

/// How long new sources are waited for before the configuration that names them is in force.
const FIRST_ANSWERS: Duration = Duration::from_secs(3);
/// The wait before a source is asked again that could not be, or seems to have nothing: doubled each time, up to its interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The sources of one configuration, each with what it told last. Those of the next one that are the same go on.
///
/// [`Balancer::discover`] makes it; dropped, those are asked no more that nobody else has.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    mode: DiscoveryMode,
    all: Vec<Arc<Running>>,
}

/// A source that is being asked.
#[derive(Debug)]
struct Running {
    source: Source,
    told: watch::Receiver<Told>,
    /// None where there is nothing to ask.
    task: Option<JoinHandle<()>>,
}

/// What is known of what a source has.
#[derive(Clone, Debug, Default)]
struct Told {
    /// Whether it was asked at all, whatever came of it.
    asked: bool,
    backends: Arc<[BackendConfig]>,
}

/// Asks one source for as long as it runs.
struct Asker {
    source: Source,
    client: HttpClient,
    told: watch::Sender<Told>,
    balancer: Weak<Balancer>,
    /// What the source has, if it is a file, as it was last seen.
    seen: Vec<u8>,
    /// Failures since the last answer.
    failures: u32,
    /// Since when it seems to have nothing, and how often it said so.
    bare: Option<(Instant, u32)>,
    /// What was said of the last answer, so that it is not said of each.
    problems: Vec<String>,
}

// === impl Sources ===

impl Sources {
    /// The sources of `config`: of `old` those that are the same, and new ones, which are asked from now on.
    pub(crate) fn start(config: &DiscoveryConfig, old: &Self, client: &HttpClient, balancer: &Weak<Balancer>) -> Self {
        let all = Source::all(config).into_iter().map(|source| {
            let known = old.all.iter().find(|running| running.source.label == source.label);
            if let Some(same) = known.filter(|running| running.source == source) {
                return same.clone();
            }
            // One that is asked otherwise has what it had, until it answers.
            let backends = known.map(|running| running.told.borrow().backends.clone()).unwrap_or_default();
            Arc::new(Running::start(source, backends, client.clone(), balancer.clone()))
        });
        Self { mode: config.mode, all: all.collect() }
    }

    /// Waits until each was asked once, but not for long.
    pub(crate) async fn asked(&self) {
        let asked = self.all.iter().map(|running| {
            let mut told = running.told.clone();
            async move {
                let _ = told.wait_for(|told| told.asked).await;
            }
        });
        let _ = timeout(FIRST_ANSWERS, join_all(asked)).await;
    }

    /// Whether there are none.
    pub(crate) fn is_none(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one has not been asked yet, so that there may soon be backends that are not known now.
    pub(crate) fn is_waiting(&self) -> bool {
        self.all.iter().any(|running| !running.told.borrow().asked)
    }

    /// These, which the configuration has, and those that were found; of found ones with a name or a URL that is taken, none.
    pub(crate) fn join(&self, configured: &[BackendConfig]) -> Vec<BackendConfig> {
        let mut joined = configured.to_vec();
        let mut urls: HashSet<String> = HashSet::new();
        let mut names: HashSet<String> = HashSet::new();
        for backend in configured {
            let (url, name) = identity(backend);
            urls.insert(url);
            names.insert(name);
        }
        for running in &self.all {
            let told = running.told.borrow().backends.clone();
            for backend in told.iter() {
                let (url, name) = identity(backend);
                let label = &running.source.label;
                if urls.contains(&url) {
                    tracing::debug!(source = label, url, "a backend was found that is there already");
                } else if names.contains(&name) {
                    tracing::warn!(source = label, url, name, "a backend is left out: another one has its name");
                } else {
                    urls.insert(url);
                    names.insert(name);
                    joined.push(backend.clone());
                }
            }
            if self.mode == DiscoveryMode::First && !told.is_empty() {
                break;
            }
        }
        joined
    }

    /// Shows how many backends each has, and of those of `old` that are gone none.
    pub(crate) fn show(&self, old: &Self) {
        for running in &old.all {
            running.source.show(0);
        }
        for running in &self.all {
            running.source.show(running.told.borrow().backends.len());
        }
    }
}

/// A backend's URL and name, as they will be.
fn identity(config: &BackendConfig) -> (String, String) {
    match Backend::new(&config.url) {
        Ok(backend) => {
            let name = config.name.clone().unwrap_or_else(|| backend.name.to_string());
            (backend.url.to_string(), name)
        }
        Err(_) => (config.url.clone(), config.name.clone().unwrap_or_else(|| config.url.clone())),
    }
}

// === impl Source ===

impl Source {
    fn show(&self, backends: usize) {
        gauge!(DISCOVERED, "source" => self.label.clone()).set(backends as f64);
    }
}

// === impl Running ===

impl Running {
    fn start(source: Source, backends: Arc<[BackendConfig]>, client: HttpClient, balancer: Weak<Balancer>) -> Self {
        if let Some(fixed) = source.fixed() {
            let (_, told) = watch::channel(Told { asked: true, backends: fixed.into() });
            return Self { source, told, task: None };
        }
        let (sender, told) = watch::channel(Told { asked: false, backends });
        let asker = Asker::new(source.clone(), client, sender, balancer);
        Self { source, told, task: Some(tokio::spawn(asker.run())) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

// === impl Asker ===

impl Asker {
    fn new(source: Source, client: HttpClient, told: watch::Sender<Told>, balancer: Weak<Balancer>) -> Self {
        Self { source, client, told, balancer, seen: Vec::new(), failures: 0, bare: None, problems: Vec::new() }
    }

    async fn run(mut self) {
        loop {
            let answer = self.source.ask(&self.client, &mut self.seen).await;
            let is_answer = answer.is_ok();
            let (wait, is_news) = match answer {
                Ok(answer) => self.answered(answer),
                Err(error) => self.failed(&error.to_string()),
            };
            if is_news && let Some(balancer) = self.balancer.upgrade() {
                balancer.rediscovered();
            }
            if is_news && is_answer {
                let (label, told) = (&self.source.label, self.told.borrow());
                tracing::info!(source = label, backends = ?names(&told.backends), "the backends of a source are known");
            }
            sleep(wait).await;
        }
    }

    /// How long to wait before it is asked again, and whether it told anything new.
    fn answered(&mut self, answer: Answer) -> (Duration, bool) {
        let label = &self.source.label;
        let mut wait = self.source.interval(&answer);
        if self.failures > 0 {
            tracing::info!(source = label, backends = answer.backends.len(), "the source of backends answers again");
            self.failures = 0;
        }
        if self.problems != answer.problems {
            for problem in &answer.problems {
                tracing::warn!(source = label, problem, "a backend is left out");
            }
            self.problems = answer.problems;
        }
        if answer.is_bare {
            let (since, times) = self.bare.unwrap_or_else(|| (Instant::now(), 0));
            self.bare = Some((since, times.saturating_add(1)));
            let (kept, left) = (self.told.borrow().backends.len(), wait.saturating_sub(since.elapsed()));
            wait = wait.min(backoff(times));
            if kept > 0 && !left.is_zero() {
                if times == 0 {
                    let message = "a source of backends seems to have none; what it told last stays for one interval";
                    tracing::warn!(source = label, kept, message);
                }
                let is_news = self.told.send_if_modified(|told| !mem::replace(&mut told.asked, true));
                return (wait.min(left), is_news);
            }
        } else {
            self.bare = None;
        }
        self.source.show(answer.backends.len());
        let is_news = self.told.send_if_modified(|told| {
            let is_news = !told.asked || *told.backends != *answer.backends;
            if is_news {
                *told = Told { asked: true, backends: answer.backends.into() };
            }
            is_news
        });
        (wait, is_news)
    }

    /// The same. That there is no answer is news where it was waited for.
    fn failed(&mut self, error: &str) -> (Duration, bool) {
        let label = &self.source.label;
        let kept = self.told.borrow().backends.len();
        counter!(DISCOVERY_FAILURES, "source" => label.clone()).increment(1);
        if self.failures == 0 {
            let message = "a source of backends can't be asked; what it told last stays until it answers";
            tracing::warn!(source = label, error, kept, message);
        } else {
            tracing::debug!(source = label, error, kept, "a source of backends can't be asked");
        }
        let wait = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        let is_news = self.told.send_if_modified(|told| !mem::replace(&mut told.asked, true));
        (wait.min(self.source.interval(&Answer::default())), is_news)
    }
}

/// The wait after the first of several answers that will not do, and after those that follow.
fn backoff(before: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2_u32.saturating_pow(before))
}

fn names(backends: &[BackendConfig]) -> Vec<&str> {
    backends.iter().map(|backend| backend.name.as_deref().unwrap_or(&backend.url)).collect()
}
