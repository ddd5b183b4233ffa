//! Why a request may not pass, with what its answer needs.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use llmproxy_core::BoxError;

use crate::standing::{Standing, Window, go_duration, retry_after, short};

/// A refusal. Nothing stays taken from any limit by a refused request.
///
/// ```
/// use llmproxy_ratelimit::RateLimitError;
///
/// let error = RateLimitError::ModelForbidden { model: "gpt-4".into() };
/// assert_eq!((error.status().as_u16(), error.code(), error.retry_after()), (403, "model_not_allowed", None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateLimitError {
    /// The caller may not use the model: 403.
    #[error("this key may not use the model `{model}`; ask for a model that it is allowed")]
    ModelForbidden {
        /// The model.
        model: Arc<str>,
    },
    /// The caller may use certain models, and the request names none before its file, if it has one: 403.
    #[error(
        "this key may use certain models only, and the request names none that could be read; name one in `model`, in a form \
         before the file"
    )]
    ModelUnnamed,
    /// The request could never pass, however long it waited: 400.
    #[error(
        "the request needs up to {needed} tokens, but the {scope} budget is {budget} tokens per minute; shorten the \
         prompt or ask for a shorter answer"
    )]
    RequestTooLarge {
        /// Whose budget it is.
        scope: Scope,
        /// Tokens of the prompt, as estimated, and the longest answer that the request asks for.
        needed: u64,
        /// The budget, in tokens per minute.
        budget: u64,
    },
    /// A limit is reached: 429. Of several the one that lasts longest.
    #[error("the {scope} limit of {} {kind} is reached; try again in {}", .window.limit, go_duration(*.retry_after))]
    Limited {
        /// Whose limit it is.
        scope: Scope,
        /// Which of them.
        kind: LimitKind,
        /// The limit, what is left of it, and when it will be as if unused.
        window: Window,
        /// When the same request would pass, if nobody else came before it. For [`LimitKind::MaxConcurrent`], where no
        /// time is known, one second.
        retry_after: Duration,
    },
}

/// The error of a request that had passed the limits: what came of it further in, and how its caller stands now. An
/// answer that is made of it says so too.
///
/// ```
/// use llmproxy_core::{BoxError, cause_ref};
/// use llmproxy_ratelimit::{LimitedError, Standing};
///
/// /// The headers of an answer that is made of an error.
/// fn headers(error: &BoxError) -> http::HeaderMap {
///     cause_ref::<LimitedError>(&**error).map(|limited| limited.standing.headers().collect()).unwrap_or_default()
/// }
/// let error = LimitedError { standing: Standing::default(), source: "no backend".into() };
/// assert!(headers(&error.into()).is_empty(), "there is no limit");
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct LimitedError {
    /// How the caller stands.
    pub standing: Standing,
    /// What went wrong.
    pub source: BoxError,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One caller's.
    Key,
    /// That of all callers together.
    Global,
}

/// A kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// `requests_per_second`
    RequestsPerSecond,
    /// `requests_per_minute`
    RequestsPerMinute,
    /// `tokens_per_minute`
    TokensPerMinute,
    /// `max_concurrent`
    MaxConcurrent,
}

// === impl RateLimitError ===

impl RateLimitError {
    /// The status of an answer that says so.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ModelForbidden { .. } | Self::ModelUnnamed => StatusCode::FORBIDDEN,
            Self::RequestTooLarge { .. } => StatusCode::BAD_REQUEST,
            Self::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// What a program tells refusals apart by: the `code` of an OpenAI-shaped error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ModelForbidden { .. } => "model_not_allowed",
            Self::ModelUnnamed => "model_not_named",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::Limited { .. } => "rate_limit_exceeded",
        }
    }

    /// How long until the same request would pass; `None` where waiting does not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after, .. } => Some(*retry_after),
            Self::ModelForbidden { .. } | Self::ModelUnnamed | Self::RequestTooLarge { .. } => None,
        }
    }

    /// The headers of the refusal: `X-RateLimit-Limit` and `-Remaining` of the limit that refused, OpenAI's of its kind,
    /// and `Retry-After` in seconds (RFC 9110, section 10.2.3). None where waiting does not help.
    ///
    /// ```
    /// use llmproxy_ratelimit::{LimitKind, RateLimitError, Scope, Window};
    /// use std::time::Duration;
    ///
    /// let wait = Duration::from_millis(1200);
    /// let error = RateLimitError::Limited {
    ///     scope: Scope::Key,
    ///     kind: LimitKind::RequestsPerMinute,
    ///     window: Window { limit: 50, remaining: 0, reset: Duration::from_secs(60) },
    ///     retry_after: wait,
    /// };
    /// assert_eq!(error.status(), http::StatusCode::TOO_MANY_REQUESTS);
    /// let headers: http::HeaderMap = error.headers().collect();
    /// assert_eq!(headers["retry-after"], "2");
    /// assert_eq!(headers["x-ratelimit-limit"], "50");
    /// assert_eq!(headers["x-ratelimit-reset-requests"], "1m0s");
    /// ```
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let limited = match self {
            Self::Limited { kind, window, retry_after, .. } => Some((*kind, *window, *retry_after)),
            Self::ModelForbidden { .. } | Self::ModelUnnamed | Self::RequestTooLarge { .. } => None,
        };
        limited.into_iter().flat_map(|(kind, window, wait)| {
            let named = match kind {
                LimitKind::RequestsPerSecond | LimitKind::RequestsPerMinute => Some(window.requests()),
                LimitKind::TokensPerMinute => Some(window.tokens()),
                LimitKind::MaxConcurrent => None,
            };
            short(window).into_iter().chain(named.into_iter().flatten()).chain([retry_after(wait)])
        })
    }

    /// The labels `scope` and `limit` of the metric.
    pub(crate) fn labels(&self) -> (&'static str, &'static str) {
        match self {
            Self::ModelForbidden { .. } | Self::ModelUnnamed => (Scope::Key.as_str(), "allowed_models"),
            Self::RequestTooLarge { scope, .. } => (scope.as_str(), "request_size"),
            Self::Limited { scope, kind, .. } => (scope.as_str(), kind.as_str()),
        }
    }
}

// === impl Scope ===

impl Scope {
    /// The name that metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Global => "global",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As an adjective in a sentence.
        f.write_str(match self {
            Self::Key => "per-key",
            Self::Global => "global",
        })
    }
}

// === impl LimitKind ===

impl LimitKind {
    /// The name that the configuration and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests_per_second",
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::MaxConcurrent => "max_concurrent",
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestsPerSecond => "requests per second",
            Self::RequestsPerMinute => "requests per minute",
            Self::TokensPerMinute => "tokens per minute",
            Self::MaxConcurrent => "concurrent requests",
        })
    }
}
