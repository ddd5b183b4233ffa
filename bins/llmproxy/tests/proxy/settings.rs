//! Keys of the configuration, seen from outside: each does what its line in the reference says.

use std::{collections::HashSet, process::Stdio};

use llmproxy_testkit::{Backend, Behaviour, BodyEnd, Client, Receiver, Response, script};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Folder, Proxy, command, get, within};

async fn ask(proxy: &Proxy, headers: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", headers, &json!({"model": "m", "messages": []})).await;
    client.read_to_end().await
}

async fn backend() -> Backend {
    Backend::start(script::json(200, json!({"id": "x", "choices": []}))).await
}

#[tokio::test]
async fn keys_are_found_in_the_headers_that_are_named_and_reach_no_backend() {
    let backend = backend().await;
    let yaml = format!(
        r#"
backends: [{{url: "{}", models: [m], headers: {{X-Extra: "1"}}}}]
health_check: {{enabled: false}}
auth:
  enabled: true
  header_names: [x-my-key, Authorization]
  skip_paths: [/v1/open]
  status_codes:
    not_found: {{http_code: 418, message: "who are you"}}
    disabled: {{allow: true}}
  pipeline:
    - type: static
      static:
        keys:
          - {{key: k-good, name: good, user_id: u1}}
          - {{key: k-off, name: off, status: 1}}
          - {{key: "sha256:{}", name: hashed}}
"#,
        backend.url(),
        // printf %s k-hashed | sha256sum
        "f72dc5244548ed78aaa1bc935a4fd11e4e9f8de6d3da6c29adbcf48f442e604b"
    );
    let proxy = Proxy::start(&yaml).await;
    for headers in [
        [("X-My-Key", "k-good")],
        [("authorization", "BEARER k-good")],
        [("Authorization", "k-good")],
        [("x-my-key", "k-off")],
        [("x-my-key", "k-hashed")],
    ] {
        assert_eq!(ask(&proxy, &headers).await.status, 200, "{headers:?}");
    }
    let refused = ask(&proxy, &[("x-my-key", "k-unknown")]).await;
    assert_eq!((refused.status, &refused.json()["error"]["message"]), (418, &json!("who are you")));
    assert_eq!(ask(&proxy, &[("x-api-key", "k-good")]).await.status, 401, "a header that is not named");
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/open/door", &[("authorization", "Bearer whatever")], &json!({})).await;
    assert_eq!(client.read_to_end().await.status, 200);
    client.send_json("/v1/openness", &[], &json!({})).await;
    assert_eq!(client.read_to_end().await.status, 401, "a segment is matched whole");

    let seen = backend.seen();
    assert_eq!(seen.len(), 6);
    for request in &seen {
        assert_eq!((request.header("authorization"), request.header("x-my-key")), (None, None));
        assert_eq!(request.header("x-extra"), Some("1"));
    }
    assert_eq!((seen[0].header("x-api-key-userid"), seen[0].header("x-api-key-name")), (Some("u1"), Some("good")));
}

#[tokio::test]
async fn addresses_count_as_far_as_proxies_before_us_are_trusted() {
    let backend = backend().await;
    let yaml = |trusted: &str| {
        format!(
            r#"
server: {{trusted_proxies: [{trusted}]}}
backends: [{{url: "{}", models: [m]}}]
health_check: {{enabled: false}}
auth:
  enabled: true
  pipeline: [{{type: static, static: {{keys: [{{key: k, allowed_ips: [10.1.0.0/16], denied_ips: [10.1.2.3]}}]}}}}]
"#,
            backend.url()
        )
    };
    let mut proxy = Proxy::start(&yaml("")).await;
    let from = |ip: &'static str| [("authorization", "Bearer k"), ("x-forwarded-for", ip)];
    assert_eq!(ask(&proxy, &from("10.1.0.1")).await.status, 403, "nobody is trusted");
    proxy.reload(&yaml("127.0.0.0/8"), "reloaded").await;
    assert_eq!(ask(&proxy, &from("10.1.0.1")).await.status, 200);
    assert_eq!(ask(&proxy, &from("10.1.2.3")).await.status, 403, "denied beats allowed");
    assert_eq!(ask(&proxy, &from("10.2.0.1")).await.status, 403);
    assert_eq!(ask(&proxy, &from("10.1.0.1, 8.8.8.8")).await.status, 403, "the last hop counts");
}

#[tokio::test]
async fn an_address_that_the_trusted_proxy_could_not_read_or_that_a_client_hides_is_not_the_proxy_s() {
    let backend = backend().await;
    let mut proxy = Proxy::start(&format!(
        "server: {{trusted_proxies: [127.0.0.1]}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n\
         auth: {{enabled: true, pipeline: [{{type: static, static: {{keys: [{{key: k, allowed_ips: [127.0.0.1]}}]}}}}]}}\n",
        backend.url()
    ))
    .await;
    for (line, client) in [
        ("X-Forwarded-For: \", 6.6.6.6", Some("6.6.6.6")),
        ("X-Forwarded-For: \u{e9}, 6.6.6.6", Some("6.6.6.6")),
        ("X-Forwarded-For: \"\r\nX-Forwarded-For: 6.6.6.6", Some("6.6.6.6")),
        ("Forwarded: for=\", for=6.6.6.6", Some("6.6.6.6")),
        ("Forwarded: for=127.0.0.1, host=\"a;for=127.0.0.1\";for=6.6.6.6", Some("6.6.6.6")),
        ("X-Forwarded-For: 127.0.0.1, unknown", None),
        ("Forwarded: for=127.0.0.1, for=_hidden", None),
    ] {
        let body = r#"{"model":"m","messages":[]}"#;
        let mut client_side = Client::connect(proxy.address()).await;
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n{line}\r\n");
        let length = body.len();
        let sent = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        client_side.send_raw(sent).await.expect("the proxy reads");
        assert_eq!(client_side.read_to_end().await.status, 403, "{line}");
        assert_eq!(proxy.ended().await["client_ip"].as_str(), client, "{line}");
    }
    assert_eq!(ask(&proxy, &[("authorization", "Bearer k")]).await.status, 200, "the proxy's own probe");
}

#[tokio::test]
async fn values_come_from_variables_and_files_and_the_environment_overrides() {
    let backend = backend().await;
    let folder = Folder::new();
    std::fs::write(folder.join("secret"), "k-from-file\n").expect("the folder is ours");
    let yaml = format!(
        "server: {{listen: '127.0.0.1:1'}}\nbackends: [{{url: '${{LLMPROXY_TEST_ABSENT:-{}}}', models: [m]}}]\nauth: {{enabled: yes, pipeline: [{{type: static, static: {{keys: [{{key: '${{file:{}}}'}}]}}}}]}}\nhealth_check: {{enabled: off}}\n",
        backend.url(),
        folder.join("secret").display()
    );
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(ask(&proxy, &[("authorization", "Bearer k-from-file")]).await.status, 200);
    assert_eq!(ask(&proxy, &[]).await.status, 401);
}

#[tokio::test]
async fn logs_go_where_and_in_the_form_that_is_asked_for() {
    let backend = backend().await;
    let folder = Folder::new();
    let (access, log) = (folder.join("logs/access.log"), folder.join("proxy.log"));
    let yaml = format!(
        "server: {{listen: '127.0.0.1:0'}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nlog: {{level: info, format: text, output: '{}'}}\nlogging: {{access: {{enabled: true, format: combined, output: file, file: {{path: '{}'}}}}}}\n",
        backend.url(),
        log.display(),
        access.display()
    );
    std::fs::write(folder.join("config.yaml"), yaml).expect("the folder is ours");
    let mut child = command(&folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let address = within("the log to name the address", async {
        loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if let Some(address) = text.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()) {
                break address.parse().expect("an address");
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.post_json("/v1/chat/completions", &json!({"model": "m"})).await.status, 200);
    drop(client);
    let pid = rustix::process::Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("not zero");
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    let output = within("the proxy to exit", child.wait()).await.expect("a status");
    assert!(output.success());
    let line = std::fs::read_to_string(&access).expect("the access log is there");
    assert!(line.starts_with("127.0.0.1 - - [") && line.contains("\"POST /v1/chat/completions\" 200 "), "{line}");
    assert!(line.contains(&format!("\"{}\" model=m stream=false", backend.url())), "{line}");
}

#[tokio::test]
async fn metrics_move_and_go_and_paths_are_allowed() {
    let backend = backend().await;
    let yaml = |metrics: &str| {
        format!(
            "backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nmetrics: {metrics}\nrouting: {{allow_paths: [/pooling]}}\n",
            backend.url()
        )
    };
    let mut proxy = Proxy::start(&yaml("{path: /internal/metrics}")).await;
    assert_eq!(get(proxy.address(), "/internal/metrics").await.0, 200);
    assert_eq!(get(proxy.address(), "/metrics").await.0, 404);
    assert_eq!(get(proxy.address(), "/pooling/x").await.0, 200);
    assert_eq!(get(proxy.address(), "/poolings").await.0, 404);
    proxy.reload(&yaml("{enabled: false}"), "reloaded").await;
    assert_eq!(get(proxy.address(), "/internal/metrics").await.0, 404);
}

#[tokio::test]
async fn webhooks_get_the_configured_headers_and_the_request_where_it_is_asked_for() {
    let backend = backend().await;
    let receiver = Receiver::start().await;
    let yaml = |extra: &str| {
        format!(
            "backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nusage: {{enabled: true, reporters: [{{name: r, type: webhook, webhook: {{url: '{}/hook', headers: {{X-Token: secret}}{extra}}}}}]}}\n",
            backend.url(),
            receiver.url()
        )
    };
    let mut proxy = Proxy::start(&yaml("")).await;
    assert_eq!(ask(&proxy, &[]).await.status, 200);
    let record = receiver.wait_for(1).await.remove(0);
    assert_eq!((&record["request_body"], &record["api_key"]), (&Value::Null, &Value::Null));
    proxy.reload(&yaml(", include_request_body: true"), "reloaded").await;
    assert_eq!(ask(&proxy, &[]).await.status, 200);
    let records = receiver.wait_for(2).await;
    let with = records.iter().find(|record| record["request_body"].is_object()).expect("it was asked for");
    assert_eq!(with["request_body"], json!({"model": "m", "messages": []}));
    let seen = &receiver.backend().seen()[0];
    assert_eq!(
        (seen.path.as_str(), seen.header("x-token"), seen.header("content-type")),
        ("/usage/hook", Some("secret"), Some("application/json"))
    );
}

#[tokio::test]
async fn webhooks_get_batches_where_they_are_asked_for_and_the_rest_at_a_stop() {
    let backend = backend().await;
    let receiver = Receiver::start().await;
    receiver.behave_for(1, Behaviour::Status(503));
    let yaml = format!(
        "backends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\nusage: {{enabled: true, reporters: [{{webhook: {{url: '{}', batch_size: 3, batch_interval: 1h}}}}]}}\n",
        backend.url(),
        receiver.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let id = |answer: Response| answer.header("x-request-id").expect("every answer has one").to_owned();
    let of = |batch: &Value| {
        let records = batch.as_array().expect("a batch is an array").iter();
        records.map(|record| record["request_id"].as_str().expect("it has one").to_owned()).collect::<HashSet<_>>()
    };
    let mut ids = HashSet::new();
    for _ in 0..3 {
        ids.insert(id(ask(&proxy, &[]).await));
    }
    // The first try failed.
    let batches = receiver.wait_for(1).await;
    assert_eq!((batches.len(), of(&batches[0])), (1, ids));
    assert_eq!(receiver.backend().seen()[0].json(), batches[0]);
    let counted = async { while proxy.metrics().await.sum("llmproxy_webhook_success_total", &[]) < 3.0 {} };
    within("three records to be counted", counted).await;
    let last = id(ask(&proxy, &[]).await);
    for _ in 0..4 {
        proxy.ended().await;
    }
    proxy.signal(Signal::TERM);
    assert!(proxy.exit().await.success());
    assert_eq!(of(&receiver.wait_for(2).await[1]), HashSet::from([last]));
}

#[tokio::test]
async fn heartbeats_keep_a_silent_stream_open() {
    let (backend, mut requests) = Backend::stepped().await;
    let yaml = format!(
        "server: {{heartbeat: 100ms}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n",
        backend.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "stream": true, "messages": []})).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    client.expect_piece(":\n\n").await;
    client.expect_piece(":\n\n").await;
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    wire.chunk(event).await.expect("the proxy reads");
    wire.chunk("data: [DONE]\n\n").await.expect("the proxy reads");
    wire.finish().await.expect("the proxy reads");
    assert_eq!(client.read_to_end().await.text().replace(":\n\n", ""), format!("{event}data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_stream_that_is_done_and_stays_open_gets_no_heartbeat_and_a_clean_end() {
    let (backend, mut requests) = Backend::stepped().await;
    let yaml = format!(
        "server: {{heartbeat: 100ms}}\nbackends: [{{url: '{}', models: [m]}}]\nhealth_check: {{enabled: false}}\n\
         routing: {{gap_timeout: 1s}}\n",
        backend.url()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send_json("/v1/chat/completions", &[], &json!({"model": "m", "stream": true, "messages": []})).await;
    let (_, mut wire) = requests.next().await;
    wire.head(200, &[("content-type", "text/event-stream")]).await.expect("the proxy reads");
    let whole = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    wire.chunk(whole).await.expect("the proxy reads");
    let answer = client.read_to_end().await;
    assert_eq!((answer.text().as_str(), answer.end), (whole, BodyEnd::Complete));
    assert_eq!(proxy.ended().await["end"], "complete");
    // It is let go all the same.
    wire.client_gone().await;
    assert_eq!(proxy.metrics().await.sum("llmproxy_upstream_timeouts_total", &[]), 0.0);
}
