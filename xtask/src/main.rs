//! `cargo xtask`: what is done with the workspace besides building it.
//!
//! The commands that people and the CI run are the same ones, so that what passes here passes there. It is a program
//! and not a set of scripts, so that what it needs besides the Rust toolchain is what it installs itself.
//!
//! # Where it stands
//!
//! Beside the workspace: it looks at all of it, as text and through `cargo metadata`, and is linked with none of it but the
//! testkit, whose clients and receivers stand between real clients and real servers, and the balancer, which `simulate`
//! asks to choose among servers that do not exist.
//!
//! # What it must never know
//!
//! How the proxy works. A rule here is about how the code is laid out, and `interop` sees what anybody sees from outside;
//! what the code does is for its tests. `simulate`, too, uses of the balancer what anybody can use.

use std::process::ExitCode;

mod bench;
mod cargo;
mod chart;
mod check;
mod dist;
mod fuzz;
mod interop;
mod services;
mod simulate;
mod soak;
mod step;
mod test;
mod tidy;

/// A command line that says nothing we know, as BSD's sysexits number it.
const EXIT_USAGE: u8 = 64;

const HELP: &str = "\
cargo xtask <command>

  test [--long] [args]
                Runs all tests of the workspace, those that play many orders of what threads do, those with
                OpenAI's SDK for Python, which it installs into target/interop, and those against a PostgreSQL
                of its own, which it installs if it is missing and may; with --long against a MariaDB as well, and
                200 crashes rather than 10 and a minute's outage of receivers, which takes some minutes.
                The other arguments go to `cargo test`:
                    cargo xtask test -p llmproxy-core
                    cargo xtask test -- permit_is_held
  databases [--long]
                Only the tests against real database servers.
  check         What a change must pass besides its tests: format, clippy, rustdoc, dependencies
                (licenses, sources, bans) and tidy. Runs all of them, then sums up.
  advisories    Known faults of dependencies, by RustSec's database; needs the network. Not a part of
                `check`, which says the same of the same code on any day. Run it before a release.
  tidy          Only the rules of the workspace itself: which crate may know which, what each
                must never depend on, file headers and sizes, crates' front pages, names at the top.
  interop [--vllm]
                Real clients (OpenAI's SDKs for Python and Node, OpenClaw) through the proxy to a real
                server (llama-server, or vLLM on the CPU), and what each of them says that it came to.
                Installs them into target/interop: needs python3, npm, a C++ compiler and a quarter of
                an hour the first time; with --vllm also 6 GB.
  bench [--quick] [--rounds N] [--only CASE] [--target NAME] [--peer NAME=COMMAND,URL,HEADER] [--port N]
                What the proxy costs beside nginx and haproxy, which it installs where it can, in one run:
                CPU, delays and memory, with every answer checked. Half an hour; --quick is two minutes.
                Tables, numbers and plots go into target/bench. docs/benchmarks.md tells the rest.
  bench --instructions
                Instructions per request and per chunk, beside their budget, of a binary with dist's profile.
                Needs valgrind, and minutes for the build.
  simulate [--quick] [--workload NAME] [--policy NAME] [--seed-set tuning|held-out]
                The balancer's policies before servers that are simulated, in virtual time: times to the first
                token, cache hits, imbalance, beside an oracle that sees into every server. Some minutes;
                --quick is some seconds. The same seeds give the same numbers. Tables, numbers and plots go
                into target/simulate. docs/balancing.md tells the rest.
  fuzz [--seconds N] [--target NAME]
                Looks for bytes that break what must hold for any bytes (crates/llmproxy-fuzz), N seconds
                for each target; 60 unless told otherwise. Needs a nightly compiler and cargo-fuzz.
  soak [--minutes N] [--profile NAME] [--port N]
                Mixed traffic with reloads for N minutes, 15 unless told otherwise: every answer right,
                every exchange reported once, and no more memory or descriptors than when it was warm.
  dist          The archive for those who build nothing, in target/archive: binary, examples, docs,
                licence texts, SBOM and SHA-256; unpacked and tried, and its instructions counted where
                there is valgrind. Needs python3 for the compiler that it builds with on Linux, and some minutes.
  help          This text.

A change is ready when both pass:
    cargo xtask test && cargo xtask check
The CI runs the same two and `dist`, by .ci/run.

`check` wants cargo-deny and installs it into cargo's own bin directory where it is missing.
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    let passed = match (command.as_deref(), &rest[..]) {
        (Some("test"), args) => test::run(args),
        (Some("databases"), []) => test::run_databases(false),
        (Some("databases"), [long]) if long == "--long" => test::run_databases(true),
        (Some("check"), []) => check::run(),
        (Some("dist"), []) => dist::run(),
        (Some("interop"), []) => interop::run(interop::Engine::Llama),
        (Some("interop"), [option]) if option == "--vllm" => interop::run(interop::Engine::Vllm),
        (Some("bench"), args) => match bench::Options::parse(args) {
            Ok(options) => bench::run(args, options),
            Err(wrong) => return misused(&wrong),
        },
        (Some("simulate"), args) => match simulate::Options::parse(args) {
            Ok(options) => simulate::run(args, &options),
            Err(wrong) => return misused(&wrong),
        },
        (Some("fuzz"), args) => match fuzz::Options::parse(args) {
            Ok(options) => fuzz::run(options),
            Err(wrong) => return misused(&wrong),
        },
        (Some("soak"), args) => match soak::Options::parse(args) {
            Ok(options) => soak::run(&options),
            Err(wrong) => return misused(&wrong),
        },
        (Some("advisories"), []) => step::run_all("advisories", vec![step::Step::new("advisories", check::advisories)]),
        (Some("tidy"), []) => step::run_all("tidy", vec![tidy::step()]),
        (None | Some("help" | "--help" | "-h"), _) => {
            print!("{HELP}");
            true
        }
        (Some("interop"), _) => return misused("`interop` takes --vllm and nothing else"),
        (Some(command @ ("advisories" | "check" | "dist" | "tidy")), _) => {
            return misused(&format!("`{command}` takes no arguments"));
        }
        (Some(command), _) => return misused(&format!("there is no command `{command}`")),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn misused(what: &str) -> ExitCode {
    eprintln!("xtask: {what}\n\n{HELP}");
    ExitCode::from(EXIT_USAGE)
}
