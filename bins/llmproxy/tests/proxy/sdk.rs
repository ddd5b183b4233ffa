//! OpenAI's own SDK in front of the proxy. `cargo xtask test` installs it and says where.

use std::{collections::BTreeMap, path::Path, process::Stdio};

use llmproxy_testkit::{ModelServer, Receiver};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{Proxy, within};

#[tokio::test]
#[ignore = "needs OpenAI's SDK; `cargo xtask test` installs it and runs this"]
async fn the_python_sdk_works_as_documented_and_its_records_are_true() {
    let python = std::env::var("LLMPROXY_TEST_PYTHON").expect("run by `cargo xtask test`");
    let chat = ModelServer::builder().model("qwen-coder").words_per_second(500.0).start().await.expect("a free port");
    let embed =
        ModelServer::builder().model("embedder").words_per_second(f64::INFINITY).start().await.expect("a free port");
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(&format!(
        "backends: [{{url: '{}'}}, {{url: '{}'}}]\n\
         auth: {{enabled: true, pipeline: [{{name: s, type: static, static: {{keys: [{{key: sk-app, name: app}}]}}}}]}}\n\
         rate_limit: {{enabled: true, per_key: {{max_concurrent: 2}}}}\n\
         usage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}'}}}}]}}\n",
        chat.url(),
        embed.url(),
        receiver.url(),
    ))
    .await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/interop/openai_sdk.py");
    let output = Command::new(python)
        .arg(script)
        .args([&*format!("http://{}/v1", proxy.address()), "sk-app", "qwen-coder", "embedder", "2"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("the script", output).await.expect("python starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let steps: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let failed: Vec<&Value> = steps.iter().filter(|step| step["ok"] != true).collect();
    assert!(failed.is_empty() && output.status.success(), "{failed:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(steps.len() >= 15, "{steps:#?}");

    // The last to be recorded is the one that was left.
    let left = steps.last().expect("there are some")["request_id"].as_str().expect("it has an id");
    let mut records = receiver.wait_for(1).await;
    while !records.iter().any(|record| record["request_id"] == left) {
        records = receiver.wait_for(records.len() + 1).await;
    }
    let count = records.len();
    let records: BTreeMap<&str, &Value> =
        records.iter().filter_map(|record| Some((record["request_id"].as_str()?, record))).collect();
    assert_eq!(records.len(), count, "each request has one record");
    let mut compared = 0;
    for step in steps.iter().filter(|step| step["request_id"].is_string()) {
        let record = records[step["request_id"].as_str().expect("a string")];
        assert_eq!(record["end"], if step["left"] == true { "client_gone" } else { "complete" }, "{step} {record}");
        if step["usage"].is_array() {
            assert_eq!(
                [&step["usage"][0], &step["usage"][1]],
                [&record["prompt_tokens"], &record["completion_tokens"]]
            );
            assert_eq!(record["usage_source"], "backend", "{record}");
            compared += 1;
        }
    }
    assert!(compared >= 5, "{steps:#?}");
    assert_eq!(chat.when(|counts| counts.abandoned >= 3).await.abandoned, 3, "two that were held, and the last");
}
