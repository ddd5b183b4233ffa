//! `cargo xtask simulate`: the balancer's policies before servers that are simulated, in virtual time.
//!
//! The servers, the clients and the seeds are here before any policy is tuned on them; there are seeds for tuning, and
//! others that only the figures in the docs come from. Nothing here is a policy but the oracles, which see what nobody can.
//! docs/balancing.md tells the method.

mod cache;
mod draw;
mod figures;
mod options;
mod oracle;
mod process;
mod prompt;
mod report;
mod run;
mod server;
mod workload;

use std::{
    fs,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

pub(crate) use self::options::Options;
use self::{report::Row, run::Outcome};
use crate::cargo::{cargo, root, run as run_command};

/// Where the JSON, the tables and the plots go, below the workspace's root.
const RESULTS: &str = "target/simulate";

/// Runs what `options` say, which are what `args` say. Returns whether it could.
pub(crate) fn run(args: &[String], options: &Options) -> bool {
    let result = if cfg!(debug_assertions) {
        // The same numbers would come out, ten times as late.
        run_command(cargo(["run", "--locked", "--release", "--package", "xtask", "--", "simulate"]).args(args))
    } else {
        simulate(options)
    };
    if let Err(error) = &result {
        eprintln!("==> simulate FAILED: {error}");
    }
    result.is_ok()
}

fn simulate(options: &Options) -> Result<(), String> {
    let rows = rows(options)?;
    let tables = report::markdown(options, &rows);
    println!("{tables}");
    let folder = root().join(RESULTS);
    // Plots of an earlier run would not belong to these tables.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = vec![
        ("results.md".to_owned(), tables),
        ("figures.md".to_owned(), figures::markdown(options, &rows)),
        ("results.json".to_owned(), format!("{:#}\n", report::json(options, &rows))),
    ];
    files.extend(report::plots(options, &rows));
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    eprintln!("==> tables, numbers and plots are in {RESULTS}");
    Ok(())
}

/// Every workload under every policy, from all seeds. Each run is on a thread of its own, and knows nothing of the others.
fn rows(options: &Options) -> Result<Vec<Row>, String> {
    let (policies, seeds) = (options.policies.len(), options.seeds.len());
    let count = options.workloads.len() * policies * seeds;
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(vec![None; count]));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let workload = &options.workloads[at / (policies * seeds)];
                    let (name, chooser) = &options.policies[at / seeds % policies];
                    eprintln!("==> {} of {count}: {}, {name}", at + 1, workload.name);
                    let outcome = run::run(workload, *chooser, options.seeds[at % seeds], options.length());
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let outcomes: Vec<Outcome> =
        outcomes.into_iter().map(|outcome| outcome.expect("every run has ended")).collect::<Result<_, _>>()?;
    let rows = outcomes.chunks(seeds).enumerate().map(|(at, outcomes)| {
        Row::of(options.workloads[at / policies].name, &options.policies[at % policies].0, outcomes)
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seeds_give_the_same_tables() {
        // Stories in which chance, failures, checks, retries and caches have their say.
        let mut options = Options::parse(&["--quick".to_owned()]).unwrap();
        options.seeds = &workload::TUNING[..2];
        options.workloads.retain(|workload| ["conversations", "failing-503", "comes-back"].contains(&workload.name));
        options.seconds = Some(30.0);
        let rows = [rows(&options).unwrap(), rows(&options).unwrap()];
        let tables = rows.each_ref().map(|rows| report::markdown(&options, rows));
        assert!(tables[0].contains("least_connections"), "{}", tables[0]);
        assert_eq!(tables[0], tables[1]);
        assert_eq!(rows[0], rows[1]);
    }
}
