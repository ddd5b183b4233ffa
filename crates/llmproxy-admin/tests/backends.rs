//! Looking at backends, and changing them, as a client sees it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic as the tests do")]

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body};
use http::Request;
use http_body_util::BodyExt;
use llmproxy_admin::{AdminConfig, BackendView, Backends, Overview, router};
use serde_json::{Value, json};
use tower::ServiceExt;

/// One backend, `a`, and what was asked of it.
#[derive(Default)]
struct One {
    draining: Mutex<bool>,
    weight: Mutex<u32>,
}

impl Backends for One {
    fn overview(&self) -> Overview {
        let (draining, weight) = (*self.draining.lock().unwrap(), *self.weight.lock().unwrap());
        let view = BackendView { name: "a".into(), draining, weight, ..BackendView::default() };
        Overview { backends: vec![view], waiting: 3 }
    }

    fn set_draining(&self, name: &str, draining: bool) -> Option<bool> {
        (name == "a").then(|| std::mem::replace(&mut *self.draining.lock().unwrap(), draining) != draining)
    }

    fn set_weight(&self, name: &str, weight: u32) -> Option<()> {
        (name == "a").then(|| *self.weight.lock().unwrap() = weight)
    }
}

fn admin(read_only: bool) -> Router {
    let config = AdminConfig { enabled: true, token: "t".into(), read_only, ..AdminConfig::default() };
    router(&config, Arc::new(One::default()))
}

async fn ask(router: &Router, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("x-admin-token", "t");
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test]
async fn backends_are_shown() {
    let (status, answer) = ask(&admin(false), "GET", "/admin/backends", "").await;
    assert_eq!((status, &answer["success"], &answer["message"]), (200, &json!(true), &json!("")));
    assert_eq!((&answer["data"]["waiting"], &answer["data"]["backends"][0]["name"]), (&json!(3), &json!("a")));
    assert!(answer.get("error").is_none());
}

#[tokio::test]
async fn a_backend_is_drained_and_weighed_by_name() {
    let router = admin(false);
    let shown = async || ask(&router, "GET", "/admin/backends", "").await.1["data"]["backends"][0].clone();
    let (status, answer) = ask(&router, "POST", "/admin/backends/drain", r#"{"name": "a"}"#).await;
    assert_eq!((status, answer["success"].as_bool()), (200, Some(true)));
    assert!(answer.get("data").is_none());
    assert_eq!(shown().await["draining"], true);
    let (_, again) = ask(&router, "POST", "/admin/backends/drain", r#"{"name": "a"}"#).await;
    assert!(again["message"].as_str().unwrap().contains("as before"), "{again}");
    ask(&router, "POST", "/admin/backends/undrain", r#"{"name": "a"}"#).await;
    assert_eq!(shown().await["draining"], false);
    assert_eq!(ask(&router, "POST", "/admin/backends/weight", r#"{"name": "a", "weight": 7}"#).await.0, 200);
    assert_eq!(shown().await["weight"], 7);
}

#[tokio::test]
async fn mistakes_are_told_apart() {
    let router = admin(false);
    let long = "a".repeat(70_000);
    for (method, path, body, expected, says) in [
        ("POST", "/admin/backends/drain", r#"{"name": "b"}"#, 404, "no backend is named `b`"),
        ("POST", "/admin/backends/weight", r#"{"name": "b", "weight": 1}"#, 404, "no backend is named `b`"),
        ("POST", "/admin/backends/drain", "", 400, "send JSON such as"),
        ("POST", "/admin/backends/drain", "{}", 400, "missing field `name`"),
        ("POST", "/admin/backends/weight", r#"{"name": "a", "weight": -1}"#, 400, "invalid value"),
        ("POST", "/admin/backends/drain", &long, 413, "larger than 64 KiB; send JSON such as"),
        ("POST", "/admin/backends/weight", &long, 413, "larger than 64 KiB; send JSON such as"),
        ("GET", "/admin/backends/drain", "", 405, "changing is POST"),
        ("POST", "/admin/backends", "", 405, "looking is GET"),
        ("GET", "/admin/keys/list", "", 404, "llmproxy keys"),
    ] {
        let (status, answer) = ask(&router, method, path, body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert_eq!((&answer["success"], &answer["message"]), (&json!(false), &json!("")));
        assert!(answer["error"].as_str().unwrap().contains(says), "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn whoever_has_no_token_learns_nothing() {
    let router = admin(false);
    for path in ["/admin/backends", "/admin/backends/drain", "/admin/nothing"] {
        for (token, expected) in [(None, 401), (Some("x"), 403)] {
            let mut request = Request::post(path).body(Body::from(r#"{"name": "a"}"#)).unwrap();
            if let Some(token) = token {
                request.headers_mut().insert("x-admin-token", token.parse().unwrap());
            }
            assert_eq!(router.clone().oneshot(request).await.unwrap().status(), expected, "{path}");
        }
    }
    let (_, answer) = ask(&router, "GET", "/admin/backends", "").await;
    assert_eq!(answer["data"]["backends"][0]["draining"], false);
}

#[tokio::test]
async fn read_only_shows_and_does_not_change() {
    let router = admin(true);
    assert_eq!(ask(&router, "GET", "/admin/backends", "").await.0, 200);
    let (status, answer) = ask(&router, "POST", "/admin/backends/drain", r#"{"name": "a"}"#).await;
    assert_eq!(status, 403);
    assert!(answer["error"].as_str().unwrap().contains("admin.read_only"), "{answer}");
    assert_eq!(ask(&router, "GET", "/admin/backends", "").await.1["data"]["backends"][0]["draining"], false);
}
