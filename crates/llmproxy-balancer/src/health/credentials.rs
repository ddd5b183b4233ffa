//! Whether it takes the credentials that the proxy has for it.
//!
//! A request that is refused with them does not show that it doesn't: some servers answer so to what they don't want to speak
//! about, or to a model that the key is not for. So whoever sends such requests must not take the backend from everybody, and
//! a check with the same credentials decides, if nobody's request has worked lately. Until it does, and where it says nothing
//! against them, it is a failed request like a 500.

use std::time::Duration;

use tokio::time::Instant;

use super::{Cause, Change, Check, Fault, Health, Pass};

/// Who has answered well within this time takes the credentials, whatever else it answers.
const LATELY: Duration = Duration::from_secs(60);
/// However many requests are refused, they cause no more than one check in this time.
const DOUBT: Duration = Duration::from_secs(10);

/// What is to be found out about them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credentials {
    /// Whether the next check is to find out whether they are taken.
    pub(super) doubted: bool,
    /// When one last did.
    pub(super) checked: Option<Instant>,
}

// === impl Health ===

impl Health {
    /// The backend refused a request that had our credentials.
    pub(crate) fn misconfigured(&mut self, pass: Pass, now: Instant) -> Option<Change> {
        if pass.era != self.era {
            return None;
        }
        if self.rules.checked {
            let is_old = |checked: Instant| now.saturating_duration_since(checked) >= DOUBT;
            if self.credentials.checked.is_none_or(is_old) {
                self.credentials.doubted = true;
                self.next_check = now;
            }
        } else if !self.has_worked_lately(now) && (pass.is_probe || self.out() != Some(Cause::Credentials)) {
            // There will be no check.
            return self.take_out(Cause::Credentials, now);
        }
        self.failed(pass, Fault::Perhaps, None, now)
    }

    /// Whether a check is due at once that shows whether it takes the credentials.
    pub(crate) fn doubts_credentials(&self) -> bool {
        self.credentials.doubted
    }

    /// A check that was good otherwise has shown that it does not.
    pub(crate) fn credentials_refused(&mut self, check: Check, now: Instant) -> Option<Change> {
        if check.era != self.era {
            return None;
        }
        self.credentials = Credentials { doubted: false, checked: Some(now) };
        match self.out() {
            Some(Cause::Credentials) => self.check_failed(check, false, now),
            // A key may be good for all but the list of models.
            _ if self.has_worked_lately(now) => self.check_passed(check, now),
            _ => self.take_out(Cause::Credentials, now),
        }
    }

    fn has_worked_lately(&self, now: Instant) -> bool {
        self.last_worked.is_some_and(|worked| now.saturating_duration_since(worked) < LATELY)
    }
}
