//! One attempt, and what it comes to.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use llmproxy_core::{
    BoxError, Exchange, Target,
    body::{Ending, Observed, Observer},
};
use tokio::time::timeout;

use super::BalanceBody;
use crate::{
    config::Commit, error::BalanceError, flight::Flight, injection::Question, peek::Peeked, retry::Failure, view::View,
};

/// An answer that the client may get. The body is before its observer, so that what is further in ends first. Boxed where
/// it is kept: nearly every request's first answer is the client's, and its future should not be large for the others.
pub(super) struct Answer<B> {
    pub(super) response: Response<Peeked<B>>,
    pub(super) flight: Observer<Flight>,
    pub(super) target: Arc<Target>,
    /// The attempt's place in the exchange.
    pub(super) index: usize,
}

/// An attempt that is under way.
pub(super) struct Attempt {
    pub(super) index: usize,
    pub(super) target: Arc<Target>,
    pub(super) question: Question,
    pub(super) flight: Observer<Flight>,
}

/// What an attempt comes to.
pub(super) enum Outcome<B> {
    Answered(Answer<B>),
    /// Whether it can is known with its first byte.
    Undecided(Answer<B>),
    /// The backend blames the request, and what it does not like may be what we have put in. Its flight goes on until the
    /// same backend is asked again, so that nobody takes its place there.
    Refused(Question, Box<Observer<Flight>>),
    Failed {
        failure: Failure,
        /// What the client gets if nothing better follows: an answer that says that the backend can't, or the error.
        last: Result<Box<Answer<B>>, BoxError>,
    },
}

// === impl Attempt ===

impl Attempt {
    pub(super) fn failed<B>(self, exchange: &Exchange, error: BoxError) -> Outcome<B> {
        let Self { index, target, mut flight, .. } = self;
        let backend = &target.backend.name;
        let failure = flight.get_mut().map_or(Failure::Reset, |flight| flight.failure(&error));
        exchange.finish_attempt(index, Err(error.to_string().into()));
        flight.end(Ending::Failed(&error));
        if failure == Failure::NotTheBackend {
            return Outcome::Failed { failure, last: Err(error) };
        }
        tracing::warn!(%backend, %error, "an attempt failed");
        let error = BalanceError::Upstream { backend: backend.clone(), failure, source: error };
        Outcome::Failed { failure, last: Err(error.into()) }
    }
}

// === impl Answer ===

impl<B> Answer<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    pub(super) fn serve(self, exchange: &Exchange) -> Response<BalanceBody<B>> {
        let Self { response, flight, target, .. } = self;
        exchange.set_served(target);
        response.map(|body| Observed::with_observer(body, flight))
    }
}

/// What the head of an attempt's answer comes to, or its error.
pub(super) fn judge<B>(
    view: &View,
    result: Result<Response<B>, BoxError>,
    attempt: Attempt,
    exchange: &Exchange,
) -> Outcome<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let response = match result {
        Ok(response) => response,
        Err(error) => return attempt.failed(exchange, error),
    };
    let Attempt { index, target, question, mut flight } = attempt;
    let backend = &target.backend;
    exchange.finish_attempt(index, Ok(response.status()));
    let (head, body) = response.into_parts();
    flight.head(&head);
    let status = head.status;
    if question.may_be_why(status) {
        // The answer is let go: what the client is told, the next one decides.
        tracing::debug!(backend = %backend.name, %status, "asked once more, without stream_options.include_usage");
        return Outcome::Refused(question.withdrawn(), Box::new(flight));
    }
    if let Some(flight) = flight.get_mut() {
        if !status.is_success() {
            flight.came_to_nothing();
        }
        flight.node().question_answered(question, status);
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && backend.supplies_credentials() {
        tracing::error!(
            backend = %backend.name,
            %status,
            "the backend refuses the credentials that its headers in the configuration give it"
        );
        if let Some(flight) = flight.get_mut() {
            flight.credentials_refused(status);
        }
        let error = BalanceError::Misconfigured { backend: backend.name.clone() };
        return Outcome::Failed { failure: Failure::Credentials, last: Err(error.into()) };
    }
    let failure = Failure::Status(status);
    let (is_doubted, is_stream) =
        flight.get_mut().map_or((false, false), |flight| (flight.is_doubted(), flight.is_stream()));
    let is_wanted = view.retry.is_wanted(failure) || is_doubted && failure.is_the_backends();
    if is_wanted {
        tracing::warn!(backend = %backend.name, %status, "the backend could not answer");
    }
    let answer = Answer { response: Response::from_parts(head, Peeked::new(body)), flight, target, index };
    if is_wanted {
        return Outcome::Failed { failure, last: Ok(Box::new(answer)) };
    }
    if view.commit == Commit::FirstByte && is_stream {
        return Outcome::Undecided(answer);
    }
    Outcome::Answered(answer)
}

/// Waits for the first byte of an answer, no longer than `after`.
pub(super) async fn commit<B>(mut answer: Answer<B>, after: Duration, exchange: &Exchange) -> Outcome<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    // Not in time is no failure: the client gets the head and waits for the rest itself.
    match timeout(after, answer.response.body_mut().peek()).await {
        Ok(Err(error)) => {
            let Answer { flight, target, index, .. } = answer;
            Attempt { index, target, question: Question::NONE, flight }.failed(exchange, error)
        }
        _ => Outcome::Answered(answer),
    }
}
