//! The shape of every answer: the Go program's, whose clients read it.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// An answer. `message` is empty where it is an error, and `error` is missing where it is none.
#[derive(Debug, Serialize)]
pub(crate) struct Envelope<T> {
    success: bool,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// It went well.
pub(crate) fn done<T: Serialize>(message: impl Into<String>, data: Option<T>) -> Response {
    answer(StatusCode::OK, &Envelope { success: true, message: message.into(), data, error: None })
}

/// It did not.
pub(crate) fn refused(status: StatusCode, error: impl Into<String>) -> Response {
    answer(status, &Envelope::<()> { success: false, message: String::new(), data: None, error: Some(error.into()) })
}

fn answer<T: Serialize>(status: StatusCode, envelope: &Envelope<T>) -> Response {
    let body = serde_json::to_vec(envelope).unwrap_or_default();
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // It is true now, and nobody else's business.
    let now = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (status, [json, now], body).into_response()
}
