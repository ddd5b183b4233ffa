//! A proxy as a process, and what the system says of it.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use tokio::time::{Instant, sleep};

use super::wire::text;

/// How long a process may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// A running process with its children; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
}

/// Which cores the proxies and the load run on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Resident and proportional set size, in KiB.
    pub(crate) rss: f64,
    pub(crate) pss: f64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
}

// === impl Cores ===

impl Cores {
    /// Of those that may be used the first for the proxies and the second for all else, where there are two.
    pub(crate) fn choose() -> Result<Self, String> {
        let allowed = sched_getaffinity(None).map_err(text)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let proxy = cores.next().ok_or("no core may be used")?;
        Ok(Self { proxy, load: cores.next().unwrap_or(proxy) })
    }

    /// This thread, and what it starts from now on, stays on one core.
    pub(crate) fn pin(core: usize) -> Result<(), String> {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).map_err(|error| format!("core {core} can't be had: {error}"))
    }
}

// === impl Process ===

impl Process {
    /// Starts `program`, with its output in `log`, on the proxies' core, and waits until it listens on `port`.
    pub(crate) async fn start(
        name: &str,
        command: &mut Command,
        log: &Path,
        port: u16,
        cores: Cores,
    ) -> Result<Self, String> {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Err(format!("{name} can't be started: something else listens on port {port}"));
        }
        let out = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = out.try_clone().map_err(text)?;
        Cores::pin(cores.proxy)?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn();
        Cores::pin(cores.load)?;
        let child = child.map_err(|error| format!("{name} could not be started: {error}"))?;
        let mut process = Self { child, name: name.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(format!("{name} ended with {status}; see {}", log.display()));
            }
            if Instant::now() > deadline {
                return Err(format!("{name} does not listen on port {port}; see {}", log.display()));
            }
            sleep(LOOK).await;
        }
        Ok(process)
    }

    /// User and system time of all its processes so far.
    pub(crate) fn cpu(&self) -> Result<Duration, String> {
        let mut ticks = 0;
        for pid in self.pids() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(text)?;
            // The name, in brackets, may hold anything; utime and stime are the 14th and the 15th field of the line.
            let fields =
                stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).ok_or("a stat without a name")?;
            ticks += fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
        Ok(Duration::from_micros(ticks * 1_000_000 / rustix::param::clock_ticks_per_second()))
    }

    /// The proportional set size of all its processes, in KiB.
    pub(crate) fn memory(&self) -> Result<f64, String> {
        let mut all = 0.0;
        for pid in self.pids() {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).map_err(text)?;
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss in smaps_rollup")?;
            all += line.trim().trim_end_matches(" kB").trim().parse::<f64>().map_err(text)?;
        }
        Ok(all)
    }

    /// What it holds; of its children only the memory.
    pub(crate) fn sizes(&self) -> Result<Sizes, String> {
        let folder = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{folder}/status")).map_err(text)?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or(format!("no {name} in status"))?;
            line.trim().trim_end_matches(" kB").parse::<u32>().map_err(text)
        };
        let descriptors = fs::read_dir(format!("{folder}/fd")).map_err(text)?.count() as u64;
        Ok(Sizes {
            rss: number("VmRSS:")?.into(),
            pss: self.memory()?,
            threads: number("Threads:")?.into(),
            descriptors,
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to stop, and waits for that.
    pub(crate) async fn stop(mut self) -> Result<(), String> {
        self.terminate();
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().map_err(text)?.is_none() {
            if Instant::now() > deadline {
                return Err(format!("{} does not stop", self.name));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn pids(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut looked_at = 0;
        while let Some(&pid) = all.get(looked_at) {
            looked_at += 1;
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        all
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A master that is killed would leave its workers behind.
            self.terminate();
            std::thread::sleep(Duration::from_millis(200));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// As many descriptors as the system gives, for us and for what we start. Returns how many.
pub(crate) fn raise_descriptors() -> Result<usize, String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).map_err(text)?;
    Ok(limit.maximum.map_or(1 << 20, |most| usize::try_from(most).unwrap_or(usize::MAX)))
}
