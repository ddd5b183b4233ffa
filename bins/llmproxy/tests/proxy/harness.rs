//! The real binary, started on a free port with a configuration of the test's own.
//!
//! Nothing here sleeps to wait for something: the proxy writes an access line at the end of each exchange, and that is
//! what tests wait for.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

/// No step of a test takes this long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    address: SocketAddr,
    folder: Folder,
    access: mpsc::Receiver<Value>,
    log: mpsc::Receiver<Value>,
    /// What was logged before it listened.
    early: VecDeque<Value>,
}

/// A folder of the test's own; removed when dropped.
pub(crate) struct Folder(PathBuf);

/// The series of `/metrics`.
pub(crate) struct Metrics(Vec<(String, f64)>);

impl Proxy {
    /// Starts the proxy on `yaml`.
    pub(crate) async fn start(yaml: &str) -> Self {
        Self::start_with(yaml, &[]).await
    }

    /// The same, with these variables in its environment.
    pub(crate) async fn start_with(yaml: &str, variables: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let config = folder.join("config.yaml");
        std::fs::write(&config, yaml).expect("the folder is ours");
        // Most tests count what their backends are asked.
        let asks_for_load = yaml.contains("load_signals").to_string();
        let mut child = command(&folder)
            .arg("--config")
            .arg(&config)
            .env("LLMPROXY_SERVER__LISTEN", "127.0.0.1:0")
            .env("LLMPROXY_LOG__OUTPUT", "stderr")
            .env("LLMPROXY_ROUTING__LOAD_SIGNALS__ENABLED", asks_for_load)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let access = lines(child.stdout.take().expect("piped"));
        let mut log = lines(child.stderr.take().expect("piped"));
        let mut early = VecDeque::new();
        let address = loop {
            let line = within("the proxy to listen", log.recv()).await.expect("the proxy went on");
            if line["message"] == "listening" {
                break line["address"].as_str().expect("an address").parse().expect("an address");
            }
            if line["message"].is_null() {
                panic!("the proxy did not start: {line}");
            }
            early.push_back(line);
        };
        Self { child, address, folder, access, log, early }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").cast_signed()).expect("not zero")
    }

    /// The access line of the next exchange that ends; those of the proxy's own paths are passed over.
    pub(crate) async fn ended(&mut self) -> Value {
        loop {
            let line = within("an exchange to end", self.access.recv()).await.expect("the proxy went on");
            if !matches!(line["path"].as_str(), Some("/metrics" | "/ready" | "/health")) {
                return line;
            }
        }
    }

    /// The next line of the log whose message has `part` in it.
    pub(crate) async fn logged(&mut self, part: &str) -> Value {
        loop {
            let line = match self.early.pop_front() {
                Some(line) => line,
                None => within(part, self.log.recv()).await.expect("the proxy went on"),
            };
            if line["message"].as_str().unwrap_or_default().contains(part) {
                return line;
            }
        }
    }

    /// The line of the log that says that `backend` is up.
    pub(crate) async fn up(&mut self, backend: &str) {
        while self.logged("the backend is up").await["backend"] != backend {}
    }

    /// Writes a new configuration and asks for it to be read; waits until the proxy says `expected`.
    pub(crate) async fn reload(&mut self, yaml: &str, expected: &str) {
        std::fs::write(self.folder.join("config.yaml"), yaml).expect("the folder is ours");
        self.signal(Signal::HUP);
        self.logged(expected).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exit(mut self) -> ExitStatus {
        within("the proxy to exit", self.child.wait()).await.expect("a status")
    }

    /// Ends it as a crash does, without a word; gone when this returns.
    pub(crate) async fn kill(mut self) {
        self.signal(Signal::KILL);
        within("the proxy to be gone", self.child.wait()).await.expect("a status");
    }

    /// The memory that is its own, in KiB. What it shares with other processes of the same binary is left out: how much of
    /// that is its part changes whenever another test's proxy starts or ends.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid().as_raw_nonzero());
        let rollup = std::fs::read_to_string(path).expect("it runs");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("Linux says so");
        line.trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// The most memory that it has had at any time, in KiB, with what it shares.
    pub(crate) fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
        line.trim_end_matches(" kB").trim().parse().expect("a number")
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::parse(&get(self.address, "/metrics").await.1)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
    }
}

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("llmproxy-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("the system has a folder for this");
        Self(folder)
    }
}

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Metrics {
    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
                .collect(),
        )
    }

    /// The sum over the series of `name` whose labels contain all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(series, _)| {
                series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label))
            })
            .map(|(_, value)| value)
            .sum()
    }
}

/// The binary under test, in a folder and an environment of its own.
pub(crate) fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    command.current_dir(folder).kill_on_drop(true).stdin(Stdio::null());
    command
}

/// A plain GET over a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .expect("writes");
    let mut text = String::new();
    within("an answer", stream.read_to_string(&mut text)).await.expect("reads");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    let body = text.split_once("\r\n\r\n").expect("a head").1.to_owned();
    (status, body)
}

/// `future`, or a panic that says what was waited for.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Lines of JSON; one that is none becomes a string.
fn lines(pipe: impl AsyncRead + Unpin + Send + 'static) -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::channel(100_000);
    tokio::spawn(async move {
        let mut lines = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if sender.send(value).await.is_err() {
                break;
            }
        }
    });
    receiver
}
