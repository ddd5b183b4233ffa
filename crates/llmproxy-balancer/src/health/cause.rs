//! Why a backend is out, and what it is called meanwhile.

/// What a backend is doing, as people and metrics are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// Nothing has been heard of it yet. It gets requests.
    Unknown,
    /// It works.
    Up,
    /// It is back, and gets a growing share of the work.
    Warming,
    /// It has said that it has enough to do, and is passed over while another one has not.
    Pressured,
    /// Requests failed there. It gets one now and then, to show that it works again.
    Ejected,
    /// It gets no more requests because somebody has said so; those that are there end in their own time.
    Draining,
    /// It is known not to work: no connection, failed checks, or refused credentials.
    Down,
}

/// Why a backend is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It can't be connected to.
    Refused,
    /// Its checks failed.
    Checks,
    /// It refuses the credentials that the proxy was configured with.
    Credentials,
    /// Too many requests in a row failed.
    Failures,
    /// Too large a share of its requests failed.
    ErrorRate,
    /// For long it has said nothing but that it can't now.
    Rejections,
}

// === impl BackendState ===

impl BackendState {
    /// All that there are.
    pub const ALL: [Self; 7] =
        [Self::Unknown, Self::Up, Self::Warming, Self::Pressured, Self::Ejected, Self::Draining, Self::Down];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Warming => "warming",
            Self::Pressured => "pressured",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

// === impl Cause ===

impl Cause {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "it can't be connected to",
            Self::Checks => "its health checks failed",
            Self::Credentials => "it refuses the credentials that the proxy is configured with",
            Self::Failures => "too many requests in a row failed",
            Self::ErrorRate => "too many of its requests failed",
            Self::Rejections => "it has refused all requests for some time, saying that it can't now",
        }
    }

    /// Whether it is what requests met there, so that only a request can show that it has passed.
    pub fn is_ejection(self) -> bool {
        matches!(self, Self::Failures | Self::ErrorRate | Self::Rejections)
    }

    /// Whether it may be a mistake, so that the backend is better than none. Without a connection, or with credentials that
    /// it does not take, there is nothing to hope for.
    pub(super) fn is_doubtful(self) -> bool {
        self.is_ejection() || self == Self::Checks
    }

    /// What an operator can do about it. It is asked again in any case.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Refused => {
                "see that it runs and that its `url` is right: scheme, name, port, and with https a certificate that this \
                 machine trusts; it gets requests as soon as it answers"
            }
            Self::Checks => {
                "see its own log, and whether it has the path of health_check.path; it gets requests as soon as its checks are \
                 good"
            }
            Self::Credentials => "write a key that it takes into its `headers`, such as `Authorization: Bearer KEY`",
            Self::Failures | Self::ErrorRate => {
                "see its own log; one request now and then is sent to it, and it is back as soon as one succeeds"
            }
            Self::Rejections => {
                "see whether it has more to do than it can, or is loading; one request now and then is sent to it, and it is \
                 back as soon as one succeeds"
            }
        }
    }
}
