//! What is measured: the mock itself, other proxies, and ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    load::{self, Aim},
    process::{Cores, Process},
};
use crate::cargo::run;

/// The key that the proxy with everything on asks for.
const KEY: &str = "sk-bench";
const PATH: &str = "/v1/chat/completions";

/// Something that answers like the mock.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) aim: Aim,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Direct,
    /// A program with its configuration file's name and text, and the arguments before that name.
    Program {
        program: PathBuf,
        args: Vec<String>,
        file: String,
        text: String,
    },
    Peer(Vec<String>),
}

/// Where things are.
#[derive(Debug)]
pub(crate) struct Place {
    /// For configurations and logs.
    pub(crate) folder: PathBuf,
    /// How many streams each must be able to hold.
    pub(crate) streams: usize,
    /// The first of some ports: the mock's; the next is that of the receiver of records.
    pub(crate) port: u16,
    pub(crate) cores: Cores,
}

/// All targets in the order in which they are run, and what is missing.
pub(crate) fn all(place: &Place, llmproxy: &Path, peers: &[String]) -> Result<Vec<Target>, String> {
    let mut targets = vec![Target { name: "direct".to_owned(), aim: aim(place.port, ""), kind: Kind::Direct }];
    let mut port = place.port + 1;
    let mut next = || {
        port += 1;
        port
    };
    if let Some(program) = installed("nginx") {
        let (port, folder) = (next(), place.folder.display().to_string());
        let args = ["-e", "stderr", "-p", &folder, "-g", "daemon off;", "-c"].map(str::to_owned).to_vec();
        let kind = Kind::Program { program, args, file: "nginx.conf".to_owned(), text: nginx(port, place) };
        targets.push(Target { name: "nginx".to_owned(), aim: aim(port, ""), kind });
    }
    if let Some(program) = installed("haproxy") {
        let port = next();
        let args = ["-db", "-f"].map(str::to_owned).to_vec();
        let kind = Kind::Program { program, args, file: "haproxy.cfg".to_owned(), text: haproxy(port, place) };
        targets.push(Target { name: "haproxy".to_owned(), aim: aim(port, ""), kind });
    }
    let ledger = fresh_ledger(&place.folder);
    for (name, header, ledger) in [
        ("llmproxy plain", String::new(), None),
        ("llmproxy full", format!("authorization: Bearer {KEY}"), Some(&ledger)),
    ] {
        let port = next();
        let kind = Kind::Program {
            program: llmproxy.to_owned(),
            args: vec!["--config".to_owned()],
            file: format!("{}.yaml", name.replace(' ', "-")),
            text: ledger.map_or_else(|| plain(port, place.port), |ledger| full(port, place.port, ledger)),
        };
        targets.push(Target { name: name.to_owned(), aim: aim(port, &header), kind });
    }
    for peer in peers {
        targets.push(self::peer(peer)?);
    }
    Ok(targets)
}

/// The proxy with everything on, or with nothing, for who asks for one alone.
pub(crate) fn llmproxy(place: &Place, everything: bool) -> (String, Aim) {
    let port = place.port + 2;
    match everything {
        true => {
            (full(port, place.port, &fresh_ledger(&place.folder)), aim(port, &format!("authorization: Bearer {KEY}")))
        }
        false => (plain(port, place.port), aim(port, "")),
    }
}

// === impl Target ===

impl Target {
    /// Starts it, where there is something to start.
    pub(crate) async fn start(&self, place: &Place) -> Result<Option<Process>, String> {
        let mut command = match &self.kind {
            Kind::Direct => return Ok(None),
            Kind::Program { program, args, file, text } => {
                let path = place.folder.join(file);
                fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
                let mut command = Command::new(program);
                command.args(args).arg(path);
                command
            }
            Kind::Peer(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
        };
        let log = place.folder.join(format!("{}.log", self.name.replace(' ', "-")));
        Process::start(&self.name, &mut command, &log, self.aim.port, place.cores).await.map(Some)
    }

    /// Whether a stranger is refused, and a client told of its limits: that they are on.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let stranger = load::head(&Aim { header: String::new(), ..self.aim.clone() }).await?;
        let client = load::head(&self.aim).await?;
        match stranger.line.contains(" 401 ") && client.is_ok() && client.names.contains("x-ratelimit-limit-tokens") {
            true => Ok(()),
            false => Err(format!("{} has no keys or no limits: {stranger:?}, {client:?}", self.name)),
        }
    }

    pub(crate) fn counts(&self) -> bool {
        self.name == "llmproxy full"
    }

    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.kind, Kind::Direct)
    }
}

/// What Debian calls the package is what the program is called. Elsewhere there is no comparison with it.
fn installed(name: &str) -> Option<PathBuf> {
    if find(name).is_none() && Path::new("/usr/bin/apt-get").exists() {
        eprintln!("\n==> installing {name}");
        let install = ["install", "--yes", "--no-install-recommends", name];
        let _ = run(Command::new("apt-get").arg("update")).and_then(|()| run(Command::new("apt-get").args(install)));
    }
    let program = find(name);
    if program.is_none() {
        eprintln!("    {name} is not installed, so there is no comparison with it");
    }
    program
}

fn find(name: &str) -> Option<PathBuf> {
    let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The version of a program, as it tells it; for the report.
pub(crate) fn version(name: &str) -> Option<String> {
    let output = Command::new(find(name)?).arg("-v").stdin(Stdio::null()).output().ok()?;
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).lines().next().map(str::to_owned)
}

fn aim(port: u16, header: &str) -> Aim {
    Aim { port, path: PATH.to_owned(), header: header.to_owned() }
}

/// `NAME=COMMAND,URL,HEADER`.
fn peer(peer: &str) -> Result<Target, String> {
    let wrong = || {
        format!("`{peer}` is not NAME=COMMAND,URL,HEADER, with a URL like http://127.0.0.1:8080/v1/chat/completions")
    };
    let (name, rest) = peer.split_once('=').ok_or_else(wrong)?;
    let mut parts = rest.rsplitn(3, ',');
    let (Some(header), Some(url), Some(command)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    let (port, path) = url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let aim = Aim { port: port.parse().map_err(|_| wrong())?, path: format!("/{path}"), header: header.to_owned() };
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        return Err(wrong());
    }
    Ok(Target { name: name.to_owned(), aim, kind: Kind::Peer(words) })
}

fn nginx(port: u16, place: &Place) -> String {
    // It makes room for all when it starts, and closes some when a sixteenth is left.
    let (folder, mock, connections) =
        (place.folder.display(), place.port, 2 * place.streams + place.streams / 4 + 1000);
    format!(
        "worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_max_body_size 1g;
    client_body_buffer_size 2m;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    upstream mock {{ server 127.0.0.1:{mock}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
    )
}

fn haproxy(port: u16, place: &Place) -> String {
    let (most, mock) = (place.streams + 50, place.port);
    format!(
        "global
    maxconn {most}
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    option http-no-delay
    http-reuse always
frontend client
    bind 127.0.0.1:{port}
    default_backend mock
backend mock
    server mock 127.0.0.1:{mock}
"
    )
}

fn plain(port: u16, mock: u16) -> String {
    format!(
        "server: {{listen: '127.0.0.1:{port}'}}
logging: {{access: {{enabled: false}}}}
backends:
  - url: http://127.0.0.1:{mock}
"
    )
}

/// Where a ledger is to be in `folder`: without what the run before has left to deliver.
pub(crate) fn fresh_ledger(folder: &Path) -> String {
    let path = folder.join("usage.db");
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.clone().into_os_string();
        file.push(suffix);
        // Mostly there is none.
        let _ = fs::remove_file(file);
    }
    path.display().to_string()
}

/// Limits that are checked and settled for each request, and reached by none.
fn full(port: u16, mock: u16, ledger: &str) -> String {
    format!(
        "{}auth:
  enabled: true
  pipeline:
    - name: keys
      type: static
      static: {{keys: [{{key: {KEY}, name: bench}}]}}
rate_limit:
  enabled: true
  global: {{requests_per_second: 10000000, burst_size: 10000000}}
  per_key:
    requests_per_second: 10000000
    burst_size: 10000000
    tokens_per_minute: 1000000000000
    max_concurrent: 100000
usage:
  enabled: true
  ledger: {{path: '{ledger}'}}
  reporters:
    - name: bench
      type: webhook
      webhook: {{url: 'http://127.0.0.1:{}/usage', batch_size: 500, batch_interval: 1s}}
",
        plain(port, mock),
        mock + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_name_a_command_a_url_and_a_header() {
        let target = peer("other=other --set a,b --port 1,http://127.0.0.1:8080/v1/x,authorization: Bearer k").unwrap();
        assert_eq!((target.name.as_str(), target.aim.port, target.aim.path.as_str()), ("other", 8080, "/v1/x"));
        assert_eq!(target.aim.header, "authorization: Bearer k");
        assert!(matches!(&target.kind, Kind::Peer(words) if *words == ["other", "--set", "a,b", "--port", "1"]));
        assert!(peer("other=other,http://127.0.0.1:8080/,").unwrap().aim.header.is_empty());
        for wrong in ["other", "other=x", "other=x,http://example.org/,", "other=,http://127.0.0.1:8080/,"] {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
    }
}
