//! What an operator may write under `usage`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use serde::Deserialize;

use crate::{Durability, LedgerConfig, webhook::Webhook};

const DEFAULT_QUEUE_SIZE: usize = 10_000;
const DEFAULT_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const MAX_QUEUE_SIZE: usize = 10_000_000;
const DEFAULT_ADMIT_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const DEFAULT_RETRY: u32 = 3;
pub(crate) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const DEFAULT_BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// By then a request's own cost is next to nothing for each record, the body is about as long as receivers take (1 MB is
/// nginx's default), and putting one together keeps a thread for a fraction of a millisecond at a time.
pub(crate) const MAX_BATCH_SIZE: usize = 1000;
/// Longer than that nobody waits for a batch.
pub(crate) const MAX_BATCH_INTERVAL: Duration = Duration::from_secs(3600);
const WEBHOOK: &str = "webhook";

/// Records of what each request came to, and where they go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct UsageConfig {
    /// Whether they are kept and sent; without it tokens are counted and limited all the same.
    pub enabled: bool,
    /// Where to.
    pub reporters: Vec<ReporterConfig>,
    /// Records that may be in memory, those of requests that are still running included; 10000. With `include_request_body`
    /// each of them holds its request's body.
    pub queue_size: usize,
    /// How long a request waits for a place among them before it is refused; 1s. In strict durability that is also how long
    /// its beginning may take to be written down.
    #[serde(with = "llmproxy_core::duration")]
    pub admit_timeout: Duration,
    /// What records are safe against, and from when on.
    pub durability: Durability,
    /// In strict durability, how long the end of an answer waits for its record to be on the disk before the answer is broken
    /// off; 5s.
    #[serde(with = "llmproxy_core::duration")]
    pub commit_timeout: Duration,
    /// The file that they go into first.
    pub ledger: LedgerConfig,
}

/// One place where records go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ReporterConfig {
    /// Its name in logs and metrics; the URL's host where it has none.
    pub name: String,
    /// How records are sent: `webhook`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether they are; true.
    pub enabled: bool,
    /// HTTP requests with JSON.
    pub webhook: WebhookConfig,
}

/// HTTP requests with JSON: one for each record, an object, or one for each batch of them, an array of the same objects.
/// The key that the request came with is never in it; its name and fingerprint always are, where they are known.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct WebhookConfig {
    /// Where to; `http` or `https`.
    pub url: String,
    /// The request's method; POST.
    pub method: String,
    /// How long an answer may take; 3s.
    #[serde(with = "llmproxy_core::duration")]
    pub timeout: Duration,
    /// How often a record is sent once more after a failure that may pass; 3.
    pub retry: u32,
    /// Headers of the request, such as Authorization.
    pub headers: BTreeMap<String, String>,
    /// Whether the record holds the whole request, prompts included; false. A batch then holds as many of them.
    pub include_request_body: bool,
    /// Records in a request at most; 1, which sends each as an object of its own. With more it is an array, even of one.
    /// From 1 to 1000.
    pub batch_size: usize,
    /// How long a record waits for others to fill its batch; 1s, an hour at most.
    #[serde(with = "llmproxy_core::duration")]
    pub batch_interval: Duration,
}

// === impl UsageConfig ===

impl UsageConfig {
    /// Everything that is wrong: the key's path below `usage`, and what is wrong with it.
    ///
    /// ```
    /// use llmproxy_usage::{ReporterConfig, UsageConfig};
    ///
    /// let config = UsageConfig { enabled: true, reporters: vec![ReporterConfig::default()], ..Default::default() };
    /// assert_eq!(config.validate()[0].0, "reporters[0].webhook.url");
    /// ```
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if !self.enabled {
            return wrong;
        }
        if !(1..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            wrong.push(("queue_size".to_owned(), format!("must be from 1 to {MAX_QUEUE_SIZE}")));
        }
        if self.commit_timeout.is_zero() {
            wrong.push(("commit_timeout".to_owned(), "must be longer than 0s".to_owned()));
        }
        wrong.extend(self.ledger.validate().into_iter().map(|(key, what)| (format!("ledger.{key}"), what)));
        let mut names = BTreeSet::new();
        for (index, reporter) in self.reporters.iter().enumerate().filter(|(_, reporter)| reporter.enabled) {
            let at = |key: &str| format!("reporters[{index}].{key}");
            if reporter.kind != WEBHOOK {
                wrong.push((at("type"), format!("`{}` is not a kind of reporter; use webhook", reporter.kind)));
                continue;
            }
            if !reporter.name.is_empty() && !names.insert(&reporter.name) {
                wrong.push((at("name"), format!("`{}` is the name of another reporter too", reporter.name)));
            }
            if let Err(mistakes) = Webhook::compile(&reporter.webhook) {
                wrong.extend(mistakes.into_iter().map(|(key, what)| (at(&format!("webhook.{key}")), what)));
            }
        }
        wrong
    }

    /// The reporters that are in use.
    pub(crate) fn active(&self) -> impl Iterator<Item = &ReporterConfig> {
        let all = if self.enabled { &*self.reporters } else { &[] };
        all.iter().filter(|reporter| reporter.enabled && reporter.kind == WEBHOOK)
    }
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            reporters: Vec::new(),
            queue_size: DEFAULT_QUEUE_SIZE,
            admit_timeout: DEFAULT_ADMIT_TIMEOUT,
            durability: Durability::default(),
            commit_timeout: DEFAULT_COMMIT_TIMEOUT,
            ledger: LedgerConfig::default(),
        }
    }
}

// === impl ReporterConfig ===

impl Default for ReporterConfig {
    fn default() -> Self {
        Self { name: String::new(), kind: WEBHOOK.to_owned(), enabled: true, webhook: WebhookConfig::default() }
    }
}

// === impl WebhookConfig ===

impl Default for WebhookConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            method: "POST".to_owned(),
            timeout: DEFAULT_TIMEOUT,
            retry: DEFAULT_RETRY,
            headers: BTreeMap::new(),
            include_request_body: false,
            batch_size: 1,
            batch_interval: DEFAULT_BATCH_INTERVAL,
        }
    }
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers hold credentials, and so may the URL.
        f.debug_struct("WebhookConfig")
            .field("method", &self.method)
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .field("headers", &self.headers.keys())
            .field("include_request_body", &self.include_request_body)
            .field("batch_size", &self.batch_size)
            .field("batch_interval", &self.batch_interval)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
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
            {"name": "b", "type": "database"},
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
            let wrong =
                config(serde_json::json!({"enabled": true, "queue_size": 500, "reporters": reporters})).validate();
            let keys: Vec<_> =
                wrong.iter().map(|(key, _)| key.strip_prefix("reporters[0].webhook.").unwrap()).collect();
            assert_eq!(keys, expected, "{webhook}");
        };
        check(serde_json::json!({"batch_size": 1000, "batch_interval": "1h"}), &[]);
        check(serde_json::json!({"batch_size": 0, "batch_interval": "0s"}), &["batch_size", "batch_interval"]);
        check(serde_json::json!({"batch_size": 1001, "batch_interval": "61m"}), &["batch_size", "batch_interval"]);
    }

    #[test]
    fn what_is_switched_off_may_be_wrong() {
        let reporters = serde_json::json!([{"type": "builtin", "enabled": false}]);
        assert_eq!(config(serde_json::json!({"enabled": true, "reporters": reporters})).validate(), []);
        assert_eq!(config(serde_json::json!({"queue_size": 0, "reporters": [{}]})).validate(), []);
    }

    #[test]
    fn secrets_are_not_printed() {
        let headers = [("Authorization".to_owned(), "Bearer secret".to_owned())].into();
        let config = WebhookConfig { url: "http://secret@x".into(), headers, ..WebhookConfig::default() };
        let text = format!("{config:?}");
        assert!(text.contains("Authorization") && !text.contains("secret"), "{text}");
    }
}
