//! `llmproxy usage`: what records come to, as they are written, and once more to whom they are for.

pub(crate) mod args;
mod moment;
mod place;
mod replay;
mod reporters;
mod sheet;
mod tail;
mod totals;

use std::process::ExitCode;

use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use self::{
    args::{StoreKind, UsageArgs, UsageCommand},
    place::Place,
};
use crate::EX_USAGE;

/// The exit code of a flag that can't be meant, which clap has, too.
const USAGE_MISTAKE: u8 = 2;

/// `llmproxy usage`.
pub(crate) async fn run(args: UsageArgs) -> Result<ExitCode, String> {
    warn_on_stderr()?;
    if let Some(flag) = args.stray() {
        eprintln!("llmproxy: {flag} before the command is not meant for it; its own flags come after its name");
        return Ok(ExitCode::from(USAGE_MISTAKE));
    }
    if args.place.ledger.is_some() && args.store == Some(StoreKind::Builtin) {
        eprintln!("llmproxy: --ledger FILE and --store builtin are two places; leave one of them out");
        return Ok(ExitCode::from(USAGE_MISTAKE));
    }
    let needs_config = match &args.command {
        Some(UsageCommand::Replay(_)) => true,
        Some(_) => false,
        None => args.store == Some(StoreKind::Builtin) && args.place.config.exists(),
    };
    let Some(place) = Place::find(&args.place, needs_config) else { return Ok(ExitCode::from(EX_USAGE)) };
    match args.command {
        None => totals::run(args, &place).await,
        Some(UsageCommand::Tail(tail)) => tail::run(tail, &place).await,
        Some(UsageCommand::Replay(replay)) => replay::run(replay, &place).await,
        Some(UsageCommand::Reporters { format }) => reporters::run(format, &place).await,
    }
}

/// What the parts have to say of damaged records, refused ones and the like.
fn warn_on_stderr() -> Result<(), String> {
    // That a question takes a while is no news to whoever asked it.
    let filter: Targets = "warn,sqlx=error".parse().map_err(|error| format!("the log can't be set up: {error}"))?;
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).without_time().with_target(false);
    let subscriber = tracing_subscriber::registry().with(filter).with(layer.with_writer(std::io::stderr));
    subscriber.try_init().map_err(|error| format!("the log can't be set up: {error}"))
}
