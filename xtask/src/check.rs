//! `cargo xtask check`: what a change must pass besides its tests.

use std::process::Stdio;

use crate::{
    cargo::{cargo, run as run_command},
    step::{Step, run_all},
    tidy,
};

/// The version that the flags below and deny.toml are written for.
const CARGO_DENY: &str = "0.20.2";

/// Runs every check, the quick ones first. Returns whether all passed.
pub(crate) fn run() -> bool {
    run_all(
        "check",
        vec![
            Step::new("fmt", fmt),
            tidy::step(),
            Step::new("clippy", clippy),
            Step::new("clippy without features", clippy_lean),
            Step::new("doc", doc),
            Step::new("deny", deny),
        ],
    )
}

fn fmt() -> Result<(), String> {
    run_command(&mut cargo(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<(), String> {
    run_command(&mut cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

/// What a build without the binary's features has in the place of what they bring.
fn clippy_lean() -> Result<(), String> {
    let words = "clippy --package llmproxy --no-default-features --locked -- -D warnings";
    run_command(&mut cargo(words.split(' ')))
}

fn doc() -> Result<(), String> {
    run_command(cargo(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Licenses, sources and bans. Advisories have a command of their own: they change without the code, and need the network.
fn deny() -> Result<(), String> {
    install_deny()?;
    // A build fetches the crates of its own platform only; deny.toml names more of them, and asks offline.
    run_command(&mut cargo(["fetch", "--locked"]))?;
    run_command(&mut cargo([
        "deny",
        "--locked",
        "--offline",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// Known faults of what is linked in, by the database of RustSec, which is fetched first.
pub(crate) fn advisories() -> Result<(), String> {
    install_deny()?;
    run_command(&mut cargo(["deny", "--locked", "check", "--hide-inclusion-graph", "advisories"])).map_err(|error| {
        format!(
            "{error}. Either a dependency has a known fault, told above with what to do about it, or the database could not \
             be fetched: it is at https://github.com/rustsec/advisory-db"
        )
    })
}

fn install_deny() -> Result<(), String> {
    match installed_deny() {
        Some(version) if version == CARGO_DENY => {}
        Some(version) => eprintln!("    cargo-deny {version} is installed; this was written for {CARGO_DENY}"),
        None => run_command(&mut cargo(["install", "cargo-deny", "--locked", "--version", CARGO_DENY]))?,
    }
    Ok(())
}

fn installed_deny() -> Option<String> {
    let output = cargo(["deny", "--version"]).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.split_whitespace().nth(1).map(str::to_owned)
}
