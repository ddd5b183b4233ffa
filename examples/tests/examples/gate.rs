//! Keys and limits in front of an unrelated handler.

use llmproxy_testkit::{Client, Response};

use crate::process::Example;

async fn get(client: &mut Client, path: &str, key: Option<&str>) -> Response {
    let value = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = value.iter().map(|value| ("authorization", value.as_str())).collect();
    client.send("GET", path, &headers, b"").await;
    client.read_to_end().await
}

#[tokio::test]
async fn only_who_has_a_key_and_is_within_limits_reaches_the_handler() {
    let example = Example::start(env!("CARGO_BIN_EXE_gate"), &[]).await;
    let mut client = example.connect().await;

    for key in [None, Some("sk-guess")] {
        let refused = get(&mut client, "/report", key).await;
        assert_eq!(refused.status, 401);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert_eq!(refused.header("content-type"), Some("application/json"));
        assert_eq!(refused.json()["error"]["type"], "authentication_error", "{}", refused.text());
    }

    for left in ["1", "0"] {
        let report = get(&mut client, "/report", Some("sk-alice")).await;
        assert_eq!((report.status, &*report.text()), (200, "a report for alice\n"));
        assert_eq!(report.header("x-ratelimit-remaining"), Some(left));
    }
    let limited = get(&mut client, "/report", Some("sk-alice")).await;
    assert_eq!(limited.status, 429);
    let seconds: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(limited.json()["error"]["code"], "rate_limit_exceeded");
}

#[tokio::test]
async fn the_address_counts_and_what_stands_outside_of_the_gate_is_open() {
    let example = Example::start(env!("CARGO_BIN_EXE_gate"), &[]).await;
    let mut client = example.connect().await;
    assert_eq!(get(&mut client, "/report", Some("sk-elsewhere")).await.status, 403);
    let open = get(&mut client, "/public", None).await;
    assert_eq!((open.status, &*open.text()), (200, "for everyone\n"));
    assert_eq!(open.header("x-ratelimit-remaining"), None);
    // Router::layer also covers the fallback: a stranger does not learn which paths there are.
    assert_eq!(get(&mut client, "/nothing", None).await.status, 401);
    assert_eq!(get(&mut client, "/nothing", Some("sk-alice")).await.status, 404);
}
