//! A process that is killed: a copy of this program, which writes as fast as it can and says what it was told is written.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use llmproxy_core::End;

use super::*;

const PLACE: &str = "LLMPROXY_TEST_LEDGER";
const STRICT: &str = "LLMPROXY_TEST_LEDGER_STRICT";
const ROUNDS: u64 = 6;

/// Not a test by itself: the process that is killed.
#[tokio::test]
#[ignore = "started by the others"]
async fn child() {
    let Some(path) = std::env::var_os(PLACE) else { return };
    let durability = if std::env::var_os(STRICT).is_some() { Durability::Strict } else { Durability::Relaxed };
    let ledger = Ledger::open(&config(Path::new(&path)), durability, 1000).await.unwrap();
    say("open", Uuid::nil());
    let exchanges = (0..8).map(|number| {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            loop {
                let exchange = begin(&ledger).await;
                say("begun", exchange.id());
                if number == 0 {
                    // It never ends.
                    std::future::pending::<()>().await;
                }
                let record = Arc::new(UsageRecord { request_id: exchange.id(), ..Arc::unwrap_or_clone(record()) });
                let mut reserved = ledger.reserve(exchange.id(), None).await;
                let committed = reserved.committed();
                say("ending", exchange.id());
                reserved.record(&record);
                committed.await.unwrap();
                say("ended", exchange.id());
            }
        })
    });
    futures_util::future::join_all(exchanges.collect::<Vec<_>>()).await;
}

fn say(what: &str, id: Uuid) {
    // In one piece; the parent reads whole lines.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("\n{what} {id}\n").as_bytes());
    let _ = out.flush();
}

fn start(path: &Path, strict: bool) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ledger::tests::kill::child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(PLACE, path).stdout(Stdio::piped()).stderr(Stdio::null());
    if strict {
        command.env(STRICT, "1");
    }
    command
}

/// Kills it after so many lines; returns what it said, by what.
fn run_and_kill(path: &Path, strict: bool, lines: usize) -> HashMap<String, HashSet<Uuid>> {
    let mut child = start(path, strict).spawn().unwrap();
    let mut said: HashMap<String, HashSet<Uuid>> = HashMap::new();
    let mut count = 0;
    // What is in the pipe when it dies was said.
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let Some((what, id)) = line.split_once(' ') else { continue };
        let Ok(id) = id.parse() else { continue };
        said.entry(what.to_owned()).or_default().insert(id);
        count += 1;
        if count == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(count >= lines, "it ended by itself: {said:?}");
    said
}

async fn what_was_written_is_there(strict: bool) {
    let folder = Folder::new();
    let (mut ended, mut begun) = (HashSet::new(), HashSet::new());
    for round in 0..ROUNDS {
        let lines = 20 + usize::try_from(fastrand::u64(..400) * round / ROUNDS).unwrap();
        let mut said = run_and_kill(&folder.ledger(), strict, lines);
        ended.extend(said.remove("ended").unwrap_or_default());
        begun.extend(said.remove("begun").unwrap_or_default());
        // The last one is looked at by this process; those before by the next that writes.
    }
    let ledger = open(&folder.ledger()).await;
    let records = read(&folder.ledger()).await;
    let all: HashSet<Uuid> = records.iter().map(|record| record.request_id).collect();
    assert_eq!(all.len(), records.len(), "none is there twice");
    let complete: HashSet<Uuid> =
        records.iter().filter(|record| record.end != End::ProxyDied).map(|record| record.request_id).collect();
    assert!(ended.is_subset(&complete), "each that was told to be written is there: {:?}", ended.difference(&complete));
    assert!(begun.is_subset(&all), "each that began is there: {:?}", begun.difference(&all));
    let died = all.difference(&complete).count();
    let rounds = usize::try_from(ROUNDS).unwrap();
    assert!(
        (rounds..=8 * rounds).contains(&died),
        "one in each round at least, and all that were open at most: {died}"
    );
    ledger.close().await;
}

#[tokio::test]
async fn a_process_that_is_killed_keeps_its_word() {
    what_was_written_is_there(false).await;
}

#[tokio::test]
async fn a_process_that_is_killed_keeps_its_word_in_strict_durability() {
    what_was_written_is_there(true).await;
}

#[tokio::test]
async fn another_process_has_it() {
    let folder = Folder::new();
    let mut child = start(&folder.ledger(), false).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("open ")));
    let error = Ledger::open(&config(&folder.ledger()), Durability::Relaxed, 10).await.unwrap_err();
    assert!(matches!(error, LedgerError::InUse { .. }), "{error:?}");
    // Whoever reads is let in.
    LedgerReader::open(folder.ledger()).await.unwrap().after(0, 10, false).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock went with it.
    open(&folder.ledger()).await.close().await;
}
