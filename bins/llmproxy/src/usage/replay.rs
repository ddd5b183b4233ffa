//! Sending records again.

use std::{io, path::PathBuf, pin::pin, process::ExitCode};

use llmproxy_usage::{Replay, ReplayRange, ReplayTally, Stores};
use tokio::signal::unix::{SignalKind, signal};

use super::{USAGE_MISTAKE, args::ReplayArgs, place::Place};

/// `llmproxy usage replay`. What it says goes to standard error: a reporter may write to standard output.
pub(super) async fn run(args: ReplayArgs, place: &Place) -> Result<ExitCode, String> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        eprintln!("llmproxy: --from is {from}, and --to is not later: {to}; nothing can be between them");
        return Ok(ExitCode::from(USAGE_MISTAKE));
    }
    let mut usage = place.config.usage.clone();
    usage.ledger.path = place.ledger().to_owned();
    let stores = Stores { storage: &place.config.storage, admin_db: place.admin_db() };
    let replay = Replay::new(&args.reporter, &usage, stores, &llmproxy_stack::http_client());
    let replay = replay.map_err(|error| error.to_string())?;
    let range = ReplayRange { from: args.from, to: args.to, dry_run: args.dry_run };
    let flag = match &args.dead_letters {
        None => String::new(),
        Some(None) => " --dead-letters".to_owned(),
        Some(Some(file)) => format!(" --dead-letters {}", file.display()),
    };
    let failed = |error: io::Error| format!("signals can't be caught: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut sending = pin!(send(&replay, &range, args.dead_letters.as_ref(), place));
    let tally = loop {
        tokio::select! {
            tally = &mut sending => break tally?,
            // It ends with where it was.
            _ = terminate.recv() => replay.stop(),
            _ = interrupt.recv() => replay.stop(),
        }
    };
    eprintln!("{}", told(&tally, args.dry_run));
    if let Some(stopped) = &tally.stopped {
        let to = args.to.map_or_else(String::new, |to| format!(" --to {to}"));
        return Err(format!(
            "stopped, with {} records not sent: {}\nThe first of them is {}, of {}. To go on from there (some may come twice, \
             with the same ids):\n  llmproxy usage replay --from {}{to} --reporter {}{flag}",
            stopped.left, stopped.why, stopped.request_id, stopped.timestamp, stopped.from, args.reporter
        ));
    }
    Ok(if tally.refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Sends the ledger's records, or the dead letters.
async fn send(
    replay: &Replay,
    range: &ReplayRange,
    dead_letters: Option<&Option<PathBuf>>,
    place: &Place,
) -> Result<ReplayTally, String> {
    let tally = match dead_letters {
        None => {
            let mut ledger = place.open_ledger().await?;
            if let (Some(since), Some(from)) = (ledger.since().await.map_err(|error| error.to_string())?, range.from)
                && from < since
            {
                eprintln!("the ledger has nothing that was written before {since:.0}");
            }
            replay.from_ledger(&mut ledger, range).await
        }
        Some(file) => replay.from_dead_letters(file.as_deref().unwrap_or_else(|| replay.dead_letters()), range).await,
    };
    tally.map_err(|error| error.to_string())
}

fn told(tally: &ReplayTally, dry_run: bool) -> String {
    let sent = if dry_run { "would be sent" } else { "sent" };
    let mut text =
        format!("{} {sent}, {} refused, {} skipped by the filter", tally.sent, tally.refused, tally.filtered);
    if tally.unreadable > 0 {
        text.push_str(&format!(", {} lines unreadable", tally.unreadable));
    }
    text
}
