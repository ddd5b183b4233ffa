//! `llmproxy usage replay`: records once more to a real receiver, beside a proxy and without one.

use std::process::{Output, Stdio};

use llmproxy_testkit::{Backend, Behaviour, script};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    harness::{command, within},
    usage_command::{Scene, ask, objects, run, text, told},
};

/// The last line that a command says beside what it prints.
fn tally(output: &Output) -> String {
    text(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

fn ids(bodies: &[Value]) -> Vec<&str> {
    bodies.iter().map(|body| body["request_id"].as_str().expect("it has one")).collect()
}

#[tokio::test]
async fn records_are_sent_again_beside_a_proxy_and_after_it() {
    let scene = Scene::new("").await;
    let proxy = scene.proxy().await;
    let mut asked = Vec::new();
    for model in ["m", "=n", "m"] {
        asked.push(ask(&proxy, "alice", model).await);
        scene.written(asked.len() as u64).await;
    }
    let wanted = [&*asked[0], &*asked[2]];
    assert_eq!(ids(&scene.receiver.wait_for(2).await), wanted);
    let folder = &scene.folder;
    let replay = ["replay", "--from", "1h", "--reporter", "r"];
    let dry = run(folder, &[&replay[..], &["--dry-run"]].concat()).await;
    assert_eq!(tally(&dry), "2 would be sent, 0 refused, 1 skipped by the filter");
    assert_eq!(scene.receiver.bodies().len(), 2);

    let beside = run(folder, &replay).await;
    assert!(beside.status.success(), "{}", told(&beside));
    assert_eq!(tally(&beside), "2 sent, 0 refused, 1 skipped by the filter");
    let bodies = scene.receiver.bodies();
    assert_eq!(ids(&bodies), [wanted, wanted].concat());
    assert_eq!(bodies[..2], bodies[2..], "they are the same, word by word");
    // The proxy goes on where it was.
    let next = ask(&proxy, "bob", "m").await;
    assert_eq!(ids(&scene.receiver.wait_for(5).await)[4], next);
    let dealt_with = async {
        loop {
            let reporters = objects(folder, &["reporters", "--format", "json"]).await;
            if reporters[0]["waiting"] == 0 {
                return reporters;
            }
        }
    };
    let reporters = within("the reporter's place to be written", dealt_with).await;
    assert_eq!(reporters, [json!({"reporter": "r", "waiting": 0, "since": null, "configured": true})]);

    proxy.signal(Signal::TERM);
    assert!(proxy.exit().await.success());
    let after = run(folder, &replay).await;
    assert_eq!(tally(&after), "3 sent, 0 refused, 1 skipped by the filter");

    // What was written is there after a death, and what nobody was told is counted.
    scene.receiver.behave(Behaviour::Status(503));
    let proxy = scene.proxy().await;
    ask(&proxy, "bob", "m").await;
    scene.written(5).await;
    proxy.signal(Signal::KILL);
    assert!(!proxy.exit().await.success());
    let reporters = text(&run(folder, &["reporters"]).await.stdout);
    let row: Vec<&str> = reporters.lines().nth(1).expect("a row").split_whitespace().collect();
    assert!(row[..2] == ["r", "1"] && row[2].starts_with("2") && row[3] == "yes", "{reporters}");
    assert_eq!(objects(folder, &["--format", "json"]).await[0]["requests"], 5);
    scene.receiver.behave(Behaviour::Accept);
    let after = run(folder, &replay).await;
    assert_eq!(tally(&after), "4 sent, 0 refused, 1 skipped by the filter");
}

#[tokio::test]
async fn a_replay_that_is_stopped_says_how_to_go_on() {
    let scene = Scene::new("").await;
    let proxy = scene.proxy().await;
    for _ in 0..3 {
        ask(&proxy, "alice", "m").await;
    }
    let told_of = scene.receiver.wait_for(3).await;
    let order = ids(&told_of);
    // It takes one, and is down from then on.
    let down = order[1].to_owned();
    let is_down = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let receiver = Backend::start({
        let (is_down, down) = (is_down.clone(), down.clone());
        move |seen, wire| {
            let refuses = is_down.load(std::sync::atomic::Ordering::Relaxed) && seen.json()["request_id"] == *down;
            let status = if refuses { 503 } else { 200 };
            script::json(status, json!({}))(seen, wire)
        }
    })
    .await;
    let yaml = scene.yaml.replace(&scene.receiver.url(), &receiver.url());
    std::fs::write(scene.folder.join("config.yaml"), yaml).expect("the folder is ours");
    let stopped = run(&scene.folder, &["replay", "--from", "1h", "--reporter", "r"]).await;
    let said = text(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(1), "{said}");
    for part in ["1 sent, 0 refused", "2 records not sent", "503", &down] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    // What it says to type sends the rest.
    is_down.store(false, std::sync::atomic::Ordering::Relaxed);
    let line = said.lines().find_map(|line| line.strip_prefix("  llmproxy usage ")).expect("a command");
    let words: Vec<&str> = line.split(' ').collect();
    let before = receiver.seen().len();
    let rest = run(&scene.folder, &words).await;
    assert!(rest.status.success(), "{}", told(&rest));
    assert_eq!(tally(&rest), "2 sent, 0 refused, 0 skipped by the filter");
    let sent: Vec<Value> = receiver.seen()[before..].iter().map(|seen| seen.json()["request_id"].clone()).collect();
    assert_eq!(sent, order[1..]);
    drop(proxy);
}

#[tokio::test]
async fn a_replay_that_is_interrupted_says_where_it_was() {
    let scene = Scene::new("").await;
    let proxy = scene.proxy().await;
    ask(&proxy, "alice", "m").await;
    let told_of = scene.receiver.wait_for(1).await;
    scene.receiver.behave(Behaviour::Hang);
    let mut command = command(&scene.folder);
    let child = command
        .args(["usage", "replay", "--from", "1h", "--reporter", "r"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let sent = async {
        while scene.receiver.backend().seen().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    within("the record to be sent", sent).await;
    let pid = Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("not zero");
    kill_process(pid, Signal::INT).expect("it runs");
    let output = within("the replay to end", child.wait_with_output()).await.expect("output");
    assert_eq!(output.status.code(), Some(1));
    for part in ["told to stop", "1 records not sent", ids(&told_of)[0], "llmproxy usage replay --from 2"] {
        assert!(text(&output.stderr).contains(part), "{part} is not in: {}", told(&output));
    }
    drop(proxy);
}

#[tokio::test]
async fn dead_letters_are_sent_again() {
    let scene = Scene::new("").await;
    scene.receiver.behave_for(1, Behaviour::Status(422));
    let proxy = scene.proxy().await;
    let refused = ask(&proxy, "alice", "m").await;
    let path = scene.folder.join("dead-letters.jsonl");
    let kept = async {
        while !std::fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n')) {
            tokio::task::yield_now().await;
        }
    };
    within("the dead letter", kept).await;
    let before = std::fs::read(&path).expect("it is there");
    let replay = run(&scene.folder, &["replay", "--dead-letters", "--reporter", "r"]).await;
    assert_eq!((replay.status.code(), &*tally(&replay)), (Some(0), "1 sent, 0 refused, 0 skipped by the filter"));
    assert_eq!(ids(&scene.receiver.wait_for(1).await), [refused]);
    assert_eq!(std::fs::read(&path).expect("it is there"), before);
    // A line that nobody can read is not passed over in silence.
    std::fs::write(scene.folder.join("torn.jsonl"), [&before[..], b"{\"torn\n"].concat()).expect("it can be written");
    let replay = run(&scene.folder, &["replay", "--dead-letters", "torn.jsonl", "--reporter", "r"]).await;
    assert_eq!(replay.status.code(), Some(1));
    assert!(text(&replay.stderr).contains("1 sent, 0 refused, 0 skipped by the filter, 1 lines unreadable"));
    // Refused again: it is said which, and where it was read it stays.
    scene.receiver.behave(Behaviour::Status(422));
    let replay = run(&scene.folder, &["replay", "--dead-letters", "dead-letters.jsonl", "--reporter", "r"]).await;
    assert_eq!(replay.status.code(), Some(1));
    assert!(text(&replay.stderr).contains("0 sent, 1 refused"), "{}", told(&replay));
    drop(proxy);
}
