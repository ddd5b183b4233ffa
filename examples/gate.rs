//! Keys and limits in front of a handler that has nothing to do with models.
//!
//! ```sh
//! cargo run -p llmproxy-examples --bin gate
//! curl -i http://127.0.0.1:8102/report                                       # 401
//! curl -i http://127.0.0.1:8102/report -H 'Authorization: Bearer sk-alice'   # the report; 429 the third time
//! ```

use std::{env, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, Request},
    routing::get,
};
use llmproxy_auth::{AuthConfig, AuthLayer, Authenticator, SourceConfig, StaticKeyConfig};
use llmproxy_core::{BoxError, Exchange};
use llmproxy_ratelimit::{LimitsConfig, RateLimitConfig, RateLimitLayer, RateLimiter};
use llmproxy_stack::RespondLayer;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, util::MapRequestLayer};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let alice = StaticKeyConfig { key: "sk-alice".into(), name: "alice".into(), ..StaticKeyConfig::default() };
    let local = StaticKeyConfig {
        key: "sk-elsewhere".into(),
        name: "elsewhere".into(),
        allowed_ips: vec!["10.0.0.0/8".into()],
        ..StaticKeyConfig::default()
    };
    let keys = SourceConfig::of_keys([alice, local]);
    let auth = AuthConfig { enabled: true, pipeline: vec![keys], ..AuthConfig::default() };
    let limiter = RateLimiter::new(&RateLimitConfig {
        enabled: true,
        per_key: LimitsConfig { requests_per_minute: 2, ..LimitsConfig::default() },
        ..RateLimitConfig::default()
    });

    let gate = ServiceBuilder::new()
        // Outermost: the errors of the layers below become answers here.
        .layer(RespondLayer::new())
        // Where the request comes from. Without this, a key that is bound to addresses is refused.
        .layer(MapRequestLayer::new(note_address))
        // Who is calling.
        .layer(AuthLayer::new(Arc::new(Authenticator::new(&auth, None)?)))
        // How much they may; by key, so it stands inside of auth.
        .layer(RateLimitLayer::new(limiter.clone()));
    let app = Router::new()
        .route("/report", get(report))
        // One call with all layers; what is added after it stands outside of the gate.
        .layer(gate)
        .route("/public", get(async || "for everyone\n"));

    // Keys that are idle are forgotten, so that memory does not grow with every key that ever came.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            limiter.sweep();
        }
    });

    let listener = TcpListener::bind(env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8102")).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?)
}

fn note_address(mut request: Request) -> Request {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    Exchange::of(request.extensions_mut()).set_client(peer, None);
    request
}

/// An unrelated handler: it finds in the exchange what the layers have found out.
async fn report(Extension(exchange): Extension<Arc<Exchange>>) -> String {
    let name = exchange.caller().and_then(|caller| caller.name()).unwrap_or("nobody");
    format!("a report for {name}\n")
}
