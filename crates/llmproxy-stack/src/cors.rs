//! What browsers ask on behalf of pages of other origins (the Fetch standard, section 3.2), outside of everything that
//! could refuse: an error without these headers is one that a page can't read.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN,
    },
};
use llmproxy_config::{AllowedOrigin, CorsConfig};
use llmproxy_core::{Endpoint, Upgrade};
use tower::{Layer, Service, ServiceExt, util::MapResponse};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, Any, ExposeHeaders};

use crate::respond::Answer;

/// Makes [`Cors`].
#[derive(Clone, Debug)]
pub(crate) struct CorsLayer {
    origins: Arc<[AllowedOrigin]>,
    rules: tower_http::cors::CorsLayer,
}

/// Answers a browser's preflight in the place of everything further in, and says in all other answers who may read them.
#[derive(Clone)]
pub(crate) struct Cors<S> {
    origins: Arc<[AllowedOrigin]>,
    ruled: tower_http::cors::Cors<Silent<S>>,
    /// For what is no question of a browser's: the rules would take every OPTIONS for one.
    plain: Silent<S>,
}

/// What is further in, without what a backend says of this: it does not know who may ask the proxy, and a browser that
/// reads two answers believes none.
type Silent<S> = MapResponse<S, fn(Response<Body>) -> Response<Body>>;

/// A longer one is not repeated in a message.
const MAX_ORIGIN: usize = 256;
/// The headers that are ours to give.
const OURS: [HeaderName; 7] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    HeaderName::from_static("access-control-allow-private-network"),
];

// === impl CorsLayer ===

impl CorsLayer {
    /// Whose pages may ask.
    pub(crate) fn origins(&self) -> Arc<[AllowedOrigin]> {
        self.origins.clone()
    }

    /// The rules of a configuration that was validated; `None` where there are none.
    pub(crate) fn new(config: &CorsConfig) -> Option<Self> {
        if !config.is_on() {
            return None;
        }
        let origins: Arc<[AllowedOrigin]> =
            config.allowed_origins.iter().filter_map(|origin| AllowedOrigin::parse(origin).ok()).collect();
        let any = |list: &[String]| list.iter().any(|entry| entry == "*");
        let names =
            |list: &[String]| list.iter().filter_map(|name| name.parse::<HeaderName>().ok()).collect::<Vec<_>>();
        // A browser takes `*` for less than it says: it leaves out Authorization, and all where there are credentials. So
        // what is asked for is what is allowed.
        let methods = if any(&config.allowed_methods) {
            AllowMethods::mirror_request()
        } else {
            AllowMethods::list(config.allowed_methods.iter().filter_map(|method| method.parse::<Method>().ok()))
        };
        let headers = if any(&config.allowed_headers) {
            AllowHeaders::mirror_request()
        } else {
            AllowHeaders::list(names(&config.allowed_headers))
        };
        let exposed = if any(&config.expose_headers) {
            ExposeHeaders::any()
        } else {
            ExposeHeaders::list(names(&config.expose_headers))
        };
        let origin = if origins.contains(&AllowedOrigin::Any) {
            AllowOrigin::from(Any)
        } else {
            let origins = origins.clone();
            AllowOrigin::predicate(move |origin, _| is_allowed(&origins, origin))
        };
        let rules = tower_http::cors::CorsLayer::new()
            .allow_origin(origin)
            .allow_methods(methods)
            .allow_headers(headers)
            .expose_headers(exposed)
            .allow_credentials(config.allow_credentials);
        let rules = match config.max_age {
            Some(age) => rules.max_age(age),
            None => rules,
        };
        Some(Self { origins, rules })
    }
}

impl<S: Clone> Layer<S> for CorsLayer {
    type Service = Cors<S>;

    fn layer(&self, inner: S) -> Cors<S> {
        let plain: Silent<S> = MapResponse::new(inner, without_cors);
        Cors { origins: self.origins.clone(), ruled: self.rules.layer(plain.clone()), plain }
    }
}

/// The answer to a page that may not open a WebSocket. For those browsers ask no leave and hide no answer, so that it is for
/// the server to look at the origin (RFC 6455, section 10.2): pages of its own may, and those that are named.
pub(crate) fn refuse_page(origins: &[AllowedOrigin], request: &Request<Body>) -> Option<Response<Body>> {
    request.extensions().get::<Upgrade>()?;
    let origin = request.headers().get(ORIGIN)?;
    let host = request.headers().get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    let is_own = authority.is_some_and(|authority| authority.as_bytes().eq_ignore_ascii_case(host));
    let may = is_own || is_allowed(origins, origin);
    (!may).then(|| refusal(origin, Endpoint::of(request.uri().path())))
}

fn is_allowed(origins: &[AllowedOrigin], origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| origins.iter().any(|allowed| allowed.matches(origin)))
}

// === impl Cors ===

impl<S> Service<Request<Body>> for Cors<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send, Error: Send> + Clone + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // Each request is handed to a clone, whose readiness is waited for there.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let headers = request.headers();
        let origin = headers.get(ORIGIN);
        match (request.method() == Method::OPTIONS, origin) {
            (true, Some(origin)) if headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) => {
                if !is_allowed(&self.origins, origin) {
                    let refusal = refusal(origin, Endpoint::of(request.uri().path()));
                    return Box::pin(async { Ok(refusal) });
                }
                Box::pin(self.ruled.clone().oneshot(request))
            }
            (true, _) => Box::pin(self.plain.clone().oneshot(request)),
            (false, _) => Box::pin(self.ruled.clone().oneshot(request)),
        }
    }
}

/// The page gets nothing of it; whoever looks for the reason does, in the browser's tools or in the access log.
fn refusal(origin: &HeaderValue, endpoint: Endpoint) -> Response<Body> {
    let origin = origin.to_str().ok().filter(|origin| origin.len() <= MAX_ORIGIN).unwrap_or("this one");
    let message = match origin {
        "null" => {
            "pages without an origin (files, sandboxed frames) may not ask; server.cors.allowed_origins can't name them"
                .to_owned()
        }
        _ => format!("pages of the origin {origin} may not ask; to let them, add it to server.cors.allowed_origins"),
    };
    Answer::new(StatusCode::FORBIDDEN, "origin_not_allowed", &message).into_response(endpoint.api())
}

fn without_cors(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for name in OURS {
        headers.remove(name);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::header::{ACCESS_CONTROL_REQUEST_HEADERS, AUTHORIZATION, VARY};
    use tower::service_fn;

    use super::*;

    const PAGE: &str = "https://a.example";

    fn config(origin: &str) -> CorsConfig {
        CorsConfig { allowed_origins: vec![origin.into()], ..CorsConfig::default() }
    }

    /// The answer to `method` from `origin`, asked by a backend that has an opinion of its own.
    async fn ask(config: &CorsConfig, method: Method, origin: Option<&str>, preflight: bool) -> Response<Body> {
        let inner = service_fn(async |_: Request<Body>| {
            let mut response = Response::new(Body::from("inner"));
            response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(""));
            response.headers_mut().insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
            Ok::<_, Infallible>(response)
        });
        let mut request = Request::builder().method(method).uri("/v1/chat/completions");
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        if preflight {
            request = request
                .header(ACCESS_CONTROL_REQUEST_METHOD, "POST")
                .header(ACCESS_CONTROL_REQUEST_HEADERS, "authorization,x-stainless-os");
        }
        let service = CorsLayer::new(config).expect("it is on").layer(inner);
        service.oneshot(request.body(Body::empty()).expect("a request")).await.expect("infallible")
    }

    fn header(response: &Response<Body>, name: HeaderName) -> Vec<&str> {
        response.headers().get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    }

    #[tokio::test]
    async fn a_preflight_of_an_allowed_origin_is_answered_here() {
        let response = ask(&config(PAGE), Method::OPTIONS, Some(PAGE), true).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN), [PAGE]);
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_METHODS), ["GET,POST,DELETE"]);
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_HEADERS), ["authorization,x-stainless-os"]);
        assert!(header(&response, ACCESS_CONTROL_ALLOW_CREDENTIALS).is_empty());
        assert!(header(&response, VARY).concat().contains("origin"));
    }

    #[tokio::test]
    async fn a_preflight_of_another_is_refused_here() {
        for origin in ["https://b.example", "null", "https://a.example.evil.net"] {
            let response = ask(&config(PAGE), Method::OPTIONS, Some(origin), true).await;
            assert_eq!(response.status(), StatusCode::FORBIDDEN, "{origin}");
            assert!(OURS.iter().all(|name| !response.headers().contains_key(name)), "{origin}");
        }
    }

    #[tokio::test]
    async fn what_a_backend_says_of_it_counts_nothing() {
        let response = ask(&config(PAGE), Method::POST, Some(PAGE), false).await;
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN), [PAGE]);
        assert!(header(&response, ACCESS_CONTROL_ALLOW_CREDENTIALS).is_empty());
        assert!(header(&response, ACCESS_CONTROL_EXPOSE_HEADERS).concat().contains("x-request-id"));
        assert!(header(&response, VARY).contains(&"accept-encoding"));
        for origin in [Some("https://b.example"), None] {
            let response = ask(&config(PAGE), Method::POST, origin, false).await;
            assert!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN).is_empty(), "{origin:?}");
        }
    }

    #[tokio::test]
    async fn an_options_that_is_no_preflight_goes_further_in() {
        for origin in [Some(PAGE), None] {
            let response = ask(&config(PAGE), Method::OPTIONS, origin, false).await;
            assert!(header(&response, VARY).contains(&"accept-encoding"), "{origin:?}");
            assert!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN).is_empty(), "{origin:?}");
        }
    }

    #[tokio::test]
    async fn all_origins_are_told_so_and_never_by_name() {
        let response = ask(&config("*"), Method::POST, Some(PAGE), false).await;
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN), ["*"]);
        let credentials = CorsConfig { allow_credentials: true, ..config(PAGE) };
        let response = ask(&credentials, Method::POST, Some(PAGE), false).await;
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN), [PAGE]);
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_CREDENTIALS), ["true"]);
    }

    #[test]
    fn a_websocket_is_for_pages_of_our_own_and_those_that_are_named() {
        let check = |allowed: &[&str], origin: Option<&str>, may: bool| {
            let origins: Vec<_> =
                allowed.iter().map(|origin| AllowedOrigin::parse(origin).expect("an origin")).collect();
            let request = Request::get("/v1/realtime").header(HOST, "proxy.example:8000");
            let request = origin.into_iter().fold(request, |request, origin| request.header(ORIGIN, origin));
            let mut request = request.body(Body::empty()).expect("a request");
            assert!(refuse_page(&origins, &request).is_none(), "it is none yet");
            request.extensions_mut().insert(Upgrade::default());
            assert_eq!(refuse_page(&origins, &request).is_none(), may, "{allowed:?} {origin:?}");
        };
        check(&[], None, true);
        check(&[], Some("http://proxy.example:8000"), true);
        check(&[], Some("https://PROXY.example:8000"), true);
        check(&[], Some("http://proxy.example"), false);
        check(&[], Some("http://evil.example"), false);
        check(&[], Some("null"), false);
        check(&[PAGE], Some(PAGE), true);
        check(&[PAGE], Some("https://b.example"), false);
        check(&["*"], Some("https://b.example"), true);
    }

    #[tokio::test]
    async fn everything_that_validates_can_be_built() {
        let star = || vec!["*".to_owned()];
        let open = CorsConfig {
            allowed_origins: star(),
            allowed_methods: star(),
            allowed_headers: star(),
            expose_headers: star(),
            max_age: Some(std::time::Duration::from_secs(600)),
            ..CorsConfig::default()
        };
        let credentials = CorsConfig { allow_credentials: true, ..open.clone() };
        let closer = CorsConfig {
            allowed_origins: vec!["https://*.example".into()],
            expose_headers: vec![AUTHORIZATION.to_string()],
            ..credentials.clone()
        };
        assert!(open.validate().is_empty() && closer.validate().is_empty() && !credentials.validate().is_empty());
        let response = ask(&open, Method::OPTIONS, Some(PAGE), true).await;
        assert_eq!(header(&response, ACCESS_CONTROL_MAX_AGE), ["600"]);
        let response = ask(&closer, Method::OPTIONS, Some(PAGE), true).await;
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_METHODS), ["POST"]);
        assert!(CorsLayer::new(&CorsConfig::default()).is_none());
    }
}
