//! What checks find.

use tokio::time::Instant;

use super::{Cause, Change, Check, Credentials, Health, State};

// === impl Health ===

impl Health {
    /// A check begins.
    pub(crate) fn begin_check(&self) -> Check {
        Check { era: self.era, credentials: self.credentials.doubted || self.out() == Some(Cause::Credentials) }
    }

    /// The check was good.
    pub(crate) fn check_passed(&mut self, check: Check, now: Instant) -> Option<Change> {
        if check.era != self.era {
            return None;
        }
        if check.credentials {
            self.credentials = Credentials { doubted: false, checked: Some(now) };
        }
        let change = self.passed(now);
        if self.credentials.doubted {
            // The doubt is newer than the check.
            self.next_check = now;
        }
        change
    }

    fn passed(&mut self, now: Instant) -> Option<Change> {
        let needed = match self.state {
            State::Unknown => 1,
            State::Up => {
                self.checks = 0;
                self.next_check = now + self.rules.next_check();
                return None;
            }
            // Its health page said nothing while requests failed, so it says nothing now.
            State::Out { cause, .. } if cause.is_ejection() => {
                self.checks = 0;
                self.next_check = now + self.rules.next_check();
                return None;
            }
            // A backend that was flapping under its checks must show some steadiness; one that a request found broken
            // has proved what was asked by answering.
            State::Out { cause: Cause::Checks, .. } => self.rules.healthy_threshold,
            State::Out { .. } => 1,
        };
        self.checks += 1;
        if self.checks < needed {
            self.next_check = now + self.rules.recheck(Cause::Checks, 0);
            return None;
        }
        self.next_check = now + self.rules.next_check();
        self.up(now)
    }

    /// The check was not; `refused` where there was no connection, so that a request would find none either.
    pub(crate) fn check_failed(&mut self, check: Check, refused: bool, now: Instant) -> Option<Change> {
        if check.era != self.era {
            return None;
        }
        match &mut self.state {
            // Never yet heard of, and not good at the first sight.
            State::Unknown => self.take_out(if refused { Cause::Refused } else { Cause::Checks }, now),
            // There is something to connect to by now, which is loading perhaps: better than nothing. Or no more.
            State::Out { cause: Cause::Refused, .. } if !refused => self.take_out(Cause::Checks, now),
            State::Out { cause: Cause::Checks, .. } if refused => self.take_out(Cause::Refused, now),
            State::Out { cause, rechecks, .. } if !cause.is_ejection() => {
                self.checks = 0;
                *rechecks = rechecks.saturating_add(1);
                let (cause, rechecks) = (*cause, *rechecks);
                self.next_check = now + self.rules.recheck(cause, rechecks);
                None
            }
            State::Up | State::Out { .. } => {
                self.checks += 1;
                self.next_check = now + self.rules.next_check();
                match refused {
                    true => self.take_out(Cause::Refused, now),
                    false if self.checks >= self.rules.unhealthy_threshold => self.take_out(Cause::Checks, now),
                    false => None,
                }
            }
        }
    }
}
