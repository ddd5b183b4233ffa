//! The whole stack under `/llm` of a service that does other things too.
//!
//! ```sh
//! cargo run -p llmproxy-examples --bin nested 127.0.0.1:8103 config/config.yaml.example
//! curl http://127.0.0.1:8103/llm/v1/models
//! curl http://127.0.0.1:8103/hello
//! ```

use std::{env, time::Duration};

use axum::{Router, routing::get};
use llmproxy_config::{LoadOptions, load};
use llmproxy_core::BoxError;
use llmproxy_stack::{Options, RespondLayer, Runtime, Server};
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8103".into());
    let mut config =
        load(args.next().as_deref().unwrap_or("config/config.yaml.example"), &LoadOptions::default())?.config;
    config.server.listen = listen;

    let runtime = Runtime::start(&config, Options::default()).await?;
    // A router wants a service that does not fail.
    let llm = ServiceBuilder::new().layer(RespondLayer::new()).service(runtime.service());
    let app = Router::new().route("/hello", get(async || "hello\n")).nest_service("/llm", llm);

    // The proxy's own server loop in the place of axum::serve; docs/embedding.md says what it adds.
    let server = Server::bind(&config.server, runtime.stop_flag()).await?;
    println!("listening on {}", server.local_addr()?);
    server
        .run(app, async {
            // An error means that the signal can't be caught, so that nobody can ask us to stop.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
            runtime.begin_shutdown();
        })
        .await;

    // All streams are over, by themselves or cut: the records of both are delivered before we go.
    let left = runtime.shutdown(Duration::from_secs(10)).await;
    println!("stopped, {left} records still waiting");
    Ok(())
}
