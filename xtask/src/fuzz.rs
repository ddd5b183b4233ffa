//! `cargo xtask fuzz`: lets libFuzzer look for bytes that break a property.
//!
//! The properties are functions of `llmproxy-fuzz`. What is kept in its corpus is played by every run of the tests, with
//! any compiler; to look for more takes a nightly one. docs/ARCHITECTURE.md tells what to do with a finding.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    bench::number,
    cargo::{command, root, run as run_command},
    step::{Step, run_all},
};

/// What to fuzz, and for how long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Each target's time.
    seconds: u64,
    /// All if there are none.
    targets: Vec<String>,
}

const CRATE: &str = "crates/llmproxy-fuzz";
/// Where cargo-fuzz builds, and what it finds is kept until somebody looks at it.
const OUT: &str = "target/fuzz";

const INSTALL: &str = "it takes a nightly compiler, cargo-fuzz and a C++ compiler; the first two are installed by
        rustup toolchain install nightly --profile minimal
        cargo install cargo-fuzz --locked";

/// Runs the targets, one after the other. Returns whether none found anything.
pub(crate) fn run(options: Options) -> bool {
    let targets = match targets(&options.targets) {
        Ok(targets) => targets,
        Err(problem) => {
            eprintln!("==> fuzz FAILED: {problem}");
            return false;
        }
    };
    let there = nightly().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("==> fuzz FAILED: {INSTALL}");
        return false;
    }
    let steps = targets.into_iter().map(|target| {
        // Names are few and the program ends soon.
        let name: &'static str = target.clone().leak();
        Step::new(name, move || fuzz(&target, options.seconds))
    });
    run_all("fuzz", steps.collect())
}

fn fuzz(target: &str, seconds: u64) -> Result<(), String> {
    let out = root().join(OUT);
    let (found, artifacts) = (out.join("corpus").join(target), out.join("artifacts").join(target));
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let kept = root().join(CRATE).join("corpus").join(target);
    let mut command = nightly();
    command.args(["fuzz", "run", "--fuzz-dir"]).arg(Path::new(CRATE).join("fuzz"));
    command.arg("--target-dir").arg(out.join("build")).arg(target);
    // What is new goes into the first.
    command.args([&found, &kept]).arg("--");
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.args(["-max_len=2048", "-timeout=20", "-rss_limit_mb=2048", "-print_funcs=0", "-print_final_stats=1"]);
    run_command(&mut command).map_err(|error| {
        format!(
            "{error}; what it found is in {}: copy the file to {}, and `cargo test -p llmproxy-fuzz` plays it",
            artifacts.display(),
            kept.display()
        )
    })
}

/// Cargo as the nightly toolchain has it: the one that runs us knows no other toolchain.
fn nightly() -> Command {
    let mut command = command("rustup");
    command.args(["run", "nightly", "cargo"]);
    command
}

/// The targets that are wanted, which are files.
fn targets(wanted: &[String]) -> Result<Vec<String>, String> {
    let folder = root().join(CRATE).join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let names = paths.iter().filter_map(|path| path.file_stem()?.to_str());
    let mut all: Vec<String> = names.map(str::to_owned).collect();
    all.sort();
    if let Some(unknown) = wanted.iter().find(|wanted| !all.contains(wanted)) {
        return Err(format!("there is no target `{unknown}`; there are {}", all.join(", ")));
    }
    Ok(if wanted.is_empty() { all } else { wanted.to_vec() })
}

// === impl Options ===

impl Options {
    /// What the arguments say.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self { seconds: 60, targets: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("`{arg}` wants a value"))?;
            match arg.as_str() {
                "--seconds" => options.seconds = number(arg, value)?,
                "--target" => options.targets.push(value.clone()),
                _ => return Err(format!("`fuzz` has no option `{arg}`")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_what_was_said() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse(""), Ok(Options { seconds: 60, targets: Vec::new() }));
        assert_eq!(parse("--target a --seconds 5").unwrap(), Options { seconds: 5, targets: vec!["a".into()] });
        for wrong in ["--seconds", "--seconds x", "--all 1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_named_beside_those_that_are() {
        assert!(targets(&[]).unwrap().contains(&"scanner".to_owned()));
        assert!(targets(&["scanner".into()]).unwrap() == ["scanner"]);
        let error = targets(&["nothing".into()]).unwrap_err();
        assert!(error.contains("`nothing`") && error.contains("scanner"), "{error}");
    }
}
