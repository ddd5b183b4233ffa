//! What may be said to `llmproxy usage`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use llmproxy_usage::{Group, Query};

use super::moment;
use crate::cli::DEFAULT_CONFIG;

pub(crate) const USAGE: &str = "\
Examples:
  llmproxy usage                                        what everything of the stored time came to
  llmproxy usage --by model --from 24h                  the last day, model by model
  llmproxy usage --by day --from 2026-01-01 --to 2026-01-31 --user u-42
  llmproxy usage --by key --from 7d --format csv        for a spreadsheet
  llmproxy usage --by hour --format json                one JSON object a line
  llmproxy usage tail                                   see records as they are written
  llmproxy usage reporters                              see who has yet to be told
  llmproxy usage replay --from 24h --reporter billing   send again

A TIME is 2026-01-31T10:00:00Z (any offset will do), a day of UTC such as 2026-01-31, or how long ago: 90m, 24h, 7d, 2w.
--from is the first moment that counts; --to is the first that does not, but a day given to it counts as a whole.
Requests count by when they arrived.";

pub(crate) const TAIL: &str = "\
Examples:
  llmproxy usage tail                              the last ten, and then each as it is written
  llmproxy usage tail -n 0 --model qwen-coder
  llmproxy usage tail --since 1h --format json     one JSON object a line, as webhooks get it

It reads the ledger, of a proxy that runs or has stopped, and ends with Ctrl-C or when nobody reads on.";

pub(crate) const REPLAY: &str = "\
Examples:
  llmproxy usage replay --from 2026-01-30 --to 2026-01-31 --reporter billing
  llmproxy usage replay --from 24h --reporter billing --dry-run     count them, and send nothing
  llmproxy usage replay --dead-letters --reporter billing           what it was told and had refused, or got too late
  llmproxy usage replay --dead-letters old.jsonl --reporter billing

It sends what the ledger still has, in the order in which it was written, with the reporter's filter, fields, batches and
retries, and the same ids as before: a receiver that knows request_id has none of it twice. A proxy may run meanwhile, and
its reporters' places stay where they are. The tally goes to standard error. Exit code 1: the receiver stayed down or
refused something; what it says then tells where to go on.";

pub(crate) const REPORTERS: &str = "\
Examples:
  llmproxy usage reporters
  llmproxy usage reporters --format json";

/// Which records, from where, and how they are shown.
#[derive(Args, Debug)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// What totals are for
    #[arg(long, value_name = "WHAT")]
    pub(crate) by: Option<By>,
    /// Requests that arrived at this TIME or later
    #[arg(long, value_name = "TIME", value_parser = moment::first)]
    pub(crate) from: Option<Timestamp>,
    /// And before this one; a day counts as a whole
    #[arg(long, value_name = "TIME", value_parser = moment::last)]
    pub(crate) to: Option<Timestamp>,
    #[command(flatten)]
    pub(crate) only: OnlyArgs,
    /// How they are shown [default: table]
    #[arg(long)]
    pub(crate) format: Option<Format>,
    /// Who is asked; the builtin store, whose history is longer, where the configuration has a reporter of that type
    #[arg(long)]
    pub(crate) store: Option<StoreKind>,
    #[command(subcommand)]
    pub(crate) command: Option<UsageCommand>,
}

/// Where records are.
#[derive(Args, Clone, Debug)]
pub(crate) struct PlaceArgs {
    /// The configuration file that says where they are
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG, global = true)]
    pub(crate) config: PathBuf,
    /// The ledger; by default the configuration's usage.ledger.path
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) ledger: Option<PathBuf>,
}

/// Which records.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct OnlyArgs {
    /// Only those that asked for this model
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Only those of this user
    #[arg(long, value_name = "ID")]
    pub(crate) user: Option<String>,
    /// Only those of this key, by its name or fingerprint
    #[arg(long)]
    pub(crate) key: Option<String>,
}

/// What to do with records.
#[derive(Debug, Subcommand)]
pub(crate) enum UsageCommand {
    /// Follow records as they are written
    #[command(after_help = TAIL)]
    Tail(TailArgs),
    /// Send records again to one reporter
    #[command(after_help = REPLAY)]
    Replay(ReplayArgs),
    /// What each reporter has yet to deliver
    #[command(after_help = REPORTERS)]
    Reporters {
        /// How they are shown
        #[arg(long, default_value = "table")]
        format: Format,
    },
}

#[derive(Args, Debug)]
pub(crate) struct TailArgs {
    /// How many of those that are there already
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10, conflicts_with = "since")]
    pub(crate) lines: usize,
    /// All of those that arrived at this TIME or later, and then new ones
    #[arg(long, value_name = "TIME", value_parser = moment::first)]
    pub(crate) since: Option<Timestamp>,
    #[command(flatten)]
    pub(crate) only: OnlyArgs,
    /// How they are shown
    #[arg(long, default_value = "text")]
    pub(crate) format: TailFormat,
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// Requests that arrived at this TIME or later
    #[arg(long, value_name = "TIME", value_parser = moment::first, required_unless_present = "dead_letters")]
    pub(crate) from: Option<Timestamp>,
    /// And before this one; now without it. A day counts as a whole
    #[arg(long, value_name = "TIME", value_parser = moment::last)]
    pub(crate) to: Option<Timestamp>,
    /// The name of the reporter in the configuration; it may be one that is switched off
    #[arg(long, value_name = "NAME")]
    pub(crate) reporter: String,
    /// Count them and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// In the place of the ledger's, the records of the reporter that were given up: in FILE, or in its own file of them. The
    /// file is left as it is
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "the flag may stand without a file")]
    pub(crate) dead_letters: Option<Option<PathBuf>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    Model,
    User,
    Key,
    Day,
    Hour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    /// One object a line
    Json,
    /// As RFC 4180 has it
    Csv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TailFormat {
    Text,
    /// One object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// What the proxy writes down first; a week by default
    Ledger,
    /// What a reporter of type builtin keeps in the admin database
    Builtin,
}

// === impl UsageArgs ===

impl UsageArgs {
    /// A flag that stands before a command and means nothing to it.
    pub(crate) fn stray(&self) -> Option<&'static str> {
        let OnlyArgs { model, user, key } = &self.only;
        let flags = [
            ("--by", self.by.is_some()),
            ("--from", self.from.is_some()),
            ("--to", self.to.is_some()),
            ("--model", model.is_some()),
            ("--user", user.is_some()),
            ("--key", key.is_some()),
            ("--format", self.format.is_some()),
            ("--store", self.store.is_some()),
        ];
        let is_command = self.command.is_some();
        flags.into_iter().find(|(_, is_given)| is_command && *is_given).map(|(flag, _)| flag)
    }
}

// === impl OnlyArgs ===

impl OnlyArgs {
    pub(crate) fn query(self, from: Option<Timestamp>, to: Option<Timestamp>, by: Option<By>) -> Query {
        let by = by.map_or(Group::All, By::group);
        Query { from, to, by, model: self.model, user: self.user, key: self.key }
    }
}

// === impl By ===

impl By {
    /// As columns are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::User => "user",
            Self::Key => "key",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    fn group(self) -> Group {
        match self {
            Self::Model => Group::Model,
            Self::User => Group::User,
            Self::Key => Group::Key,
            Self::Day => Group::Day,
            Self::Hour => Group::Hour,
        }
    }
}
