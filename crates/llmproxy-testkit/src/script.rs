//! Scripts that many tests need, for [`crate::Backend::start`].
//!
//! ```
//! use llmproxy_testkit::{Backend, Client, script};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let backend = Backend::start(script::json(503, serde_json::json!({"error": "busy"}))).await;
//! assert_eq!(Client::connect(backend.addr()).await.get("/v1/models").await.status, 503);
//! // From the next request on it breaks its connections.
//! backend.set_script(script::reset());
//! let mut client = Client::connect(backend.addr()).await;
//! client.send("GET", "/v1/models", &[], b"").await;
//! assert!(client.try_head().await.is_err());
//! # });
//! ```

use std::io;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::{Seen, Wire};

/// The event that ends a stream of OpenAI's API.
pub const DONE: &str = "data: [DONE]\n\n";

/// One event of a stream that carries `json`.
///
/// ```
/// assert_eq!(llmproxy_testkit::event(&serde_json::json!({"n": 1})), "data: {\"n\":1}\n\n");
/// ```
pub fn event(json: &Value) -> String {
    format!("data: {json}\n\n")
}

/// Answers every request with this status and this JSON.
pub fn json(status: u16, body: Value) -> impl Fn(Seen, Wire) -> BoxFuture<'static, io::Result<()>> {
    let body = Bytes::from(body.to_string());
    move |_, wire| {
        let body = body.clone();
        Box::pin(async move { wire.respond(status, &[("content-type", "application/json")], body).await })
    }
}

/// Answers every request with a stream of these pieces, each written as one chunk, as it is: see [`event`] and [`DONE`].
pub fn sse<D: Into<Bytes>>(
    pieces: impl IntoIterator<Item = D>,
) -> impl Fn(Seen, Wire) -> BoxFuture<'static, io::Result<()>> {
    let pieces: Vec<Bytes> = pieces.into_iter().map(Into::into).collect();
    move |_, mut wire| {
        let pieces = pieces.clone();
        Box::pin(async move {
            wire.head(200, &[("content-type", "text/event-stream; charset=utf-8")]).await?;
            for piece in pieces {
                wire.chunk(piece).await?;
            }
            wire.finish().await
        })
    }
}

/// Reads every request and never answers; sees its client leave.
pub fn hang() -> impl Fn(Seen, Wire) -> BoxFuture<'static, io::Result<()>> {
    |_, mut wire| {
        Box::pin(async move {
            wire.client_gone().await;
            Ok(())
        })
    }
}

/// Reads every request and breaks the connection instead of answering.
pub fn reset() -> impl Fn(Seen, Wire) -> BoxFuture<'static, io::Result<()>> {
    |_, wire| {
        Box::pin(async move {
            wire.reset();
            Ok(())
        })
    }
}
