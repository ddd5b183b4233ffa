//! Servers that tests need: installed if missing, started with data of their own, and stopped whatever happens.
//!
//! A server's data is in a folder of its own below the system's for temporary files, and so is `control`, a program that
//! tests may call to stop it as a crash would, and to start it again. A guard, a process of its own, waits for the end of a
//! pipe that only we hold open: it stops the server and removes the folder even where we were killed.

use std::{
    env,
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::cargo::{read, root, run as run_command};

/// The password of whom tests log in as.
const PASSWORD: &str = "test-only";

/// Certificates that the proxy's own tests have, for `localhost` and 127.0.0.1.
const CERTIFICATES: &str = "bins/llmproxy/tests/proxy/certificates";

/// A server that runs as long as this lives.
pub(crate) struct Service {
    guard: Child,
    folder: PathBuf,
    /// Where it is, with user and password, and a slash at the end.
    pub(crate) url: String,
}

// === impl Service ===

impl Service {
    /// A PostgreSQL.
    pub(crate) fn postgres() -> Result<Self, String> {
        install("postgresql", postgres_tools)?;
        let tools = postgres_tools().ok_or("postgresql is installed, but initdb is nowhere")?;
        let port = free_port()?;
        // It refuses to run as root.
        let (owner, run_as) = owner("postgres")?;
        let folder = folder("postgres", owner.as_deref())?;
        let [tools, data] = [&tools, &folder.join("data")].map(|path| path.display().to_string());
        let password = folder.join("password");
        fs::write(&password, PASSWORD).map_err(|error| error.to_string())?;
        let place = folder.display();
        // What a crash of the machine would leave is not what is tested, and the disk is spared.
        let control = format!(
            "#!/bin/sh\n\
             # start | kill (as a crash would) | stop\n\
             cd {place}\n\
             case $1 in\n\
             init) {run_as} {tools}/initdb -D {data} -U test -A scram-sha-256 --pwfile=password -E UTF8 >>log 2>&1;;\n\
             start) {run_as} {tools}/pg_ctl -D {data} -l server.log -w -t 60 \
             -o '-k {place} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off -c ssl=on \
             -c ssl_cert_file={place}/server.pem -c ssl_key_file={place}/server.key' start >>log 2>&1;;\n\
             kill) {run_as} {tools}/pg_ctl -D {data} -m immediate -t 60 stop >>log 2>&1;;\n\
             stop) {run_as} {tools}/pg_ctl -D {data} -m fast -t 60 stop >>log 2>&1;;\n\
             esac\n"
        );
        Self::start(folder, &control, format!("postgres://test:{PASSWORD}@127.0.0.1:{port}/"))
    }

    /// A MariaDB.
    pub(crate) fn mariadb() -> Result<Self, String> {
        install("mariadb-server", || find("mariadbd", &["/usr/sbin"]))?;
        let server = find("mariadbd", &["/usr/sbin"]).ok_or("mariadb-server is installed, but mariadbd is nowhere")?;
        let port = free_port()?;
        let (owner, run_as) = owner("mysql")?;
        let folder = folder("mariadb", owner.as_deref())?;
        let (server, place) = (server.join("mariadbd"), folder.display());
        let server = server.display();
        let account = format!("'test'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'");
        let control = format!(
            "#!/bin/sh\n\
             # start | kill (as a crash would) | stop\n\
             cd {place}\n\
             ask() {{ mariadb-admin --no-defaults -S {place}/socket -u root \"$@\" >>log 2>&1; }}\n\
             case $1 in\n\
             init) {run_as} mariadb-install-db --no-defaults --datadir={place}/data --auth-root-authentication-method=normal \
             --skip-test-db >>log 2>&1 && \
             printf '%s\\n' \"CREATE USER {account};\" \"GRANT ALL ON *.* TO 'test'@'127.0.0.1';\" >init.sql;;\n\
             start) rm -f pid; {run_as} {server} --no-defaults --datadir={place}/data --socket={place}/socket --port={port} \
             --bind-address=127.0.0.1 --skip-name-resolve --pid-file={place}/pid --skip-log-bin \
             --ssl-cert={place}/server.pem --ssl-key={place}/server.key \
             --innodb-flush-log-at-trx-commit=2 $(test -f done || echo --init-file={place}/init.sql) \
             </dev/null >>server.log 2>&1 &\n\
             for try in $(seq 600); do ask ping && test -s pid && touch done && exit 0; sleep 0.1; done; exit 1;;\n\
             kill) pid=$(cat pid); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done;;\n\
             stop) pid=$(cat pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done;;\n\
             esac\n"
        );
        Self::start(folder, &control, format!("mysql://test:{PASSWORD}@127.0.0.1:{port}/"))
    }

    /// The program that stops and starts it.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    fn start(folder: PathBuf, control: &str, url: String) -> Result<Self, String> {
        let program = folder.join("control");
        fs::write(&program, control).map_err(|error| error.to_string())?;
        run_command(Command::new("chmod").arg("755").arg(&program))?;
        // Before the server, so that there is no moment without it. In a group of its own: what interrupts us must not
        // end it, too.
        let guard = Command::new("sh")
            .args(["-c", "cat >/dev/null; \"$0/control\" stop; rm -rf \"$0\""])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("sh could not be started: {error}"))?;
        let service = Self { guard, folder, url };
        for what in ["init", "start"] {
            // Not our standard streams: the server would keep them open for whoever reads ours.
            let mut command = Command::new(&program);
            command.arg(what).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if !command.status().is_ok_and(|status| status.success()) {
                let log = |name: &str| fs::read_to_string(service.folder.join(name)).unwrap_or_default();
                return Err(format!("the server did not {what}:\n{}{}", log("log"), log("server.log")));
            }
        }
        eprintln!("    a server of its own is at {}", service.url);
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        if let Err(error) = self.guard.wait() {
            eprintln!("    the server at {} may still run: {error}", self.url);
        }
    }
}

/// Installs a package of Debian's where `find` finds nothing.
fn install<T>(package: &str, find: impl Fn() -> Option<T>) -> Result<(), String> {
    if find().is_some() {
        return Ok(());
    }
    let how = |error: String| format!("{package} is missing and can't be installed here; install it by hand: {error}");
    let mut update = Command::new("apt-get");
    run_command(update.args(["update", "-q"])).map_err(how)?;
    let mut install = Command::new("apt-get");
    // Started by us alone, with data of its own.
    install.args(["install", "-y", "-q", "--no-install-recommends", package]);
    run_command(install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1")).map_err(how)
}

/// The folder of PostgreSQL's programs; Debian has each version's in a folder of its own.
fn postgres_tools() -> Option<PathBuf> {
    let mut folders: Vec<String> = Vec::new();
    for entry in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        folders.push(entry.path().join("bin").display().to_string());
    }
    folders.sort();
    let folders: Vec<&str> = folders.iter().rev().map(String::as_str).collect();
    find("initdb", &folders)
}

/// The folder in which `program` is: one of the path's, or of `others`.
fn find(program: &str, others: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = others.iter().map(PathBuf::from).chain(env::split_paths(&path));
    folders.find(|folder| folder.join(program).is_file())
}

/// Who is to own the data, and what stands before a command to run it so: nothing, unless we are root.
fn owner(user: &str) -> Result<(Option<String>, String), String> {
    if read(Command::new("id").arg("-u"))?.trim() != "0" {
        return Ok((None, String::new()));
    }
    let run_as = format!("setpriv --reuid={user} --regid={user} --clear-groups");
    Ok((Some(user.to_owned()), run_as))
}

fn folder(name: &str, owner: Option<&str>) -> Result<PathBuf, String> {
    let folder = env::temp_dir().join(format!("llmproxy-{name}-{}", std::process::id()));
    fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for name in ["server.pem", "server.key"] {
        let from = root().join(CERTIFICATES).join(name);
        fs::copy(&from, folder.join(name)).map_err(|error| format!("{}: {error}", from.display()))?;
        // PostgreSQL takes no key that others may read.
        fs::set_permissions(folder.join(name), Permissions::from_mode(0o600)).map_err(|error| error.to_string())?;
    }
    if let Some(owner) = owner {
        run_command(Command::new("chown").args(["-R", &format!("{owner}:")]).arg(&folder))?;
    }
    Ok(folder)
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}
