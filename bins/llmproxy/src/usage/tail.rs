//! Following records as they are written.

use std::{
    collections::VecDeque,
    fs,
    io::{self, ErrorKind, Write},
    os::unix::fs::MetadataExt,
    process::ExitCode,
    time::Duration,
};

use llmproxy_core::UsageRecord;
use llmproxy_usage::{Entry, LedgerReader, Query, to_json};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{
    args::{TailArgs, TailFormat},
    place::Place,
    sheet::printable,
};

/// How often it is looked for new ones. A look costs some tens of microseconds where there is none.
const LOOK: Duration = Duration::from_millis(200);
/// Records that are read at a time. Nothing is held between reads: a reader that stays keeps the log from being copied into
/// the file, and it grows.
const PAGE: usize = 500;

/// `llmproxy usage tail`.
pub(super) async fn run(args: TailArgs, place: &Place) -> Result<ExitCode, String> {
    let failed = |error: io::Error| format!("signals can't be caught: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let follow = follow(args, place);
    tokio::select! {
        ended = follow => ended?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints records until nobody reads them.
async fn follow(args: TailArgs, place: &Place) -> Result<(), String> {
    let query = args.only.query(args.since, None, None);
    let mut tail = Tail { reader: place.open_ledger().await?, file: identity(place), query, format: args.format };
    let mut seen = match args.since {
        Some(since) => tail.reader.before(since).await.map_err(|error| error.to_string())?,
        None => {
            let (last, seen) = tail.last(args.lines).await?;
            if !tail.print(&last)? {
                return Ok(());
            }
            seen
        }
    };
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_failed = false;
    loop {
        match tail.reader.after(seen, PAGE, false).await {
            Ok(page) => {
                has_failed = false;
                let is_new = page.up_to > seen;
                seen = page.up_to;
                if !tail.print(&page.entries)? {
                    return Ok(());
                }
                if is_new {
                    continue;
                }
            }
            Err(error) if has_failed => return Err(error.to_string()),
            Err(_) => has_failed = true,
        }
        looks.tick().await;
        if nobody_reads() {
            return Ok(());
        }
        // A proxy that found its ledger broken has begun another; so does one whose file was removed.
        let file = identity(place);
        if has_failed || (file != tail.file && file.is_some()) {
            tail.reader = place.open_ledger().await?;
            tail.file = file;
            if tail.reader.last().await.map_err(|error| error.to_string())? < seen {
                seen = 0;
            }
        }
    }
}

struct Tail {
    reader: LedgerReader,
    file: Option<(u64, u64)>,
    query: Query,
    format: TailFormat,
}

// === impl Tail ===

impl Tail {
    /// The last `count` that are meant, and the number of the last record of all.
    async fn last(&mut self, count: usize) -> Result<(VecDeque<(i64, Entry)>, i64), String> {
        let failed = |error: llmproxy_usage::LedgerError| error.to_string();
        let last = self.reader.last().await.map_err(failed)?;
        let mut back = i64::try_from(count).unwrap_or(i64::MAX);
        loop {
            let mut found = VecDeque::new();
            let mut seen = last.saturating_sub(back).max(0);
            while seen < last {
                let page = self.reader.after(seen, PAGE, false).await.map_err(failed)?;
                if page.up_to == seen {
                    break;
                }
                seen = page.up_to;
                let entries = page.entries.into_iter().filter(|(seq, _)| *seq <= last);
                for entry in entries.filter(|(_, entry)| self.query.matches(&entry.record)) {
                    found.push_back(entry);
                    if found.len() > count {
                        found.pop_front();
                    }
                }
            }
            // Fewer than wanted: they may be further back.
            if found.len() >= count || back >= last {
                return Ok((found, last));
            }
            back = back.saturating_mul(2);
        }
    }

    /// Prints those that are meant. Returns whether anybody reads on.
    fn print<'a>(&self, entries: impl IntoIterator<Item = &'a (i64, Entry)>) -> Result<bool, String> {
        let mut text = String::new();
        for (_, entry) in entries.into_iter().filter(|(_, entry)| self.query.matches(&entry.record)) {
            match self.format {
                TailFormat::Json => text.push_str(&to_json(&entry.record).to_string()),
                TailFormat::Text => text.push_str(&line(&entry.record)),
            }
            text.push('\n');
        }
        let mut output = io::stdout().lock();
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(format!("can't write to standard output: {error}")),
        }
    }
}

/// Which file is there.
fn identity(place: &Place) -> Option<(u64, u64)> {
    fs::metadata(place.ledger()).ok().map(|file| (file.dev(), file.ino()))
}

/// Whether the standard output is a pipe, or the like, whose other end is closed. A write would tell, but there may be nothing
/// to write for hours.
fn nobody_reads() -> bool {
    let output = io::stdout();
    let mut asked = [PollFd::new(&output, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once)).is_ok() && asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// One record for people.
fn line(record: &UsageRecord) -> String {
    let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
    let who = record.key_name.as_ref().or(record.user_id.as_ref()).or(record.key_fingerprint.as_ref()).cloned();
    let tokens = record.usage.map_or_else(
        || "-".to_owned(),
        |usage| {
            let estimated = record.source().filter(|source| *source == llmproxy_core::UsageSource::Estimated);
            format!("{}{}+{}", estimated.map_or("", |_| "~"), usage.prompt, usage.completion)
        },
    );
    format!(
        "{:.3} {} {} {} {} {} tokens {:.3}s {} {}",
        record.timestamp,
        record.status,
        record.end.as_str(),
        text(&record.model),
        text(&who),
        tokens,
        record.latency.as_secs_f64(),
        printable(&record.path),
        record.request_id
    )
}

#[cfg(test)]
mod tests {
    use llmproxy_core::{Endpoint, TokenUsage};

    use super::*;

    #[test]
    fn a_line_says_who_asked_for_what_and_how_it_ended() {
        let mut record = UsageRecord {
            timestamp: "2026-01-31T10:00:00.1234567Z".parse().unwrap(),
            model: Some("qwen\u{7}".into()),
            key_name: Some("alice".into()),
            usage: Some(TokenUsage { prompt: 12, completion: 30, ..TokenUsage::default() }),
            latency: Duration::from_millis(1500),
            ..UsageRecord::new(Endpoint::of("/v1/completions"))
        };
        let expected = "2026-01-31T10:00:00.123Z 200 complete qwen\u{fffd} alice 12+30 tokens 1.500s /v1/completions \
                        00000000-0000-0000-0000-000000000000";
        assert_eq!(line(&record), expected);
        record.usage = None;
        record.key_name = None;
        assert!(line(&record).contains(" - - tokens "), "{}", line(&record));
    }
}
