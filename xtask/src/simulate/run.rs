//! One run: a workload from one seed through the real balancer with one policy.
//!
//! Real is all between the client and the server: `Balancer`, `Pool`, the policies, `BalanceLayer` with its attempts, and
//! health with its checks. In the place of the upstream is a [`Process`]. Time is tokio's, paused, so that it jumps from
//! one event to the next; all is on one thread, and what the balancer draws by chance comes from the seed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use llmproxy_balancer::{BackendConfig, BalanceBody, BalanceLayer, Balancer, LoadBalance, RoutingConfig};
use llmproxy_core::{BoxBody, BoxError, Call, Endpoint, Exchange, RequestBody, Target};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::{
    oracle::{ASKED, By, Oracle},
    process::{self, Process},
    prompt::{self, Piece, mix},
    server::Job,
    workload::{Nature, Session, Workload},
};

const PATH: &str = "/v1/chat/completions";
/// What the first tenth of the time is for: caches fill, and latencies are measured.
const WARM_UP: f64 = 0.1;
/// Virtual time after which a run that has not ended never will.
const TOO_LONG: Duration = Duration::from_secs(24 * 3600);
/// A server that fails fast is to be known as one by now.
const KNOWN: usize = 10;

/// Who picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chooser {
    /// What `routing.load_balance` says.
    Configured(LoadBalance),
    Oracle(By),
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Seconds to the first token, of every request that has one.
    pub(crate) first: Vec<f64>,
    pub(crate) requests: usize,
    /// Requests that were not answered to their end.
    pub(crate) errors: usize,
    /// Tokens of prompts that were answered, and how many of them were in a cache.
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    /// Tokens of answers.
    pub(crate) answered: usize,
    /// Seconds in which they came.
    pub(crate) took: f64,
    /// Seconds of work of each server, but those that break for good.
    pub(crate) worked: Vec<f64>,
    /// Attempts that failed fast, and all, after the tenth failure; `None` where there is no server that fails so.
    pub(crate) to_failing: Option<(usize, usize)>,
}

/// One request.
struct Sample {
    sent: Duration,
    /// Seconds to the first token, and how much of the prompt was cached.
    first: Option<(f64, usize)>,
    prompt: usize,
    answer: usize,
    /// Whether the whole answer came, and when it did, or did not.
    is_whole: bool,
    ended: Duration,
}

/// What the clients of a run share.
struct Run<S> {
    proxy: S,
    began: Instant,
    samples: Mutex<Vec<Sample>>,
}

/// Lets the clients of `length` seconds come, and waits until all have gone.
///
/// # Errors
///
/// Where it does not end, by a mistake of ours.
pub(crate) fn run(workload: &Workload, chooser: Chooser, seed: u64, length: f64) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    fastrand::seed(mix(seed));
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let result = runtime.block_on(async { timeout(TOO_LONG, simulate(workload, chooser, seed, length)).await });
    result.map_err(|_| format!("{}: requests are still open after a day", workload.name))
}

async fn simulate(workload: &Workload, chooser: Chooser, seed: u64, length: f64) -> Outcome {
    let natures = workload.servers.iter().enumerate();
    let processes: Vec<_> = natures.map(|(at, nature)| Process::new(*nature, workload.spec_of(at))).collect();
    for process in &processes {
        tokio::spawn(process.clone().work());
        tokio::spawn(process.clone().fate(Duration::from_secs_f64(length)));
    }
    let failed_fast = Arc::new(Mutex::new(Vec::new()));
    let balancer = Balancer::new(process::checks(&processes));
    let run = Arc::new(Run {
        proxy: proxy(&balancer, &processes, workload.weights, chooser, &failed_fast),
        began: Instant::now(),
        samples: Mutex::default(),
    });
    balancer.check_now().await;
    let mut clients = JoinSet::new();
    for (number, session) in workload.sessions(seed, length).into_iter().enumerate() {
        clients.spawn(run.clone().client(number as u64, session));
    }
    while clients.join_next().await.is_some() {}
    let mut outcome = Outcome::of(&run.samples.lock().unwrap_or_else(PoisonError::into_inner), length * WARM_UP);
    let breaks = |nature: &Nature| matches!(nature, Nature::Failing { .. });
    let lasting = processes.iter().zip(workload.servers).filter(|(_, nature)| !breaks(nature));
    outcome.worked = lasting.map(|(process, _)| process.worked().as_secs_f64()).collect();
    if workload.servers.iter().any(breaks) {
        outcome.to_failing = Some(after_known(&failed_fast.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    outcome
}

/// The real thing over these. Of each attempt `failed_fast` gets whether it did.
fn proxy(
    balancer: &Balancer,
    processes: &[Arc<Process>],
    weights: &[u32],
    chooser: Chooser,
    failed_fast: &Arc<Mutex<Vec<bool>>>,
) -> impl Service<Request<RequestBody>, Response = Response<BalanceBody<BoxBody>>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let backend = |(index, weight): (usize, &u32)| BackendConfig {
        weight: *weight,
        models: vec!["m".to_owned()],
        ..BackendConfig::new(process::url(index))
    };
    let backends: Vec<BackendConfig> = weights.iter().enumerate().map(backend).collect();
    let mut routing = RoutingConfig::default();
    if let Chooser::Configured(strategy) = chooser {
        routing.load_balance = strategy;
    }
    let mut layer = BalanceLayer::new(balancer.apply(&backends, &routing, &Default::default(), &Default::default()));
    if let Chooser::Oracle(by) = chooser {
        layer = layer.with_policy(Arc::new(Oracle::new(processes.to_vec(), by)));
    }
    let (processes, failed_fast) = (processes.to_vec(), failed_fast.clone());
    layer.layer(service_fn(move |request: Request<RequestBody>| {
        let target = request.extensions().get::<Target>().and_then(|target| process::index(target.backend.url.host()?));
        let index = target.expect("the balancer picks one of these");
        let job = request.extensions().get::<Job>().expect("every client says what it asks for").clone();
        let process = processes[index].clone();
        failed_fast.lock().unwrap_or_else(PoisonError::into_inner).push(process.is_failing());
        async move { process.answer(job).await }
    }))
}

/// How many attempts failed fast, of how many, after the tenth of them.
fn after_known(failed_fast: &[bool]) -> (usize, usize) {
    let failures = failed_fast.iter().enumerate().filter(|(_, failed)| **failed);
    let Some((tenth, _)) = failures.clone().nth(KNOWN - 1) else { return (0, 0) };
    (failures.count() - KNOWN, failed_fast.len() - tenth - 1)
}

// === impl Chooser ===

impl Chooser {
    /// The one of this name: one of `routing.load_balance`, or an oracle.
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        match name {
            ORACLE_BY_CACHE => return Ok(Self::Oracle(By::Cache)),
            ORACLE_BY_WORK => return Ok(Self::Oracle(By::Work)),
            _ => {}
        }
        let strategy = serde_json::from_value(name.into()).map_err(|error| format!("no policy is that: {error}"))?;
        Ok(Self::Configured(strategy))
    }
}

/// The names of the oracles.
pub(crate) const ORACLE_BY_CACHE: &str = "oracle (cache)";
pub(crate) const ORACLE_BY_WORK: &str = "oracle (work)";

// === impl Run ===

impl<S, B> Run<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = BoxError> + Clone,
    B: http_body::Body<Data = Bytes, Error = BoxError> + Unpin,
{
    /// Asks all that a client asks. It goes on where an answer failed, as though it had come: the load stays the same.
    async fn client(self: Arc<Self>, number: u64, session: Session) {
        sleep_until(self.began + Duration::from_secs_f64(session.start)).await;
        let mut said: Vec<Piece> = session.system.into_iter().collect();
        for (at, turn) in session.turns.iter().enumerate() {
            let id = |side| mix(session.id ^ mix(2 * at as u64 + side));
            said.push(Piece { role: "user", id: id(0), tokens: turn.question });
            let body = prompt::body(&said);
            let prompt = said.iter().map(|piece| piece.tokens).sum();
            said.push(Piece { role: "assistant", id: id(1), tokens: turn.answer });
            // A client has fewer than a thousand turns.
            let ticket = number * 1000 + at as u64;
            let job = Job { ticket, hashes: prompt::hashes(&said).into(), prompt, answer: turn.answer };
            let sample = self.ask(job, body).await;
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            tokio::time::sleep(Duration::from_secs_f64(turn.pause)).await;
        }
    }

    async fn ask(&self, job: Job, body: Bytes) -> Sample {
        let began = Instant::now();
        let mut sample = Sample {
            sent: began - self.began,
            first: None,
            prompt: job.prompt,
            answer: job.answer,
            is_whole: false,
            ended: Duration::ZERO,
        };
        let asking = ASKED.scope(job.clone(), self.proxy.clone().oneshot(request(job, body)));
        if let Ok(mut response) = asking.await {
            sample.is_whole = response.status().is_success();
            while let Some(frame) = response.body_mut().frame().await {
                match frame.map(http_body::Frame::into_data) {
                    Ok(Ok(chunk)) if sample.is_whole && sample.first.is_none() => {
                        let cached = std::str::from_utf8(&chunk).ok().and_then(|text| text.parse().ok());
                        let cached = cached.expect("the first chunk says what was cached");
                        sample.first = Some((began.elapsed().as_secs_f64(), cached));
                    }
                    Ok(_) => {}
                    Err(_) => {
                        sample.is_whole = false;
                        break;
                    }
                }
            }
        }
        sample.ended = self.began.elapsed();
        sample
    }
}

/// What comes out of the layers around the balancer: the body, and the facts that they have found in it.
fn request(job: Job, body: Bytes) -> Request<RequestBody> {
    let exchange = Exchange::new();
    let mut call = Call::new(Endpoint::of(PATH));
    call.model = Some("m".into());
    call.stream = true;
    call.body_bytes = body.len() as u64;
    call.prompt_estimate = call.body_bytes / 4;
    call.prompt = prompt::found(&body);
    exchange.set_call(call);
    let mut request = Request::new(RequestBody::whole(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(PATH);
    request.extensions_mut().insert(exchange);
    request.extensions_mut().insert(job);
    request
}

// === impl Outcome ===

impl Outcome {
    /// Of those that were sent after the warm-up.
    fn of(samples: &[Sample], warm_up: f64) -> Self {
        let mut outcome = Self::default();
        for sample in samples.iter().filter(|sample| sample.sent.as_secs_f64() >= warm_up) {
            outcome.requests += 1;
            outcome.took = outcome.took.max(sample.ended.as_secs_f64() - warm_up);
            if let Some((first, cached)) = sample.first {
                outcome.first.push(first);
                outcome.prompt += sample.prompt;
                outcome.cached += cached;
            }
            if sample.is_whole {
                outcome.answered += sample.answer;
            } else {
                outcome.errors += 1;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
