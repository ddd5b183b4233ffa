//! The body of an answer: its chunks as they are, under limits of time, with a visible end.

use std::{
    error::Error,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use llmproxy_core::{
    Api, ApiError, BoxError, End, Ended,
    body::{Ending, Out, Shape},
    cause_ref,
};
use tokio::time::Instant;

use crate::{SseError, metrics, place::Place, timer::Timer, upload::Upload};

/// What [`Sse`](crate::Sse) does to an answer's body; made by it. Chunks pass at once as they are. Only waiting counts
/// against a limit of time: a client that reads slowly is no silence of the backend.
#[derive(Debug)]
pub struct Stream {
    timer: Timer,
    wait: Wait,
    /// Since when the backend is waited for; `None` while whoever reads the answer has not asked for more. Only waiting
    /// counts against a limit: a client that reads slowly, or an answer that is kept while another backend is asked, is
    /// no silence of the backend.
    since: Option<Instant>,
    gap: Option<Duration>,
    /// Bounds the whole of an answer that is no stream.
    whole: Option<Allowance>,
    events: Option<Events>,
    /// What passes the other way meanwhile: a request's body that has not ended, or one half of a tunnel. It is no silence
    /// of the backend while the client is waited for.
    other: Option<Upload>,
}

// There is one for each open stream: it must not grow unnoticed.
const _: () = assert!(size_of::<Stream>() <= 320);

/// A limit of time, and how much of it is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    pub(crate) left: Duration,
    pub(crate) after: Duration,
}

/// What an event stream gets besides its bytes.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) api: Api,
    pub(crate) heartbeat: Option<Duration>,
    /// Whether an error event may be put in: not where the length was promised.
    pub(crate) is_open_ended: bool,
    /// Whether nothing is put in before the first byte.
    pub(crate) quiet_start: bool,
    place: Place,
    last_out: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    First(Option<Allowance>),
    Next,
    /// In a tunnel, for either side.
    Either,
    /// For nothing any more.
    Over,
}

/// What a deadline is for.
enum Due {
    Error(SseError),
    Heartbeat,
    /// The stream is complete and its backend does not say so.
    End,
}

// === impl Events ===

impl Events {
    pub(crate) fn new(api: Api, heartbeat: Option<Duration>, is_open_ended: bool, quiet_start: bool) -> Self {
        Self { api, heartbeat, is_open_ended, quiet_start, place: Place::default(), last_out: Instant::now() }
    }

    fn next_heartbeat(&self, started: bool) -> Option<Instant> {
        let after = self.heartbeat.filter(|_| started || !self.quiet_start)?;
        // In the middle of an event only its next chunk can change anything; after the last event nobody waits.
        (self.place.is_between_events() && !self.place.is_done()).then(|| self.last_out + after)
    }

    /// Whether all has come that is to come, and the end can be given without the backend: not where a length was promised.
    fn is_complete(&self) -> bool {
        self.is_open_ended && self.place.is_between_events() && self.place.is_done()
    }

    /// The error as an event, if there is room for one.
    fn error_event(&self, error: &BoxError, started: bool) -> Option<String> {
        if !self.is_open_ended
            || (self.quiet_start && !started)
            || !self.place.is_between_events()
            || self.place.is_done()
            || has_left(error)
        {
            return None;
        }
        Some(describe(error).event(self.api))
    }
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(
        timer: Timer,
        first: Option<Allowance>,
        gap: Option<Duration>,
        whole: Option<Allowance>,
        events: Option<Events>,
    ) -> Self {
        Self { timer, wait: Wait::First(first), since: None, gap, whole, events, other: None }
    }

    /// The answer is a tunnel, and nobody waits for a first byte of it: the client may be the first to speak.
    pub(crate) fn tunnel(timer: Timer, gap: Option<Duration>, other: Upload) -> Self {
        Self { timer, wait: Wait::Either, since: None, gap, whole: None, events: None, other: Some(other) }
    }

    /// The answer came before the end of `upload`, or at it.
    pub(crate) fn with_upload(mut self, upload: Option<Upload>) -> Self {
        self.other = upload;
        self
    }

    fn has_started(&self) -> bool {
        !matches!(self.wait, Wait::First(_))
    }

    /// The nearest deadline of a wait that began at `since`, and what it is for.
    fn next_due(&self, since: Instant) -> Option<(Instant, Due)> {
        let since = self.other.as_ref().map_or(since, |other| since.max(other.last()));
        let silence = match self.wait {
            Wait::First(first) => {
                first.map(|first| (since + first.left, Due::Error(SseError::FirstByte { after: first.after })))
            }
            Wait::Next if self.events.as_ref().is_some_and(Events::is_complete) => {
                self.gap.map(|after| (since + after, Due::End))
            }
            Wait::Next => self.gap.map(|after| (since + after, Due::Error(SseError::Gap { after }))),
            Wait::Either => self.gap.map(|after| (since + after, Due::Error(SseError::Idle { after }))),
            Wait::Over => None,
        };
        let whole = self.whole.map(|whole| (since + whole.left, Due::Error(SseError::Whole { after: whole.after })));
        let heartbeat = self
            .events
            .as_ref()
            .and_then(|events| events.next_heartbeat(self.has_started()))
            .map(|at| (at, Due::Heartbeat));
        // Of two at the same moment the first counts: no heartbeat is sent with an error.
        [silence, whole, heartbeat].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

impl Shape for Stream {
    fn chunk(&mut self, data: Bytes, out: &mut Out) {
        if data.is_empty() {
            return;
        }
        let now = Instant::now();
        if !matches!(self.wait, Wait::Either) {
            self.wait = Wait::Next;
        }
        if let Some(since) = self.since.take()
            && let Some(whole) = &mut self.whole
        {
            whole.left = whole.left.saturating_sub(now - since);
        }
        if let Some(events) = &mut self.events {
            events.place.push(&data);
            events.last_out = now;
        }
        out.push(data);
    }

    fn end(&mut self, ending: Ending<'_>, out: &mut Out) {
        let Ending::Failed(error) = ending else { return };
        if let Some(error) = cause_ref::<SseError>(&**error) {
            metrics::timeout(error.kind());
        }
        if let Some(events) = &self.events {
            let event = events.error_event(error, self.has_started());
            metrics::broken_stream(event.is_some());
            out.push(event.unwrap_or_default().into());
        }
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Poll<Result<(), BoxError>> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let Some((at, due)) = self.next_due(since) else { return Poll::Pending };
        ready!(self.timer.poll(at, cx));
        Poll::Ready(match due {
            Due::Error(error) => Err(error.ended()),
            Due::End => {
                self.wait = Wait::Over;
                Ok(())
            }
            Due::Heartbeat => {
                out.push(Bytes::from_static(b":\n\n"));
                if let Some(events) = &mut self.events {
                    events.last_out = Instant::now();
                }
                Ok(())
            }
        })
    }

    fn is_over(&self) -> bool {
        matches!(self.wait, Wait::Over) || self.events.as_ref().is_some_and(Events::is_complete)
    }

    fn changes_length(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.heartbeat.is_some())
    }
}

/// Whether nobody is there who would read about `error`. Where the request's body went past a limit the client is; where
/// that has a cause of its own, it is that the client's connection or stream broke.
fn has_left(error: &BoxError) -> bool {
    let ended = cause_ref::<Ended>(&**error).filter(|ended| ended.end() == End::ClientGone);
    ended.and_then(Error::source).is_some_and(|reason| reason.source().is_some())
}

/// What the client is told about a failure; nothing of where the backend is.
fn describe(error: &BoxError) -> ApiError {
    match (cause_ref::<SseError>(&**error), Ended::of(&**error)) {
        (Some(error), _) => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "backend_timeout", error.to_string()),
        (None, End::Timeout) => {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "backend_timeout", "the backend took too long")
        }
        (None, End::Shutdown) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the proxy was stopped before the end")
        }
        // Of the request's body, in words that are meant for the client.
        (None, End::ClientGone) => ApiError::new(StatusCode::BAD_REQUEST, "incomplete_request", error.to_string()),
        (None, End::Complete | End::BackendFailed | End::ProxyFailed | End::ProxyDied) => {
            ApiError::new(StatusCode::BAD_GATEWAY, "backend_error", "the backend failed in the middle of its answer")
        }
    }
}
