//! The process is killed at random moments under load, again and again, and what clients saw is compared with what the
//! receiver was told.
//!
//! Both and the backend live outside of what is killed. `LLMPROXY_KILL_SEED=n` plays the plans of a run again that has
//! named its seed; how things then overlap is the machine's affair, and nothing that is asserted depends on it.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use llmproxy_testkit::{Backend, Client, DONE, Seen, Wire, script};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    books::{Books, Told},
    config, is_long, reporter,
};
use crate::harness::{Folder, Proxy, command};

const CLIENTS: u64 = 50;
/// The latest moment of a kill after the proxy listens, in milliseconds.
const LATEST_KILL: u64 = 1200;
const KEY: &str = "sk-test-0123456789abcdef";
/// In relaxed durability: what ended, or began, so shortly before the kill may be missing.
const WINDOW: Duration = Duration::from_millis(10);
/// The documented window counts from when the proxy has a processor to write on and a disk that takes it. Here it shares
/// them with its clients, its backend, its receiver and other tests, and may wait for so long; and for longer where even a
/// task of the test that only sleeps is late, by so many times that.
const NOISE: Duration = Duration::from_secs(1);
const NOISE_BY_LAG: u32 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_crashes_only_what_ended_in_the_last_moment_is_missing() {
    let tally = play("relaxed").await;
    tally.assert(WINDOW + NOISE + tally.lag * NOISE_BY_LAG);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_crashes_nothing_is_missing_in_strict_durability() {
    play("strict").await.assert(Duration::ZERO);
}

/// What the backend was asked, in which round, and when.
type Asked = HashMap<String, (usize, Instant)>;

/// One exchange as its client saw it.
#[derive(Debug)]
struct Observed {
    kind: Kind,
    id: Option<String>,
    status: Option<u16>,
    /// When the client saw the end: of a stream its `[DONE]`, else the body's.
    ended: Option<Instant>,
    /// When the connection broke before that.
    broken: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Stream,
    /// A stream whose client leaves after so many pieces.
    Leaves(u32),
    /// With a key that nobody has.
    Refused,
}

/// What came of it all.
#[derive(Debug, Default)]
struct Tally {
    seed: u64,
    durability: String,
    rounds: usize,
    exchanges: usize,
    refused: usize,
    left: usize,
    asked: usize,
    ends: usize,
    records: usize,
    again: usize,
    died: usize,
    /// Recorded as begun though the backend was not asked yet.
    unasked: usize,
    /// How long before the kill an end was seen of which there is no record.
    missing: Vec<Duration>,
    /// The same, where the record says that the process died.
    died_after_end: Vec<Duration>,
    /// How long before the kill the backend was asked for what there is no record of.
    missing_asked: Vec<Duration>,
    /// The longest that a task of the test was late.
    lag: Duration,
    problems: Vec<String>,
}

async fn play(durability: &str) -> Tally {
    let seed = std::env::var("LLMPROXY_KILL_SEED")
        .map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("LLMPROXY_KILL_SEED is a number"));
    println!("LLMPROXY_KILL_SEED={seed} plays this again");
    let mut rng = Rng::with_seed(seed);
    let asked: Arc<Mutex<Asked>> = Arc::default();
    let theirs = asked.clone();
    let backend = Backend::start(move |seen, wire| answer(theirs.clone(), seen, wire)).await;
    let (folder, books) = (Folder::new(), Books::open());
    let batches = json!({"batch_size": 64, "batch_interval": "20ms"});
    let mut yaml = config(&backend, &folder, &[reporter("r", &books.url(), &batches)]);
    yaml["usage"]["durability"] = durability.into();
    yaml["auth"] = json!({"enabled": true, "pipeline": [{"type": "static", "static": {"keys": [{"key": KEY}]}}]});
    let yaml = yaml.to_string();

    let rounds = if is_long() { 200 } else { 10 };
    let lag = Arc::new(Mutex::new(Duration::ZERO));
    let late = tokio::spawn(watch_lag(lag.clone()));
    let mut played: Vec<(Instant, Vec<Observed>)> = Vec::new();
    for round in 0..rounds {
        if round % 3 == 1 {
            die_at_start(&yaml, &mut rng).await;
        }
        let proxy = Proxy::start(&yaml).await;
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(client(proxy.address(), round, rng.fork()));
        }
        sleep(Duration::from_millis(rng.u64(..LATEST_KILL))).await;
        let killed = Instant::now();
        proxy.kill().await;
        // All of them notice before another takes the port.
        played.push((killed, clients.join_all().await.into_iter().flatten().collect()));
    }

    // Records come in order: with the last one all are there.
    let proxy = Proxy::start(&yaml).await;
    let mut sentinel = Client::connect(proxy.address()).await;
    let last = exchange(&mut sentinel, Kind::Whole, rounds, &mut rng).await.id.expect("it is answered");
    let told = books.wait_for(std::slice::from_ref(&last)).await;
    let asked = asked.lock().expect("nobody panics while holding it").clone();
    late.abort();
    let lag = *lag.lock().expect("nobody panics while holding it");
    let mut tally = Tally { lag, seed, durability: durability.to_owned(), rounds, ..Tally::default() };
    tally.compare(&played, &asked, &told, &last);
    println!("{tally}");
    tally
}

/// A process that is killed while it starts, perhaps while it records what the one before left open.
async fn die_at_start(yaml: &str, rng: &mut Rng) {
    let folder = Folder::new();
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    let mut command = command(&folder);
    command.env("LLMPROXY_SERVER__LISTEN", "127.0.0.1:0").stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("the binary starts");
    sleep(Duration::from_millis(rng.u64(..200))).await;
    child.kill().await.expect("it is ours");
}

async fn watch_lag(longest: Arc<Mutex<Duration>>) {
    let pause = Duration::from_millis(5);
    loop {
        let before = Instant::now();
        sleep(pause).await;
        let late = before.elapsed().saturating_sub(pause);
        let mut longest = longest.lock().expect("nobody panics while holding it");
        *longest = longest.max(late);
    }
}

/// Asks until nobody answers any more.
async fn client(proxy: SocketAddr, round: usize, mut rng: Rng) -> Vec<Observed> {
    let mut seen = Vec::new();
    while let Ok(mut client) = Client::try_connect(proxy).await {
        loop {
            sleep(Duration::from_millis(rng.u64(..40))).await;
            let kind = match rng.u32(..10) {
                0 => Kind::Refused,
                1 | 2 => Kind::Leaves(rng.u32(1..4)),
                3..6 => Kind::Whole,
                _ => Kind::Stream,
            };
            let observed = exchange(&mut client, kind, round, &mut rng).await;
            let goes_on = observed.ended.is_some();
            seen.push(observed);
            if !goes_on {
                break;
            }
        }
    }
    seen
}

async fn exchange(client: &mut Client, kind: Kind, round: usize, rng: &mut Rng) -> Observed {
    let mut observed = Observed { kind, id: None, status: None, ended: None, broken: None };
    let (pieces, pause) = (rng.u32(1..6), rng.u32(..30));
    let is_stream = matches!(kind, Kind::Stream | Kind::Leaves(_));
    let body = json!({"model": "m", "stream": is_stream, "messages": []}).to_string();
    let key = if kind == Kind::Refused { "nobody's" } else { KEY };
    let length = body.len();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nx-plan: {round} {pieces} {pause}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let head = match client.send_raw(request).await {
        Ok(()) => client.try_head().await,
        Err(error) => Err(error),
    };
    let Ok(head) = head else {
        observed.broken = Some(Instant::now());
        return observed;
    };
    observed.id = head.header("x-request-id").map(str::to_owned);
    observed.status = Some(head.status);
    let mut count = 0;
    while let Some(piece) = client.piece().await {
        count += 1;
        if is_stream && piece.windows(DONE.len()).any(|part| part == DONE.as_bytes()) {
            observed.ended.get_or_insert_with(Instant::now);
        }
        if kind == Kind::Leaves(count) && observed.ended.is_none() {
            return observed;
        }
    }
    match client.end() {
        Some(llmproxy_testkit::BodyEnd::Complete) => {
            observed.ended.get_or_insert_with(Instant::now);
        }
        _ => observed.broken = Some(Instant::now()),
    }
    observed
}

/// The backend: as many pieces as it is asked for, with pauses between them.
async fn answer(asked: Arc<Mutex<Asked>>, seen: Seen, mut wire: Wire) -> io::Result<()> {
    let id = seen.header("x-request-id").expect("the proxy gives one").to_owned();
    let mut plan = seen.header("x-plan").expect("every client has one").split(' ');
    let mut number = || plan.next().and_then(|word| word.parse().ok()).expect("a number");
    let (round, pieces, pause) = (number(), number(), Duration::from_millis(number() as u64));
    asked.lock().expect("nobody panics while holding it").insert(id, (round, Instant::now()));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": pieces, "total_tokens": 7 + pieces});
    if seen.json()["stream"] != true {
        sleep(pause).await;
        return wire.json(200, &json!({"choices": [], "usage": usage})).await;
    }
    wire.head(200, &[("content-type", "text/event-stream")]).await?;
    for _ in 0..pieces {
        wire.chunk(script::event(&json!({"choices": [{"delta": {"content": "a"}}]}))).await?;
        sleep(pause).await;
    }
    wire.chunk(script::event(&json!({"choices": [], "usage": usage}))).await?;
    wire.chunk(DONE).await?;
    wire.finish().await
}

// === impl Tally ===

impl Tally {
    fn compare(&mut self, played: &[(Instant, Vec<Observed>)], asked: &Asked, told: &Told, last: &str) {
        let ends: HashMap<&str, Value> =
            told.texts.keys().map(|id| (&**id, told.of(id).expect("it is a key")["end"].take())).collect();
        let mut ids = HashSet::new();
        for (killed, observed) in played {
            for Observed { kind, id, status, ended, broken } in observed {
                self.exchanges += 1;
                self.refused += usize::from(*kind == Kind::Refused && status.is_some());
                self.left += usize::from(matches!(kind, Kind::Leaves(_)) && ended.is_none() && broken.is_none());
                if broken.is_some_and(|broken| broken < *killed) {
                    self.problems.push(format!("an answer broke off before the kill: {kind:?}, {id:?}, {status:?}"));
                }
                let Some(id) = id.as_deref() else { continue };
                if !ids.insert(id) {
                    self.problems.push(format!("{id} is the id of two exchanges"));
                }
                let expected = if *kind == Kind::Refused { 401 } else { 200 };
                if *status != Some(expected) {
                    self.problems.push(format!("{kind:?} was answered by {status:?}"));
                }
                if *kind == Kind::Refused && (ends.contains_key(id) || asked.contains_key(id)) {
                    self.problems.push(format!("{id} was refused, and has a record or was asked for"));
                }
                let Some(ended) = ended.filter(|_| asked.contains_key(id)) else { continue };
                self.ends += 1;
                let before = killed.duration_since(ended);
                match ends.get(id) {
                    None => self.missing.push(before),
                    Some(end) if end == "proxy_died" => self.died_after_end.push(before),
                    Some(end) if end == "complete" => {}
                    Some(end) => self.problems.push(format!("{id} was seen to end, and its record says {end}")),
                }
            }
        }
        for (_, (round, at)) in asked.iter().filter(|(id, _)| !ends.contains_key(&***id)) {
            let (killed, _) = &played[*round];
            // Sent before the kill, read after it.
            self.missing_asked.push(killed.saturating_duration_since(*at));
        }
        for (id, end) in ends.iter().filter(|(id, _)| !asked.contains_key(**id)) {
            match end.as_str() {
                // Noted before the backend was asked.
                Some("proxy_died") => self.unasked += 1,
                _ => self.problems.push(format!("{id} has a record with end {end}, and nobody was asked for it")),
            }
        }
        self.problems.extend(told.conflicts.iter().map(|text| format!("two records of one exchange: {text}")));
        self.asked = asked.len();
        self.records = ends.len();
        self.again = told.again;
        self.died = ends.values().filter(|end| *end == "proxy_died").count();
        if ends.get(last).is_none_or(|end| end != "complete") {
            self.problems.push("the last exchange has no record".to_owned());
        }
    }

    /// Nothing is missing but what happened so shortly before the kill.
    fn assert(&self, window: Duration) {
        let Self { seed, problems, .. } = self;
        assert!(problems.is_empty(), "seed {seed}: {} problems:\n{}", problems.len(), problems.join("\n"));
        for (what, ages) in self.ages() {
            let old: Vec<_> = ages.iter().filter(|age| **age > window || window.is_zero()).collect();
            assert!(old.is_empty(), "seed {seed}, {}: {what}: {} of them: {old:?}\n{self}", self.durability, old.len());
        }
        // Else there was nothing to see.
        assert!(self.ends > self.rounds * 10 && self.died > self.rounds && self.left > 0 && self.refused > 0, "{self}");
    }

    fn ages(&self) -> [(&'static str, &[Duration]); 3] {
        [
            ("an end was seen and there is no record", &self.missing),
            ("an end was seen and the record says that the process died", &self.died_after_end),
            ("the backend was asked and there is no record", &self.missing_asked),
        ]
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            durability, seed, rounds, exchanges, refused, left, asked, ends, records, again, died, unasked, ..
        } = self;
        writeln!(
            f,
            "{durability}, seed {seed}: {rounds} kills, {exchanges} exchanges, {refused} refused, {left} left"
        )?;
        writeln!(f, "  backend asked {asked}, ends seen {ends}, records {records}, delivered again {again}")?;
        writeln!(f, "  recorded as proxy_died {died}, of these {unasked} before the backend was asked")?;
        writeln!(f, "  a task that slept was late by up to {:?}", self.lag)?;
        for (what, ages) in self.ages() {
            let late = ages.iter().filter(|age| **age > WINDOW).count();
            let oldest = ages.iter().max().copied().unwrap_or_default();
            writeln!(f, "  {what}: {}, {late} more than {WINDOW:?} before the kill, at most {oldest:?}", ages.len())?;
        }
        Ok(())
    }
}
