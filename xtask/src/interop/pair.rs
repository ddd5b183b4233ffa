//! Two servers of different speed behind one proxy.

use std::path::Path;

use llmproxy_testkit::BodyEnd;
use serde_json::{Value, json};

use super::{MODEL, rig::Rig, scratch::Scratch, server::Server, table::Row};

const FAST_WEIGHT: usize = 3;
const SLOW_WEIGHT: usize = 1;
/// A multiple of the sum of the weights, so that turns come out even.
const REQUESTS: usize = 40;
/// Enough of them for both servers to have some.
const STREAMS: usize = 8;
/// How many requests follow the death of a server.
const AFTERWARDS: usize = 5;

/// Sends requests to both, and kills the slow one while streams are running.
pub(crate) async fn rows(proxy: &Path, scratch: &Scratch, fast: Server, slow: Server) -> Result<Vec<Row>, String> {
    eprintln!("\n==> two servers of different speed");
    // Nothing says which models they have: that is learned.
    let yaml = format!(
        "backends:\n  - {{url: '{}', weight: {FAST_WEIGHT}}}\n  - {{url: '{}', weight: {SLOW_WEIGHT}}}\n\
         routing: {{load_balance: round_robin}}\n",
        fast.url(),
        slow.url()
    );
    let mut rig = Rig::start(proxy, scratch, &yaml).await?;
    Ok(vec![
        weights(&mut rig, &fast, &slow).await?,
        death(&mut rig, &fast, slow).await?,
        afterwards(&mut rig, &fast).await?,
    ])
}

async fn weights(rig: &mut Rig, fast: &Server, slow: &Server) -> Result<Row, String> {
    // Nobody else may have had a turn, or the turns would not be even.
    rig.forget()?;
    let before = (fast.counted().await?, slow.counted().await?);
    let mut client = rig.client().await;
    let (mut at_fast, mut at_slow) = (0, 0);
    for _ in 0..REQUESTS {
        let answer = client.post_json("/v1/chat/completions", &ask(5, false)).await;
        let record = rig.record(answer.header("x-request-id").unwrap_or_default()).await?;
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.text()));
        }
        if record["backend_url"] == fast.url() { at_fast += 1 } else { at_slow += 1 }
    }
    let share = |weight| REQUESTS * weight / (FAST_WEIGHT + SLOW_WEIGHT);
    let server = format!("{} and {}", fast.counted().await? - before.0, slow.counted().await? - before.1);
    let recorded = format!("{at_fast} to the fast one, {at_slow} to the slow one");
    let verdict = if (at_fast, at_slow) == (share(FAST_WEIGHT), share(SLOW_WEIGHT)) {
        Ok(())
    } else {
        Err(format!("the weights are {FAST_WEIGHT} and {SLOW_WEIGHT}"))
    };
    Ok(Row { client: "fast and slow".into(), did: format!("{REQUESTS} requests"), server, recorded, verdict })
}

async fn death(rig: &mut Rig, fast: &Server, slow: Server) -> Result<Row, String> {
    rig.forget()?;
    let slow_url = slow.url();
    let mut streams = Vec::new();
    // The slow server's are far from their end when the fast one's, which are as long, come to theirs.
    for _ in 0..STREAMS {
        let mut client = rig.client().await;
        client.send_json("/v1/chat/completions", &[], &ask(800, true)).await;
        streams.push(client);
    }
    for client in &mut streams {
        client.piece().await.ok_or("a stream ended before it began")?;
    }
    slow.kill().await?;
    let mut ends = Vec::new();
    let (mut whole, mut broken) = (0, 0);
    for mut client in streams {
        let head = client.head().await;
        let mut text = String::new();
        while let Some(piece) = client.piece().await {
            text += &String::from_utf8_lossy(&piece);
        }
        let id = head.header("x-request-id").unwrap_or_default().to_owned();
        let was_slow = match client.end() {
            Some(BodyEnd::Complete) if text.ends_with("data: [DONE]\n\n") => {
                whole += 1;
                false
            }
            Some(BodyEnd::Truncated | BodyEnd::Reset) if text.contains("\"error\"") => {
                broken += 1;
                true
            }
            end => return Err(format!("a stream ended by {end:?} with {}", text.lines().last().unwrap_or_default())),
        };
        ends.push((id, was_slow));
    }
    let mut problems = Vec::new();
    let records = rig.records(STREAMS).await?;
    for (id, was_slow) in ends {
        let record = records.iter().find(|record| record["request_id"] == id).ok_or("a stream without a record")?;
        let expected = if was_slow { ("backend_failed", &slow_url) } else { ("complete", &fast.url()) };
        if (record["end"].as_str(), record["backend_url"].as_str()) != (Some(expected.0), Some(expected.1)) {
            problems.push(record.to_string());
        }
    }
    let verdict = match (problems.first(), whole, broken) {
        (Some(problem), ..) => Err(problem.clone()),
        (None, 0, _) | (None, _, 0) => Err("not both had streams".into()),
        _ => Ok(()),
    };
    Ok(Row {
        client: "fast and slow".into(),
        did: format!("{STREAMS} streams, the slow one killed"),
        server: "killed".into(),
        recorded: format!("{whole} complete at the fast one, {broken} broken at the slow one"),
        verdict,
    })
}

async fn afterwards(rig: &mut Rig, fast: &Server) -> Result<Row, String> {
    let mut verdict = Ok(());
    for _ in 0..AFTERWARDS {
        let answer = rig.client().await.post_json("/v1/chat/completions", &ask(5, false)).await;
        let record = rig.record(answer.header("x-request-id").unwrap_or_default()).await?;
        if answer.status != 200 || record["backend_url"] != fast.url() {
            verdict = Err(format!("{}: {record}", answer.status));
        }
    }
    Ok(Row {
        client: "fast and slow".into(),
        did: format!("{AFTERWARDS} requests afterwards"),
        server: "one is gone".into(),
        recorded: "all at the fast one".into(),
        verdict,
    })
}

fn ask(tokens: usize, stream: bool) -> Value {
    json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": tokens,
        "ignore_eos": true,
        "stream": stream,
    })
}
