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
    sync::{Arc, mpsc},
    time::Duration,
};

use futures_util::future::BoxFuture;
use llmproxy_config::{LoadOptions, load};
use llmproxy_core::BoxError;
use llmproxy_stack::{Options, Runtime, Server};
use llmproxy_usage::{Entry, Report, Verdict, to_json};
use tokio::sync::oneshot;

/// Hands lines to the thread that writes them, and waits until it has.
#[derive(Debug)]
struct File(mpsc::SyncSender<Line>);

struct Line {
    text: String,
    written: oneshot::Sender<io::Result<()>>,
}

impl Report for File {
    fn name(&self) -> &str {
        "file"
    }

    fn report(&self, entry: Entry) -> BoxFuture<'_, Verdict> {
        let (written, done) = oneshot::channel();
        let line = Line { text: format!("{}\n", to_json(&entry.record)), written };
        Box::pin(async move {
            if self.0.try_send(line).is_err() {
                return Verdict::again("the disk does not keep up");
            }
            match done.await {
                Ok(Ok(())) => Verdict::Delivered,
                Ok(Err(error)) => Verdict::again(error),
                Err(gone) => Verdict::again(gone),
            }
        })
    }

    /// A try that ran out of time may have been written all the same, so it has plenty.
    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// A record is worth more than patience: it waits in the ledger for as long as the disk refuses it.
    fn max_age(&self) -> Duration {
        Duration::MAX
    }
}

/// A disk may take its time, and the runtime's threads have none to lose: nor does the end of the process wait for this one.
fn write_to(path: PathBuf) -> File {
    let (lines, queue) = mpsc::sync_channel::<Line>(64);
    std::thread::spawn(move || {
        for Line { text, written } in queue {
            let _ = written.send(append(&path, &text));
        }
    });
    File(lines)
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    // A line is there as a whole or not at all.
    file.write_all(line.as_bytes()).inspect_err(|_| drop(file.set_len(length)))?;
    file.sync_data()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8105".into());
    let mut config =
        load(args.next().as_deref().unwrap_or("config/config.yaml.example"), &LoadOptions::default())?.config;
    config.server.listen = listen;
    let file = write_to(args.next().unwrap_or_else(|| "usage.jsonl".into()).into());

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
    println!("stopped, {left} records still waiting");
    Ok(())
}
