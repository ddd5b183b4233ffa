//! Why a request has no answer of a backend.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use llmproxy_core::BoxError;

use crate::retry::Failure;

/// Why a request has no answer of a backend. Messages are fit for clients: they name backends, not addresses or causes;
/// those are in the source.
///
/// ```
/// use std::time::Duration;
/// use llmproxy_balancer::BalanceError;
///
/// let error = BalanceError::NoBackend { model: None, retry_after: Duration::from_secs(5) };
/// assert_eq!((error.status().as_u16(), error.code()), (503, "no_backend"));
/// assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// Every backend that could do it is out.
    #[error("{}", no_backend(model.as_deref()))]
    NoBackend {
        /// The model that was asked for.
        model: Option<Arc<str>>,
        /// When one of them is tried again.
        retry_after: Duration,
    },
    /// No backend serves the model.
    #[error("no backend offers the model `{model}`; GET /v1/models lists those that there are")]
    UnknownModel {
        /// The model that was asked for.
        model: Arc<str>,
    },
    /// No backend is known to serve the model, but some have not told yet what they serve.
    #[error("no backend is known to offer the model `{model}` yet, and some have not been reached; try again soon")]
    Unlearned {
        /// The model that was asked for.
        model: Arc<str>,
        /// When one of them is asked again.
        retry_after: Duration,
    },
    /// All backends that could do it are full, and so is the line before them.
    #[error("every backend that could take this is full, and so is the line of those who wait; try again later")]
    QueueFull {
        /// When those who wait now will have gone.
        retry_after: Duration,
    },
    /// It waited in the line for as long as `queue.timeout` allows.
    #[error("every backend that could take this is full; none had room within {}", about(*waited))]
    QueueTimeout {
        /// How long it waited.
        waited: Duration,
        /// When those who wait now will have gone.
        retry_after: Duration,
    },
    /// The backend refused the credentials that the proxy supplies.
    #[error("the backend `{backend}` refuses the credentials that the proxy is configured with")]
    Misconfigured {
        /// Its name.
        backend: Arc<str>,
    },
    /// A backend was asked and there was no answer.
    #[error("the backend `{backend}` {}", failed(*failure))]
    Upstream {
        /// Its name.
        backend: Arc<str>,
        /// How it failed.
        failure: Failure,
        /// What is known of that.
        source: BoxError,
    },
}

// === impl BalanceError ===

impl BalanceError {
    /// The answer's status: 404 (RFC 9110, section 15.5.5) for a model that nobody has, else 502, 503 or 504 (15.6).
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoBackend { .. } | Self::Unlearned { .. } | Self::QueueFull { .. } | Self::QueueTimeout { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::UnknownModel { .. } => StatusCode::NOT_FOUND,
            Self::Upstream { failure: Failure::Timeout, .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Misconfigured { .. } | Self::Upstream { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// What a program tells these errors apart by.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoBackend { .. } => "no_backend",
            Self::UnknownModel { .. } => "model_not_found",
            Self::Unlearned { .. } => "model_not_known_yet",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::Misconfigured { .. } => "backend_misconfigured",
            Self::Upstream { failure: Failure::Timeout, .. } => "backend_timeout",
            Self::Upstream { .. } => "backend_error",
        }
    }

    /// The request's parameter that is at fault.
    pub fn param(&self) -> Option<&'static str> {
        matches!(self, Self::UnknownModel { .. } | Self::Unlearned { .. }).then_some("model")
    }

    /// How long until trying again may help; `None` where it does not.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoBackend { retry_after, .. }
            | Self::Unlearned { retry_after, .. }
            | Self::QueueFull { retry_after }
            | Self::QueueTimeout { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// As people say it: in tenths of a second below ten, and in whole seconds above.
fn about(duration: Duration) -> String {
    let tenths = duration.subsec_millis() / 100;
    match duration.as_secs() {
        seconds @ 0..10 if tenths > 0 => format!("{seconds}.{tenths}s"),
        seconds => llmproxy_core::duration::format(Duration::from_secs(seconds)),
    }
}

fn no_backend(model: Option<&str>) -> String {
    match model {
        Some(model) => format!("no backend that offers the model `{model}` is up; try again soon"),
        None => "no backend is up; try again soon".to_owned(),
    }
}

fn failed(failure: Failure) -> &'static str {
    match failure {
        Failure::Connect => "can't be reached",
        Failure::Timeout => "did not answer in time",
        _ => "failed before it answered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_status() {
        let upstream = |failure| BalanceError::Upstream { backend: "a".into(), failure, source: "x".into() };
        let wait = Duration::from_secs(1);
        let check = |error: BalanceError, status: u16, code: &str| {
            assert_eq!((error.status().as_u16(), error.code()), (status, code), "{error}");
            assert_eq!(error.retry_after().is_some(), status == 503, "{error}");
        };
        check(BalanceError::NoBackend { model: None, retry_after: wait }, 503, "no_backend");
        check(BalanceError::UnknownModel { model: "m".into() }, 404, "model_not_found");
        check(BalanceError::Unlearned { model: "m".into(), retry_after: wait }, 503, "model_not_known_yet");
        check(BalanceError::QueueFull { retry_after: wait }, 503, "queue_full");
        check(BalanceError::QueueTimeout { waited: wait, retry_after: wait }, 503, "queue_timeout");
        check(BalanceError::Misconfigured { backend: "a".into() }, 502, "backend_misconfigured");
        check(upstream(Failure::Connect), 502, "backend_error");
        check(upstream(Failure::Reset), 502, "backend_error");
        check(upstream(Failure::Timeout), 504, "backend_timeout");
    }

    #[test]
    fn a_wait_is_told_as_people_tell_it() {
        let check = |waited: Duration, expected: &str| {
            let error = BalanceError::QueueTimeout { waited, retry_after: waited };
            assert!(error.to_string().ends_with(&format!("within {expected}")), "{error}");
        };
        check(Duration::from_nanos(12_004_927_396), "12s");
        check(Duration::from_nanos(1_504_927_396), "1.5s");
        check(Duration::from_nanos(2_001_314_159), "2s");
        check(Duration::from_secs(30), "30s");
        check(Duration::from_nanos(60_000_100_000), "1m");
        check(Duration::from_nanos(900), "0s");
    }

    #[test]
    fn messages_name_the_backend_and_keep_the_cause_to_themselves() {
        let error =
            BalanceError::Upstream { backend: "a".into(), failure: Failure::Connect, source: "10.0.0.7:80".into() };
        assert_eq!(error.to_string(), "the backend `a` can't be reached");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "10.0.0.7:80");
    }
}
