//! The proxy's own log, as `log.*` says.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::Mutex,
};

use llmproxy_config::{LogConfig, LogFormat, LogOutput};
use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

/// Installs the subscriber for the process.
///
/// # Errors
///
/// If the log's file can't be opened, or there is a subscriber already.
pub(crate) fn init(config: &LogConfig) -> Result<(), String> {
    let writer = match &config.target() {
        LogOutput::Stdout => BoxMakeWriter::new(io::stdout),
        LogOutput::Stderr => BoxMakeWriter::new(io::stderr),
        LogOutput::File(path) => {
            let file = open(path)
                .map_err(|error| {
                    format!(
                        "the log {} (log.output) can't be opened: {error}; name a file that the user that runs llmproxy may \
                         write, or set log.output to stdout",
                        path.display()
                    )
                })?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    // Other crates speak only when something is wrong.
    let filter = EnvFilter::new(format!("warn,llmproxy={0},{1}", config.level.as_str(), parts(config.level.as_str())));
    let base = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Json => {
            base.with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer)).try_init()
        }
        LogFormat::Text => base.with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer)).try_init(),
    }
    .map_err(|error| format!("the log can't be set up: {error}"))
}

/// Opens the file for writing at its end, making the folders that are missing.
fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("its folder {} can't be made: {error}", folder.display()))
        })?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn parts(level: &str) -> String {
    ["auth", "balancer", "config", "core", "metering", "ratelimit", "sse", "stack", "upstream", "usage"]
        .map(|part| format!("llmproxy_{part}={level}"))
        .join(",")
}
