//! `cargo xtask interop`: the proxy between software that we did not write.
//!
//! Real inference servers behind it, real client libraries in front of it. Everything is installed into
//! `target/interop`, at the versions that [`scratch`] names, and stays there for the next run. Three figures are compared
//! for each thing that a client did: what the client was told, what the server counted by itself, and what the proxy
//! recorded. Where the proxy has to count, a fourth one is what another program makes of the same text.

mod clients;
mod counting;
mod leaving;
mod pair;
mod rig;
mod scratch;
mod server;
mod table;

use std::path::Path;

pub(crate) use self::scratch::python_sdk;
use self::{rig::Rig, scratch::Scratch, server::Server, table::Row};
use crate::cargo::{cargo, root, run as run_command};

/// Which real server is behind the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// llama.cpp's llama-server.
    Llama,
    /// vLLM on the CPU: some gigabytes, and minutes to start.
    Vllm,
}

/// The name under which the models are served: the one in the seed of this project, so that its block can be used as it is.
const MODEL: &str = "qwen-coder";
/// The same for embeddings.
const EMBEDDING_MODEL: &str = "embedder";

/// Runs everything. Returns whether all went as it should.
pub(crate) fn run(engine: Engine) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(all(engine)));
    let rows = match result {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("==> interop FAILED: {error}");
            return false;
        }
    };
    print!("{}", table::render(&rows));
    let failed = rows.iter().filter(|row| row.verdict.is_err()).count();
    println!("{} passed, {failed} failed", rows.len() - failed);
    failed == 0 && !rows.is_empty()
}

async fn all(engine: Engine) -> Result<Vec<Row>, String> {
    let scratch = Scratch::prepare(engine)?;
    // Of the whole workspace, so that dependencies have the features that the tests have built them with.
    run_command(&mut cargo(["build", "--locked", "--workspace", "--bin", "llmproxy"]))?;
    let proxy = root().join("target/debug/llmproxy");

    let mut rows = Vec::new();
    match engine {
        Engine::Llama => {
            let chat = Server::llama(&scratch, "tiny.gguf", MODEL, &[]).await?;
            let embed =
                Server::llama(&scratch, "tiny.gguf", EMBEDDING_MODEL, &["--embeddings", "--pooling", "mean"]).await?;
            rows.extend(behind(&proxy, &scratch, &[&chat, &embed]).await?);
            rows.extend(counting::rows(&proxy, &scratch, &chat).await?);
            drop((chat, embed));
            // Slow enough to be caught between two batches of a prompt.
            let slow = Server::llama(&scratch, "slow.gguf", MODEL, &["-b", "64", "-ub", "64"]).await?;
            rows.extend(leaving::rows(&proxy, &scratch, &slow).await?);
            let fast = Server::llama(&scratch, "tiny.gguf", MODEL, &[]).await?;
            rows.extend(pair::rows(&proxy, &scratch, fast, slow).await?);
        }
        Engine::Vllm => {
            let chat = Server::vllm(&scratch, MODEL).await?;
            rows.extend(behind(&proxy, &scratch, &[&chat]).await?);
            rows.extend(leaving::rows(&proxy, &scratch, &chat).await?);
        }
    }
    Ok(rows)
}

/// All clients, one after another, with these servers behind the proxy.
async fn behind(proxy: &Path, scratch: &Scratch, servers: &[&Server]) -> Result<Vec<Row>, String> {
    let mut rig = Rig::start(proxy, scratch, &rig::config(servers)).await?;
    let mut rows = Vec::new();
    for client in clients::SDKS {
        eprintln!("\n==> {}", client.name);
        rows.extend(clients::sdk(client, &mut rig, scratch, servers).await?);
    }
    eprintln!("\n==> OpenClaw");
    rows.push(clients::openclaw(&mut rig, scratch, servers).await?);
    Ok(rows)
}
