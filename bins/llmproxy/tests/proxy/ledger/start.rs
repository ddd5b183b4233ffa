//! Starts that must not be.

use std::process::Stdio;

use super::{backend, books::Books, config, reporter};
use crate::harness::{Folder, Proxy, command, within};
use serde_json::json;

#[tokio::test]
async fn a_second_proxy_does_not_start_on_a_ledger_in_use_and_says_what_to_do() {
    let (backend, folder, books) = (backend().await, Folder::new(), Books::open());
    let yaml = config(&backend, &folder, &[reporter("r", &books.url(), &json!({}))]).to_string();
    let first = Proxy::start(&yaml).await;
    let second = Folder::new();
    std::fs::write(second.join("config.yaml"), &yaml).expect("the folder is ours");
    let mut command = command(&second);
    command.env("LLMPROXY_SERVER__LISTEN", "127.0.0.1:0").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary starts");
    let output = within("the second to end", child.wait_with_output()).await.expect("output");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["in use by another llmproxy", "usage.ledger.path", "usage.db"] {
        assert!(told.contains(part), "{told}");
    }
    // When the first has ended, however, it starts.
    first.kill().await;
    let _third = Proxy::start(&yaml).await;
}
