//! What an operator may write under `usage`, right and wrong.

use super::*;

fn config(json: serde_json::Value) -> UsageConfig {
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_url_is_all_that_a_reporter_needs() {
    let config = config(serde_json::json!({
        "enabled": true, "reporters": [{"name": "billing", "webhook": {"url": "https://billing.example/usage"}}],
    }));
    assert_eq!(config.validate(), []);
    let webhook = &config.reporters[0].webhook;
    assert_eq!((&*webhook.method, webhook.timeout, webhook.retry), ("POST", Duration::from_secs(3), 3));
    assert!(!webhook.include_request_body);
    assert_eq!((webhook.batch_size, webhook.batch_interval), (1, Duration::from_secs(1)));
    assert_eq!((config.queue_size, config.admit_timeout), (10_000, Duration::from_secs(1)));
}

#[test]
fn every_mistake_is_told_with_its_key() {
    let config = config(serde_json::json!({"enabled": true, "queue_size": 0, "reporters": [
        {"name": "a", "webhook": {"url": "ftp://x", "method": "", "timeout": "0s", "headers": {"b c": "d", "e": "f\n"}}},
        {"name": "b", "type": "carrier pigeon"},
        {"name": "a", "webhook": {"url": "http://x/?token=1"}},
    ]}));
    let keys: Vec<_> = config.validate().into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "queue_size",
            "reporters[0].webhook.url",
            "reporters[0].webhook.method",
            "reporters[0].webhook.timeout",
            "reporters[0].webhook.headers.b c",
            "reporters[0].webhook.headers.e",
            "reporters[1].type",
            "reporters[2].name",
        ]
    );
}

#[test]
fn batches_have_bounds() {
    let check = |webhook: serde_json::Value, expected: &[&str]| {
        let mut webhook = webhook;
        webhook["url"] = "http://x".into();
        let reporters = serde_json::json!([{ "webhook": webhook }]);
        let wrong = config(serde_json::json!({"enabled": true, "queue_size": 500, "reporters": reporters})).validate();
        let keys: Vec<_> = wrong.iter().map(|(key, _)| key.strip_prefix("reporters[0].webhook.").unwrap()).collect();
        assert_eq!(keys, expected, "{webhook}");
    };
    check(serde_json::json!({"batch_size": 1000, "batch_interval": "1h"}), &[]);
    check(serde_json::json!({"batch_size": 0, "batch_interval": "0s"}), &["batch_size", "batch_interval"]);
    check(serde_json::json!({"batch_size": 1001, "batch_interval": "61m"}), &["batch_size", "batch_interval"]);
}

#[test]
fn what_is_switched_off_may_be_wrong() {
    let reporters = serde_json::json!([{"type": "carrier pigeon", "enabled": false}]);
    assert_eq!(config(serde_json::json!({"enabled": true, "reporters": reporters})).validate(), []);
    assert_eq!(config(serde_json::json!({"queue_size": 0, "reporters": [{}]})).validate(), []);
}

#[test]
fn secrets_are_not_printed() {
    let headers = [("Authorization".to_owned(), "Bearer secret".to_owned())].into();
    let config = WebhookConfig {
        url: "http://secret@x".into(),
        headers,
        secret: Some("whsec_c2VjcmV0".into()),
        ..WebhookConfig::default()
    };
    let text = format!("{config:?}");
    assert!(text.contains("Authorization") && !text.contains("secret") && !text.contains("whsec"), "{text}");
}

/// The mistakes in these reporters, without `reporters`.
fn mistakes(reporters: serde_json::Value) -> Vec<(String, String)> {
    let wrong = config(serde_json::json!({"enabled": true, "reporters": reporters})).validate();
    wrong.into_iter().map(|(key, what)| (key.strip_prefix("reporters").unwrap().to_owned(), what)).collect()
}

#[test]
fn names_that_were_not_given_count_too() {
    let check = |reporters: serde_json::Value, expected: &[&str]| {
        let wrong = mistakes(reporters.clone());
        assert_eq!(wrong.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), expected, "{reporters}");
        for (_, what) in wrong {
            assert!(what.contains("give it one"), "{what}");
        }
    };
    let webhook = |url: &str| serde_json::json!({"webhook": {"url": url}});
    let file = |path: &str| serde_json::json!({"type": "file", "file": {"path": path}});
    let stdout = serde_json::json!({"type": "stdout"});
    check(serde_json::json!([webhook("http://a/x"), webhook("http://b/x"), file("a"), stdout]), &[]);
    check(serde_json::json!([webhook("http://a/x"), webhook("http://a/y")]), &["[1].name"]);
    check(serde_json::json!([file("a"), file("b")]), &["[1].name"]);
    check(serde_json::json!([stdout, stdout]), &["[1].name"]);
    check(serde_json::json!([stdout, {"type": "file", "name": "stdout", "file": {"path": "a"}}]), &["[1].name"]);
    check(serde_json::json!([stdout, {"type": "stdout", "enabled": false}]), &[]);
    let same = serde_json::json!([file("a"), {"type": "file", "name": "b", "file": {"path": "a"}}]);
    assert_eq!(mistakes(same)[0].0, "[1].file.path");
}

#[test]
fn what_a_reporter_is_given_and_sends_is_checked() {
    let check = |reporter: serde_json::Value, expected: &[&str]| {
        let mut reporter = reporter;
        if reporter.get("type").is_none() {
            reporter["webhook"]["url"] = "http://a".into();
        }
        let wrong = mistakes(serde_json::json!([reporter]));
        assert_eq!(wrong.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), expected, "{reporter} {wrong:?}");
    };
    check(
        serde_json::json!({"filter": {"models": ["a", ""], "users": [""]}}),
        &["[0].filter.models[1]", "[0].filter.users[0]"],
    );
    check(serde_json::json!({"fields": ["model", "tokens_total"]}), &["[0].fields[1]"]);
    check(serde_json::json!({"fields": ["request_body"]}), &["[0].fields"]);
    check(serde_json::json!({"type": "stdout", "fields": ["request_body"]}), &["[0].fields"]);
    check(serde_json::json!({"fields": ["model"], "webhook": {"include_request_body": true}}), &["[0].fields"]);
    check(serde_json::json!({"fields": ["request_body"], "webhook": {"include_request_body": true}}), &[]);
    check(serde_json::json!({"type": "file"}), &["[0].file.path"]);
    check(
        serde_json::json!({"webhook": {"max_age": "0s", "max_in_flight": 65, "secret": "hunter2"}}),
        &["[0].webhook.max_age", "[0].webhook.max_in_flight", "[0].webhook.secret"],
    );
    let secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let headers = serde_json::json!({"Webhook-Id": "1"});
    check(serde_json::json!({"webhook": {"headers": headers}}), &[]);
    check(serde_json::json!({"webhook": {"headers": headers, "secret": secret}}), &["[0].webhook.headers.Webhook-Id"]);
}

#[test]
fn a_file_that_something_else_writes_is_told_however_it_is_spelled() {
    let here = std::env::current_dir().unwrap().join("data/usage.db-wal");
    let file = |name: &str, path: &str| serde_json::json!({"name": name, "type": "file", "file": {"path": path}});
    let webhook = serde_json::json!(
        {"name": "w", "webhook": {"url": "http://x/", "dead_letter": "data/usage.db-shm"}}
    );
    let json = serde_json::json!({"enabled": true, "reporters": [
        file("a", "data/usage.jsonl"),
        file("b", "./data//./x/../usage.jsonl"),
        file("c", "data/../data/usage.db"),
        file("d", here.to_str().unwrap()),
        file("e", "data/usage.db.lock"),
        file("f", "data/usage.db.jsonl"),
        webhook,
    ]});
    let wrong = config(json.clone()).validate();
    let keys: Vec<_> = wrong.iter().map(|(key, _)| &**key).collect();
    assert_eq!(
        keys,
        [
            "reporters[1].file.path",
            "reporters[2].file.path",
            "reporters[3].file.path",
            "reporters[4].file.path",
            "reporters[6].webhook.dead_letter"
        ],
        "{wrong:?}"
    );
    assert!(wrong[0].1.contains("another reporter") && wrong[1].1.contains("usage.ledger.path"), "{wrong:?}");

    let storage = StorageConfig::default();
    let config = config(json);
    let check = |path: &str| config.validate_references(Stores { storage: &storage, admin_db: path.as_ref() });
    assert_eq!(check("./data/keys.db"), []);
    assert_eq!(check("data/usage.db")[0].0, "usage.ledger.path");
    let off = UsageConfig { enabled: false, ..config.clone() };
    assert_eq!(off.validate_references(Stores { storage: &storage, admin_db: "data/usage.db".as_ref() }), []);
}
