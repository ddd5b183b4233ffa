//! `llmproxy usage` beside proxies that run, have stopped, or were killed.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use llmproxy_testkit::{Backend, Client, Receiver, script};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
};

use crate::harness::{Folder, Proxy, command, within};

pub(crate) async fn run(folder: &Path, args: &[&str]) -> Output {
    let child = command(folder)
        .arg("usage")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    within("the command to end", child.wait_with_output()).await.expect("output")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn told(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The lines that a command prints, as JSON.
pub(crate) async fn objects(folder: &Path, args: &[&str]) -> Vec<Value> {
    let output = run(folder, args).await;
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A proxy, what is behind it and what is told of it, with the ledger in a folder that outlives it.
pub(crate) struct Scene {
    pub(crate) folder: Folder,
    pub(crate) receiver: Receiver,
    _backend: Backend,
    pub(crate) yaml: String,
}

impl Scene {
    /// A proxy for the keys of alice and bob, and a reporter called `r` that is told of `m` alone.
    pub(crate) async fn new(more_reporters: &str) -> Self {
        let folder = Folder::new();
        let receiver = Receiver::start().await;
        let usage =
            json!({"prompt_tokens": 12, "completion_tokens": 30, "prompt_tokens_details": {"cached_tokens": 8}});
        let backend = Backend::start(script::json(200, json!({"choices": [], "usage": usage}))).await;
        let yaml = format!(
            "backends: [{{url: '{}', models: [m, '=n']}}]\nhealth_check: {{enabled: false}}\n\
             admin: {{db_path: '{folder}/keys.db'}}\n\
             auth:\n  enabled: true\n  pipeline:\n  - type: static\n    static:\n      keys:\n      \
             - {{key: sk-alice, name: alice, user_id: u-1}}\n      - {{key: sk-bob, name: bob}}\n\
             pricing: {{currency: EUR, models: [{{models: [m], input: 0.15, output: 0.6}}]}}\n\
             usage:\n  enabled: true\n  ledger: {{path: '{folder}/usage.db'}}\n  reporters:\n  \
             - {{name: r, type: webhook, filter: {{models: [m]}}, webhook: {{url: '{}', retry: 1}}}}\n{more_reporters}",
            backend.url(),
            receiver.url(),
            folder = folder.display(),
        );
        std::fs::write(folder.join("config.yaml"), &yaml).expect("the folder is ours");
        Self { folder, receiver, _backend: backend, yaml }
    }

    pub(crate) async fn proxy(&self) -> Proxy {
        Proxy::start(&self.yaml).await
    }

    /// Waits until the ledger has as many records.
    pub(crate) async fn written(&self, count: u64) {
        let written = async {
            while objects(&self.folder, &["--store", "ledger", "--format", "json"])
                .await
                .first()
                .is_none_or(|total| total["requests"] != count)
            {}
        };
        within("the records to be written", written).await;
    }
}

/// Asks as somebody for a model; the id of that.
pub(crate) async fn ask(proxy: &Proxy, key: &str, model: &str) -> String {
    let mut client = Client::connect(proxy.address()).await;
    let key = format!("Bearer sk-{key}");
    let body = json!({"model": model, "messages": []});
    client.send_json("/v1/chat/completions", &[("authorization", &key)], &body).await;
    let answer = client.read_to_end().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-request-id").expect("every answer has one").to_owned()
}

#[tokio::test]
async fn totals_by_each_and_in_every_format() {
    let scene = Scene::new("").await;
    let proxy = scene.proxy().await;
    for (key, model) in [("alice", "m"), ("alice", "m"), ("bob", "m"), ("bob", "=n")] {
        ask(&proxy, key, model).await;
    }
    scene.written(4).await;
    let folder = &scene.folder;
    let by = async |by: &str, more: &[&str]| {
        let args = [&["--by", by, "--format", "json"], more].concat();
        let totals = objects(folder, &args).await;
        totals
            .iter()
            .map(|total| (total[by].as_str().expect("text").to_owned(), total["requests"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(by("model", &[]).await, [("=n".to_owned(), json!(1)), ("m".to_owned(), json!(3))]);
    assert_eq!(by("user", &[]).await, [(String::new(), json!(2)), ("u-1".to_owned(), json!(2))]);
    assert_eq!(by("key", &[]).await, [("alice".to_owned(), json!(2)), ("bob".to_owned(), json!(2))]);
    assert_eq!(by("key", &["--model", "m", "--from", "1h"]).await[1], ("bob".to_owned(), json!(1)));
    assert_eq!(by("model", &["--user", "u-1"]).await, [("m".to_owned(), json!(2))]);
    assert_eq!(by("model", &["--key", "bob"]).await.len(), 2);
    assert!(by("model", &["--to", "1h"]).await.is_empty());
    let days = by("day", &[]).await;
    assert!(days.iter().all(|(day, _)| day.len() == "2026-01-31".len()), "{days:?}");
    let hours = by("hour", &[]).await;
    assert!(hours.iter().all(|(hour, _)| hour.ends_with(":00:00Z")), "{hours:?}");
    let total = &objects(folder, &["--format", "json", "--model", "m"]).await[0];
    let expected = json!({
        "requests": 3, "failed": 0, "prompt_tokens": 36, "cached_tokens": 24, "completion_tokens": 90,
        "total_tokens": 126, "cost": {"EUR": 0.0000594},
    });
    assert_eq!(*total, expected);

    let csv = run(folder, &["--by", "model", "--format", "csv"]).await;
    assert_eq!(
        text(&csv.stdout),
        "model,requests,failed,prompt_tokens,cached_tokens,completion_tokens,total_tokens,cost_EUR\r\n\
         '=n,1,0,12,8,30,42,0\r\nm,3,0,36,24,90,126,0.0000594\r\n"
    );
    let source = text(&csv.stderr);
    assert!(source.starts_with("the ledger ") && source.contains("usage.db: requests from 2"), "{source}");
    let table = text(&run(folder, &["--by", "model"]).await.stdout);
    let last: Vec<&str> = table.lines().last().expect("lines").split_whitespace().collect();
    assert_eq!(last, ["total", "4", "0", "48", "32", "120", "168", "0.0000594"], "{table}");

    // No configuration is needed where the ledger is named.
    let elsewhere = Folder::new();
    let path = folder.join("usage.db");
    let named = objects(&elsewhere, &["--ledger", path.to_str().expect("text"), "--format", "json"]).await;
    assert_eq!(named[0]["requests"], 4);
}

#[tokio::test]
async fn the_builtin_store_is_asked_where_there_is_one() {
    let scene = Scene::new("  - {name: store, type: builtin}\n").await;
    let proxy = scene.proxy().await;
    ask(&proxy, "alice", "m").await;
    let stored = async {
        loop {
            let output = run(&scene.folder, &["--by", "day", "--format", "csv"]).await;
            if text(&output.stdout).lines().count() == 2 {
                return output;
            }
        }
    };
    let output = within("the record to be stored", stored).await;
    let source = text(&output.stderr);
    assert!(source.starts_with("the builtin store ") && source.contains("requests from 2"), "{source}");
    assert!(text(&output.stdout).contains(",1,0,12,8,30,42,0.0000198"), "{}", told(&output));
    let output = run(&scene.folder, &["--store", "ledger"]).await;
    assert!(text(&output.stderr).starts_with("the ledger "), "{}", told(&output));
    drop(proxy);
    // Without its row the hour is asked for as a whole, and that is said.
    let path = scene.folder.join("keys.db");
    let store = llmproxy_usage::BuiltinStore::open(&path).await.expect("it is there");
    assert_eq!(store.purge(jiff::Timestamp::MAX).await.expect("it can be written"), 1);
    store.close().await;
    let output = run(&scene.folder, &["--from", "1m", "--format", "csv"]).await;
    assert!(text(&output.stderr).contains("whole hours, since single records"), "{}", told(&output));
    assert!(text(&output.stdout).contains("1,0,12,8,30,42,0.0000198"), "{}", told(&output));
}

/// A tail that runs.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let mut command = command(folder);
        command.args(["usage", "tail"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    async fn next(&mut self) -> String {
        if let Some(line) = within("a line", self.lines.next_line()).await.expect("reads") {
            return line;
        }
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        within("its last words", stderr.read_to_string(&mut said)).await.expect("reads");
        panic!("it has ended: {said}");
    }

    async fn next_id(&mut self) -> String {
        let record: Value = serde_json::from_str(&self.next().await).expect("JSON");
        record["request_id"].as_str().expect("it has one").to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().expect("it runs").cast_signed()).expect("not zero");
        kill_process(pid, signal).expect("it runs");
    }

    /// It ends well and has nothing to say.
    async fn ends(self) {
        drop(self.lines);
        let output = within("the tail to end", self.child.wait_with_output()).await.expect("output");
        assert_eq!((output.status.code(), told(&output)), (Some(0), String::new()));
    }
}

#[tokio::test]
async fn tail_shows_the_last_ones_and_those_that_come() {
    let scene = Scene::new("").await;
    let mut proxy = scene.proxy().await;
    let mut asked = Vec::new();
    for model in ["m", "=n", "m"] {
        asked.push(ask(&proxy, "alice", model).await);
        scene.written(asked.len() as u64).await;
    }
    let mut all = Tail::start(&scene.folder, &["--format", "json"]);
    let mut some = Tail::start(&scene.folder, &["-n", "2", "--model", "m", "--format", "json"]);
    let mut since = Tail::start(&scene.folder, &["--since", "1h", "--key", "alice"]);
    for id in &asked {
        assert_eq!(all.next_id().await, *id);
        let line = since.next().await;
        assert!(
            line.contains(&**id) && line.contains(" 200 complete ") && line.contains(" alice 12+30 tokens "),
            "{line}"
        );
    }
    // The second last of all is another model's.
    assert_eq!((some.next_id().await, some.next_id().await), (asked[0].clone(), asked[2].clone()));

    // One that comes while they follow.
    ask(&proxy, "bob", "=n").await;
    let new = ask(&proxy, "alice", "m").await;
    assert_ne!(all.next_id().await, new);
    assert_eq!((all.next_id().await, some.next_id().await), (new.clone(), new.clone()));
    assert!(since.next().await.contains(&new));
    some.signal(Signal::INT);
    some.ends().await;

    // The proxy stops and another goes on with the same ledger.
    proxy.signal(Signal::TERM);
    assert!(proxy.exit().await.success());
    proxy = scene.proxy().await;
    let new = ask(&proxy, "alice", "m").await;
    assert_eq!(all.next_id().await, new);
    // The file was removed, and the proxy begins another.
    proxy.signal(Signal::TERM);
    assert!(proxy.exit().await.success());
    for name in ["usage.db", "usage.db-wal", "usage.db-shm"] {
        let _ = std::fs::remove_file(scene.folder.join(name));
    }
    proxy = scene.proxy().await;
    let first = ask(&proxy, "alice", "m").await;
    assert_eq!(all.next_id().await, first);
    all.signal(Signal::TERM);
    all.ends().await;
    assert!(since.next().await.contains(&new));
    assert!(since.next().await.contains(&first));
    // Nobody reads on, and there is nothing to write.
    since.ends().await;
}

#[tokio::test]
async fn what_can_t_be_done_is_explained() {
    let folder = Folder::new();
    let check = async |args: &[&str], code: i32, parts: &[&str]| {
        let output = run(&folder, args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        for part in parts {
            assert!(text(&output.stderr).contains(part), "{part} is not in: {}", told(&output));
        }
    };
    check(&[], 1, &["no usage ledger ./data/usage.db", "looked for /", "--config FILE"]).await;
    check(&["--config", "absent.yaml"], 64, &["absent.yaml"]).await;
    check(&["replay", "--from", "1h", "--reporter", "r"], 64, &["config.yaml"]).await;
    check(&["--from", "yesterday"], 2, &["2026-01-31", "24h"]).await;
    check(&["--from", "1h", "--to", "2h"], 2, &["not later"]).await;
    check(&["--ledger", "x.db", "--store", "builtin"], 2, &["--store builtin"]).await;
    check(&["replay", "--reporter", "r"], 2, &["--from"]).await;
    check(&["--by", "day", "tail"], 2, &["--by", "after its name"]).await;
    check(&["--ledger", "x.db", "tail"], 1, &["no usage ledger x.db"]).await;
    std::fs::write(folder.join("config.yaml"), "backends: [{url: 'http://localhost:1'}]\n")
        .expect("the folder is ours");
    check(&[], 1, &["usage.enabled is false in config.yaml"]).await;
    check(&["tail", "--ledger", "config.yaml"], 1, &["config.yaml"]).await;
    check(&["replay", "--from", "1h", "--reporter", "r"], 1, &["no reporter `r`", "none at all"]).await;
    let yaml = "backends: [{url: 'http://localhost:1'}]\nusage: {enabled: true, reporters: [{type: builtin}]}\n";
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    check(&[], 1, &["no usage is stored", "--store ledger"]).await;
    check(&["reporters"], 1, &["no usage ledger", "when the proxy starts with config.yaml"]).await;
    check(&["replay", "--from", "1h", "--reporter", "x"], 1, &["no reporter `x`", "builtin"]).await;
}
