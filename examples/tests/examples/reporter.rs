//! A reporter of one's own.

use llmproxy_testkit::{Backend, script};
use serde_json::{Value, json};

use crate::process::{Example, Folder};

/// The stack with one backend; records go to `records/usage.jsonl`, in a folder that may not be there.
async fn start(folder: &Folder, backend: &Backend) -> Example {
    let yaml = format!(
        "
backends: [{{url: '{}', models: [m]}}]
health_check: {{enabled: false}}
logging: {{access: {{enabled: false}}}}
usage: {{ledger: {{path: '{}'}}}}
",
        backend.url(),
        folder.path().join("usage.db").display()
    );
    let records = folder.path().join("records/usage.jsonl");
    let (config, records) = (folder.config(&yaml), records.display().to_string());
    Example::start(env!("CARGO_BIN_EXE_reporter"), &[&config, &records]).await
}

async fn backend() -> Backend {
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3});
    Backend::start(script::json(200, json!({"id": "x", "model": "m", "usage": usage}))).await
}

/// Stops the example and reads what it has written.
async fn stop(mut example: Example, folder: &Folder) -> Vec<Value> {
    example.interrupt();
    assert_eq!(example.says("stopped").await, "stopped, 0 records still waiting");
    example.ended().await;
    let text = std::fs::read_to_string(folder.path().join("records/usage.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn it_has_every_record_when_the_process_ends() {
    let (folder, backend) = (Folder::new(), backend().await);
    std::fs::create_dir(folder.path().join("records")).unwrap();
    let example = start(&folder, &backend).await;
    let mut client = example.connect().await;
    for _ in 0..20 {
        assert_eq!(client.post_json("/v1/chat/completions", &json!({"model": "m"})).await.status, 200);
    }
    let records = stop(example, &folder).await;
    let mut ids: Vec<_> = records.iter().map(|record| record["request_id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((records.len(), ids.len()), (20, 20));
    assert!(records.iter().all(|record| record["total_tokens"] == 3), "{records:?}");
}

#[tokio::test]
async fn a_disk_that_refuses_costs_no_request_and_loses_nothing() {
    let (folder, backend) = (Folder::new(), backend().await);
    let example = start(&folder, &backend).await;
    let mut client = example.connect().await;
    // There is no folder: what the reporter can't write waits in the ledger.
    for _ in 0..20 {
        assert_eq!(client.post_json("/v1/chat/completions", &json!({"model": "m"})).await.status, 200);
    }
    assert!(!folder.path().join("records").exists());
    std::fs::create_dir(folder.path().join("records")).unwrap();
    assert_eq!(stop(example, &folder).await.len(), 20);
}
