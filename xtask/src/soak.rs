//! `cargo xtask soak`: hours of mixed traffic in little, with reloads, and what the proxy keeps of it.
//!
//! Streams, plain answers, clients that leave, backends that fail and callers that are refused, at a moderate rate; every
//! answer is checked, each exchange for which a backend was asked must be reported once, and what the proxy holds at the
//! end must be what it held when it was warm.

use std::{cell::RefCell, fs, rc::Rc, time::Duration};

use llmproxy_testkit::{Backend, Seen as Question, Wire};
use rustix::process::Signal;
use tokio::time::{Instant, interval, sleep};

use crate::{
    bench::{
        self,
        load::{self, Aim},
        mock::{self, Seen},
        number,
        process::{Cores, Process, Sizes},
        script::{Ask, Clock},
        target::fresh_ledger,
        wire::{Conn, text},
    },
    cargo::root,
};

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    minutes: u64,
    profile: String,
    port: u16,
}

/// What all clients together have seen.
#[derive(Debug, Default)]
struct Totals {
    json: u64,
    streams: u64,
    left: u64,
    failed: u64,
    refused: u64,
    /// What came and should not have, the first few in words.
    wrong: u64,
    words: Vec<String>,
}

/// Clients of one kind: so many at a time, each with a pause between two exchanges.
struct Kind {
    clients: usize,
    pause: Duration,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// Twenty plain answers over one connection.
    Json,
    /// A stream of that many events with so many microseconds between them.
    Stream(u64, u64),
    Leave,
    /// A backend that fails, each time in another way.
    Fail,
    /// A key that nobody knows.
    Refuse,
}

const KEY: &str = "sk-soak";
const PATH: &str = "/v1/chat/completions";
const RELOAD: Duration = Duration::from_secs(20);
/// How long what is under way may take to end, and records to be reported.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until memory that was freed has gone back, and connections that nobody uses are closed.
const SETTLE: Duration = Duration::from_secs(10);
/// What the proxy may hold at the end beyond the level when it was warm: descriptors, and memory in KiB.
const MORE_DESCRIPTORS: u64 = 16;
const MORE_MEMORY: f64 = 8.0 * 1024.0;
const WORDS: usize = 10;

#[rustfmt::skip]
const KINDS: &[Kind] = &[
    Kind { clients: 4, pause: Duration::from_millis(200), what: What::Json },
    Kind { clients: 24, pause: Duration::from_millis(50), what: What::Stream(64, 20_000) },
    // Longer than from one reload to the next.
    Kind { clients: 8, pause: Duration::ZERO, what: What::Stream(60, 500_000) },
    Kind { clients: 2, pause: Duration::from_millis(20), what: What::Leave },
    Kind { clients: 4, pause: Duration::from_millis(100), what: What::Fail },
    Kind { clients: 1, pause: Duration::from_millis(200), what: What::Refuse },
];

/// Runs what `options` say. Returns whether all was right.
pub(crate) fn run(options: &Options) -> bool {
    let result = bench::build(&options.profile).and_then(|binary| bench::local(soak(options.clone(), binary)));
    match &result {
        Ok(()) => eprintln!("==> soak passed"),
        Err(error) => eprintln!("==> soak FAILED: {error}"),
    }
    result.is_ok()
}

async fn soak(options: Options, binary: std::path::PathBuf) -> Result<(), String> {
    let folder = root().join("target/soak");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    bench::process::raise_descriptors()?;
    let cores = Cores::choose()?;
    Cores::pin(cores.load)?;
    let (clock, seen) = (Clock::start(), Rc::<Seen>::default());
    for port in [options.port, options.port + 1] {
        tokio::task::spawn_local(mock::serve(mock::listen(port).await?, clock, seen.clone()));
    }
    let broken = Backend::start(fail).await;

    let (file, ledger) = (folder.join("soak.yaml"), fresh_ledger(&folder));
    let write = |round: u64| {
        let text = config(options.port, &broken.url(), &ledger, round);
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    };
    write(0)?;
    let port = options.port + 2;
    let mut command = std::process::Command::new(binary);
    command.arg("--config").arg(&file);
    let log = folder.join("soak.log");
    let process = Process::start("llmproxy", &mut command, &log, port, cores).await?;
    // Backends are asked for their models and found to be up.
    sleep(Duration::from_secs(2)).await;
    show("start", &process.sizes()?, &Totals::default());

    let length = Duration::from_secs(60 * options.minutes);
    let totals = Rc::<RefCell<Totals>>::default();
    let until = Instant::now() + length;
    let clients = KINDS.iter().flat_map(|kind| (0..kind.clients).map(move |_| kind));
    let tasks: Vec<_> = clients
        .enumerate()
        .map(|(number, kind)| {
            let (seen, totals) = (seen.clone(), totals.clone());
            tokio::task::spawn_local(client(kind, number as u64, port, until, clock, seen, totals))
        })
        .collect();

    let (mut warm, mut reloads) = (None, 0);
    let began = Instant::now();
    // With a minute or two, the level that the end is compared with is that of half the time.
    let every = Duration::from_secs(60).min(length / 2);
    let (mut reload, mut look) = (interval(RELOAD), interval(every));
    reload.tick().await;
    look.tick().await;
    while Instant::now() < until {
        tokio::select! {
            _ = reload.tick() => {
                reloads += 1;
                write(reloads)?;
                process.signal(Signal::HUP);
            }
            _ = look.tick() => {
                let sizes = process.sizes()?;
                show(&format!("{} s", began.elapsed().as_secs()), &sizes, &totals.borrow());
                warm.get_or_insert(sizes);
            }
        }
    }
    for task in tasks {
        let ended = tokio::time::timeout(PATIENCE, task).await;
        ended.map_err(|_| format!("a client still waits {PATIENCE:?} after the end"))?.map_err(text)?;
    }
    let loaded = process.sizes()?;
    show("last", &loaded, &totals.borrow());
    let asked = totals.borrow().asked();
    let records = records(&seen, asked).await;
    sleep(SETTLE).await;
    let idle = process.sizes()?;
    show("end", &idle, &totals.borrow());
    let seen_reloads = metric(port, "llmproxy_config_reloads_total{result=\"ok\"}").await;
    let in_flight = metric(port, "llmproxy_in_flight").await;
    process.stop().await?;

    let totals = totals.borrow();
    println!(
        "{} exchanges with a backend: {} plain, {} streams, {} left, {} failed; {} refused; {reloads} reloads; {} records, \
         {} twice; {} mismatches",
        asked,
        totals.json,
        totals.streams,
        totals.left,
        totals.failed,
        totals.refused,
        seen.records.borrow().ids.len(),
        seen.records.borrow().twice,
        totals.wrong
    );
    for words in &totals.words {
        println!("    {words}");
    }
    let warm = warm.unwrap_or(loaded);
    let mut problems: Vec<String> = records.err().into_iter().collect();
    let mut wants = |is_so: bool, what: String| {
        if !is_so {
            problems.push(what);
        }
    };
    wants(totals.wrong == 0, format!("{} answers were not what they should be", totals.wrong));
    wants(in_flight? == 0.0, "something is still in flight".to_owned());
    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    let expected = reloads as f64;
    wants(seen_reloads? == expected, format!("of {reloads} reloads not all were carried out"));
    for (name, now) in [("under the last of the load", loaded), ("at the end", idle)] {
        let (before, after) = (warm.descriptors, now.descriptors);
        wants(after <= before + MORE_DESCRIPTORS, format!("{name} {after} descriptors are open; warm it had {before}"));
        let (before, after) = (warm.pss, now.pss);
        wants(after <= before * 1.1 + MORE_MEMORY, format!("{name} it takes {after:.0} KiB; warm it took {before:.0}"));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// One client: exchange after exchange until the time is over.
async fn client(
    kind: &'static Kind,
    number: u64,
    port: u16,
    until: Instant,
    clock: Clock,
    seen: Rc<Seen>,
    totals: Rc<RefCell<Totals>>,
) {
    let aim = Aim { port, path: PATH.to_owned(), header: format!("authorization: Bearer {KEY}") };
    let mut next = number * 1_000_000_000;
    // Not all at once.
    sleep(Duration::from_millis(37 * number)).await;
    while Instant::now() < until {
        next += 1;
        let result = match kind.what {
            What::Json => {
                let outcome = load::json(&aim, 1, 1024, Duration::from_secs(30), 20).await;
                outcome.map(|outcome| totals.borrow_mut().json += outcome.requests)
            }
            What::Stream(events, gap) => {
                let ask = Ask { id: next, events, gap, burst: 1, usage: false };
                let outcome = load::streams(&aim, 1, ask, Duration::ZERO, clock).await;
                outcome.map(|outcome| totals.borrow_mut().streams += outcome.requests)
            }
            What::Leave => load::leave(&aim, 1, next, &seen).await.map(|_| totals.borrow_mut().left += 1),
            What::Fail => ask_broken(&aim, next).await.map(|()| totals.borrow_mut().failed += 1),
            What::Refuse => {
                let stranger = Aim { header: "authorization: Bearer sk-unknown".to_owned(), ..aim.clone() };
                load::head(&stranger).await.and_then(|head| {
                    totals.borrow_mut().refused += 1;
                    if head.line.contains(" 401 ") { Ok(()) } else { Err(format!("a stranger got {}", head.line)) }
                })
            }
        };
        if let Err(wrong) = result {
            totals.borrow_mut().mismatch(wrong);
        }
        sleep(kind.pause).await;
    }
}

/// Asks for the model that only the broken backend has. What comes is no success: an error in whole, or an answer that is
/// broken off.
async fn ask_broken(aim: &Aim, number: u64) -> Result<(), String> {
    let Aim { port, path, header } = aim;
    let way = number % 5;
    let body = format!(r#"{{"model":"broken","stream":true,"messages":[],"user":"{way}"}}"#);
    let length = body.len();
    let mut conn = Conn::connect(*port).await?;
    conn.write(
        format!("POST {path} HTTP/1.1\r\nhost: soak\r\n{header}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
    .await?;
    let mut head = conn.head().await?.ok_or("no answer came of a backend that fails")?;
    let whole = loop {
        match conn.piece(&mut head.body).await {
            Ok(Some(_)) => {}
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let status = head.line.split(' ').nth(1).unwrap_or_default();
    match (way, status, whole) {
        (0, "500", true) | (1, "502", true) | (2 | 3, "200", false) | (4, "429", true) => Ok(()),
        _ => Err(format!("a backend that fails in way {way} looked like {}, whole: {whole}", head.line)),
    }
}

/// The broken backend: it does what the question's user says.
async fn fail(question: Question, mut wire: Wire) -> std::io::Result<()> {
    // Asked how it is, it is well.
    if question.method == "GET" {
        return wire.json(200, &serde_json::json!({})).await;
    }
    let way = question.json()["user"].as_str().and_then(|way| way.parse().ok()).unwrap_or(0);
    match way {
        0 => wire.json(500, &serde_json::json!({"error": {"message": "no"}})).await,
        4 => wire.json(429, &serde_json::json!({"error": {"message": "later"}})).await,
        1 => {
            wire.reset();
            Ok(())
        }
        _ => {
            wire.head(200, &[("content-type", "text/event-stream")]).await?;
            wire.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n").await?;
            if way == 2 {
                wire.close().await;
            } else {
                wire.client_gone().await;
            }
            Ok(())
        }
    }
}

/// Waits until there is one record of each exchange.
async fn records(seen: &Seen, asked: u64) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (records, twice) = {
            let records = seen.records.borrow();
            (records.ids.len() as u64, records.twice)
        };
        if twice > 0 {
            return Err(format!("{twice} records came twice"));
        }
        if records == asked {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("of {asked} exchanges {records} were reported"));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The sum of the series whose names begin like that.
async fn metric(port: u16, name: &str) -> Result<f64, String> {
    let mut conn = Conn::connect(port).await?;
    conn.write(b"GET /metrics HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n\r\n").await?;
    let mut head = conn.head().await?.ok_or("no metrics")?;
    let mut all = Vec::new();
    while let Some(piece) = conn.piece(&mut head.body).await? {
        all.extend_from_slice(piece);
    }
    let all = String::from_utf8(all).map_err(text)?;
    let values = all.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
    Ok(values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
}

fn show(when: &str, sizes: &Sizes, totals: &Totals) {
    let Sizes { rss, pss, threads, descriptors } = sizes;
    let exchanges = totals.asked() + totals.refused;
    println!(
        "{when:>8}: RSS {rss:>8.0} KiB, PSS {pss:>8.0} KiB, {threads:>3} threads, {descriptors:>5} descriptors, \
         {exchanges:>9} exchanges, {} mismatches",
        totals.wrong
    );
}

/// Everything on; each round says something else, so that a reload has something to do.
fn config(port: u16, broken: &str, ledger: &str, round: u64) -> String {
    format!(
        "server: {{listen: '127.0.0.1:{}'}}
logging: {{access: {{output: /dev/null}}}}
log: {{level: error}}
backends:
  - {{url: 'http://127.0.0.1:{port}', models: [bench], weight: {}}}
  - {{url: '{broken}', models: [broken]}}
health_check: {{unhealthy_threshold: 1000000}}
routing: {{gap_timeout: 2s, retry: {{max_retries: 1, initial_wait: 1ms}}}}
auth:
  enabled: true
  pipeline:
    - name: keys
      type: static
      static: {{keys: [{{key: {KEY}, name: soak}}]}}
rate_limit:
  enabled: true
  per_key: {{requests_per_second: 1000000, burst_size: 1000000, tokens_per_minute: {}, max_concurrent: 100000}}
usage:
  enabled: true
  ledger: {{path: '{ledger}'}}
  reporters:
    - {{name: soak, type: webhook, webhook: {{url: 'http://127.0.0.1:{}/usage', batch_size: 100, batch_interval: 1s}}}}
",
        port + 2,
        1 + round % 3,
        1_000_000_000_000 - round,
        port + 1
    )
}

// === impl Totals ===

impl Totals {
    /// Exchanges for which a backend was asked.
    fn asked(&self) -> u64 {
        self.json + self.streams + self.left + self.failed
    }

    fn mismatch(&mut self, words: String) {
        self.wrong += 1;
        if self.words.len() < WORDS {
            self.words.push(words);
        }
    }
}

// === impl Options ===

impl Options {
    /// What the arguments say.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self { minutes: 15, profile: "release".to_owned(), port: 18_300 };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("`{arg}` wants a value"))?;
            match arg.as_str() {
                "--minutes" => options.minutes = number(arg, value)?,
                "--port" => options.port = number(arg, value)?,
                "--profile" => options.profile.clone_from(value),
                _ => return Err(format!("`soak` has no option `{arg}`")),
            }
        }
        if options.minutes == 0 {
            return Err("`--minutes` wants one at least".to_owned());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_what_was_said() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse("").unwrap(), Options { minutes: 15, profile: "release".into(), port: 18_300 });
        let said = Options { minutes: 2, profile: "dev".into(), port: 1 };
        assert_eq!(parse("--minutes 2 --profile dev --port 1").unwrap(), said);
        for wrong in ["--minutes", "--minutes 0", "--minutes x", "--fast 1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
