//! `cargo xtask test`: sets up what the tests need and runs them.

use std::process::{Command, Stdio};

use crate::{
    cargo::{cargo, read, run as run_command},
    interop,
    services::Service,
    step::{Step, run_all},
};

/// Names the Python that has OpenAI's SDK to the tests that need it.
const PYTHON: &str = "LLMPROXY_TEST_PYTHON";
/// Tells tests that have a long form to play it.
const LONG: &str = "LLMPROXY_TEST_LONG";

/// Runs the tests; `args` go to `cargo test`. Returns whether all passed.
///
/// The tests bring their own backends and stores. Those with the SDK, which is installed into target/interop, are apart: a
/// plain `cargo test` leaves them out, since it installs nothing. So are those that play orders of steps.
pub(crate) fn run(args: &[String]) -> bool {
    let (long, args) = without_long(args);
    let args = &args[..];
    let words = command_line(args);
    let mut steps = vec![Step::new("cargo test", move || run_command(&mut cargo(words)))];
    if is_whole(args) {
        steps.push(Step::new("without tokenizers", || {
            run_command(&mut cargo("test --locked --package llmproxy-metering".split(' ')))
        }));
        steps.push(Step::new("without databases", || {
            run_command(&mut cargo("test --locked --package llmproxy-usage".split(' ')))
        }));
        steps.push(Step::new("interleavings", interleavings));
        steps.extend(with_servers(long));
        if long {
            steps.push(Step::new("crashes and outages, the long forms", long_forms));
        }
        steps.push(Step::new("OpenAI's SDK", || {
            let python = interop::python_sdk()?;
            let words = "test --locked --workspace --test proxy -- --ignored sdk::";
            let said = read(cargo(words.split(' ')).env(PYTHON, python))?;
            print!("{said}");
            // A filter that fits nothing passes, too.
            if said.contains("1 passed") { Ok(()) } else { Err("no test was run".into()) }
        }));
    }
    run_all("test", steps)
}

/// Only the tests against real database servers; with `long` all of them. Returns whether all passed.
pub(crate) fn run_databases(long: bool) -> bool {
    run_all("databases", with_servers(long))
}

fn with_servers(long: bool) -> Vec<Step> {
    let mut steps =
        vec![Step::new("PostgreSQL", || databases("postgres", "LLMPROXY_TEST_POSTGRES", Service::postgres))];
    if long {
        steps.push(Step::new("MariaDB", || databases("mariadb", "LLMPROXY_TEST_MARIADB", Service::mariadb)));
    }
    steps
}

/// The tests against a real server, which is told to them by `variable`; how it is stopped and started, by another one.
fn databases(filter: &str, variable: &str, start: impl FnOnce() -> Result<Service, String>) -> Result<(), String> {
    let server = start()?;
    let words = format!(
        "test --locked --package llmproxy-usage --features databases --test databases -- --ignored servers::{filter}::"
    );
    let mut command = cargo(words.split(' '));
    command.env(variable, &server.url).env(format!("{variable}_CONTROL"), server.control());
    told(&mut command)
}

/// The long forms of the tests that kill the proxy and take its receivers away; their tallies are shown.
fn long_forms() -> Result<(), String> {
    let words = "test --locked --package llmproxy --test proxy -- --nocapture ledger::kill:: ledger::outage::";
    told(cargo(words.split(' ')).env(LONG, "1"))
}

/// Runs tests and shows what they say.
fn told(command: &mut Command) -> Result<(), String> {
    // What failed says why there, so that it is shown in any case.
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    if !output.status.success() {
        return Err("tests failed".into());
    }
    // A filter that fits nothing passes, too.
    if said.contains(" 0 passed") { Err("no test was run".into()) } else { Ok(()) }
}

/// Takes `--long` from the arguments, those before `--`.
fn without_long(args: &[String]) -> (bool, Vec<String>) {
    let ours = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (long, rest): (Vec<_>, Vec<_>) =
        args.iter().enumerate().partition(|(index, arg)| *index < ours && *arg == "--long");
    (!long.is_empty(), rest.into_iter().map(|(_, arg)| arg.clone()).collect())
}

/// The tests that play many orders of what threads do. They are built apart, with other building blocks for what threads
/// share, in a folder of their own, so that neither build is done anew because of the other.
fn interleavings() -> Result<(), String> {
    let packages = "--package llmproxy-balancer --package llmproxy-ratelimit";
    let words = format!("test --locked {packages} --lib --target-dir target/shuttle -- interleavings::");
    let said = read(cargo(words.split(' ')).env("RUSTFLAGS", "--cfg shuttle"))?;
    print!("{said}");
    // A filter that fits nothing passes, too.
    if said.contains(" 0 passed") { Err("no test was run".into()) } else { Ok(()) }
}

/// Whether nothing was chosen, be it a package or a test.
fn is_whole(args: &[String]) -> bool {
    args.iter().all(|arg| arg == "--no-fail-fast")
}

fn command_line(args: &[String]) -> Vec<String> {
    let mut words = vec!["test".to_owned(), "--locked".to_owned()];
    // Beside --workspace, cargo would ignore a choice of packages without a word.
    let ours = args.iter().take_while(|arg| *arg != "--");
    if !ours.into_iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package")) {
        words.push("--workspace".to_owned());
    }
    words.extend_from_slice(args);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &str, expected: &str) {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        assert_eq!(command_line(&args).join(" "), expected);
    }

    #[test]
    fn all_tests_run_by_default() {
        check("", "test --locked --workspace");
    }

    #[test]
    fn what_needs_an_sdk_is_run_with_everything_else_only() {
        let whole = |args: &str| is_whole(&args.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(whole("") && whole("--no-fail-fast"));
        assert!(!whole("-p llmproxy-core") && !whole("-- permit_is_held"));
    }

    #[test]
    fn long_is_ours_and_nobody_elses() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(without_long(&words("--long --no-fail-fast")), (true, words("--no-fail-fast")));
        assert_eq!(without_long(&words("-p a -- --long")), (false, words("-p a -- --long")));
    }

    #[test]
    fn arguments_are_passed_on() {
        check("--no-fail-fast -- --nocapture", "test --locked --workspace --no-fail-fast -- --nocapture");
    }

    #[test]
    fn a_chosen_package_is_tested_alone() {
        check("-p llmproxy-core", "test --locked -p llmproxy-core");
        check("--package=llmproxy-core", "test --locked --package=llmproxy-core");
        check("-- -page", "test --locked --workspace -- -page");
    }
}
