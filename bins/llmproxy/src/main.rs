//! The command line of llmproxy: starts the proxy, checks its configuration, makes keys, shows what it does.
//!
//! # Where it stands
//!
//! Outermost: nothing knows it. It reads the command line, has `llmproxy-config` read the file, installs the logging and the
//! exporter of metrics, and hands over to `llmproxy-stack`; signals reach the runtime from here. Its `keys` asks
//! `llmproxy-auth`'s store, its `usage` the ledger and the store of `llmproxy-usage`, its `demo` the servers of
//! `llmproxy-testkit`.
//!
//! # What it must never know
//!
//! How a request is served. Whoever puts the proxy into a program of their own must be able to do without it, so that what
//! is no matter of a terminal, a process or a signal belongs further in.

mod check;
mod cli;
mod demo;
mod exporter;
mod keys;
mod logging;
mod serve;
mod usage;

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::cli::{Cli, Command};

/// Gives memory back a second after a burst, which the system's allocator does not; how it is set up stands in
/// `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code of a configuration that can't be used, after sysexits.h.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = cli::with_double_dashes(std::env::args_os());
    let cli = Cli::try_parse_from(args).unwrap_or_else(|error| cli::with_place(error).exit());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the runtime can't be started: {error}")),
    };
    let result = runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve(cli.config)) {
            Command::Serve(config) => serve::run(&config).await,
            Command::Check(config) => check::run(&config),
            Command::Keys(keys) => keys::run(keys).await,
            Command::Usage(usage) => usage::run(usage).await,
            Command::Demo { listen, once } => demo::run(&listen, once).await,
        }
    });
    // Whatever is still running has had its time.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(message) => failed(&message),
    }
}

/// Writes a line to standard output. A reader that has read enough, such as `head`, is no failure.
fn say(line: impl std::fmt::Display) -> Result<(), String> {
    say_text(&format!("{line}\n"))
}

/// The same for a text of lines.
fn say_text(text: &str) -> Result<(), String> {
    let mut output = std::io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("can't write to standard output: {error}")),
        _ => Ok(()),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("llmproxy: {message}");
    ExitCode::FAILURE
}
