//! An example as a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
};

use llmproxy_testkit::{Client, within};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// A running example; killed when dropped.
pub(crate) struct Example {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    addr: SocketAddr,
}

/// A folder of the test's own; removed when dropped.
pub(crate) struct Folder(PathBuf);

// === impl Example ===

impl Example {
    /// Starts `binary` on a free port, with these arguments after the address.
    pub(crate) async fn start(binary: &str, args: &[&str]) -> Self {
        let mut child = Command::new(binary)
            .arg("127.0.0.1:0")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the example was built with the tests");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let addr = loop {
            let line = within(lines.next_line(), || "the example does not listen".into()).await.unwrap();
            let line = line.expect("the example listens before it ends");
            if let Some(addr) = line.strip_prefix("listening on ") {
                break addr.parse().expect("an address");
            }
        };
        Self { child, lines, addr }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.addr).await
    }

    /// The next line that it prints and that begins like this.
    pub(crate) async fn says(&mut self, start: &str) -> String {
        loop {
            let line = within(self.lines.next_line(), || format!("it does not say `{start}`")).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without saying `{start}`"));
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let pid = Pid::from_raw(self.child.id().expect("it runs").cast_signed()).expect("not zero");
        kill_process(pid, Signal::INT).expect("it runs");
    }

    /// Waits for it to end well.
    pub(crate) async fn ended(mut self) {
        let status = within(self.child.wait(), || "it does not end".into()).await.unwrap();
        assert!(status.success(), "{status}");
    }
}

// === impl Folder ===

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("llmproxy-examples-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("the system has a folder for this");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a configuration; returns where it is.
    pub(crate) fn config(&self, yaml: &str) -> String {
        let path = self.0.join("config.yaml");
        std::fs::write(&path, yaml).expect("the folder is ours");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
