//! What a backend's health is told, and what it answers.

use std::time::Duration;

use super::Cause;

/// The backend came back, or went, or has enough to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is up.
    Up {
        /// Whether it was out before.
        is_back: bool,
        /// Whether it may be another process than before.
        is_new: bool,
    },
    Out(Cause),
    /// It was out and is still, for this time at least: its probe has failed.
    StillOut(Duration),
    /// It is to be passed over for this time while another one is not.
    Pressured(Duration),
}

/// A check under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(super) era: u64,
    /// Whether it must also show that the proxy's credentials are good.
    pub(crate) credentials: bool,
}

/// A request that was sent to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(super) era: u64,
    /// Whether it is the one that is to show that the backend works again.
    pub(crate) is_probe: bool,
    /// Whether it was sent there although the backend was out.
    pub(crate) is_doubted: bool,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The backend did not answer, or said of itself that it can't: no request does that on its own.
    Backend,
    /// The same, after the answer had begun and was said to work.
    Midway,
    /// A status that may be the request's own doing: some servers answer what they can't parse with 500. So it counts by its
    /// share of all requests alone.
    Perhaps,
}

/// Whether a request may be sent to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Open,
    /// One, to find out whether it works again.
    Probe,
    Closed,
}

/// What whoever picks a backend sees of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) admission: Admission,
    /// Whether a probe has been due for so long that any request will do.
    pub(crate) is_overdue: bool,
    /// Whether it is out for something that may be a mistake.
    pub(crate) is_doubtful: bool,
    pub(crate) is_pressured: bool,
    /// The part of its weight that counts.
    pub(crate) share: f64,
}
