//! Every variant of every part's errors, and what a client sees of it.

use std::{sync::Arc, time::Duration};

use llmproxy_auth::{AuthConfig, Authenticator, Refusal};
use llmproxy_balancer::Failure;
use llmproxy_core::{End, Ended};
use llmproxy_ratelimit::{LimitKind, Scope, Window};
use llmproxy_upstream::ConnectFailure;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn name() -> Arc<str> {
    "x".into()
}

fn io() -> std::io::Error {
    std::io::ErrorKind::ConnectionRefused.into()
}

fn balance(failure: Failure, source: impl Into<BoxError>) -> BoxError {
    BalanceError::Upstream { backend: name(), failure, source: source.into() }.into()
}

/// Error, status, code, whether it says when to try again, and the parameter at fault.
fn table() -> Vec<(BoxError, u16, &'static str, bool, Option<&'static str>)> {
    let limited = |kind| -> BoxError {
        let window = Window { limit: 1, remaining: 0, reset: SECOND };
        RateLimitError::Limited { scope: Scope::Key, kind, window, retry_after: SECOND }.into()
    };
    let param = "model";
    vec![
        (MessageError::Hosts(0).into(), 400, "bad_host", false, None),
        (MessageError::Host.into(), 400, "bad_host", false, None),
        (MessageError::Target.into(), 400, "bad_target", false, None),
        (MessageError::Coding.into(), 501, "unknown_transfer_coding", false, None),
        (MessageError::Method(http::Method::TRACE).into(), 501, "method_not_offered", false, None),
        (PathError::Unknown("/x".into()).into(), 404, "not_found", false, None),
        (PathError::Ambiguous.into(), 400, "bad_path", false, None),
        (InspectError::BadJson { problem: "x".into() }.into(), 400, "invalid_json", false, None),
        (InspectError::NotObject.into(), 400, "not_an_object", false, None),
        (InspectError::WrongType { param, expected: "x" }.into(), 400, "invalid_type", false, Some(param)),
        (InspectError::Duplicate { param }.into(), 400, "duplicate_parameter", false, Some(param)),
        (InspectError::Misspelt { param, found: "MODEL".into() }.into(), 400, "unknown_parameter", false, Some(param)),
        (InspectError::Encoded { encoding: "br".into() }.into(), 415, "unsupported_encoding", false, None),
        (InspectError::TooLarge { limit: 1 }.into(), 413, "request_too_large", false, None),
        (InspectError::Timeout { after: SECOND }.into(), 408, "request_timeout", false, None),
        (InspectError::Busy.into(), 503, "overloaded", true, None),
        (InspectError::BadFraming { problem: "x".into() }.into(), 400, "bad_framing", false, None),
        (InspectError::ClientGone { source: "x".into() }.into(), 499, "client_gone", false, None),
        (UsageError::Full.into(), 503, "usage_queue_full", true, None),
        (UsageError::Unwritable.into(), 503, "usage_not_written", true, None),
        (Uncommitted.into(), 503, "usage_not_written", true, None),
        (RateLimitError::ModelForbidden { model: name() }.into(), 403, "model_not_allowed", false, None),
        (RateLimitError::ModelUnnamed.into(), 403, "model_not_named", false, None),
        (
            RateLimitError::RequestTooLarge { scope: Scope::Key, needed: 2, budget: 1 }.into(),
            400,
            "request_too_large",
            false,
            None,
        ),
        (limited(LimitKind::RequestsPerSecond), 429, "rate_limit_exceeded", true, None),
        (limited(LimitKind::RequestsPerMinute), 429, "rate_limit_exceeded", true, None),
        (limited(LimitKind::TokensPerMinute), 429, "rate_limit_exceeded", true, None),
        (limited(LimitKind::MaxConcurrent), 429, "rate_limit_exceeded", true, None),
        (BalanceError::NoBackend { model: None, retry_after: SECOND }.into(), 503, "no_backend", true, None),
        (BalanceError::UnknownModel { model: name() }.into(), 404, "model_not_found", false, Some(param)),
        (
            BalanceError::Unlearned { model: name(), retry_after: SECOND }.into(),
            503,
            "model_not_known_yet",
            true,
            Some(param),
        ),
        (BalanceError::Misconfigured { backend: name() }.into(), 502, "backend_misconfigured", false, None),
        (balance(Failure::Reset, "x"), 502, "backend_error", false, None),
        (balance(Failure::Timeout, SseError::FirstByte { after: SECOND }), 504, "backend_timeout", false, None),
        (balance(Failure::Reset, UpstreamError::Path { backend: name() }), 400, "bad_path", false, None),
        (SseError::FirstByte { after: SECOND }.into(), 504, "backend_timeout", false, None),
        (SseError::Whole { after: SECOND }.into(), 504, "backend_timeout", false, None),
        (SseError::Gap { after: SECOND }.into(), 504, "backend_timeout", false, None),
        (UpstreamError::NoTarget.into(), 502, "backend_error", false, None),
        (UpstreamError::Path { backend: name() }.into(), 400, "bad_path", false, None),
        (
            UpstreamError::Connect { backend: name(), failure: ConnectFailure::Refused, source: io() }.into(),
            502,
            "backend_error",
            false,
            None,
        ),
        (UpstreamError::Closed { backend: name(), source: "x".into() }.into(), 502, "backend_error", false, None),
        (UpstreamError::Died { backend: name(), source: io() }.into(), 502, "backend_error", false, None),
        (UpstreamError::Protocol { backend: name(), source: io() }.into(), 502, "backend_error", false, None),
        (UpstreamError::Broken { backend: name(), source: "x".into() }.into(), 502, "backend_error", false, None),
        (UpstreamError::TooLarge { backend: name(), max: 1 }.into(), 502, "backend_error", false, None),
        ("something else".into(), 500, "internal_error", false, None),
    ]
}

#[test]
fn each_error_has_its_answer_however_it_is_wrapped() {
    for (error, status, code, waits, param) in table() {
        let context = error.to_string();
        let seen = answer(&*error);
        assert_eq!((seen.error.status.as_u16(), &*seen.error.code), (status, code), "{context}");
        assert_eq!(seen.headers.contains_key(header::RETRY_AFTER), waits, "{context}");
        assert_eq!(seen.error.param, param, "{context}");
        // What a layer in between may have made of it.
        let wrapped: BoxError = Box::new(Ended::new(End::BackendFailed, error));
        assert_eq!(answer(&*wrapped).error.status.as_u16(), status, "wrapped: {context}");
    }
}

#[test]
fn an_error_that_nobody_knows_does_not_tell_its_insides() {
    let answer = answer(&*BoxError::from("password=secret"));
    assert!(!answer.error.message.contains("secret"));
}

#[tokio::test]
async fn refusals_of_keys_keep_their_documented_codes() {
    let authenticator = Authenticator::with_sources(&AuthConfig::default(), Vec::new()).expect("a good configuration");
    let error = authenticator.authenticate(&HeaderMap::new(), "/v1/x", None).await.expect_err("no key was sent");
    let answer = answer(&error);
    assert_eq!((answer.error.status.as_u16(), &*answer.error.code), (401, "ERROR"));
    assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");

    let documented: Vec<_> = Refusal::ALL.iter().map(|refusal| (refusal.status().as_u16(), refusal.code())).collect();
    for pair in [
        (401, "ERROR"),
        (500, "ERROR"),
        (401, "NOT_FOUND"),
        (403, "DISABLED"),
        (403, "EXPIRED"),
        (429, "QUOTA_EXCEEDED"),
        (403, "INVALID"),
    ] {
        assert!(documented.contains(&pair), "{pair:?}");
    }
}
