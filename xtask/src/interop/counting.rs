//! Tokens that the proxy counts itself, beside those that the server counted and those of a second count.

mod bench;
mod count;
mod filter;
mod said;

use std::path::Path;

use serde_json::{Value, json};

use self::{
    bench::{Asked, Bench, Metering},
    count::Count,
};
use super::{
    MODEL,
    rig::{in_short, tokens},
    scratch::Scratch,
    server::{Counted, Server},
    table::Row,
};

/// Streams that are left while the server's counts are hidden, and the same where they are read to their end.
const ABORTS: usize = 200;
const DRAINS: usize = 20;
/// A stream is left at one of so many tokens.
const TOKENS: usize = 60;
/// How far the sum of what was counted may be from what the server had generated, in percent.
const DRIFT: f64 = 2.0;

/// Everything that counting is held against, with `server` behind the proxy.
pub(crate) async fn rows(proxy: &Path, scratch: &Scratch, server: &Server) -> Result<Vec<Row>, String> {
    eprintln!("\n==> tokens counted by the proxy");
    let mut count = Count::start(scratch)?;
    let mut rows = Vec::new();

    let mut told = Bench::start(proxy, scratch, server, false, Metering::Tokenizer { drain: false }).await?;
    for stream in [false, true] {
        rows.push(as_told(&mut told, &mut count, stream).await?);
    }
    rows.push(drift(&mut told).await?);
    for stream in [false, true] {
        rows.push(choices("counted", &mut told, &mut count, server, stream).await?);
    }
    drop(told);

    let mut estimating = Bench::start(proxy, scratch, server, false, Metering::Estimate).await?;
    for stream in [false, true] {
        rows.push(choices("estimated", &mut estimating, &mut count, server, stream).await?);
    }
    drop(estimating);

    let mut hidden = Bench::start(proxy, scratch, server, true, Metering::Tokenizer { drain: false }).await?;
    for stream in [false, true] {
        rows.push(as_counted("a tokenizer", &mut hidden, &mut count, stream).await?);
    }
    rows.extend(aborted(&mut hidden, &mut count).await?);
    drop(hidden);

    let mut drained = Bench::start(proxy, scratch, server, false, Metering::Tokenizer { drain: true }).await?;
    rows.push(read_on(&mut drained, &mut count).await?);
    drop(drained);

    let mut asking = Bench::start(proxy, scratch, server, true, Metering::AskBackend).await?;
    for stream in [false, true] {
        rows.push(as_counted("the backend asked", &mut asking, &mut count, stream).await?);
    }
    Ok(rows)
}

/// The server tells, and that is what is recorded.
async fn as_told(bench: &mut Bench, count: &mut Count, stream: bool) -> Result<Row, String> {
    let mut tally = Tally::default();
    for request in requests(stream) {
        let asked = bench.ask(&request, count).await?;
        tally.check(&asked, asked.told, "backend", "complete");
        tally.check_prompt(&asked);
    }
    Ok(tally.row(if stream { "streamed" } else { "plain" }, "the backend tells"))
}

/// The server does not tell, and what is recorded is what a second count gives.
async fn as_counted(by: &str, bench: &mut Bench, count: &mut Count, stream: bool) -> Result<Row, String> {
    let mut tally = Tally::default();
    for request in requests(stream) {
        let asked = bench.ask(&request, count).await?;
        if asked.said.has_calls {
            // The text is not all that the model has said, and the record has to say so.
            tally.check_estimate(&asked);
        } else {
            tally.check(&asked, asked.counted, "counted", "complete");
        }
    }
    Ok(tally.row(if stream { "streamed" } else { "plain" }, by))
}

/// How far the proxy's own counts were off where the server told as well.
async fn drift(bench: &mut Bench) -> Result<Row, String> {
    let found = bench.drift().await;
    let verdict = if found.contains("prompt") && found.contains("completion") {
        Ok(())
    } else {
        Err("the metric is not there".to_owned())
    };
    Ok(Row {
        client: "counting".into(),
        did: "drift of the above".into(),
        server: "-".into(),
        recorded: found,
        verdict,
    })
}

/// Two choices: the sum is recorded, whatever the server says of it. It tells of the first alone in a plain answer; the other
/// is counted, or `by` an estimate as long as the first, which it is here.
async fn choices(by: &str, bench: &mut Bench, count: &mut Count, server: &Server, stream: bool) -> Result<Row, String> {
    let mut request = request(json!([{"role": "user", "content": "Hello there"}]), stream);
    request["n"] = 2.into();
    let before = server.counted().await?;
    let asked = bench.ask(&request, count).await?;
    let truly = server.counted().await? - before;
    let mut tally = Tally::default();
    let (expected, source) = match (stream, by) {
        (true, _) => (truly, "backend"),
        (false, "counted") => (Counted { prompt: truly.prompt, ..asked.counted }, by),
        (false, _) => (truly, by),
    };
    tally.check(&asked, expected, source, "complete");
    let mut row = tally.row(if stream { "streamed" } else { "plain" }, &format!("two choices, {source}"));
    row.server = format!("{truly} in all, {} told", asked.told);
    Ok(row)
}

/// Streams that are left at a random token.
async fn aborted(bench: &mut Bench, count: &mut Count) -> Result<Vec<Row>, String> {
    let mut tally = Tally::default();
    let mut random = Random(0x9e37_79b9);
    for number in 0..ABORTS {
        let asked = bench.leave(&endless(number), 1 + random.below(TOKENS), count).await?;
        tally.check(&asked, asked.counted, "counted", "client_gone");
    }
    let off = tally.recorded.completion as f64 - tally.told.completion as f64;
    let off = 100.0 * off / tally.told.completion.max(1) as f64;
    let alike = tally.alike;
    let drift = Row {
        client: "counting".into(),
        did: "drift of these".into(),
        server: format!("{} generated", tally.told.completion),
        recorded: format!("{} counted, {off:+.2} %; {alike} of {ABORTS} alike", tally.recorded.completion),
        verdict: if off.abs() < DRIFT { Ok(()) } else { Err(format!("more than {DRIFT} %")) },
    };
    Ok(vec![tally.row("left at a token", "a tokenizer"), drift])
}

/// Streams that are left and read on: all is recorded, and what of it was delivered.
async fn read_on(bench: &mut Bench, count: &mut Count) -> Result<Row, String> {
    let mut tally = Tally::default();
    let mut random = Random(0x85eb_ca6b);
    let (mut delivered, mut counted) = (0, 0);
    for number in 0..DRAINS {
        let asked = bench.leave_to_be_drained(&endless(number), 1 + random.below(TOKENS), count).await?;
        tally.check(&asked, asked.told, "backend", "client_gone");
        let said = asked.record["delivered_tokens"].as_u64();
        if said != Some(asked.counted.completion) {
            tally.wrong(format!("{said:?} were delivered, not {}: {}", asked.counted.completion, asked.record));
        }
        delivered += said.unwrap_or_default();
        counted += asked.counted.completion;
    }
    let mut row = tally.row("left, and read on", "a tokenizer");
    row.recorded += &format!(", {delivered} delivered ({counted})");
    Ok(row)
}

/// What is asked: alone, with a system's message, in several turns, with tools that were called.
fn requests(stream: bool) -> Vec<Value> {
    let user = |text: &str| json!({"role": "user", "content": text});
    let system = json!({"role": "system", "content": "You are terse; you write \u{201c}like this\u{201d}."});
    let said = json!({"role": "assistant", "content": "It picks a backend, and counts what is in flight."});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\": \"Zürich\", \"days\": 2}"}}]});
    let result = json!({"role": "tool", "tool_call_id": "c1", "content": "wet"});
    let mut with_tools = request(json!([system, user("And there?"), call, result]), stream);
    with_tools["tools"] = json!([{"type": "function", "function": {
        "name": "weather",
        "description": "Says <how> it is & will be",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    }}]);
    vec![
        request(json!([user("What does a balancer do?")]), stream),
        request(json!([system, user("  What\n\n is a *sink*?\t")]), stream),
        request(
            json!([system, user("What does it do?"), said, user("And a caf\u{e9}, \u{6f22}\u{5b57}, \u{1f980}?")]),
            stream,
        ),
        with_tools,
    ]
}

/// A request that is answered by some tens of tokens, always by the same.
fn request(messages: Value, stream: bool) -> Value {
    json!({"model": MODEL, "messages": messages, "max_tokens": 40, "ignore_eos": true, "seed": 1, "stream": stream})
}

/// A stream that does not end before it is left, another for each `number`.
fn endless(number: usize) -> Value {
    let mut request = request(json!([{"role": "user", "content": format!("Say {number}.")}]), true);
    request["max_tokens"] = (TOKENS + 20).into();
    request["seed"] = number.into();
    // The marks that this model sets before its end. Where it may not end it would set them all the time, and no other has
    // marks of its vocabulary in its text, each of which cuts it in two for the tokenizer.
    request["logit_bias"] = json!([["\u{2026}", false], ["<tool_call>", false]]);
    request
}

/// What several requests came to.
#[derive(Default)]
struct Tally {
    requests: usize,
    /// Of these, whose answers the server and the proxy have counted alike.
    alike: usize,
    /// And of these, of which a part was estimated: a call of a tool.
    estimates: usize,
    told: Counted,
    counted: Counted,
    recorded: Counted,
    problem: Option<String>,
}

/// Numbers that look random, and are the same in each run.
struct Random(u64);

// === impl Tally ===

impl Tally {
    /// The record must say `expected`, by `source`, and this end.
    fn check(&mut self, asked: &Asked, expected: Counted, source: &str, end: &str) {
        let record = &asked.record;
        let recorded = self.add(asked);
        if recorded != expected {
            self.wrong(format!("{recorded} instead of {expected} for {:?}: {}", asked.said.texts, in_short(record)));
        } else if record["end"] != end || record["usage_source"] != source {
            self.wrong(format!("{}, not by {source}, {end}", in_short(record)));
        }
    }

    /// The record must have the prompt counted, and call the rest an estimate.
    fn check_estimate(&mut self, asked: &Asked) {
        let record = &asked.record;
        if self.add(asked).prompt != asked.counted.prompt
            || record["prompt_usage_source"] != "counted"
            || record["completion_usage_source"] != "estimated"
        {
            self.wrong(format!("not an exact prompt of {} and an estimate: {record}", asked.counted.prompt));
        }
        self.estimates += 1;
    }

    fn add(&mut self, asked: &Asked) -> Counted {
        let recorded = tokens(&asked.record);
        self.requests += 1;
        self.alike += usize::from(recorded.completion == asked.told.completion);
        self.told = self.told + asked.told;
        self.counted = self.counted + asked.counted;
        self.recorded = self.recorded + recorded;
        recorded
    }

    /// A second count of the prompt must be the server's.
    fn check_prompt(&mut self, asked: &Asked) {
        if asked.told.prompt != asked.counted.prompt {
            self.wrong(format!("a second count gives {} for a prompt of {}", asked.counted.prompt, asked.told.prompt));
        }
    }

    fn wrong(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    fn row(self, did: &str, by: &str) -> Row {
        let calls = match self.estimates {
            0 => String::new(),
            calls => format!("; {calls} with a call"),
        };
        Row {
            client: "counting".into(),
            did: format!("{} {did}, {by}", self.requests),
            server: format!("{}; second count {}", self.told, self.counted),
            recorded: format!("{}{calls}", self.recorded),
            verdict: self.problem.map_or(Ok(()), Err),
        }
    }
}

// === impl Random ===

impl Random {
    /// A number below `bound`, by a linear congruential generator.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % bound
    }
}
