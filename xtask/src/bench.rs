//! `cargo xtask bench`: what the proxy costs, beside others in the same run.
//!
//! A mock model server and the load are on one core, the proxies on another, each on one worker. In each round all
//! targets have their turn at each case, so that what disturbs the machine disturbs all alike. Every answer is checked:
//! the short ones by their bytes, the streams by their events' count and sum. docs/benchmarks.md tells the method.

mod budget;
mod cases;
mod figures;
pub(crate) mod load;
pub(crate) mod mock;
mod options;
pub(crate) mod process;
mod report;
pub(crate) mod script;
pub(crate) mod target;
pub(crate) mod wire;

use std::{fs, path::PathBuf, process::Command, rc::Rc, time::Duration};

pub(crate) use self::{
    budget::compare as compare_instructions,
    options::{Options, number},
};
use self::{
    cases::{CASES, Case, Load},
    figures::{Figures, Quantity, percentile},
    load::Outcome,
    mock::Seen,
    process::{Cores, Process, raise_descriptors},
    report::Section,
    script::{Ask, Clock},
    target::{Place, Target},
    wire::text,
};
use crate::cargo::{cargo, root, run as run_command};

const MOST_STREAMS: usize = 10_000;
/// Descriptors that are not for streams.
const SPARE: usize = 300;
const EVENTS: u64 = 64;
/// Between two events of a stream that is held.
const HOLD_GAP: Duration = Duration::from_secs(2);
/// Until memory that was freed has gone back.
const SETTLE: Duration = Duration::from_secs(2);
const MEMORY_ROUNDS: usize = 3;
/// How long a record may take until it is reported.
const RECORDS: Duration = Duration::from_secs(30);

/// The profile of the binary that is given to others, which is the one to measure.
const SHIPPED: &str = "dist";

/// Where the JSON, the tables and the plots go, below the workspace's root.
const RESULTS: &str = "target/bench";

/// Everything that a run needs.
struct Bench {
    options: Options,
    place: Place,
    clock: Clock,
    seen: Rc<Seen>,
    targets: Vec<Target>,
    /// What they are called, in order.
    names: Vec<String>,
    figures: Figures,
    /// How many requests the target that counts has had, and how many of them came to their end.
    counted: u64,
    whole: u64,
    /// The next client that leaves.
    next_id: u64,
}

/// Runs what `options` say. Returns whether all answers were right.
pub(crate) fn run(args: &[String], options: Options) -> bool {
    let result = if options.instructions {
        instructions()
    } else if cfg!(debug_assertions) {
        // A load that is not optimized would be what is measured.
        run_command(&mut optimized(args))
    } else {
        local(measure(options))
    };
    if let Err(error) = &result {
        eprintln!("==> bench FAILED: {error}");
    }
    result.is_ok()
}

fn instructions() -> Result<(), String> {
    match budget::hindrance() {
        Some(hindrance) => Err(format!("nothing can be counted: {hindrance}")),
        None => budget::compare(&build(SHIPPED)?),
    }
}

/// This program again, as fast as it can be.
fn optimized(args: &[String]) -> Command {
    let mut command = cargo(["run", "--locked", "--release", "--package", "xtask", "--", "bench"]);
    command.args(args);
    command
}

/// Runs a future with all its tasks on this thread.
pub(crate) fn local<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Builds the binary that is measured, with this profile.
pub(crate) fn build(profile: &str) -> Result<PathBuf, String> {
    run_command(&mut cargo(["build", "--locked", "--profile", profile, "--bin", "llmproxy"]))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(root().join("target").join(folder).join("llmproxy"))
}

/// A place with nothing in it, the mock, and the receiver of records.
async fn prepare(port: u16, streams: usize) -> Result<(Place, Clock, Rc<Seen>), String> {
    let place = Place { folder: root().join(RESULTS), streams, port, cores: Cores::choose()? };
    fs::create_dir_all(&place.folder).map_err(|error| format!("{}: {error}", place.folder.display()))?;
    Cores::pin(place.cores.load)?;
    let (clock, seen) = (Clock::start(), Rc::<Seen>::default());
    for port in [port, port + 1] {
        tokio::task::spawn_local(mock::serve(mock::listen(port).await?, clock, seen.clone()));
    }
    Ok((place, clock, seen))
}

async fn measure(options: Options) -> Result<(), String> {
    let llmproxy = build(SHIPPED)?;
    let descriptors = raise_descriptors()?;
    let streams = MOST_STREAMS.min(descriptors.saturating_sub(SPARE) / 2);
    let (place, clock, seen) = prepare(options.port, streams).await?;
    let mut targets = target::all(&place, &llmproxy, &options.peers)?;
    let wanted = |target: &Target| target.is_direct() || options.targets.iter().any(|part| target.name.contains(part));
    targets.retain(|target| options.targets.is_empty() || wanted(target));
    let figures = Figures::default();
    let names = targets.iter().map(|target| target.name.clone()).collect();
    let mut bench = Bench { options, place, clock, seen, targets, names, figures, counted: 0, whole: 0, next_id: 1 };
    let result = bench.all().await;
    // What was measured before something failed is worth something.
    bench.write()?;
    result
}

// === impl Bench ===

impl Bench {
    fn is_wanted(&self, case: &str) -> bool {
        self.options.only.is_empty() || self.options.only.iter().any(|only| case.contains(only))
    }

    /// All but memory: the targets run side by side, and each has its turn.
    async fn speed(&mut self) -> Result<(), String> {
        let cases: Vec<Case> = CASES.iter().filter(|case| self.is_wanted(case.name)).copied().collect();
        if cases.is_empty() {
            return Ok(());
        }
        let targets = std::mem::take(&mut self.targets);
        let mut processes = Vec::new();
        for target in &targets {
            processes.push(target.start(&self.place).await?);
        }
        // Backends are asked for their models and found to be up.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for target in targets.iter().filter(|target| target.counts()) {
            target.check().await?;
            self.count(target, 1);
        }
        let rounds = self.options.rounds;
        for round in 1..=rounds {
            for case in &cases {
                eprintln!("==> round {round} of {rounds}: {}", case.name);
                for (target, process) in targets.iter().zip(&processes) {
                    let result = self.one(case, target, process.as_ref()).await;
                    result.map_err(|error| format!("{}, {}: {error}", case.name, target.name))?;
                }
            }
        }
        self.records().await?;
        for process in processes.into_iter().flatten() {
            process.stop().await?;
        }
        self.targets = targets;
        Ok(())
    }

    async fn one(&mut self, case: &Case, target: &Target, process: Option<&Process>) -> Result<(), String> {
        let length = Duration::from_millis(if self.options.quick { 700 } else { 2000 });
        match case.load {
            Load::Json { clients, size } => {
                // Connections, and whatever grows with the first requests, are not what is measured.
                let warm = load::json(&target.aim, clients, size, length / 10, u64::MAX).await?;
                let (mut outcome, cpu, took) =
                    timed(process, load::json(&target.aim, clients, size, length, u64::MAX)).await?;
                self.count(target, warm.requests + outcome.requests);
                let mut add = |quantity, value: Option<f64>| self.figures.add(case.name, &target.name, quantity, value);
                add(Quantity::P50, percentile(&mut outcome.first, 0.5));
                add(Quantity::P99, percentile(&mut outcome.first, 0.99));
                if clients > 1 {
                    add(Quantity::Rate, Some(per(outcome.requests, took)));
                }
                if let Some(cpu) = cpu {
                    add(Quantity::CpuRequest, Some(each(cpu, outcome.requests)));
                    if clients > 1 {
                        add(Quantity::Busy, Some(cpu.as_secs_f64() / took.as_secs_f64() * 100.0));
                    }
                }
            }
            Load::Streams { clients, gap } => {
                let ask = Ask { id: 0, events: EVENTS, gap, burst: 1, usage: false };
                let length = length.mul_f64(1.5);
                let (mut outcome, cpu, _) =
                    timed(process, load::streams(&target.aim, clients, ask, length, self.clock)).await?;
                self.count(target, outcome.requests);
                let mut add = |quantity, value: Option<f64>| self.figures.add(case.name, &target.name, quantity, value);
                add(Quantity::FirstP50, percentile(&mut outcome.first, 0.5));
                add(Quantity::FirstP99, percentile(&mut outcome.first, 0.99));
                add(Quantity::DelayP50, percentile(&mut outcome.delays, 0.5));
                add(Quantity::DelayP99, percentile(&mut outcome.delays, 0.99));
                if let Some(cpu) = cpu.filter(|_| clients > 1) {
                    add(Quantity::CpuChunk, Some(each(cpu, outcome.events)));
                }
            }
            Load::Big { megabytes } => self.big(case, target, process, megabytes).await?,
            Load::Leave => {
                let clients = if self.options.quick { 10 } else { 40 };
                let mut took = load::leave(&target.aim, clients, self.next_id, &self.seen).await?;
                self.next_id += clients;
                self.counted += if target.counts() { clients } else { 0 };
                self.figures.add(case.name, &target.name, Quantity::LeaveP50, percentile(&mut took, 0.5));
                self.figures.add(case.name, &target.name, Quantity::LeaveP99, percentile(&mut took, 0.99));
            }
        }
        Ok(())
    }

    async fn big(
        &mut self,
        case: &Case,
        target: &Target,
        process: Option<&Process>,
        megabytes: u64,
    ) -> Result<(), String> {
        let mut events = Vec::new();
        script::Sender::default().event(0, &mut events);
        let bytes = megabytes * 1_000_000;
        let ask = Ask { id: 0, events: bytes / events.len() as u64, gap: 0, burst: 200, usage: false };
        // What the case before has left behind is not this one's.
        tokio::time::sleep(SETTLE).await;
        let before = process.map(Process::memory).transpose()?;
        let (mut most, mut watch) = (0.0_f64, tokio::time::interval(Duration::from_millis(100)));
        let transfer = timed(process, load::streams(&target.aim, 1, ask, Duration::ZERO, self.clock));
        let mut transfer = std::pin::pin!(transfer);
        let (outcome, cpu, took) = loop {
            tokio::select! {
                done = &mut transfer => break done?,
                _ = watch.tick() => {
                    if let Some(process) = process {
                        most = most.max(process.memory()?);
                    }
                }
            }
        };
        self.count(target, outcome.requests);
        let mut add = |quantity, value: Option<f64>| self.figures.add(case.name, &target.name, quantity, value);
        #[expect(clippy::cast_precision_loss, reason = "a hundred million")]
        add(Quantity::Throughput, Some(bytes as f64 / 1e6 / took.as_secs_f64()));
        if let (Some(before), Some(cpu)) = (before, cpu) {
            add(Quantity::Growth, Some((most - before).max(0.0)));
            add(Quantity::CpuMegabyte, Some(each(cpu, megabytes)));
        }
        Ok(())
    }

    async fn all(&mut self) -> Result<(), String> {
        self.speed().await?;
        self.memory().await?;
        self.records().await
    }

    /// How many streams are held.
    fn holds(&self) -> Vec<usize> {
        let most = self.place.streams;
        let mut counts = vec![1000.min(most)];
        if !self.options.quick && most > 1000 {
            counts.push(most);
        }
        counts.retain(|count| self.is_wanted(&held(*count)));
        counts
    }

    /// Memory: each target alone and fresh.
    async fn memory(&mut self) -> Result<(), String> {
        let counts = self.holds();
        let targets = std::mem::take(&mut self.targets);
        // Of memory one round is as good as another to a few percent.
        let rounds = if counts.is_empty() { 0 } else { self.options.rounds.min(MEMORY_ROUNDS) };
        for round in 1..=rounds {
            for target in targets.iter().filter(|target| !target.is_direct()) {
                eprintln!("==> round {round} of {rounds}: memory of {}", target.name);
                let result = self.memory_of(target, &counts).await;
                result.map_err(|error| format!("memory, {}: {error}", target.name))?;
            }
        }
        self.targets = targets;
        Ok(())
    }

    async fn memory_of(&mut self, target: &Target, counts: &[usize]) -> Result<(), String> {
        let process = target.start(&self.place).await?.ok_or("nothing to measure")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        // What the first request brings is not a stream's.
        let ask = Ask { id: 0, events: 2, gap: 1000, burst: 1, usage: false };
        let outcome = load::streams(&target.aim, 1, ask, Duration::ZERO, self.clock).await?;
        self.count(target, outcome.requests);
        let idle = process.memory()?;
        for count in counts {
            let gap = u64::try_from(HOLD_GAP.as_micros()).unwrap_or(u64::MAX);
            // The first must not have ended before the last has begun.
            let begin = (*count as u64).div_ceil(2000).div_ceil(HOLD_GAP.as_secs());
            let ask = Ask { id: 0, events: 3 + begin, gap, burst: 1, usage: false };
            let mut held = load::hold(&target.aim, *count, ask);
            held.open().await?;
            let full = process.memory()?;
            held.finish().await?;
            self.count(target, *count as u64);
            let case = self::held(*count);
            if !self.options.quick {
                tokio::time::sleep(Duration::from_secs(10)).await;
                self.figures.add(&case, &target.name, Quantity::After, Some(process.memory()?));
            }
            let mut add = |quantity, value| self.figures.add(&case, &target.name, quantity, Some(value));
            add(Quantity::Idle, idle);
            #[expect(clippy::cast_precision_loss, reason = "thousands")]
            add(Quantity::PerStream, (full - idle) / *count as f64);
        }
        self.records().await?;
        process.stop().await
    }

    /// Waits until the receiver has a record of every request that was counted, one of each, and with the backend's own
    /// counts of those that came to their end.
    async fn records(&self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + RECORDS;
        loop {
            let (records, twice, counted) = {
                let records = self.seen.records.borrow();
                (records.ids.len() as u64, records.twice, records.counted)
            };
            if twice > 0 {
                return Err(format!("{twice} records came twice"));
            }
            if records == self.counted && counted == self.whole {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "of {} requests with everything on, {} to their end, {records} records came, {counted} with the \
                     backend's counts",
                    self.counted, self.whole
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// So many requests came to their end.
    fn count(&mut self, target: &Target, requests: u64) {
        if target.counts() {
            self.counted += requests;
            self.whole += requests;
        }
    }

    /// Prints the tables, and writes them, the numbers and the plots.
    fn write(&self) -> Result<(), String> {
        let holds = self.holds();
        let mut sections: Vec<Section> =
            CASES.iter().map(|case| Section { case: case.name.to_owned(), about: case.about }).collect();
        sections.extend(holds.iter().map(|count| Section {
            case: held(*count),
            about: "Proportional set size: idle, for each live stream that gets a chunk every two seconds, and ten \
                    seconds after the last stream has ended.",
        }));
        let tables = report::markdown(&sections, &self.names, &self.figures);
        println!("{tables}");
        let versions: Vec<String> = ["nginx", "haproxy"].iter().filter_map(|name| target::version(name)).collect();
        let json = serde_json::json!({
            "rounds": self.options.rounds,
            "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            "peers": versions,
            "figures": self.figures.json(),
        });
        let mut files = vec![("results.md".to_owned(), tables), ("results.json".to_owned(), format!("{json:#}\n"))];
        let most = holds.last().map(|count| held(*count)).unwrap_or_default();
        for (file, title, case, quantity) in [
            ("cpu-per-request", "CPU per small request", "small, 64 connections", Quantity::CpuRequest),
            ("cpu-per-chunk", "CPU per chunk, 10,000 chunks a second", "200 streams", Quantity::CpuChunk),
            ("first-token", "Added time to the first token, p50", "200 streams", Quantity::FirstP50),
            ("chunk-delay", "Added delay of a chunk, p99", "200 streams", Quantity::DelayP99),
            ("memory-per-stream", "Memory per live stream", most.as_str(), Quantity::PerStream),
        ] {
            if let Some(svg) = report::plot(title, &self.figures, case, quantity, &self.names) {
                files.push((format!("{file}.svg"), svg));
            } else {
                // One of an earlier run would not belong to these tables.
                let _ = fs::remove_file(self.place.folder.join(format!("{file}.svg")));
            }
        }
        for (name, text) in files {
            let path = self.place.folder.join(name);
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        eprintln!("==> the same with all numbers and plots: {}", self.place.folder.display());
        Ok(())
    }
}

/// What a run came to, the processor's time that it took the proxy, and how long it took.
async fn timed(
    process: Option<&Process>,
    run: impl Future<Output = Result<Outcome, String>>,
) -> Result<(Outcome, Option<Duration>, Duration), String> {
    let before = process.map(Process::cpu).transpose()?;
    let began = tokio::time::Instant::now();
    let outcome = run.await?;
    let took = began.elapsed();
    let after = process.map(Process::cpu).transpose()?;
    Ok((outcome, before.zip(after).map(|(before, after)| after.saturating_sub(before)), took))
}

fn held(count: usize) -> String {
    format!("{count} live streams")
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn per(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Microseconds for each of `count`.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn each(all: Duration, count: u64) -> f64 {
    all.as_secs_f64() * 1e6 / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::{load::Aim, *};

    /// The load against the mock: what is counted as right is what was asked for.
    #[test]
    fn the_load_and_the_mock_know_each_other() {
        let result = local(async {
            let (clock, seen) = (Clock::start(), Rc::<Seen>::default());
            let listener = mock::listen(0).await?;
            let port = listener.local_addr().map_err(text)?.port();
            tokio::task::spawn_local(mock::serve(listener, clock, seen.clone()));
            let aim = Aim { port, path: "/v1/chat/completions".to_owned(), header: String::new() };
            let json = load::json(&aim, 2, 1024, Duration::from_secs(10), 20).await?;
            assert!((20..22).contains(&json.requests), "{json:?}");
            let ask = Ask { id: 0, events: 5, gap: 1000, burst: 1, usage: false };
            let streams = load::streams(&aim, 3, ask, Duration::ZERO, clock).await?;
            assert_eq!((streams.requests, streams.events, streams.first.len(), streams.delays.len()), (3, 15, 3, 12));
            // Long enough that none is over before all are open, however busy the machine.
            let mut held = load::hold(&aim, 4, Ask { gap: 250_000, ..ask });
            held.open().await?;
            held.finish().await?;
            assert_eq!(load::leave(&aim, 2, 1, &seen).await?.len(), 2);
            Ok(())
        });
        assert_eq!(result, Ok(()));
    }
}
