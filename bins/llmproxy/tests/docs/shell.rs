//! Blocks that are run, as a reader would type them, in a folder of their own.
//!
//! - The folder has `config/` as the repository has it, and `config.yaml` (a copy of `config/config.yaml.example`). These,
//!   and the block itself, are pointed at a model server of the testkit in the place of `localhost:11434`.
//! - `llmproxy`, and `cargo run --release --`, are the binary under test. One that serves (`llmproxy --config FILE`,
//!   `serve`, `demo`) goes into the background once it listens, lives until the block ends, and must then end well.
//! - Where a block starts none, one is running on `config.yaml`.
//! - `localhost:8000` is wherever the proxy of the block listens. `pidof llmproxy` finds that one and no other.
//! - A `curl` that is answered with an error fails the block, as does any other command that fails.

use std::{
    collections::HashSet,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use llmproxy_testkit::ModelServer;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, time::timeout};

use crate::{
    blocks::{Block, root},
    place::Folder,
};

/// No block takes this long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(40);
/// The models that the documentation speaks of.
const MODELS: &[&str] = &["qwen-coder", "qwen-coder-32b", "deepseek-r1", "demo"];

/// What stands in the way of a block's commands: `$BIN` is the binary, `$PLACE` a folder for what it leaves.
const SHIM: &str = r#"#!/bin/sh
case "$1" in
  ""|serve|-c|--config|--config=*|-config|--strict) serves=1 ;;
  demo) serves=1; for arg in "$@"; do case "$arg" in --once|--help) serves=0 ;; esac; done ;;
  *) serves=0 ;;
esac
if [ "$serves" = 0 ]; then exec "$BIN" "$@"; fi
if [ "$1" = demo ]; then
  listen="--listen 127.0.0.1:$PORT"
  for arg in "$@"; do if [ "$arg" = --listen ]; then listen=; fi; done
else
  export LLMPROXY_SERVER__LISTEN="127.0.0.1:$PORT"
fi
# Unquoted on purpose: two words or none.
(sh -c 'echo $$ >"$PLACE/pid"; exec "$@"' sh "$BIN" "$@" $listen >"$PLACE/log" 2>&1; echo $? >"$PLACE/exit") >/dev/null 2>&1 &
while ! grep -q -e '"listening"' -e 'listening address' -e 'listens on' "$PLACE/log" 2>/dev/null; do
  if [ -s "$PLACE/exit" ]; then cat "$PLACE/log" >&2; exit 1; fi
  sleep 0.02
done
"#;
const CARGO: &str = r#"#!/bin/sh
if [ "$1 $2 $3" = "run --release --" ]; then shift 3; exec llmproxy "$@"; fi
echo "cargo $*: only \`cargo run --release -- ...\` is run here; mark the block with norun" >&2
exit 1
"#;
const PIDOF: &str = "#!/bin/sh\ncat \"$PLACE/pid\"\n";

/// Runs the block; what went wrong, if anything.
pub(crate) async fn run(block: &Block) -> Result<(), String> {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await.is_err() {
        return Err("there is no `curl` here, which the documentation's commands need; install it".into());
    }
    let mut models = ModelServer::builder().words_per_second(f64::INFINITY);
    for model in MODELS {
        models = models.model(*model);
    }
    let models = models.start().await.map_err(|error| error.to_string())?;
    let (folder, place) = (Folder::new(), Folder::new());
    furnish(&folder, &place, &models.url());

    let port = port();
    let mut text = block.text.replace("localhost:8000", &format!("127.0.0.1:{port}"));
    text = text.replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"));
    text = text.replace("http://localhost:11434", &models.url());
    if !block.text.lines().any(serves) {
        text = format!("llmproxy --config config.yaml\n{text}");
    }
    let guard = Server(&place);
    let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-euc", &text])
        .current_dir(&*folder)
        .env_clear()
        .env("PATH", path)
        .env("HOME", &*place)
        .env("PLACE", &*place)
        .env("BIN", env!("CARGO_BIN_EXE_llmproxy"))
        .env("PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, output).await.map_err(|_| format!("takes longer than {PATIENCE:?}"))?;
    let output = output.map_err(|error| format!("no shell: {error}"))?;
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let log = fs::read_to_string(place.join("log")).unwrap_or_default();
        return Err(format!("{}:\n{shown}\nthe proxy's log:\n{log}", output.status));
    }
    guard.stop().await
}

/// Puts into the folders what the commands find there.
fn furnish(folder: &Path, place: &Path, backend: &str) {
    let write = |path: std::path::PathBuf, text: &str| fs::write(path, text).expect("the folder is ours");
    fs::create_dir(folder.join("config")).expect("the folder is ours");
    for entry in fs::read_dir(root().join("config")).expect("config/ is there") {
        let path = entry.expect("readable").path();
        let text = fs::read_to_string(&path).expect("readable").replace("http://localhost:11434", backend);
        write(folder.join("config").join(path.file_name().expect("a name")), &text);
    }
    let example = fs::read_to_string(folder.join("config/config.yaml.example")).expect("it is there");
    write(folder.join("config.yaml"), &example);

    // An answer that is an error must not pass for one that is none.
    write(place.join(".curlrc"), "fail-with-body\nno-progress-meter\nmax-time = 30\n");
    fs::create_dir(place.join("bin")).expect("the folder is ours");
    for (name, text) in [("llmproxy", SHIM), ("cargo", CARGO), ("pidof", PIDOF)] {
        let path = place.join("bin").join(name);
        write(path.clone(), text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    }
}

/// Whether the line starts a proxy; the same rule as the shim's.
fn serves(line: &str) -> bool {
    let line = line.trim();
    let rest = line.strip_prefix("llmproxy").or_else(|| line.strip_prefix("cargo run --release --"));
    let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(' ')) else { return false };
    let words: Vec<&str> = rest.split_whitespace().take_while(|word| *word != "#").collect();
    match words.first() {
        None => true,
        Some(&("serve" | "-c" | "--config" | "-config" | "--strict")) => true,
        Some(&"demo") => !words.contains(&"--once"),
        Some(word) => word.starts_with("--config="),
    }
}

/// A port that is free and stays so: below those that the system gives to whoever asks for any.
fn port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let start = u16::try_from(std::process::id() % 20_000).expect("below 20000");
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..20_000)
        .map(|step| 12_000 + (start + step) % 20_000)
        .find(|port| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok() && given.insert(*port))
        .expect("some port is free")
}

/// The proxy of a block; killed when dropped.
struct Server<'a>(&'a Path);

// === impl Server ===

impl Server<'_> {
    /// Tells it to stop and waits until it has, in good order.
    async fn stop(self) -> Result<(), String> {
        self.signal(Signal::TERM);
        let code = async {
            loop {
                match fs::read_to_string(self.0.join("exit")) {
                    Ok(code) if !code.is_empty() => return code.trim().to_owned(),
                    // The shell that started it is gone, so there is nobody to be told by.
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        match timeout(PATIENCE, code).await.as_deref() {
            Ok("0") => Ok(()),
            Ok(code) => {
                let log = fs::read_to_string(self.0.join("log")).unwrap_or_default();
                Err(format!("the proxy ended with {code}:\n{log}"))
            }
            Err(_) => Err(format!("the proxy does not end within {PATIENCE:?} of SIGTERM")),
        }
    }

    fn signal(&self, signal: Signal) {
        // Once it has said how it ended, its number may be another's.
        if self.0.join("exit").exists() {
            return;
        }
        let pid = fs::read_to_string(self.0.join("pid")).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_serves_is_told_from_what_ends_by_itself() {
        for line in
            ["llmproxy", "llmproxy --config x.yaml", "  llmproxy demo", "cargo run --release -- demo", "llmproxy serve"]
        {
            assert!(super::serves(line), "{line}");
        }
        for line in [
            "llmproxy check",
            "llmproxy demo --once",
            "llmproxy keys list",
            "llmproxy --version",
            "curl x",
            "llmproxyd",
        ] {
            assert!(!super::serves(line), "{line}");
        }
    }
}
