//! What an operator sees and changes over HTTP: a router, not a layer.
//!
//! It stands beside the stack, or alone on a port of its own, and lets in whoever has the token. What it shows and changes
//! is behind [`Backends`]: this crate knows no balancer.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /admin/backends` | how each backend is doing |
//! | `POST /admin/backends/drain` `{"name": ..}` | it gets no new requests; those that are there finish |
//! | `POST /admin/backends/undrain` `{"name": ..}` | it gets them again |
//! | `POST /admin/backends/weight` `{"name": .., "weight": ..}` | its share of the work, until a configuration says otherwise |
//!
//! Answers are `{"success": bool, "message": string, "data": .., "error": string}`, of which `data` and `error` may be
//! missing.
//!
//! ```
//! use std::sync::Arc;
//!
//! use http::Request;
//! use llmproxy_admin::{AdminConfig, Backends, Overview, router};
//! use tower::ServiceExt;
//!
//! struct Nobody;
//!
//! impl Backends for Nobody {
//!     fn overview(&self) -> Overview {
//!         Overview::default()
//!     }
//!     fn set_draining(&self, _: &str, _: bool) -> Option<bool> {
//!         None
//!     }
//!     fn set_weight(&self, _: &str, _: u32) -> Option<()> {
//!         None
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let config = AdminConfig { enabled: true, token: "t".into(), ..AdminConfig::default() };
//! let router = router(&config, Arc::new(Nobody));
//! let request = Request::get("/admin/backends").header("X-Admin-Token", "t").body(axum::body::Body::empty()).unwrap();
//! assert_eq!(router.oneshot(request).await.unwrap().status(), 200);
//! # }
//! ```
//!
//! # Where it stands
//!
//! Beside the stack, as `/health` and `/metrics` do, or on a listener that has nothing else. No layer of the proxy sees its
//! requests.
//!
//! # What it must never know
//!
//! A balancer, a configuration file, a request of a client. It shows what [`Backends`] tells it and asks for what an
//! administrator asked. It does nothing without the token, and never says whether one was nearly right.

mod backends;
mod config;
mod envelope;
mod router;
mod token;

pub use backends::{BackendView, Backends, LoadView, Overview};
pub use config::AdminConfig;
pub use router::router;
