//! The layer over a scripted service.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

use std::sync::Arc;

use http::{Request, Response};
use llmproxy_auth::{Auth, AuthConfig, AuthError, AuthLayer, Authenticator};
use llmproxy_core::{BoxError, Exchange, cause_ref};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_test::mock;

const CONFIG: &str = r#"{
    "enabled": true,
    "skip_paths": ["/health"],
    "pipeline": [{"type": "static", "static": {"keys": [
        {"key": "k-alice", "name": "alice", "user_id": "u-1"},
        {"key": "k-odd", "name": "ünïcode", "user_id": "line\nbreak"},
        {"key": "k-nobody"},
        {"key": "k-office", "name": "office", "allowed_ips": ["10.0.0.0/8"]},
        {"key": "k-off", "status": "disabled"}
    ]}}]
}"#;

/// Not `Clone`, not `Sync`, and not to be read: what a body may be.
struct Unread(#[allow(dead_code)] std::cell::Cell<()>);

fn layer() -> AuthLayer {
    let config: AuthConfig = serde_json::from_str(CONFIG).unwrap();
    AuthLayer::new(Arc::new(Authenticator::new(&config, None).unwrap()))
}

/// Sends a request through the layer; what the inner service was given, or the refusal.
async fn send(layer: AuthLayer, request: http::request::Builder) -> Result<Request<Unread>, (u16, &'static str)> {
    let echo = service_fn(|request: Request<Unread>| async move { Ok::<_, BoxError>(Response::new(request)) });
    match layer.layer(echo).oneshot(request.body(Unread(Default::default())).unwrap()).await {
        Ok(response) => Ok(response.into_body()),
        Err(error) => {
            let error = cause_ref::<AuthError>(&*error).expect("a refusal");
            Err((error.status().as_u16(), error.code()))
        }
    }
}

fn header<'a>(request: &'a Request<Unread>, name: &str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.to_str().unwrap())
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path)
}

#[tokio::test]
async fn a_known_caller_is_in_the_exchange_and_in_the_headers() {
    let request = get("/v1/models").header("authorization", "Bearer k-alice");
    let mut seen = send(layer(), request).await.unwrap();
    assert_eq!(header(&seen, "x-api-key-name"), Some("alice"));
    assert_eq!(header(&seen, "x-api-key-userid"), Some("u-1"));
    let exchange = Exchange::of(seen.extensions_mut());
    assert_eq!(exchange.caller().unwrap().name(), Some("alice"));
}

#[tokio::test]
async fn no_key_travels_further_wherever_it_was_sent() {
    let request = get("/v1/models")
        .header("authorization", "Bearer k-alice")
        .header("authorization", "Bearer other")
        .header("x-api-key", "k-nobody")
        .header("x-other", "stays");
    let seen = send(layer(), request).await.unwrap();
    assert_eq!((header(&seen, "authorization"), header(&seen, "x-api-key")), (None, None));
    assert_eq!(header(&seen, "x-other"), Some("stays"));
}

#[tokio::test]
async fn a_key_that_is_sent_more_than_once_travels_no_further_either() {
    let request = get("/v1/models")
        .header("authorization", "Bearer k-alice")
        .header("api-key", "k-alice")
        .header("x_api_key", "k-alice")
        .header("X-Api_Key", "k-alice")
        .header("api_key", "k-alice")
        .header("sec-websocket-protocol", "realtime, openai-insecure-api-key.k-alice")
        .header("api-keys", "stays");
    let seen = send(layer(), request).await.unwrap();
    let mut left: Vec<&str> = seen.headers().keys().map(|name| name.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["api-keys", "sec-websocket-protocol", "x-api-key-name", "x-api-key-userid"]);
    assert_eq!(header(&seen, "sec-websocket-protocol"), Some("realtime"));
}

#[tokio::test]
async fn a_key_in_a_header_of_its_own_leaves_none_where_servers_look_for_one() {
    let config =
        r#"{"header_names": ["x-team-key"], "pipeline": [{"type": "static", "static": {"keys": [{"key": "k"}]}}]}"#;
    let config: AuthConfig = serde_json::from_str(config).unwrap();
    let layer = AuthLayer::new(Arc::new(Authenticator::new(&config, None).unwrap()));
    let request = get("/v1/models").header("x-team-key", "k").header("x_team_key", "k").header("authorization", "k");
    assert!(send(layer, request).await.unwrap().headers().is_empty());
}

#[tokio::test]
async fn an_exempt_path_needs_no_key_but_loses_one_all_the_same() {
    let request = get("/health/live").header("authorization", "Bearer k-alice").header("x-api-key-name", "root");
    let mut seen = send(layer(), request).await.unwrap();
    assert_eq!((header(&seen, "authorization"), header(&seen, "x-api-key-name")), (None, None));
    assert!(Exchange::of(seen.extensions_mut()).caller().unwrap().fingerprint().is_none());
}

#[tokio::test]
async fn nobody_gives_himself_a_name() {
    let request = get("/v1/models")
        .header("x-api-key", "k-nobody")
        .header("X-API-Key-Name", "root")
        .header("X-API-Key-UserID", "0")
        .header("X-API-Key-UserID", "1");
    let seen = send(layer(), request).await.unwrap();
    assert_eq!((header(&seen, "x-api-key-name"), header(&seen, "x-api-key-userid")), (None, None));
}

#[tokio::test]
async fn a_name_that_no_header_can_hold_is_left_out() {
    let seen = send(layer(), get("/v1/models").header("x-api-key", "k-odd")).await.unwrap();
    assert_eq!(seen.headers().get("x-api-key-name").unwrap().as_bytes(), "ünïcode".as_bytes());
    assert!(!seen.headers().contains_key("x-api-key-userid"));
}

#[tokio::test]
async fn with_auth_off_the_clients_key_passes_but_not_its_claims() {
    let request = get("/v1/models").header("authorization", "Bearer theirs").header("x-api-key-name", "root");
    let mut seen = send(AuthLayer::disabled(), request).await.unwrap();
    assert_eq!(header(&seen, "authorization"), Some("Bearer theirs"));
    assert_eq!(header(&seen, "x-api-key-name"), None);
    assert!(Exchange::of(seen.extensions_mut()).caller().unwrap().name().is_none());
}

#[tokio::test]
async fn the_address_comes_from_the_exchange_and_an_unknown_one_opens_no_door() {
    let from = |ip: &str| {
        let exchange = Exchange::new();
        exchange.set_client(ip.parse().ok(), None);
        get("/v1/models").header("x-api-key", "k-office").extension(exchange)
    };
    assert!(send(layer(), from("10.1.2.3")).await.is_ok());
    assert!(send(layer(), from("::ffff:10.1.2.3")).await.is_ok());
    assert_eq!(send(layer(), from("192.0.2.1")).await.err(), Some((403, "INVALID")));
    assert_eq!(send(layer(), from("unknown")).await.err(), Some((403, "INVALID")));
}

#[tokio::test]
async fn a_refused_request_never_reaches_the_inner_service() {
    let (service, mut handle) = mock::pair::<Request<()>, Response<()>>();
    let mut service = layer().layer(service);
    handle.allow(1);
    for (key, expected) in [(None, (401, "ERROR")), (Some("x"), (401, "NOT_FOUND")), (Some("k-off"), (403, "DISABLED"))]
    {
        let mut request = get("/v1/models");
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let error = service.ready().await.unwrap().call(request.body(()).unwrap()).await.unwrap_err();
        let error = cause_ref::<AuthError>(&*error).unwrap();
        assert_eq!((error.status().as_u16(), error.code()), expected);
        handle.allow(1);
    }
    drop(service);
    assert!(handle.next_request().await.is_none());
}

#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    /// Panics when it is called without having been ready itself.
    struct Strict(bool);

    impl Clone for Strict {
        fn clone(&self) -> Self {
            Self(false)
        }
    }

    impl Service<Request<()>> for Strict {
        type Response = ();
        type Error = BoxError;
        type Future = std::future::Ready<Result<(), BoxError>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
            self.0 = true;
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            assert!(std::mem::take(&mut self.0), "called without being ready");
            std::future::ready(Ok(()))
        }
    }

    let mut service = AuthLayer::disabled().layer(Strict(false));
    for _ in 0..2 {
        service.ready().await.unwrap().call(Request::new(())).await.unwrap();
    }
}

#[test]
fn layer_and_service_go_wherever_they_are_needed() {
    fn check<T: Clone + Send + Sync + 'static>() {}
    check::<AuthLayer>();
    check::<Auth<tower::util::BoxCloneSyncService<Request<()>, Response<()>, BoxError>>>();
    check::<llmproxy_auth::KeyStore>();
}
