//! The proxy under test, with a receiver of its records.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::Duration,
};

use llmproxy_testkit::{Client, Receiver};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{
    scratch::Scratch,
    server::{Counted, Server, free_address},
};

/// The key that all clients use; the seed's.
pub(crate) const KEY: &str = "optional-key";
/// How many requests that key may have at a time.
pub(crate) const CONCURRENT: usize = 2;
/// How long a record may take until it is at the receiver.
const RECORD: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(25);

/// A running proxy; killed when dropped.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    receiver: Receiver,
    /// Records that nobody has taken yet, and how many of the receiver's were looked at.
    records: VecDeque<Value>,
    taken: usize,
    /// The requests that a record came of: there is one for each, and no more.
    recorded: BTreeSet<String>,
    _child: Child,
}

/// A configuration in which each of `servers` is a backend that has its model and no other.
pub(crate) fn config(servers: &[&Server]) -> String {
    let mut yaml = format!(
        "auth:\n  enabled: true\n  pipeline:\n    - {{name: interop, type: static, static: {{keys: [{{key: {KEY}, name: interop}}]}}}}\n\
         rate_limit: {{enabled: true, per_key: {{max_concurrent: {CONCURRENT}}}}}\nbackends:\n"
    );
    for server in servers {
        yaml += &format!("  - {{url: '{}', models: [{}]}}\n", server.url(), server.model);
    }
    yaml
}

// === impl Rig ===

impl Rig {
    /// Starts the binary `proxy` with `yaml` and a webhook, and waits until its backends are up.
    pub(crate) async fn start(proxy: &Path, scratch: &Scratch, yaml: &str) -> Result<Self, String> {
        let receiver = Receiver::start().await;
        let address = free_address()?;
        let folder = scratch.fresh("proxy")?;
        let config = folder.join("config.yaml");
        let usage = format!(
            "usage: {{enabled: true, reporters: [{{name: interop, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
            receiver.url()
        );
        fs::write(&config, format!("server: {{listen: '{address}'}}\n{yaml}{usage}")).map_err(|e| e.to_string())?;
        let log = File::create(folder.join("proxy.log")).map_err(|error| error.to_string())?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let child = Command::new(proxy)
            .arg("--config")
            .arg(&config)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", proxy.display()))?;
        let rig =
            Self { address, receiver, records: VecDeque::new(), taken: 0, recorded: BTreeSet::new(), _child: child };
        let deadline = tokio::time::Instant::now() + RECORD;
        while !rig.is_ready().await {
            if tokio::time::Instant::now() > deadline {
                return Err(format!("the proxy is not ready; see {}", folder.join("proxy.log").display()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(rig)
    }

    /// Where an SDK finds it.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// A connection with which to send what no SDK does.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Takes the record of the request `id`; the records before it are of no further interest.
    ///
    /// # Errors
    ///
    /// If none comes, or a request has a second one.
    pub(crate) async fn record(&mut self, id: &str) -> Result<Value, String> {
        let deadline = tokio::time::Instant::now() + RECORD;
        loop {
            while let Some(record) = self.next()? {
                if record["request_id"] == id {
                    return Ok(record);
                }
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("no record of {id} came"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes the next records, at least `count`.
    pub(crate) async fn records(&mut self, count: usize) -> Result<Vec<Value>, String> {
        let deadline = tokio::time::Instant::now() + RECORD;
        let mut records = Vec::new();
        loop {
            while let Some(record) = self.next()? {
                records.push(record);
            }
            if records.len() >= count {
                return Ok(records);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("of {count} records {} came", records.len()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Forgets the records that have come.
    pub(crate) fn forget(&mut self) -> Result<(), String> {
        while self.next()?.is_some() {}
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Value>, String> {
        if self.records.is_empty() {
            let bodies = self.receiver.bodies();
            self.records.extend(bodies[self.taken..].iter().cloned());
            self.taken = bodies.len();
        }
        let Some(record) = self.records.pop_front() else { return Ok(None) };
        let id = record["request_id"].as_str().unwrap_or_default();
        if !self.recorded.insert(id.to_owned()) {
            return Err(format!("{id} has a second record: {record}"));
        }
        Ok(Some(record))
    }

    async fn is_ready(&self) -> bool {
        match Client::try_connect(self.address).await {
            Ok(mut client) => client.get("/ready").await.status == 200,
            Err(_) => false,
        }
    }
}

/// The tokens of a record.
pub(crate) fn tokens(record: &Value) -> Counted {
    let of = |name: &str| record[name].as_u64().unwrap_or_default();
    Counted { prompt: of("prompt_tokens"), completion: of("completion_tokens") }
}

/// A record in a few words.
pub(crate) fn in_short(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
    format!("{} by {}, {}", tokens(record), text("usage_source"), text("end"))
}
