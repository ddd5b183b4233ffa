//! The command line of the simulator.

use super::{
    run::{Chooser, ORACLE_BY_CACHE, ORACLE_BY_WORK},
    workload::{ALL, HELD_OUT, TUNING, Workload},
};

/// What `routing.load_balance` may say.
pub(crate) const POLICIES: &[&str] =
    &["round_robin", "random", "least_connections", "latency_based", "least_tokens", "session", "prefix_aware"];

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// A tenth of the time, and one seed.
    pub(crate) quick: bool,
    pub(crate) workloads: Vec<Workload>,
    /// By name; the oracles are the last.
    pub(crate) policies: Vec<(String, Chooser)>,
    pub(crate) seed_set: &'static str,
    pub(crate) seeds: &'static [u64],
    /// Another length than that of a run, or of a quick one.
    pub(crate) seconds: Option<f64>,
}

// === impl Options ===

impl Options {
    /// What the arguments say.
    ///
    /// # Errors
    ///
    /// With what is wrong with them.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            quick: false,
            workloads: Vec::new(),
            policies: Vec::new(),
            seed_set: "tuning",
            seeds: TUNING,
            seconds: None,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().map(String::as_str).ok_or_else(|| format!("`{arg}` wants a value"));
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--workload" => options.workloads.push(workload(value()?)?),
                "--policy" => options.add(value()?)?,
                "--seed-set" => {
                    (options.seed_set, options.seeds) = match value()? {
                        "tuning" => ("tuning", TUNING),
                        "held-out" => ("held-out", HELD_OUT),
                        other => return Err(format!("`--seed-set` wants `tuning` or `held-out`, not `{other}`")),
                    };
                }
                _ => return Err(format!("`simulate` has no option `{arg}`")),
            }
        }
        if options.workloads.is_empty() {
            options.workloads = ALL.to_vec();
        }
        if options.policies.is_empty() {
            POLICIES.iter().try_for_each(|name| options.add(name))?;
        }
        // Hits are shown as a share of theirs.
        [ORACLE_BY_CACHE, ORACLE_BY_WORK].iter().try_for_each(|name| options.add(name))?;
        if options.quick {
            options.seeds = &options.seeds[..1];
        }
        Ok(options)
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        let chooser = Chooser::named(name)?;
        if self.policies.iter().all(|(_, other)| *other != chooser) {
            self.policies.push((name.to_owned(), chooser));
        }
        Ok(())
    }

    /// Seconds in which clients come.
    pub(crate) fn length(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 120.0 } else { 1200.0 })
    }
}

/// The workload of this name.
fn workload(name: &str) -> Result<Workload, String> {
    let names = || ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
    let found = ALL.iter().find(|workload| workload.name == name);
    found.copied().ok_or_else(|| format!("there is no workload `{name}`; there are {}", names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Options::parse(&args)
    }

    #[test]
    fn nothing_said_is_everything_on_the_seeds_for_tuning() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.workloads.len(), options.policies.len()), (ALL.len(), POLICIES.len() + 2));
        assert_eq!((options.seeds, options.length()), (TUNING, 1200.0));
    }

    #[test]
    fn options_are_what_was_said() {
        let args = ["--quick", "--workload", "agents", "--policy", "round_robin", "--seed-set", "held-out"];
        let options = parse(&args).unwrap();
        let names: Vec<&str> = options.policies.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["round_robin", ORACLE_BY_CACHE, ORACLE_BY_WORK]);
        assert_eq!((options.workloads[0].name, options.seeds), ("agents", &HELD_OUT[..1]));
        for wrong in [&["--workload", "x"][..], &["--policy", "x"], &["--seed-set", "x"], &["--seed-set"], &["x"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_policy_that_can_be_configured_is_run() {
        // The error names them all.
        let error = Chooser::named("x").unwrap_err();
        let (_, known) = error.split_once("expected ").unwrap();
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).filter(|name| *name != "least_conn").collect();
        assert_eq!(known, POLICIES, "{error}");
    }
}
