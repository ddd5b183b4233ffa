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
        let may_use = |name: &str| exchange.caller().is_none_or(|caller| caller.may_use(name));
        let models = self.0.models();
        let path = request.uri().path().trim_end_matches('/');
        let json = match path.strip_prefix("/v1/models/") {
            None => serde_json::to_string(&List { object: "list", data: list(&models, may_use) }),
            // Client libraries encode the slashes of an id, people do not.
            Some(id) => match decode(id).filter(|id| may_use(id)).and_then(|id| find(&models, &id)) {
                Some(model) => serde_json::to_string(&model),
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

/// Those that may be used, each by a name that may be.
fn list(models: &[ModelInfo], may_use: impl Fn(&str) -> bool) -> Vec<Model<'_>> {
    // One that has the other name itself is the one that it stands for.
    let is_free = |name: &str| !models.iter().any(|model| model.id == name);
    let named = models.iter().filter_map(|info| {
        let other = || info.untagged().filter(|other| may_use(other) && is_free(other));
        Some(Model::named(if may_use(&info.id) { &info.id } else { other()? }, info))
    });
    named.collect()
}

/// The one that a request for `name` would be served by, under the name that was asked for.
fn find<'a>(models: &'a [ModelInfo], name: &str) -> Option<Model<'a>> {
    let exact = models.iter().find(|model| model.id == name).map(|info| Model::named(&info.id, info));
    exact.or_else(|| models.iter().find_map(|info| Some(Model::named(info.untagged().filter(|id| *id == name)?, info))))
}

// === impl Model ===

impl<'a> Model<'a> {
    fn named(id: &'a str, info: &'a ModelInfo) -> Self {
        Self {
            id,
            object: "model",
            created: info.created.unwrap_or(0),
            owned_by: info.owned_by.as_deref().unwrap_or("llmproxy"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infos(ids: &[&str]) -> Vec<ModelInfo> {
        ids.iter().map(|id| ModelInfo { id: (*id).into(), ..ModelInfo::default() }).collect()
    }

    #[test]
    fn the_latest_is_listed_by_the_name_that_the_key_may_use() {
        let check = |ids: &[&str], allowed: &[&str], expected: &[&str]| {
            let models = infos(ids);
            let listed = list(&models, |name| allowed.contains(&name));
            let shown: Vec<&str> = listed.iter().map(|model| model.id).collect();
            assert_eq!(shown, expected, "{ids:?} {allowed:?}");
        };
        check(&["llama3:latest", "qwen:7b"], &["llama3"], &["llama3"]);
        check(&["llama3:latest", "qwen:7b"], &["llama3:latest", "llama3"], &["llama3:latest"]);
        check(&["llama3:latest", "qwen:7b"], &["qwen"], &[]);
        check(&["llama3", "llama3:latest"], &["llama3"], &["llama3"]);
    }

    #[test]
    fn one_model_is_found_by_what_a_request_may_call_it() {
        let check = |ids: &[&str], name: &str, expected: Option<&str>| {
            assert_eq!(find(&infos(ids), name).map(|model| model.id.to_owned()).as_deref(), expected, "{name}");
        };
        check(&["llama3:latest"], "llama3", Some("llama3"));
        check(&["llama3:latest"], "llama3:latest", Some("llama3:latest"));
        check(&["llama3", "llama3:latest"], "llama3", Some("llama3"));
        check(&["qwen:7b"], "qwen", None);
        check(&["llama3"], "llama3:latest", None);
    }
}
