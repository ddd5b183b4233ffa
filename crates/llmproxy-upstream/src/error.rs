//! What can go wrong between us and a backend.

use std::{error::Error, io, sync::Arc};

use llmproxy_core::{BoxError, End, Ended, cause_ref};

use crate::metrics;

/// Why there is no answer, or no complete one. Backends are named by scheme, host and port.
///
/// Those who don't know this crate tell a failure to connect by the [`io::Error`] in its chain of causes, which is of kind
/// `ConnectionRefused`, `HostUnreachable`, `NetworkUnreachable` or `NotConnected` (name, TLS, time). Failures after that are
/// found inside an [`Ended`] that says [`End::BackendFailed`]; where what came is no HTTP, one of kind `InvalidData` is among
/// their causes, and one of the former where no other connection could be made after the request's own had broken. A path
/// that can't be sent is the client's doing, and says [`End::ClientGone`].
///
/// ```
/// use http::Request;
/// use llmproxy_core::{RequestBody, cause_ref};
/// use llmproxy_upstream::{Clients, Upstream, UpstreamError};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let error = Upstream::new(Clients::new()).oneshot(Request::new(RequestBody::whole(""))).await.unwrap_err();
/// assert!(matches!(cause_ref(&*error), Some(UpstreamError::NoTarget)));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The request does not say where to go.
    #[error("no backend was chosen for this request; put a balancer in front of the upstream, or a `Target` into it")]
    NoTarget,
    /// The path would reach the backend as another one than was asked for.
    #[error("the path can't be sent to {backend} as it is; percent-encode its backslashes and leave out dot segments")]
    Path {
        /// The backend.
        backend: Arc<str>,
    },
    /// The TLS or socket setup of this machine is broken.
    #[error("no HTTP client for {backend} could be made: {}", innermost(&**source))]
    Client {
        /// The backend.
        backend: Arc<str>,
        /// Why.
        source: BoxError,
    },
    /// There was no connection, so the backend has not seen the request.
    #[error("{}", failure.describe(backend, source))]
    Connect {
        /// The backend.
        backend: Arc<str>,
        /// What kind of failure.
        failure: ConnectFailure,
        /// What the system said; of the kinds named above.
        source: io::Error,
    },
    /// The connection ended while the answer was waited for.
    #[error("{backend} {} before it answered", ended(&**source))]
    Closed {
        /// The backend.
        backend: Arc<str>,
        /// What was seen.
        source: BoxError,
    },
    /// The connection ended while the answer was waited for, and the backend takes no other one: it may have died of the
    /// request.
    #[error("{backend} closed the connection before it answered, and takes no other one: {source}")]
    Died {
        /// The backend.
        backend: Arc<str>,
        /// What the system said of the other one; of the kinds named above.
        source: io::Error,
    },
    /// What came is no HTTP.
    #[error("{backend} sent something that is not an HTTP answer: {}", innermost(source))]
    Protocol {
        /// The backend.
        backend: Arc<str>,
        /// What was seen; of the kind named above.
        source: io::Error,
    },
    /// The answer had begun and did not come to its end.
    #[error("{backend} {} in the middle of its answer", ended(&**source))]
    Broken {
        /// The backend.
        backend: Arc<str>,
        /// What was seen.
        source: BoxError,
    },
    /// A small answer was not small.
    #[error("the answer of {backend} is larger than {max} bytes")]
    TooLarge {
        /// The server.
        backend: Arc<str>,
        /// What is read at most.
        max: usize,
    },
}

/// Why there was no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nothing listens there.
    Refused,
    /// There is no way to the host or its network.
    Unreachable,
    /// The host's name is not known.
    Name,
    /// The TLS handshake failed.
    Tls,
    /// It took longer than the backend's `connect_timeout`.
    Timeout,
    /// Anything else that the system says.
    Other,
}

// === impl UpstreamError ===

impl UpstreamError {
    /// From what the client says before the head of an answer.
    pub(crate) fn before_head(backend: &Arc<str>, error: reqwest::Error) -> Self {
        let backend = backend.clone();
        let error = error.without_url();
        if error.is_connect() {
            let failure = ConnectFailure::of(&error);
            if failure == ConnectFailure::Timeout {
                metrics::connect_timeout();
            }
            let source = failure.as_io(&error);
            return Self::Connect { backend, failure, source };
        }
        if is_protocol(&error) {
            return Self::protocol(backend, error);
        }
        Self::Closed { backend, source: error.into() }
    }

    /// From what the client says in the middle of an answer.
    pub(crate) fn in_body(backend: &Arc<str>, error: reqwest::Error) -> Self {
        let (backend, error) = (backend.clone(), error.without_url());
        if is_protocol(&error) {
            return Self::protocol(backend, error);
        }
        Self::Broken { backend, source: error.into() }
    }

    /// From what makes no sense as HTTP.
    pub(crate) fn protocol(backend: Arc<str>, what: impl Into<BoxError>) -> Self {
        Self::Protocol { backend, source: io::Error::new(io::ErrorKind::InvalidData, what) }
    }

    /// As services and bodies give it.
    pub(crate) fn boxed(self) -> BoxError {
        match self {
            Self::Closed { .. } | Self::Died { .. } | Self::Protocol { .. } | Self::Broken { .. } => {
                Box::new(Ended::new(End::BackendFailed, self))
            }
            // The client's doing: a backend that was never asked must not be blamed, nor another one tried.
            Self::Path { .. } => Box::new(Ended::new(End::ClientGone, self)),
            Self::NoTarget | Self::Client { .. } | Self::Connect { .. } | Self::TooLarge { .. } => self.into(),
        }
    }
}

// === impl ConnectFailure ===

impl ConnectFailure {
    fn of(error: &reqwest::Error) -> Self {
        let io = cause_ref::<io::Error>(error);
        match io.map(io::Error::kind) {
            _ if io.is_some_and(is_tls) => Self::Tls,
            _ if error.is_dns() => Self::Name,
            Some(io::ErrorKind::ConnectionRefused) => Self::Refused,
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => Self::Unreachable,
            _ if error.is_timeout() => Self::Timeout,
            _ => Self::Other,
        }
    }

    fn as_io(self, error: &reqwest::Error) -> io::Error {
        match (self, cause_ref::<io::Error>(error)) {
            (Self::Refused | Self::Unreachable, Some(io)) => {
                io.raw_os_error().map_or_else(|| io.kind().into(), io::Error::from_raw_os_error)
            }
            _ => io::Error::new(io::ErrorKind::NotConnected, innermost(error)),
        }
    }

    fn describe(self, backend: &str, source: &io::Error) -> String {
        match self {
            Self::Refused => format!("connection to {backend} refused"),
            Self::Unreachable => format!("{backend} can't be reached: {source}"),
            Self::Name => format!("the name of {backend} can't be resolved: {source}"),
            Self::Tls => format!("no TLS connection to {backend}: {source}"),
            Self::Timeout => format!("no connection to {backend} within its connect_timeout"),
            Self::Other => format!("no connection to {backend}: {source}"),
        }
    }
}

/// Whether bytes came that make no sense as HTTP.
pub(crate) fn is_protocol(error: &reqwest::Error) -> bool {
    let kind = cause_ref::<io::Error>(error).map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
        || cause_ref::<hyper::Error>(error).is_some_and(hyper::Error::is_parse)
        // On HTTP/2 it is our side that gives up then.
        || cause_ref::<h2::Error>(error).is_some_and(h2::Error::is_library)
}

/// Whether the backend has broken off this very request, over HTTP/2. One that it refuses so it has not begun with
/// (RFC 9113, section 8.7), and may be sent again.
pub(crate) fn is_broken_off(error: &reqwest::Error) -> bool {
    cause_ref::<h2::Error>(error)
        .is_some_and(|error| error.is_reset() && error.reason() != Some(h2::Reason::REFUSED_STREAM))
}

/// What the backend did, in words.
fn ended(source: &(dyn Error + 'static)) -> &'static str {
    if cause_ref::<h2::Error>(source).is_some_and(|error| error.reason().is_some()) {
        "broke off the stream"
    } else {
        "closed the connection"
    }
}

/// Whether `error` is of the TLS library, which comes wrapped into `io::Error`s that don't name it as their cause.
fn is_tls(error: &io::Error) -> bool {
    let Some(inner) = error.get_ref() else { return false };
    inner.is::<rustls::Error>() || inner.downcast_ref::<io::Error>().is_some_and(is_tls)
}

/// The words of the first cause: those further out only say that there is one.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_can_t_be_sent_is_not_the_backend_s_fault() {
        let error = UpstreamError::Path { backend: "http://a".into() }.boxed();
        assert_eq!(Ended::of(&*error), End::ClientGone);
        assert!(cause_ref::<UpstreamError>(&*error).is_some());
    }
}
