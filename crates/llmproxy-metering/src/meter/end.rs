//! How an exchange ended, and that its record is handed on.

use std::sync::Arc;

use llmproxy_core::{End, Ended, Endpoint, Work, body::Ending, cause_ref};

use super::{Metering, record::Outcome, settle};
use crate::InspectError;

// === impl Metering ===

impl Metering {
    /// What the exchange would come to if this were all.
    pub(super) fn summary(&self, end: End) -> Outcome<'_> {
        let (tally, bytes) = self.so_far();
        Outcome {
            exchange: &self.exchange,
            method: &self.method,
            path: &self.path,
            head: self.head.as_ref(),
            tally,
            learned: self.rules.counters.as_ref().map(|counters| &counters.learned),
            endpoint: self.endpoint(),
            bytes,
            longest_gap: self.longest_gap,
            end,
            delivered: self.left.as_ref().map(|left| left.delivered),
            error: None,
            refused: None,
        }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.exchange.call().map_or_else(|| Endpoint::of(&self.path), |call| call.endpoint)
    }

    /// What went wrong, if an answer that should have been a good one says so itself.
    pub(super) fn said_error(&self) -> Option<&Arc<str>> {
        let head = self.head.as_ref()?;
        // Elsewhere a member of that name may mean anything.
        let is_told = head.counted || self.endpoint().work() != Work::Other;
        self.so_far().0.error.as_ref().filter(|_| is_told && head.status.is_success())
    }

    /// How the exchange ended; `None` where nothing says so and no backend was asked.
    pub(super) fn outcome(&self, ending: Ending<'_>) -> Option<End> {
        let failed = self.said_error().is_some();
        let refused = self.head.as_ref().is_some_and(|head| head.status.is_server_error());
        match self.true_ending(ending) {
            Ending::Failed(error) if self.exchange.is_unasked() => cause_ref::<Ended>(&**error).map(Ended::end),
            Ending::Failed(error) => Some(Ended::of(&**error)),
            Ending::Complete if failed || refused => Some(End::BackendFailed),
            Ending::Complete => Some(End::Complete),
            Ending::Dropped if self.has_given_last() && !failed => Some(End::Complete),
            Ending::Dropped if self.exchange.is_panicked() => Some(End::ProxyFailed),
            Ending::Dropped if self.exchange.is_stopped() => Some(End::Shutdown),
            Ending::Dropped if failed => Some(End::BackendFailed),
            Ending::Dropped => Some(End::ClientGone),
        }
    }

    /// A body of which all has gone that was promised is complete: hyper drops it then, and does not ask whether it has ended.
    pub(super) fn true_ending<'a>(&self, ending: Ending<'a>) -> Ending<'a> {
        let has_given_all = || {
            let length = self.head.as_ref().and_then(|head| head.length);
            length == Some(self.bytes) && self.gate.is_none()
        };
        match ending {
            Ending::Dropped if has_given_all() => Ending::Complete,
            ending => ending,
        }
    }

    /// Makes the record and hands it on; says whether there is one.
    pub(super) fn tell(&mut self, ending: Ending<'_>) -> bool {
        // The end of whoever left was told when it did.
        let end = self.exchange.end().filter(|_| self.left.is_some()).or_else(|| {
            let end = self.outcome(ending)?;
            self.exchange.set_end(end);
            Some(end)
        });
        let sinks = self.exchange.take_sinks();
        let Some(end) = end.filter(|_| !self.exchange.is_unasked() && !sinks.is_empty()) else { return false };
        let error = match ending {
            Ending::Failed(error) => Some(error.to_string().into()),
            _ => self.said_error().cloned().or_else(|| {
                let status = self.head.as_ref()?.status;
                status.is_server_error().then(|| format!("the backend answered {status}").into())
            }),
        };
        let refused = match ending {
            Ending::Failed(error) => cause_ref::<InspectError>(&**error).map(InspectError::status),
            _ => None,
        };
        let outcome = Outcome { error, refused, ..self.summary(end) };
        let record = outcome.record();
        if let Some(counters) = &self.rules.counters {
            settle::learn(&counters.learned, &outcome, &record);
        }
        self.settle(record, sinks);
        true
    }

    /// Whether the client was given an event that nothing follows; what is held, it was not.
    fn has_given_last(&self) -> bool {
        self.so_far().0.terminal && !self.gate.as_ref().is_some_and(|gate| gate.has_last())
    }
}
