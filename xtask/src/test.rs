//! `cargo xtask test`: sets up what the tests need and runs them.

use crate::{
    cargo::{cargo, run as run_command},
    step::{Step, run_all},
};

/// Runs the tests; `args` go to `cargo test`. Returns whether all passed.
///
/// The tests bring their own backends and stores, and so need nothing but the toolchain. A server that some test should
/// need becomes a step before the last one, and its address an environment variable of the last one.
pub(crate) fn run(args: &[String]) -> bool {
    let words = command_line(args);
    run_all("test", vec![Step::new("cargo test", move || run_command(&mut cargo(words)))])
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
