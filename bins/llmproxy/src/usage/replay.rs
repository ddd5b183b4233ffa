//! Sending records again.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
};

use jiff::Timestamp;
use llmproxy_usage::{Replay, ReplayRange, ReplayTally, Stores};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    USAGE_MISTAKE,
    args::{PlaceArgs, ReplayArgs},
    place::Place,
};
use crate::cli::DEFAULT_CONFIG;

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
        return Err(format!(
            "stopped, with {} records not sent: {}\nThe first of them is {}, of {}. To go on from there (some may come twice, \
             with the same ids):\n  {}",
            stopped.left,
            stopped.why,
            stopped.request_id,
            stopped.timestamp,
            going_on(&args, place.args(), stopped.from)
        ));
    }
    Ok(if tally.refused > 0 || tally.unreadable > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The command that sends what is left, for a shell that runs where this one did.
fn going_on(args: &ReplayArgs, place: &PlaceArgs, from: Timestamp) -> String {
    let mut command = "llmproxy usage replay".to_owned();
    let mut add = |flag: &str, value: &str| {
        // A value that begins like a flag would be taken for one.
        let between = if value.starts_with('-') { '=' } else { ' ' };
        command.push_str(&format!(" {flag}{between}{}", quoted(value)));
    };
    if place.config != Path::new(DEFAULT_CONFIG) {
        add("--config", &place.config.to_string_lossy());
    }
    if let Some(ledger) = &place.ledger {
        add("--ledger", &ledger.to_string_lossy());
    }
    add("--from", &from.to_string());
    if let Some(to) = args.to {
        add("--to", &to.to_string());
    }
    add("--reporter", &args.reporter);
    match &args.dead_letters {
        Some(Some(file)) => add("--dead-letters", &file.to_string_lossy()),
        Some(None) => command.push_str(" --dead-letters"),
        None => {}
    }
    command
}

/// One word of a shell.
fn quoted(word: &str) -> String {
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "-_./:=@%+,".contains(sign);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_to_go_on_with_can_be_run() {
        let from = "2026-01-23T10:00:00Z".parse().unwrap();
        let place = PlaceArgs { config: DEFAULT_CONFIG.into(), ledger: None };
        let args = ReplayArgs { from: None, to: None, reporter: "billing".into(), dry_run: false, dead_letters: None };
        assert_eq!(
            going_on(&args, &place, from),
            "llmproxy usage replay --from 2026-01-23T10:00:00Z --reporter billing"
        );
        let place = PlaceArgs { config: "my $proxy.yaml".into(), ledger: Some("it's.db".into()) };
        let args = ReplayArgs { to: Some(from), reporter: "-b".into(), dead_letters: Some(Some("a b".into())), ..args };
        let command = going_on(&args, &place, from);
        // A shell takes it apart as it was meant.
        let shell =
            std::process::Command::new("sh").arg("-c").arg(format!("printf '%s\\n' {command}")).output().unwrap();
        let words = String::from_utf8(shell.stdout).unwrap();
        let expected = [
            "llmproxy",
            "usage",
            "replay",
            "--config",
            "my $proxy.yaml",
            "--ledger",
            "it's.db",
            "--from",
            "2026-01-23T10:00:00Z",
            "--to",
            "2026-01-23T10:00:00Z",
            "--reporter=-b",
            "--dead-letters",
            "a b",
        ];
        assert_eq!(words.lines().collect::<Vec<_>>(), expected);
    }
}
