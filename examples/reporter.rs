//! A reporter of one's own: every record as a line of a file, tried again for as long as the disk refuses it.
//!
//! ```sh
//! cargo run -p llmproxy-examples --bin reporter 127.0.0.1:8105 config/config.yaml.example /var/lib/me/usage.jsonl
//! ```

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use llmproxy_config::{LoadOptions, load};
use llmproxy_core::BoxError;
use llmproxy_stack::{Options, Runtime, Server};
use llmproxy_usage::{Entry, Report, Verdict, to_json};

/// Appends to a file.
#[derive(Debug)]
struct File(PathBuf);

impl Report for File {
    fn name(&self) -> &str {
        "file"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        let (path, line) = (self.0.clone(), format!("{}\n", to_json(&entry.record)));
        Box::pin(async move {
            // A disk may take its time, and the runtime's threads have none to lose.
            match tokio::task::spawn_blocking(move || append(&path, &line)).await {
                Ok(Ok(())) => Verdict::Delivered,
                Ok(Err(error)) => Verdict::again(error),
                Err(panicked) => Verdict::again(panicked),
            }
        })
    }

    /// A record is worth more than patience. While it waits it keeps its place, and at last nobody is served any more.
    fn retries(&self) -> u32 {
        u32::MAX
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    // In one piece, as other records are written at the same time.
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8105".into());
    let mut config =
        load(args.next().as_deref().unwrap_or("config/config.yaml.example"), &LoadOptions::default())?.config;
    config.server.listen = listen;
    let file = File(args.next().unwrap_or_else(|| "usage.jsonl".into()).into());

    let options = Options { reporters: vec![Arc::new(file)], ..Options::default() };
    let runtime = Runtime::start(&config, options).await?;
    let server = Server::bind(&config.server, runtime.stop_flag()).await?;
    println!("listening on {}", server.local_addr()?);
    server
        .run(runtime.service(), async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await;
    let left = runtime.shutdown(Duration::from_secs(10)).await;
    println!("stopped, {left} records not delivered");
    Ok(())
}
