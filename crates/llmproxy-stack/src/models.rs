//! `/v1/models`, merged over the backends and filtered by what the caller may use.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use llmproxy_balancer::{ModelInfo, Pool};
use llmproxy_core::{Api, BoxError, Exchange};
use serde::Serialize;
use tower::Service;

use crate::{paths::decode, respond::Answer};

/// Answers from what the balancer has learned; no backend is asked.
#[derive(Clone)]
pub(crate) struct Models(pub(crate) Arc<Pool>);

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'a str,
}

// === impl Models ===

impl Models {
    fn answer<B>(&self, request: &mut Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = Answer::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                &"the list of models can only be read with GET",
            )
            .into_response(Api::OpenAi);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let exchange = Exchange::of(request.extensions_mut());
        let mut models = self.0.models();
        models.retain(|model| exchange.caller().is_none_or(|caller| caller.may_use(&model.id)));
        let path = request.uri().path().trim_end_matches('/');
        let json = match path.strip_prefix("/v1/models/") {
            None => serde_json::to_string(&List { object: "list", data: models.iter().map(Model::of).collect() }),
            // Client libraries encode the slashes of an id, people do not.
            Some(id) => match models.iter().find(|model| Some(&model.id) == decode(id).as_ref()) {
                Some(model) => serde_json::to_string(&Model::of(model)),
                None => {
                    let message = format!("there is no model `{id}` here, or this key may not use it");
                    return Answer::new(StatusCode::NOT_FOUND, "model_not_found", &message).into_response(Api::OpenAi);
                }
            },
        };
        let mut response = Response::new(Body::from(json.expect("strings and numbers serialize")));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl<B> Service<Request<B>> for Models {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Ready<Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(&mut request)))
    }
}

impl<'a> Model<'a> {
    fn of(info: &'a ModelInfo) -> Self {
        Self {
            id: &info.id,
            object: "model",
            created: info.created.unwrap_or(0),
            owned_by: info.owned_by.as_deref().unwrap_or("llmproxy"),
        }
    }
}
