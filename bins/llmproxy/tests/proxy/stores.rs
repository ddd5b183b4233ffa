//! Usage records in SQL databases, from a client's request to the row.

use std::path::Path;

use llmproxy_testkit::{Backend, Client, script};
use llmproxy_usage::{BuiltinStore, Group, Query, Total};
use rustix::process::Signal;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use crate::harness::{Folder, Proxy, command, within};

const USAGE: &str = "usage:
  enabled: true
  reporters:
    - {type: builtin, builtin: {retention_days: 30}}
    - {type: database, database: {storage: local, table: spent, include_request_body: true}}
storage:
  databases:
    - {name: local, driver: sqlite, path: deep/usage.db}
    - {name: unused, driver: oracle}
";

async fn ask(proxy: &mut Proxy, key: Option<&str>) -> u16 {
    let mut client = Client::connect(proxy.address()).await;
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    client.send_json("/v1/chat/completions", &headers, &json!({"model": "m", "messages": []})).await;
    let status = client.read_to_end().await.status;
    proxy.ended().await;
    status
}

async fn totals(path: &Path, by: Group) -> Vec<Total> {
    let store = BuiltinStore::open_to_read(path).await.expect("the store is there");
    let totals = store.totals(&Query { by, ..Query::default() }).await.expect("it can be read");
    store.close().await;
    totals
}

#[tokio::test]
async fn every_exchange_is_a_row_in_each_store_and_keys_share_the_file() {
    let answer = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}});
    let backend = Backend::start(script::json(200, answer)).await;
    let yaml = format!("backends: [{{url: '{}'}}]\nadmin: {{db_path: data/keys.db}}\n{USAGE}", backend.url());
    let mut proxy = Proxy::start(&yaml).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut proxy, None).await, 200);
    }
    // The usage has made the file by now, and then keys come.
    let path = proxy.folder().join("data/keys.db");
    within("the first records to be written", async {
        loop {
            let written = match BuiltinStore::open_to_read(&path).await {
                Ok(store) => store.totals(&Query::default()).await.is_ok_and(|totals| !totals.is_empty()),
                Err(_) => false,
            };
            if written {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let output = command(proxy.folder())
        .args(["keys", "create", "--name", "alice", "--db", "data/keys.db"])
        .output()
        .await
        .expect("the binary starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told} {}", String::from_utf8_lossy(&output.stderr));
    let key = told.split_whitespace().find(|word| word.starts_with("sk-")).expect("a key");
    proxy.reload(&format!("{yaml}auth: {{enabled: true}}\n"), "reloaded").await;
    assert_eq!(ask(&mut proxy, None).await, 401);
    for _ in 0..2 {
        assert_eq!(ask(&mut proxy, Some(key)).await, 200);
    }

    proxy.signal(Signal::TERM);
    proxy.logged("stopped").await;
    let by_key = totals(&path, Group::Key).await;
    let by_key: Vec<_> = by_key.iter().map(|total| (&*total.group, total.requests, total.total_tokens())).collect();
    assert_eq!(by_key, [("", 3, 21), ("alice", 2, 14)]);
    let mut connection =
        SqliteConnection::connect(&format!("sqlite://{}", proxy.folder().join("deep/usage.db").display()))
            .await
            .expect("a database");
    let sql = "SELECT COUNT(DISTINCT request_id), SUM(total_tokens), SUM(key_name = 'alice'), COUNT(*),
        SUM(json_extract(request_body, '$.model') = 'm') FROM spent";
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await.expect("a row");
    let numbers: Vec<i64> = (0..5).map(|index| row.get(index)).collect();
    assert_eq!(numbers, [5, 35, 2, 5, 5]);
    assert!(proxy.exit().await.success());
}

#[tokio::test]
async fn a_reporter_without_its_database_is_a_mistake() {
    let folder = Folder::new();
    let yaml = "backends: [{url: 'http://127.0.0.1:9'}]
usage:
  enabled: true
  reporters:
    - {type: database, database: {storage: nowhere}}
    - {name: b, type: database, database: {storage: main, table: 'a b'}}
    - {name: c, type: database, database: {storage: main}}
storage: {databases: [{name: main, driver: postgres, dsn: 'host=h port=geheim'}]}
";
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    let output = command(&folder).arg("check").output().await.expect("the binary starts");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{told}");
    for part in [
        "usage.reporters[0].database.storage: `nowhere` is not among storage.databases, which has main",
        "usage.reporters[1].database.table: `a b` is not a table's name",
        "storage.databases[0].dsn: has a port that is no number",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
    assert!(!told.contains("geheim"), "{told}");
}
