//! Client libraries and programs: OpenAI's SDKs, OpenClaw.

use std::process::Stdio;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use super::{
    EMBEDDING_MODEL, MODEL,
    rig::{CONCURRENT, KEY, Rig, in_short, tokens},
    scratch::Scratch,
    server::{Counted, Server},
    table::Row,
};
use crate::cargo::root;

/// An SDK and the script that uses it.
pub(crate) struct Sdk {
    pub(crate) name: &'static str,
    script: &'static str,
    program: fn(&Scratch) -> std::path::PathBuf,
}

/// Those that there are scripts for.
pub(crate) const SDKS: &[Sdk] = &[
    Sdk { name: "openai-python", script: "xtask/interop/openai_sdk.py", program: Scratch::python_program },
    Sdk { name: "openai-node", script: "xtask/interop/openai_sdk.mjs", program: Scratch::node },
];

/// The steps of the SDK's script, each beside what servers and proxy made of it.
pub(crate) async fn sdk(sdk: &Sdk, rig: &mut Rig, scratch: &Scratch, servers: &[&Server]) -> Result<Vec<Row>, String> {
    let embeds = servers.iter().any(|server| server.model == EMBEDDING_MODEL);
    let mut child = Command::new((sdk.program)(scratch))
        .arg(root().join(sdk.script))
        .args([&*rig.base_url(), KEY, MODEL, if embeds { EMBEDDING_MODEL } else { "-" }, &CONCURRENT.to_string()])
        .arg("--wait")
        // Where node finds the package.
        .current_dir(scratch.node_folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{}: {error}", sdk.name))?;
    let (Some(mut go_on), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("no pipes".into());
    };
    let mut lines = BufReader::new(stdout).lines();
    let mut rows = Vec::new();
    let mut before = counted(servers).await?;
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        let step: Value = serde_json::from_str(&line).map_err(|error| format!("{}: {error}: {line}", sdk.name))?;
        let now = counted(servers).await?;
        rows.push(row(sdk.name, &step, now - before, rig).await);
        before = now;
        eprintln!("    {line}");
        go_on.write_all(b"\n").await.map_err(|error| format!("{}: {error}", sdk.name))?;
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    // It says itself that a step failed; else it came to its end, or it has not done all that it should.
    if rows.is_empty() || (!status.success() && rows.iter().all(|row| row.verdict.is_ok())) {
        return Err(format!("the script of {} broke off after {} steps: {status}", sdk.name, rows.len()));
    }
    Ok(rows)
}

/// OpenClaw with the seed's provider block: one message from its command line.
pub(crate) async fn openclaw(rig: &mut Rig, scratch: &Scratch, servers: &[&Server]) -> Result<Row, String> {
    let home = scratch.fresh("openclaw-home")?;
    let block = std::fs::read_to_string(root().join("xtask/interop/openclaw.json5")).map_err(|e| e.to_string())?;
    let config = block.replace("http://localhost:8000", &format!("http://{}", rig.address));
    std::fs::write(home.join("openclaw.json"), config).map_err(|error| error.to_string())?;
    let before = counted(servers).await?;
    rig.forget()?;
    let output = Command::new(scratch.node())
        .arg(scratch.openclaw())
        .args(["agent", "--local", "--json", "--session-id", "interop", "--message", "What does a balancer do?"])
        .env("HOME", &home)
        .env("OPENCLAW_STATE_DIR", &home)
        .env("OPENCLAW_CONFIG_PATH", home.join("openclaw.json"))
        .current_dir(&home)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(300), output).await;
    let output = output.map_err(|_| "OpenClaw takes too long")?.map_err(|error| format!("OpenClaw: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let server = counted(servers).await? - before;
    let records = rig.records(1).await?;
    let recorded = records.iter().map(tokens).fold(Counted::default(), std::ops::Add::add);
    let answer = stdout.find('{').and_then(|at| serde_json::from_str::<Value>(&stdout[at..]).ok()).unwrap_or_default();
    let text = answer["payloads"][0]["text"].as_str().unwrap_or_default();
    let verdict = if !output.status.success() || text.is_empty() || !answer["meta"]["error"].is_null() {
        Err(format!(
            "it ended with {}: {} {}",
            output.status,
            answer["meta"]["error"],
            String::from_utf8_lossy(&output.stderr)
        ))
    } else if let Some(broken) = records.iter().find(|record| record["end"] != "complete") {
        Err(format!("a request did not go well: {broken}"))
    } else {
        same(recorded, server)
    };
    let recorded = records.iter().map(in_short).collect::<Vec<_>>().join("; ");
    Ok(Row {
        client: "OpenClaw".into(),
        did: "one message, with the seed's block".into(),
        server: server.to_string(),
        recorded,
        verdict,
    })
}

/// What all of `servers` have counted.
async fn counted(servers: &[&Server]) -> Result<Counted, String> {
    let mut all = Counted::default();
    for server in servers {
        all = all + server.counted().await?;
    }
    Ok(all)
}

async fn row(client: &str, step: &Value, server: Counted, rig: &mut Rig) -> Row {
    let (recorded, verdict) = match verdict(step, server, rig).await {
        Ok(recorded) => (recorded, Ok(())),
        Err(wrong) => (String::new(), Err(wrong)),
    };
    Row {
        client: client.to_owned(),
        did: step["did"].as_str().unwrap_or_default().to_owned(),
        server: server.to_string(),
        recorded,
        verdict,
    }
}

async fn verdict(step: &Value, server: Counted, rig: &mut Rig) -> Result<String, String> {
    if step["ok"] != true {
        return Err(step["error"].to_string());
    }
    let Some(id) = step["request_id"].as_str() else { return without_id(server, rig).await };
    let record = rig.record(id).await?;
    let recorded = tokens(&record);
    let expected = if step["left"] == true { "client_gone" } else { "complete" };
    if record["end"] != expected {
        return Err(format!("the end is {}, not {expected}", record["end"]));
    }
    if step["left"] == true {
        // Nobody has said what was generated after the last event that came through.
        return Ok(in_short(&record));
    }
    same(recorded, server)?;
    if let [Some(prompt), Some(completion)] = [step["usage"][0].as_u64(), step["usage"][1].as_u64()] {
        same(recorded, Counted { prompt, completion })?;
    }
    Ok(in_short(&record))
}

/// What was recorded of a step that says no id: of one or several requests, or of none that a server had work with.
async fn without_id(server: Counted, rig: &mut Rig) -> Result<String, String> {
    if server == Counted::default() {
        let records = rig.records(0).await?;
        return match records.iter().find(|record| tokens(record) != server) {
            Some(record) => Err(format!("tokens are recorded that nobody counted: {record}")),
            None => Ok(format!("{} records", records.len())),
        };
    }
    let mut records = rig.records(1).await?;
    while records.iter().map(tokens).fold(Counted::default(), std::ops::Add::add) != server {
        // Of those that were left nobody has counted all; the others must be there.
        if records.iter().any(|record| record["end"] == "client_gone") && records.len() > CONCURRENT {
            break;
        }
        records.extend(rig.records(1).await?);
    }
    Ok(records.iter().map(in_short).collect::<Vec<_>>().join("; "))
}

fn same(recorded: Counted, said: Counted) -> Result<(), String> {
    if recorded == said { Ok(()) } else { Err(format!("recorded are {recorded}, said was {said}")) }
}
