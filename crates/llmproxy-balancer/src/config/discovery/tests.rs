//! What an operator may write about sources, and what not.

use super::*;

fn keys(text: &str) -> Vec<String> {
    let config: DiscoveryConfig = serde_json::from_str(text).unwrap();
    validate_discovery(&config).into_iter().map(|(key, _)| key).collect()
}

#[test]
fn one_of_each_is_valid() {
    let text = r#"{"enabled": true, "interval": "5s", "mode": "first", "sources": [
        {"type": "static", "static": {"backends": [{"url": "http://a"}]}},
        {"type": "file", "file": {"path": "b.yaml"}},
        {"type": "dns", "dns": {"name": "vllm.internal", "port": 8000}},
        {"type": "dns", "dns": {"name": "_http._tcp.vllm.internal", "type": "srv", "server": "127.0.0.1:8600"}},
        {"type": "http", "http": {"url": "https://registry/backends"}}]}"#;
    assert_eq!(keys(text), Vec::<String>::new());
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = r#"{"enabled": true, "interval": "0", "sources": [
        {"name": "a"},
        {"name": "a", "type": "file"},
        {"type": "static", "static": {"backends": [{"url": "vllm:8000"}]}},
        {"type": "dns", "dns": {"name": "vllm:8000", "server": "ns.internal"}},
        {"type": "dns", "dns": {"name": "x", "type": "srv", "port": 1}},
        {"type": "http", "http": {"url": "http://me:pw@a", "method": "GE T", "timeout": "0", "headers": {"a b": "c"}}},
        {"type": "http", "http": {"url": "registry"}},
        {"type": "http", "enabled": false}]}"#;
    let expected = [
        "interval",
        "sources[0].type",
        "sources[1].name",
        "sources[1].file.path",
        "sources[2].static.backends[0].url",
        "sources[3].dns.name",
        "sources[3].dns.port",
        "sources[3].dns.server",
        "sources[4].dns.port",
        "sources[5].http.url",
        "sources[5].http.method",
        "sources[5].http.timeout",
        "sources[5].http.headers.a b",
        "sources[6].http.url",
    ];
    assert_eq!(keys(text), expected);
}

#[test]
fn what_is_off_is_not_looked_at_and_what_is_on_needs_a_source() {
    assert_eq!(keys(r#"{"sources": [{"type": "http"}]}"#), Vec::<String>::new());
    assert_eq!(keys(r#"{"enabled": true, "sources": [{"type": "http", "enabled": false}]}"#), ["sources"]);
}

#[test]
fn headers_of_a_source_do_not_show() {
    let http = HttpSourceConfig { headers: [("a".into(), "secret".into())].into(), ..HttpSourceConfig::default() };
    assert!(!format!("{http:?}").contains("secret"));
}

#[test]
fn what_is_said_of_every_backend_must_be_so_that_one_may_have_it() {
    let with = |kind: &str, backend: &str| {
        keys(&format!(
            r#"{{"enabled": true, "sources": [{{"type": "{kind}", "file": {{"path": "a"}},
                "static": {{"backends": [{{"url": "http://a"}}]}}, "backend": {backend}}}]}}"#
        ))
    };
    assert_eq!(with("file", r#"{"models": ["m"], "weight": 0, "ca_file": "ca.pem"}"#), [""; 0]);
    assert_eq!(
        with("file", r#"{"url": "http://a", "name": "a"}"#),
        ["sources[0].backend.url", "sources[0].backend.name"]
    );
    assert_eq!(with("file", r#"{"max_concurrent": 0}"#), ["sources[0].backend.max_concurrent"]);
    assert_eq!(with("file", r#"{"weight": "heavy"}"#), ["sources[0].backend"]);
    assert_eq!(with("static", r#"{"weight": 2}"#), ["sources[0].backend"]);
}
