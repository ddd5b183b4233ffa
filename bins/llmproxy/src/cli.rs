//! Subcommands and flags.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::usage::args::{USAGE, UsageArgs};

/// The configuration file that is meant where none is named.
pub(crate) const DEFAULT_CONFIG: &str = "config.yaml";

// Each help ends with examples. A test parses every line of them that begins with `  llmproxy `; what explains a line is
// two spaces away from it.

const HELP: &str = "\
Examples:
  llmproxy demo                           see it work, with nothing else running
  llmproxy check --config config.yaml     say all that is wrong with a file
  llmproxy --config config.yaml           start the proxy
  llmproxy serve --config config.yaml     the same
  llmproxy keys create --name alice       make a key and show it, once
  llmproxy keys list                      see the keys
  llmproxy keys revoke alice              take one out of use
  llmproxy usage --by model --from 24h    what the last day came to
  llmproxy usage tail                     see records as they are written
  llmproxy usage reporters                see who has yet to be told
  llmproxy usage replay --from 24h --reporter billing     send again

Each command has a help of its own: llmproxy help keys create

To read on: README.md; docs/README.md for clients, backends, operation and every key of the file.
Files to start from are in config/. Exit codes: 0 done, 1 failed, 2 a wrong flag, 64 a file that can't be used.";

const SERVE: &str = "\
Examples:
  llmproxy serve                               with config.yaml in this folder
  llmproxy serve --config /etc/llmproxy.yaml
  llmproxy serve --strict --config my.yaml     refuse a file with unknown keys

SIGHUP reads the file again, and no stream breaks. SIGTERM and SIGINT let streams finish and stop.
Any key can be set by a variable as well: LLMPROXY_SERVER__LISTEN=127.0.0.1:8001";

const CHECK: &str = "\
Examples:
  llmproxy check                               config.yaml in this folder
  llmproxy check --strict --config my.yaml     unknown keys are mistakes, too

Starts nothing and asks no backend. What is wrong goes to standard error, all of it at once.";

const KEYS: &str = "\
Examples:
  llmproxy keys create --name alice --model qwen-coder
  llmproxy keys list
  llmproxy keys revoke alice

The keys count where auth.enabled is true and auth.pipeline is left out or has a builtin entry.
A proxy that runs on the same store knows of a change within a second or two.";

const CREATE: &str = "\
Examples:
  llmproxy keys create --name alice
  llmproxy keys create --name ci --user-id u-42 --model qwen-coder --model llama3
  llmproxy keys create --name guest --expires-at 2027-01-01T00:00:00Z
  llmproxy keys create --name alice --config /etc/llmproxy.yaml     in the store that this file names
  llmproxy keys create --name alice --db /var/lib/llmproxy/keys.db

The key alone goes to standard output. Only its hash is stored: it can't be shown again.";

const LIST: &str = "\
Examples:
  llmproxy keys list
  llmproxy keys list --json                             one JSON object a line
  llmproxy keys list --db /var/lib/llmproxy/keys.db";

const REVOKE: &str = "\
Examples:
  llmproxy keys revoke alice                by its name
  llmproxy keys revoke 3ffe4b6db1a10c7b     by its fingerprint, as `llmproxy keys list` shows it

Requests that run go on; the next one with this key is refused.";

const DEMO: &str = "\
Examples:
  llmproxy demo                             on 127.0.0.1:8000, with a curl line to paste
  llmproxy demo --listen 127.0.0.1:8080     where that port is taken
  llmproxy demo --once                      send one request, show what came of it, and end";

/// A reverse proxy for LLM inference servers.
#[derive(Debug, Parser)]
#[command(
    name = "llmproxy",
    version,
    about = "A reverse proxy for LLM inference servers: streams untouched, tokens metered, keys, limits, balancing",
    after_help = HELP,
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
    #[command(after_help = SERVE)]
    Serve(ConfigArgs),
    /// Check a configuration file: exit 0 if it can be used, 64 if not
    #[command(after_help = CHECK)]
    Check(ConfigArgs),
    /// Make, list and revoke keys of the builtin store
    #[command(after_help = KEYS)]
    Keys(KeysArgs),
    /// What requests came to: totals, records as they are written, and records once more to whom they are for
    #[command(after_help = USAGE)]
    Usage(UsageArgs),
    /// See it work: an embedded demo backend with the whole proxy in front
    #[command(after_help = DEMO)]
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
    #[command(after_help = CREATE)]
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
        /// What is billed when its holder leaves an answer; what metering.on_abort says without it
        #[arg(long, value_name = "WHAT", value_parser = ["delivered", "drain"])]
        on_abort: Option<String>,
        /// A word that routing.rules may route its requests by
        #[arg(long, value_name = "WORD")]
        tag: Option<String>,
        /// When it stops being valid, such as 2027-01-01T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
    },
    /// List keys; never shows one in clear
    #[command(after_help = LIST)]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key at once
    #[command(after_help = REVOKE)]
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

/// Adds where a flag belongs that stands before a command.
pub(crate) fn with_place(mut error: clap::Error) -> clap::Error {
    let is_before = error.kind() == ErrorKind::ArgumentConflict;
    if let Some(ContextValue::String(command)) = error.get(ContextKind::InvalidSubcommand).filter(|_| is_before) {
        let tip = format!("flags come after the command: llmproxy {command} --config FILE");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Cli {
        Cli::parse_from(with_double_dashes(args.iter().map(OsString::from)))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// The help of `command` and of all commands below it, each with its path.
    fn helps(command: &mut clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        found.push((path.to_owned(), command.render_long_help().to_string()));
        for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            let path = format!("{path} {}", inner.get_name());
            helps(inner, &path, found);
        }
    }

    #[test]
    fn every_help_has_examples_and_they_parse() {
        let mut found = Vec::new();
        helps(&mut Cli::command(), "llmproxy", &mut found);
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        for path in ["llmproxy serve", "llmproxy keys create", "llmproxy keys list", "llmproxy keys revoke"] {
            assert!(paths.contains(&path), "{path} is not among {paths:?}");
        }
        for (path, help) in &found {
            assert!(help.contains("Example"), "{path} --help has no example; give it an after_help");
            let examples = help.lines().filter_map(|line| line.strip_prefix("  llmproxy"));
            let mut own = 0;
            for example in examples {
                let example = format!("llmproxy{}", example.split("  ").next().unwrap_or_default());
                let words = example.split(' ').map(OsString::from);
                if let Err(error) = Cli::try_parse_from(with_double_dashes(words)) {
                    panic!("{path} --help says `{example}`, which does not parse: {error}");
                }
                own += usize::from(example.starts_with(path));
            }
            assert!(own > 0, "no example of {path} --help begins with `{path}`");
        }
        // The first page has one of each.
        let (_, first) = &found[0];
        for path in paths.iter().filter(|path| **path != "llmproxy keys") {
            assert!(first.contains(&format!("\n  {path} ")), "llmproxy --help has no example of {path}");
        }
    }

    #[test]
    fn a_flag_before_a_command_is_told_where_it_belongs() {
        for command in ["usage", "check"] {
            let args = ["llmproxy", "--config", "x.yaml", command];
            let error = with_place(Cli::try_parse_from(args).unwrap_err()).to_string();
            assert!(error.contains(&format!("llmproxy {command} --config FILE")), "{error}");
        }
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
