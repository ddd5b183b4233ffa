//! One attempt, watched from the pick to the last byte: what it says about its backend.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, header, response::Parts};
use llmproxy_core::{
    BoxError, RequestBody,
    body::{Ending, Observe, Observed},
    cause_ref,
};
use tokio::time::Instant;

use crate::{
    health::{Fault, Pass},
    node::{InFlight, Node},
    opening::{Beginning, Opening},
    plan::Plan,
    retry::{Failure, retry_after},
};

/// Counts an attempt as in flight until its answer has ended, and tells the backend's health and latency what it saw.
///
/// A client that leaves says nothing against a backend, nor does an answer that blames the request (4xx).
#[derive(Debug)]
pub struct Flight {
    in_flight: InFlight,
    /// Which policy chose it, until that has heard what came of it: the plan and its stage.
    chosen: Option<Arc<Plan>>,
    /// Whose policy that is: the stage of the plan.
    stage: u16,
    began: Instant,
    status: Option<StatusCode>,
    has_bytes: bool,
    /// Whether it comes piece by piece; else it comes as it pleases.
    is_stream: bool,
    /// How it goes, where it does not begin with an answer.
    error: Option<Opening>,
    /// Of a stream that has begun with nothing that says how it goes. Boxed, as there hardly ever is one, and what there is
    /// for each open stream is kept small; so are the fields beside it.
    beginning: Option<Box<Beginning>>,
    /// How many pieces of a stream have come.
    pieces: u32,
    /// Whether the failure is on the books; nothing good follows then.
    failed: bool,
    /// How the request's own body does, where it passes through.
    upload: Upload,
}

/// A request's body that passes through, as far as it says something about its backend.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    /// Whether it broke on the client's side.
    broke: bool,
    /// Whether there is more of it to come.
    under_way: bool,
    /// When its last piece passed: the time until then was the client's.
    last: Option<Instant>,
}

// === impl Flight ===

impl Flight {
    pub(crate) fn new(in_flight: InFlight, upload: Upload) -> Self {
        Self {
            in_flight,
            chosen: None,
            stage: 0,
            began: Instant::now(),
            status: None,
            has_bytes: false,
            is_stream: false,
            error: None,
            beginning: None,
            pieces: 0,
            failed: false,
            upload,
        }
    }

    /// The policy of this stage of `plan` is to hear what comes of it.
    pub(crate) fn is_chosen_by(&mut self, plan: &Arc<Plan>, stage: usize) {
        // A plan has no more stages than the configuration has models and backends in a row.
        if let Ok(stage) = u16::try_from(stage) {
            (self.chosen, self.stage) = (Some(plan.clone()), stage);
        }
    }

    /// Tells the policy that the backend has done nothing for this request.
    pub(crate) fn came_to_nothing(&mut self) {
        if let Some(plan) = self.chosen.take() {
            let chooser = plan.chooser(&plan.stages[usize::from(self.stage)]);
            chooser.policy.failed(&chooser.work, self.node().index);
        }
    }

    fn came_to_something(&mut self) {
        if let Some(plan) = self.chosen.take() {
            let chooser = plan.chooser(&plan.stages[usize::from(self.stage)]);
            chooser.policy.began(&chooser.work, self.node().index);
        }
    }

    /// How the attempt failed by `error`.
    pub(crate) fn failure(&self, error: &BoxError) -> Failure {
        if self.upload.lock().broke { Failure::NotTheBackend } else { Failure::of(error) }
    }

    /// The backend refused our credentials.
    pub(crate) fn credentials_refused(&mut self, status: StatusCode) {
        self.failed = true;
        self.node().penalized();
        let problem = format!("{}, though it had the credentials of its `headers`", answered_with(status));
        self.node().misconfigured(self.pass(), &problem);
    }

    /// Whether the backend broke the connection off in the middle of the request. A server that refuses an upload answers
    /// and closes; what it has not read makes that a reset, which destroys the answer if it meets our next piece on its way.
    /// So it may be a refusal or a crash, and of a crash there are better witnesses: whoever connects next.
    fn may_have_refused(&self, error: &BoxError) -> bool {
        let kind = cause_ref::<io::Error>(&**error).map(io::Error::kind);
        self.status.is_none()
            && self.upload.lock().under_way
            && matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
    }

    /// How long the backend has had all of the request that it was sent.
    fn waited(&self) -> Duration {
        self.upload.lock().last.unwrap_or(self.began).elapsed()
    }

    pub(crate) fn node(&self) -> &Node {
        self.in_flight.node()
    }

    /// Whether it was sent there although the backend was out.
    pub(crate) fn is_doubted(&self) -> bool {
        self.in_flight.is_doubted()
    }

    /// Whether its answer comes as a stream.
    pub(crate) fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// The answer is a failure, and another attempt is to follow: that is all that the backend has done.
    pub(crate) fn leave(&mut self) {
        self.in_flight.leave();
    }

    fn pass(&self) -> Pass {
        self.in_flight.pass()
    }

    /// The answer has begun.
    fn begins(&mut self) {
        self.has_bytes = true;
        // An answer that blames the request comes quickly and says nothing of the work.
        if self.status.is_some_and(|status| status.is_success()) {
            self.came_to_something();
            // Before the measurement, as whatever was measured of a backend that was out is forgotten when it is back.
            self.node().worked(self.pass());
            self.node().measured(self.waited());
        }
    }

    /// The stream began with an error, and has ended however it did; what of that is known better was said.
    fn began_with_an_error(&mut self) {
        self.came_to_nothing();
        self.node().penalized();
        self.node().failed(self.pass(), Fault::Perhaps, None, "a stream began with an error");
    }
}

impl Observe for Flight {
    fn head(&mut self, head: &Parts) {
        let status = head.status;
        self.status = Some(status);
        self.is_stream = status.is_success() && is_stream(head);
        // It has enough to do, or is loading: neither is a failure, and both pass.
        let is_pressure = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if is_pressure {
            self.node().pressed(self.pass(), retry_after(&head.headers), &answered_with(status));
        } else if !status.is_server_error() {
            self.node().was_reached(self.pass());
        }
        if !status.is_server_error() {
            if !status.is_success() {
                self.node().answered();
            }
            return;
        }
        self.failed = true;
        self.node().penalized();
        let fault = match status {
            // What it does not offer, it does not offer to anyone.
            StatusCode::NOT_IMPLEMENTED | StatusCode::SERVICE_UNAVAILABLE => return,
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Fault::Backend,
            _ => Fault::Perhaps,
        };
        self.node().failed(self.pass(), fault, retry_after(&head.headers), &answered_with(status));
    }

    fn chunk(&mut self, piece: &Bytes) {
        self.pieces = self.pieces.saturating_add(1);
        if self.has_bytes || self.error.is_some() {
            return;
        }
        self.in_flight.begun();
        if !self.is_stream {
            return self.begins();
        }
        let mut beginning = self.beginning.take().map_or_else(Beginning::default, |beginning| *beginning);
        match beginning.read(piece) {
            Some(Opening::Answer) => self.begins(),
            // Comments, or the start of a line: servers send these before there is anything to send.
            None => self.beginning = Some(Box::new(beginning)),
            error => self.error = error,
        }
    }

    fn end(mut self, ending: Ending<'_>) {
        if matches!(ending, Ending::Failed(_)) {
            self.came_to_nothing();
        }
        // Its last line needs no end.
        match self.beginning.take().filter(|_| matches!(ending, Ending::Complete)).and_then(|begun| begun.finish()) {
            Some(Opening::Answer) => self.begins(),
            Some(error) => self.error = Some(error),
            None => {}
        }
        if self.failed {
            return;
        }
        match ending {
            Ending::Complete | Ending::Dropped if self.error == Some(Opening::Error) => self.began_with_an_error(),
            Ending::Complete | Ending::Dropped if self.error.is_some() => {
                self.node().answered();
                self.node().finished(self.pass(), true);
            }
            Ending::Complete => {
                let blames = self.status.is_some_and(|status| status.is_client_error());
                if !self.has_bytes {
                    self.node().answered();
                    if !blames {
                        self.node().worked(self.pass());
                    }
                }
                self.node().finished(self.pass(), blames);
                if self.is_stream {
                    self.in_flight.came_to(self.pieces.into());
                }
            }
            Ending::Failed(error) => {
                let failure = self.failure(error);
                match failure {
                    Failure::NotTheBackend => return,
                    // Of a session nobody can say whose doing its end was: a client that talks nonsense is thrown out.
                    _ if self.status == Some(StatusCode::SWITCHING_PROTOCOLS) => return,
                    Failure::Reset if self.may_have_refused(error) => return,
                    _ if failure.is_refusal() => self.node().refused(self.pass()),
                    _ => {
                        let has_worked = self.has_bytes && self.status.is_some_and(|status| status.is_success());
                        let fault = if has_worked { Fault::Midway } else { Fault::Backend };
                        self.node().failed(self.pass(), fault, None, &error.to_string());
                    }
                }
                self.node().penalized();
            }
            Ending::Dropped => {
                if !self.has_bytes && self.status.is_none_or(|status| status.is_success()) {
                    self.node().given_up(self.waited());
                }
            }
        }
    }
}

/// Whether this is the head of an answer that comes token by token.
fn is_stream(head: &Parts) -> bool {
    let content_type = head.headers.get(header::CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let is_of =
        |name: &str| content_type.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()));
    is_of("text/event-stream") || is_of("application/x-ndjson")
}

fn answered_with(status: StatusCode) -> String {
    format!("a request was answered with {status}")
}

// === impl Upload ===

impl Upload {
    /// `body`, watched where it passes through.
    pub(crate) fn watch(&self, body: RequestBody) -> RequestBody {
        body.map_stream(|stream| {
            self.lock().under_way = true;
            Observed::new(stream, self.clone())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observe for Upload {
    fn chunk(&mut self, _: &Bytes) {
        self.lock().last = Some(Instant::now());
    }

    fn end(self, ending: Ending<'_>) {
        let mut progress = self.lock();
        match ending {
            Ending::Complete => progress.under_way = false,
            Ending::Failed(_) => progress.broke = true,
            Ending::Dropped => {}
        }
    }
}
