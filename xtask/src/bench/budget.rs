//! Instructions, counted by valgrind: the figure of speed that other load disturbs least.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    load, prepare,
    process::Process,
    script::Ask,
    target::{self, Place},
    wire::text,
};
use crate::cargo::root;

/// What may be used, below the workspace's root.
const FILE: &str = "xtask/budget.json";
/// How far over it is too far.
const SLACK: f64 = 1.05;
/// How often more it is counted where it is over: timers and threads that wake at other times are some percent, and what a
/// program really does is done each time.
const RECOUNTS: usize = 2;
/// Requests before those that are counted, and those.
const WARM: u64 = 100;
const REQUESTS: u64 = 400;
/// Between a request and its answer, and between that and the next request, where records are written: longer than the ledger
/// waits for more of them, so that each is a transaction of its own however fast the machine is.
const APART: Duration = Duration::from_millis(20);
/// Streams, and events of each: of short ones and of long ones, so that their difference is that of chunks alone.
const STREAMS: u64 = 40;
const SHORT: u64 = 4;
const LONG: u64 = 84;
const PORT: u16 = 18_140;

/// What is counted, in the order in which it is told.
const NAMES: [&str; 4] = ["request, plain", "chunk, plain", "request, full", "chunk, full"];

/// What a proxy is to answer while its instructions are counted.
#[derive(Clone, Copy, Debug)]
struct Work {
    everything: bool,
    requests: u64,
    streams: u64,
    events: u64,
}

/// Why nothing can be counted here, if nothing can.
pub(crate) fn hindrance() -> Option<&'static str> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the budget is one of x86-64's instructions");
    }
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    valgrind.is_err().then_some("valgrind is not installed")
}

/// The guard against a slower hot path: prints the instructions of this binary, built as the one that is given to others,
/// beside what they may be. An error says what is over its budget.
pub(crate) fn compare(llmproxy: &Path) -> Result<(), String> {
    if let Some(hindrance) = hindrance() {
        eprintln!("    skipped: {hindrance}");
        return Ok(());
    }
    let budget = budget()?;
    let mut counted = super::local(count(llmproxy))?;
    let is_over = |counted: &[f64; 4]| counted.iter().zip(&budget).any(|(counted, budget)| *counted > budget * SLACK);
    for _ in 0..RECOUNTS {
        if !is_over(&counted) {
            break;
        }
        eprintln!("    {counted:.0?} is over the budget; counted once more, in case it was chance");
        let again = super::local(count(llmproxy))?;
        counted.iter_mut().zip(again).for_each(|(counted, again)| *counted = counted.min(again));
    }
    println!("{:16} {:>9} {:>9}", "instructions per", "counted", "budget");
    let mut over = Vec::new();
    for ((name, counted), budget) in NAMES.iter().zip(counted).zip(budget) {
        println!("{name:16} {counted:9.0} {budget:9.0}");
        if counted > budget * SLACK {
            over.push(format!("{name}: {counted:.0} instead of {budget:.0}"));
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    Err(format!(
        "more than 5 % over the budget of instructions per {}; make it cheaper, or raise the budget in {FILE}, in a commit \
         of its own that names the feature and its cost",
        over.join(", per ")
    ))
}

fn budget() -> Result<[f64; 4], String> {
    let path = root().join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{FILE}: {error}"))?;
    let mut all = [0.0; 4];
    for (value, name) in all.iter_mut().zip(NAMES) {
        *value = json[name].as_f64().ok_or_else(|| format!("{FILE} has no `{name}`"))?;
    }
    Ok(all)
}

async fn count(llmproxy: &Path) -> Result<[f64; 4], String> {
    let (place, ..) = prepare(PORT, 0).await?;
    let mut all = [0.0; 4];
    for (index, everything) in [false, true].into_iter().enumerate() {
        let run = |requests, streams, events| least(&place, llmproxy, Work { everything, requests, streams, events });
        let few = run(WARM, 0, 0).await?;
        let many = run(WARM + REQUESTS, 0, 0).await?;
        let short = run(WARM, STREAMS, SHORT).await?;
        let long = run(WARM, STREAMS, LONG).await?;
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        {
            all[index * 2] = (many - few) / REQUESTS as f64;
            all[index * 2 + 1] = (long - short) / (STREAMS * (LONG - SHORT)) as f64;
        }
    }
    Ok(all)
}

/// The fewer of two runs: whatever disturbs one only adds to it.
async fn least(place: &Place, llmproxy: &Path, work: Work) -> Result<f64, String> {
    let once = one_run(place, llmproxy, work).await?;
    let again = one_run(place, llmproxy, work).await?;
    Ok(once.min(again))
}

/// All the instructions of a proxy's life in which it did that work.
async fn one_run(place: &Place, llmproxy: &Path, work: Work) -> Result<f64, String> {
    let Work { everything, requests, streams, events } = work;
    let (yaml, aim) = target::llmproxy(place, everything);
    let config: PathBuf = place.folder.join("instructions.yaml");
    // Nor what is done beside the requests, which is more the longer they take.
    let yaml = yaml.replace("batch_interval: 1s", "batch_interval: 10m") + "health_check: {enabled: false}\n";
    fs::write(&config, yaml).map_err(|error| format!("{}: {error}", config.display()))?;
    let log = place.folder.join("callgrind.log");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(format!("--log-file={}", log.display()));
    // The allocator's own thread works by the clock, not by the request.
    command.env("_RJEM_MALLOC_CONF", "background_thread:false");
    command.arg(llmproxy).arg("--config").arg(config);
    let output = place.folder.join("instructions.log");
    let process = Process::start("llmproxy under valgrind", &mut command, &output, aim.port, place.cores).await?;
    ready(&aim).await?;
    let apart = if everything { APART } else { Duration::ZERO };
    let done = load::json_apart(&aim, 1, 1024, Duration::from_secs(300), requests, apart).await?.requests;
    if done < requests {
        return Err(format!("only {done} of {requests} requests were done in five minutes"));
    }
    // Each chunk by itself: the proxy is done with it long before the next.
    let ask = Ask { id: 0, events, gap: 2000, burst: 1, usage: false };
    for _ in 0..streams {
        load::streams(&aim, 1, ask, Duration::ZERO, super::Clock::start()).await?;
    }
    process.stop().await?;
    let said = fs::read_to_string(&log).map_err(text)?;
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).ok_or("callgrind told no count")?;
    collected.1.trim().parse().map_err(text)
}

/// A proxy under valgrind takes a moment to find that its backend is up.
async fn ready(aim: &load::Aim) -> Result<(), String> {
    for _ in 0..200 {
        if load::json(aim, 1, 1024, Duration::from_secs(10), 1).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("llmproxy under valgrind does not answer".to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_budget_names_all_that_is_counted() {
        assert!(super::budget().is_ok_and(|budget| budget.iter().all(|instructions| *instructions > 0.0)));
    }
}
