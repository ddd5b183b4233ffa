//! Subcommands and flags.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

/// The configuration file that is meant where none is named.
pub(crate) const DEFAULT_CONFIG: &str = "config.yaml";

/// A reverse proxy for LLM inference servers.
#[derive(Debug, Parser)]
#[command(
    name = "llmproxy",
    version,
    about = "A reverse proxy for LLM inference servers: streams untouched, tokens metered, keys, limits, balancing",
    after_help = "Examples:\n  llmproxy demo                      see it work, with nothing else running\n  llmproxy --config config.yaml      start the proxy\n  llmproxy check --config my.yaml    check a file and say what is wrong\n  llmproxy keys create --name alice  make a key",
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Which file, and how strictly it is read.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub(crate) config: PathBuf,
    /// Treat unknown keys as errors
    #[arg(long)]
    pub(crate) strict: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the proxy (the default)
    #[command(
        after_help = "Example:\n  llmproxy serve --config config.yaml\n\nSIGHUP reads the file again; SIGTERM and SIGINT let streams finish and stop."
    )]
    Serve(ConfigArgs),
    /// Check a configuration file: exit 0 if it can be used, 64 if not
    #[command(after_help = "Example:\n  llmproxy check --strict --config config.yaml")]
    Check(ConfigArgs),
    /// Make, list and revoke keys of the builtin store
    #[command(
        after_help = "Examples:\n  llmproxy keys create --name alice --model qwen-coder\n  llmproxy keys list\n  llmproxy keys revoke alice"
    )]
    Keys(KeysArgs),
    /// See it work: an embedded demo backend with the whole proxy in front
    #[command(
        after_help = "Examples:\n  llmproxy demo          listens on 127.0.0.1:8000 and prints a curl line to paste\n  llmproxy demo --once   sends itself one request, shows what came of it, and ends"
    )]
    Demo {
        /// Where the proxy listens
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
        listen: String,
        /// Send one request on free ports, compare what the client, the record and the metrics say, and end
        #[arg(long)]
        once: bool,
    },
}

/// Which store, and what to do with it.
#[derive(Args, Debug)]
pub(crate) struct KeysArgs {
    /// The key store; by default the configuration's admin.db_path
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) db: Option<PathBuf>,
    /// The configuration file that names the store
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG, global = true)]
    pub(crate) config: PathBuf,
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it, this once
    Create {
        /// A name for it, unique
        #[arg(long)]
        name: String,
        /// The user that usage is accounted to
        #[arg(long, value_name = "ID")]
        user_id: Option<String>,
        /// A model it may use; may be given several times; all models without it
        #[arg(long = "model", value_name = "MODEL")]
        models: Vec<String>,
        /// When it stops being valid, such as 2027-01-01T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
    },
    /// List keys; never shows one in clear
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key at once
    Revoke {
        /// Its name or fingerprint
        key: String,
    },
}

/// The Go program took `-config FILE`; its unit files and compose files must go on working.
pub(crate) fn with_double_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.map(|arg| match arg.to_str() {
        Some(text) if text == "-config" || text.starts_with("-config=") => OsString::from(format!("-{text}")),
        _ => arg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Cli {
        Cli::parse_from(with_double_dashes(args.iter().map(OsString::from)))
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_go_program_s_flag_still_works() {
        for args in [
            &["llmproxy", "-config", "x.yaml"][..],
            &["llmproxy", "-config=x.yaml"],
            &["llmproxy", "--config", "x.yaml"],
        ] {
            assert_eq!(parse(args).config.config, PathBuf::from("x.yaml"), "{args:?}");
        }
        assert_eq!(parse(&["llmproxy"]).config.config, PathBuf::from("config.yaml"));
    }

    #[test]
    fn a_subcommand_takes_the_file_too() {
        let Some(Command::Check(config)) = parse(&["llmproxy", "check", "--config", "x.yaml", "--strict"]).command
        else {
            panic!("check was asked for");
        };
        assert!(config.strict && config.config.as_os_str() == "x.yaml");
    }
}
