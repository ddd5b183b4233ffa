//! Why a request's body was refused.

use std::{io, time::Duration};

use http::StatusCode;
use llmproxy_core::{BoxError, cause_ref};

/// Why a request was refused for its body, or came to nothing while it was read.
///
/// ```
/// use llmproxy_metering::InspectError;
///
/// let error = InspectError::TooLarge { limit: 1024 };
/// assert_eq!(error.status(), http::StatusCode::PAYLOAD_TOO_LARGE);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The body is not JSON.
    #[error("the body is not valid JSON: {problem}")]
    BadJson {
        /// What is wrong, and at which line and column.
        problem: String,
    },
    /// The body is JSON, but no object.
    #[error("the body must be a JSON object")]
    NotObject,
    /// A parameter has a type that it can't have.
    #[error("`{param}` must be {expected}")]
    WrongType {
        /// The parameter.
        param: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// A parameter that decides where the request goes is there twice: backends would not agree which one counts.
    #[error("`{param}` must not be given twice")]
    Duplicate {
        /// The parameter.
        param: &'static str,
    },
    /// A parameter that decides is written in another case, which some backends accept and others do not.
    #[error("`{found}` must be written `{param}`")]
    Misspelt {
        /// The parameter.
        param: &'static str,
        /// As it stands in the request.
        found: String,
    },
    /// A form is written in a way that servers read differently, so that to some it might name another model.
    #[error(
        "the form can be read in more than one way; end lines with CR and LF, give each part one plain `name`, with no \
         parameter beside it but `filename`, encode nothing, and let content-type say `boundary` and no `charset` but utf-8"
    )]
    BadForm,
    /// The body is compressed.
    #[error("a body with content-encoding `{encoding}` is not read here; send the JSON as it is")]
    Encoded {
        /// The encoding.
        encoding: String,
    },
    /// The body is larger than allowed.
    #[error("the body is larger than {limit} bytes, which is the most that is accepted")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The next piece of the body did not come in time.
    #[error("no byte of the body came for {}s; send it without long pauses", after.as_secs_f64())]
    Timeout {
        /// The longest wait.
        after: Duration,
    },
    /// The bodies of all requests together take as much memory as they may.
    #[error("too many large requests at the same time; try again in a moment")]
    Busy,
    /// The body does not come as its head says that it does.
    #[error("the body can't be read: {problem}")]
    BadFraming {
        /// What is wrong with it.
        problem: String,
    },
    /// The client left before its body was complete.
    #[error("the client left before its body was complete")]
    ClientGone {
        /// What the connection said.
        source: BoxError,
    },
}

// === impl InspectError ===

impl InspectError {
    /// What a client that finds the budget taken should wait: bodies are held for as long as a backend takes.
    const BUSY_RETRY: Duration = Duration::from_secs(1);
    /// nginx's number for a client that closed its request.
    const CLIENT_CLOSED_REQUEST: u16 = 499;

    /// From what a body says when it can't be read on: either nothing more came, or something that is none of a body's.
    pub(crate) fn of_body(source: BoxError) -> Self {
        match cause_ref::<io::Error>(&*source) {
            Some(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
                Self::BadFraming { problem: error.to_string() }
            }
            _ => Self::ClientGone { source },
        }
    }

    /// The status of the answer: 400, 408, 413, 415 (RFC 9110, section 15.5), 503, and 499 where nobody is left to read it.
    #[expect(clippy::missing_panics_doc, reason = "499 is a status to the http crate")]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadJson { .. }
            | Self::NotObject
            | Self::WrongType { .. }
            | Self::Duplicate { .. }
            | Self::Misspelt { .. }
            | Self::BadFraming { .. }
            | Self::BadForm => StatusCode::BAD_REQUEST,
            Self::Encoded { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::ClientGone { .. } => {
                StatusCode::from_u16(Self::CLIENT_CLOSED_REQUEST).expect("three digits are a status")
            }
        }
    }

    /// What a program tells the errors apart by: the `code` of an OpenAI-shaped error, and the label `reason` of the
    /// metric.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadJson { .. } => "invalid_json",
            Self::NotObject => "not_an_object",
            Self::WrongType { .. } => "invalid_type",
            Self::Duplicate { .. } => "duplicate_parameter",
            Self::Misspelt { .. } => "unknown_parameter",
            Self::BadForm => "invalid_form",
            Self::Encoded { .. } => "unsupported_encoding",
            Self::TooLarge { .. } => "request_too_large",
            Self::Timeout { .. } => "request_timeout",
            Self::Busy => "overloaded",
            Self::BadFraming { .. } => "bad_framing",
            Self::ClientGone { .. } => "client_gone",
        }
    }

    /// The parameter that is at fault.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::WrongType { param, .. } | Self::Duplicate { param } | Self::Misspelt { param, .. } => Some(param),
            _ => None,
        }
    }

    /// How long to wait before another try; `None` where waiting does not help.
    pub fn retry_after(&self) -> Option<Duration> {
        matches!(self, Self::Busy).then_some(Self::BUSY_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_status() {
        let check = |error: InspectError, status: u16| assert_eq!(error.status().as_u16(), status, "{error}");
        check(InspectError::BadJson { problem: "eof".into() }, 400);
        check(InspectError::NotObject, 400);
        check(InspectError::WrongType { param: "model", expected: "a string" }, 400);
        check(InspectError::Duplicate { param: "model" }, 400);
        check(InspectError::Misspelt { param: "model", found: "Model".into() }, 400);
        check(InspectError::BadForm, 400);
        check(InspectError::Encoded { encoding: "gzip".into() }, 415);
        check(InspectError::TooLarge { limit: 1 }, 413);
        check(InspectError::Timeout { after: Duration::from_secs(1) }, 408);
        check(InspectError::Busy, 503);
        check(InspectError::BadFraming { problem: "no chunk".into() }, 400);
        check(InspectError::ClientGone { source: "reset".into() }, 499);
    }

    #[test]
    fn a_body_that_is_none_is_told_from_one_that_did_not_come() {
        let code = |kind: io::ErrorKind| InspectError::of_body(io::Error::new(kind, "why").into()).code();
        assert_eq!(code(io::ErrorKind::InvalidInput), "bad_framing");
        assert_eq!(code(io::ErrorKind::InvalidData), "bad_framing");
        assert_eq!(code(io::ErrorKind::UnexpectedEof), "client_gone");
        assert_eq!(code(io::ErrorKind::ConnectionReset), "client_gone");
        assert_eq!(InspectError::of_body("reset".into()).code(), "client_gone");
    }

    #[test]
    fn only_a_full_budget_is_worth_another_try() {
        assert!(InspectError::Busy.retry_after().is_some());
        assert!(InspectError::NotObject.retry_after().is_none());
    }
}
