//! Clients that leave: the server must stop working for them.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use super::{
    rig::{self, KEY, Rig, in_short},
    scratch::Scratch,
    server::Server,
    table::Row,
};

/// How long a server may go on for a client that has left. A prompt's batch is not interrupted.
const STOPS_WITHIN: Duration = Duration::from_secs(5);
/// Takes the server far longer than it may go on.
const MANY_TOKENS: u64 = 30_000;
/// So does this many words of a prompt.
const LONG_PROMPT: usize = 3_000;

/// Leaves `server` in each way.
pub(crate) async fn rows(proxy: &Path, scratch: &Scratch, server: &Server) -> Result<Vec<Row>, String> {
    eprintln!("\n==> clients that leave");
    let mut rig = Rig::start(proxy, scratch, &rig::config(&[server])).await?;
    let mut rows = Vec::new();
    for (did, prompt, stream, pieces) in [
        ("left mid-stream", 1, true, 5),
        ("left before the first byte of a stream", LONG_PROMPT, true, 0),
        ("left before the answer, not streamed", 1, false, 0),
    ] {
        rows.push(row(&mut rig, server, did, &ask(server.model, prompt, stream), pieces).await?);
    }
    Ok(rows)
}

async fn row(rig: &mut Rig, server: &Server, did: &str, ask: &Value, pieces: usize) -> Result<Row, String> {
    let before = server.counted().await?;
    rig.forget()?;
    let mut client = rig.client().await;
    client.send_json("/v1/chat/completions", &[("authorization", &format!("Bearer {KEY}"))], ask).await;
    server.when_busy().await?;
    for _ in 0..pieces {
        client.piece().await.ok_or("the stream ended before it was left")?;
    }
    client.leave();
    let stopped = server.when_stopped(STOPS_WITHIN).await;
    let generated = (server.counted().await? - before).completion;
    let record = rig.records(1).await?.pop().ok_or("no record came")?;
    let verdict = match &stopped {
        Err(wrong) => Err(wrong.clone()),
        Ok(_) if generated >= MANY_TOKENS => Err("it was generated to the end".into()),
        Ok(_) if record["end"] != "client_gone" => Err(format!("the end is {}", record["end"])),
        Ok(_) => Ok(()),
    };
    let server = format!("stopped within {:.1} s, generated {generated}", stopped.unwrap_or_default().as_secs_f64());
    Ok(Row { client: "plain HTTP".into(), did: did.into(), server, recorded: in_short(&record), verdict })
}

fn ask(model: &str, words: usize, stream: bool) -> Value {
    let content = "balancer ".repeat(words);
    json!({
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MANY_TOKENS,
        "ignore_eos": true,
        "stream": stream,
    })
}
