//! Errors of our own, in the shape that the client's API has for them.

use http::StatusCode;
use serde::Serialize;

use crate::Api;

/// An error as an answer: what a client's library finds in the body.
///
/// ```
/// use http::StatusCode;
/// use llmproxy_core::{Api, ApiError};
///
/// let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", "no backend offers the model `x`").with_param("model");
/// assert_eq!(
///     error.body(Api::OpenAi),
///     r#"{"error":{"message":"no backend offers the model `x`","type":"not_found_error","param":"model","code":"model_not_found"}}"#
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The answer's status.
    pub status: StatusCode,
    /// What a program tells errors apart by.
    pub code: String,
    /// What a person reads.
    pub message: String,
    /// The request's parameter that is at fault.
    pub param: Option<&'static str>,
}

#[derive(Serialize)]
struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

#[derive(Serialize)]
struct AnthropicBody<'a> {
    r#type: &'a str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    r#type: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct OllamaBody<'a> {
    error: &'a str,
}

// === impl ApiError ===

impl ApiError {
    /// An error answer.
    pub fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), param: None }
    }

    /// Names the request's parameter that is at fault.
    pub fn with_param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// The kind of error, by the status, as OpenAI's and Anthropic's APIs name it.
    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            _ => "api_error",
        }
    }

    /// The body, as JSON in the shape of `api`.
    pub fn body(&self, api: Api) -> String {
        self.json(api)
    }

    /// The same as one event of a stream, blank line included, for an error after the head has gone.
    pub fn event(&self, api: Api) -> String {
        let json = self.json(api);
        match api {
            Api::Anthropic => format!("event: error\ndata: {json}\n\n"),
            _ => format!("data: {json}\n\n"),
        }
    }

    fn json(&self, api: Api) -> String {
        let (message, kind, code) = (&*self.message, self.kind(), &*self.code);
        let json = match api {
            Api::Anthropic => serde_json::to_string(&AnthropicBody {
                r#type: "error",
                error: AnthropicError { r#type: kind, message },
            }),
            Api::Ollama => serde_json::to_string(&OllamaBody { error: message }),
            Api::OpenAi | Api::Native | Api::Proxy => serde_json::to_string(&OpenAiBody {
                error: OpenAiError { message, r#type: kind, param: self.param, code },
            }),
        };
        json.expect("strings serialize")
    }
}
