//! The routes.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    AdminConfig, Backends,
    envelope::{done, refused},
    token::Token,
};

/// A name and a number, and no more.
const MAX_BODY: usize = 64 << 10;

#[derive(Clone)]
struct Gate {
    token: Token,
    read_only: bool,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Weighed {
    name: String,
    weight: u32,
}

type Administered = State<Arc<dyn Backends>>;
/// What was sent, or why it could not be read: that is answered in the shape of all answers, too.
type Sent = Result<Bytes, BytesRejection>;

/// All routes below `/admin`, for whoever has the token. It is for [`AdminConfig::is_served`]: with an empty token nobody is
/// kept out.
pub fn router(config: &AdminConfig, backends: Arc<dyn Backends>) -> Router {
    let gate = Gate { token: Token::new(&config.token), read_only: config.read_only };
    Router::new()
        .route("/admin/backends", get(overview))
        .route("/admin/backends/drain", post(async |state: Administered, body| drain(&state, body, true)))
        .route("/admin/backends/undrain", post(async |state: Administered, body| drain(&state, body, false)))
        .route("/admin/backends/weight", post(weight))
        .route("/admin/{*rest}", axum::routing::any(nothing))
        .method_not_allowed_fallback(async || {
            refused(StatusCode::METHOD_NOT_ALLOWED, "looking is GET, and changing is POST")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        // Outermost: whoever has no token learns nothing, not even what there is.
        .layer(middleware::from_fn_with_state(gate, admit))
        .with_state(backends)
}

async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    if let Err((status, error)) = gate.token.check(request.headers()) {
        tracing::warn!(path = request.uri().path(), %status, "an administrator was not let in");
        return refused(status, error);
    }
    if gate.read_only && request.method() != Method::GET && request.method() != Method::HEAD {
        return refused(
            StatusCode::FORBIDDEN,
            "admin.read_only is on: everything may be looked at and nothing changed",
        );
    }
    next.run(request).await
}

async fn overview(State(backends): Administered) -> Response {
    done("", Some(backends.overview()))
}

fn drain(State(backends): &Administered, body: Sent, draining: bool) -> Response {
    let Named { name } = match read(body, r#"{"name": "vllm-1"}"#) {
        Ok(named) => named,
        Err((status, mistake)) => return refused(status, mistake),
    };
    match backends.set_draining(&name, draining) {
        None => unknown(&name),
        Some(news) => {
            let what = if draining { "gets no new requests; those that are there finish" } else { "gets requests" };
            let message = format!("{name} {what}{}", if news { "" } else { " (as before)" });
            done::<()>(message, None)
        }
    }
}

async fn weight(State(backends): Administered, body: Sent) -> Response {
    let Weighed { name, weight } = match read(body, r#"{"name": "vllm-1", "weight": 3}"#) {
        Ok(weighed) => weighed,
        Err((status, mistake)) => return refused(status, mistake),
    };
    match backends.set_weight(&name, weight) {
        None => unknown(&name),
        Some(()) => done::<()>(format!("{name} has weight {weight} until its configuration says otherwise"), None),
    }
}

async fn nothing() -> Response {
    refused(StatusCode::NOT_FOUND, "there is no such page; keys are administered with `llmproxy keys`")
}

fn unknown(name: &str) -> Response {
    refused(
        StatusCode::NOT_FOUND,
        format!("no backend is named `{name}`; GET /admin/backends lists those that there are"),
    )
}

fn read<T: DeserializeOwned>(body: Sent, example: &str) -> Result<T, (StatusCode, String)> {
    let mistake = |status, mistake: String| (status, format!("{mistake}; send JSON such as {example}"));
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            mistake(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {} KiB", MAX_BODY >> 10))
        }
        status => mistake(status, "the body did not arrive whole".to_owned()),
    })?;
    serde_json::from_slice(&body).map_err(|error| mistake(StatusCode::BAD_REQUEST, error.to_string()))
}
