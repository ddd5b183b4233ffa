//! A policy of one's own, in a proxy that is put together from single layers: your own server first, another only
//! when that one is busy.
//!
//! ```sh
//! cargo run -p llmproxy-examples --bin policy 127.0.0.1:8104 http://127.0.0.1:8000 http://rented:8000
//! ```

use std::{env, sync::Arc};

use axum::Router;
use llmproxy_balancer::{BackendConfig, BalanceLayer, Balancer, Candidate, Choice, Policy, Work, validate_backends};
use llmproxy_core::BoxError;
use llmproxy_metering::{BodyBudget, InspectConfig, InspectLayer, MeterLayer};
use llmproxy_sse::{SseConfig, SseLayer};
use llmproxy_stack::RespondLayer;
use llmproxy_upstream::{Clients, Upstream};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// The first backend that has less than `at` requests for each unit of its weight; if all have, the last.
#[derive(Debug)]
struct Overflow {
    at: f64,
}

impl Policy for Overflow {
    fn pick(&self, _: &Work, candidates: &[Candidate<'_>]) -> Choice {
        let has_room = |candidate: &Candidate<'_>| (candidate.in_flight as f64) < self.at * candidate.weight;
        // The candidates are those that serve the model and are not out, in the order in which they were configured.
        match candidates.iter().position(has_room) {
            Some(at) => Choice::new(at, "the first with room"),
            None => Choice::new(candidates.len() - 1, "all others are busy"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8104".into());
    let backends: Vec<BackendConfig> = args.map(BackendConfig::new).collect();
    if backends.is_empty() {
        return Err("name the backends after the address to listen on, the preferred one first".into());
    }
    if let Some((key, mistake)) = validate_backends(&backends).into_iter().next() {
        return Err(format!("backends{key}: {mistake}").into());
    }

    // State lives in the balancer and the clients; the layers only hold on to it.
    let clients = Clients::new();
    let balancer = Balancer::new(clients.http_client(1 << 20));
    let (routing, health, queue) = Default::default();
    let pool = balancer.apply(&backends, &routing, &health, &queue);
    // So that the first request finds out about nobody: who is up, and which models they have.
    balancer.check_now().await;
    let inspect = InspectConfig::default();
    let budget = BodyBudget::new(inspect.max_buffered_bytes);

    let proxy = ServiceBuilder::new()
        .layer(RespondLayer::new())
        // Reads the JSON once: what model is asked for, and a body that can be sent again.
        .layer(InspectLayer::new(&inspect, budget))
        // Takes the usage event out again that is asked of the backends for every stream, whoever wants the records.
        .layer(MeterLayer::new())
        // Picks a backend for each attempt.
        .layer(BalanceLayer::new(pool).with_policy(Arc::new(Overflow { at: 2.0 })))
        // Limits of time for each attempt, so it stands inside of the retries.
        .layer(SseLayer::new(&SseConfig::default()))
        .service(Upstream::new(clients));
    // By name: a model server has paths that administer it, and the layers let pass what they are given.
    let app = Router::new().route_service("/v1/chat/completions", proxy.clone()).route_service("/v1/embeddings", proxy);

    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
