//! Backends looked at and changed over HTTP.

use llmproxy_testkit::{Backend, Client, DONE, Response, script};
use serde_json::{Value, json};

use crate::harness::Proxy;

const TOKEN: (&str, &str) = ("X-Admin-Token", "s3cret-of-admins");

fn ask() -> Value {
    json!({"model": "m", "stream": true, "messages": []})
}

async fn get(client: &mut Client, path: &str, headers: &[(&str, &str)]) -> Response {
    client.send("GET", path, headers, b"").await;
    client.read_to_end().await
}

async fn shown(client: &mut Client) -> Value {
    let answer = get(client, "/admin/backends", &[TOKEN]).await;
    assert_eq!(answer.status, 200);
    answer.json()["data"]["backends"].clone()
}

async fn post(client: &mut Client, path: &str, body: &Value) -> (u16, Value) {
    client.send_json(path, &[TOKEN], body).await;
    let answer = client.read_to_end().await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_drained_backend_finishes_its_streams_and_gets_no_more() {
    let (drained, mut requests) = Backend::stepped().await;
    let other = Backend::start(script::json(200, json!({"from": "other"}))).await;
    let yaml = format!(
        "backends: [{{name: a, url: '{}', models: [m]}}, {{name: b, url: '{}', models: [m], weight: 0}}]\nadmin: {{enabled: true, token: {}}}\nhealth_check: {{enabled: false}}\n",
        drained.url(),
        other.url(),
        TOKEN.1,
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut admin = Client::connect(proxy.address()).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    assert_eq!(client.head().await.status, 200);
    let backends = shown(&mut admin).await;
    assert_eq!((&backends[0]["name"], &backends[0]["in_flight"]), (&json!("a"), &json!(1)));

    assert_eq!(post(&mut admin, "/admin/backends/weight", &json!({"name": "b", "weight": 1})).await.0, 200);
    assert_eq!(post(&mut admin, "/admin/backends/drain", &json!({"name": "a"})).await.0, 200);
    assert_eq!(shown(&mut admin).await[0]["state"], "draining");
    for _ in 0..4 {
        let answer = Client::connect(proxy.address()).await.post_json("/v1/chat/completions", &ask()).await;
        assert_eq!(answer.json()["from"], "other");
    }
    // A reload is not its end.
    proxy.reload(&yaml, "reloaded").await;
    assert_eq!(shown(&mut admin).await[0]["state"], "draining");
    wire.chunk(DONE).await.expect("the stream goes on");
    wire.finish().await.expect("the stream goes on");
    assert!(client.read_to_end().await.text().ends_with(DONE));

    assert_eq!(post(&mut admin, "/admin/backends/undrain", &json!({"name": "a"})).await.0, 200);
    assert_eq!(post(&mut admin, "/admin/backends/weight", &json!({"name": "b", "weight": 0})).await.0, 200);
    client.send_json("/v1/chat/completions", &[], &ask()).await;
    requests.next().await;
}

#[tokio::test]
async fn administration_is_for_those_with_the_token() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let yaml = format!("backends: [{{url: '{}'}}]\nadmin: {{enabled: true, token: {}}}\n", backend.url(), TOKEN.1);
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    assert_eq!(get(&mut client, "/admin/backends", &[]).await.status, 401);
    assert_eq!(get(&mut client, "/admin/backends", &[("X-Admin-Token", "guess")]).await.status, 403);
    assert_eq!(get(&mut client, "/admin/backends", &[("Authorization", "Bearer s3cret-of-admins")]).await.status, 200);
    // Without it there is nothing.
    proxy.reload(&yaml.replace("enabled: true", "enabled: false"), "reloaded").await;
    assert_eq!(get(&mut client, "/admin/backends", &[TOKEN]).await.status, 404);
    proxy.reload(&yaml.replace(TOKEN.1, "''"), "reloaded").await;
    assert_eq!(get(&mut client, "/admin/backends", &[("X-Admin-Token", "")]).await.status, 404);
}

#[tokio::test]
async fn administration_may_have_a_listener_of_its_own() {
    let backend = Backend::start(script::json(200, json!({}))).await;
    let yaml = format!(
        "backends: [{{url: '{}'}}]\nadmin: {{enabled: true, token: {}, listen: '127.0.0.1:0'}}\n",
        backend.url(),
        TOKEN.1
    );
    let mut proxy = Proxy::start(&yaml).await;
    let line = proxy.logged("listening for administrators").await;
    let address = line["address"].as_str().expect("an address").parse().expect("an address");
    let mut beside = Client::connect(proxy.address()).await;
    assert_eq!(get(&mut beside, "/admin/backends", &[TOKEN]).await.status, 404);
    let mut admin = Client::connect(address).await;
    assert_eq!(shown(&mut admin).await.as_array().map(Vec::len), Some(1));
    assert_eq!(get(&mut admin, "/v1/models", &[TOKEN]).await.status, 404, "there is nothing else");
    // It follows a reload.
    proxy.reload(&yaml.replace(TOKEN.1, "another"), "reloaded").await;
    assert_eq!(get(&mut admin, "/admin/backends", &[TOKEN]).await.status, 403);
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.exit().await.success());
}
