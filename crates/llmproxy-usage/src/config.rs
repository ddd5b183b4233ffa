//! What an operator may write under `usage`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    BuiltinConfig, DatabaseReport, DatabaseReporterConfig, Durability, FileConfig, FilterConfig, LedgerConfig,
    StorageConfig,
    clashes::{clashes, is_of_ledger},
    destination::{self, Destination},
};

const DEFAULT_QUEUE_SIZE: usize = 10_000;
const DEFAULT_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const MAX_QUEUE_SIZE: usize = 10_000_000;
const DEFAULT_ADMIT_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const DEFAULT_RETRY: u32 = 3;
const DEFAULT_BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// By then a request's own cost is next to nothing for each record, the body is about as long as receivers take (1 MB is
/// nginx's default), and putting one together keeps a thread for a fraction of a millisecond at a time.
pub(crate) const MAX_BATCH_SIZE: usize = 1000;
/// Longer than that nobody waits for a batch.
pub(crate) const MAX_BATCH_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a record is tried. A receiver that is down over a long weekend must not cost any.
pub(crate) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// More requests at a time than this are no reporter but an attack.
pub(crate) const MAX_IN_FLIGHT: usize = 64;
pub(crate) const WEBHOOK: &str = "webhook";
pub(crate) const FILE: &str = "file";
pub(crate) const STDOUT: &str = "stdout";
pub(crate) const DATABASE: &str = "database";
pub(crate) const BUILTIN: &str = "builtin";

/// Records of what each request came to, and where they go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct UsageConfig {
    /// Whether they are kept and sent; without it tokens are counted and limited all the same.
    pub enabled: bool,
    /// Where to.
    pub reporters: Vec<ReporterConfig>,
    /// Records that may be in memory, those of requests that are still running included; 10000. With `include_request_body`
    /// each of them holds its request's body; of those that have ended, 64 MiB at most.
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
    /// Its name in logs and metrics, and no other's; where it has none, the host of its URL, its storage, or its type.
    pub name: String,
    /// How records are sent: `webhook`, `file`, `stdout`, `database`, `builtin`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether they are; true.
    pub enabled: bool,
    /// Which records it gets; all.
    pub filter: FilterConfig,
    /// The fields of a record that are sent; all. `request_id` and `schema` are always sent.
    pub fields: Vec<String>,
    /// HTTP requests with JSON.
    pub webhook: WebhookConfig,
    /// Lines of JSON in a file.
    pub file: FileConfig,
    /// A table of a SQL database.
    pub database: DatabaseReporterConfig,
    /// The admin database.
    pub builtin: BuiltinConfig,
}

/// What reporters refer to outside of `usage`.
#[derive(Clone, Copy, Debug)]
pub struct Stores<'a> {
    /// The `storage:` block.
    pub storage: &'a StorageConfig,
    /// `admin.db_path`
    pub admin_db: &'a Path,
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
    /// How often a record is sent once more at short distance after a failure that may pass; 3. After those the receiver
    /// counts as down: from then on it is tried about twice a minute at most, and records wait.
    pub retry: u32,
    /// How long a record is tried; 168h, a week.
    #[serde(with = "llmproxy_core::duration")]
    pub max_age: Duration,
    /// The file that keeps the records which were refused or have become too old; a file beside the others' where it is
    /// empty.
    pub dead_letter: PathBuf,
    /// Requests that may be on their way at a time; 1. More than one gives up the order of the records.
    pub max_in_flight: usize,
    /// Secrets that the requests are signed with as Standard Webhooks says, `whsec_...`; several are separated by blanks,
    /// for as long as the receiver changes from one to the other. `None`, they are not signed.
    pub secret: Option<String>,
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
        let mut has_builtin = false;
        for (index, reporter) in self.reporters.iter().enumerate().filter(|(_, reporter)| reporter.enabled) {
            let at = |key: &str| format!("reporters[{index}].{key}");
            if let Err(mistakes) = Destination::compile(reporter) {
                wrong.extend(mistakes.into_iter().map(|(key, what)| (at(&key), what)));
            }
            let name = destination::name(reporter);
            if !name.is_empty() && !names.insert(name.clone()) {
                wrong.push((at("name"), taken(reporter, &name)));
            }
            if reporter.kind == BUILTIN && std::mem::replace(&mut has_builtin, true) {
                let what = "there is another reporter of type builtin, and only one admin database";
                wrong.push((at("type"), what.to_owned()));
            }
        }
        wrong.extend(clashes(self));
        wrong
    }

    /// What is wrong with what the reporters refer to, and with the ledger where it is the admin database: the key's path in the
    /// whole file, and what is wrong with it. Databases that no reporter in use refers to are not looked at.
    ///
    /// ```
    /// use llmproxy_usage::{StorageConfig, Stores, UsageConfig};
    ///
    /// let config: UsageConfig = serde_json::from_value(serde_json::json!({
    ///     "enabled": true, "reporters": [{"type": "database", "database": {"storage": "billing"}}],
    /// }))?;
    /// let storage = StorageConfig::default();
    /// let wrong = config.validate_references(Stores { storage: &storage, admin_db: "./data/keys.db".as_ref() });
    /// assert_eq!(wrong[0].0, "usage.reporters[0].database.storage");
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn validate_references(&self, stores: Stores<'_>) -> Vec<(String, String)> {
        let mut wrong: Vec<(String, String)> = Vec::new();
        if self.enabled && is_of_ledger(self, stores.admin_db) {
            let what = "is the admin database (admin.db_path) too, or belongs to it; each needs a file of its own";
            wrong.push(("usage.ledger.path".to_owned(), what.to_owned()));
        }
        let reporters = if self.enabled { &*self.reporters } else { &[] };
        for (index, reporter) in reporters.iter().enumerate() {
            if !reporter.enabled || reporter.kind != DATABASE || !reporter.database.validate().is_empty() {
                continue;
            }
            let found = DatabaseReport::new("", &reporter.database, stores.storage).err().unwrap_or_default();
            wrong.extend(found.into_iter().map(|(key, what)| match key.starts_with("storage.") {
                true => (key, what),
                false => (format!("usage.reporters[{index}].database.{key}"), what),
            }));
        }
        // Two reporters may refer to the same database.
        let mut said = BTreeSet::new();
        wrong.retain(|(key, _)| said.insert(key.clone()));
        wrong
    }

    /// The names of the reporters that are in use, also of those that the configuration does not name.
    pub fn reporter_names(&self) -> impl Iterator<Item = String> {
        self.active().map(|reporter| destination::name(reporter).into_owned())
    }

    /// The reporters that are in use.
    pub(crate) fn active(&self) -> impl Iterator<Item = &ReporterConfig> {
        let all = if self.enabled { &*self.reporters } else { &[] };
        all.iter().filter(|reporter| reporter.enabled)
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

/// Why a reporter can't have `name`.
fn taken(reporter: &ReporterConfig, name: &str) -> String {
    match (&*reporter.name, &*reporter.kind) {
        ("", WEBHOOK) => {
            format!("is missing: `{name}`, the host of its URL, is the name of another reporter too; give it one")
        }
        ("", DATABASE) => {
            format!("is missing: `{name}`, the name of its storage, is the name of another reporter too; give it one")
        }
        ("", _) => format!("is missing: `{name}`, its type, is the name of another reporter too; give it one"),
        _ => format!("`{name}` is the name of another reporter too; give it one of its own"),
    }
}

// === impl ReporterConfig ===

impl Default for ReporterConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: WEBHOOK.to_owned(),
            enabled: true,
            filter: FilterConfig::default(),
            fields: Vec::new(),
            webhook: WebhookConfig::default(),
            file: FileConfig::default(),
            database: DatabaseReporterConfig::default(),
            builtin: BuiltinConfig::default(),
        }
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
            max_age: DEFAULT_MAX_AGE,
            dead_letter: PathBuf::new(),
            max_in_flight: 1,
            secret: None,
            headers: BTreeMap::new(),
            include_request_body: false,
            batch_size: 1,
            batch_interval: DEFAULT_BATCH_INTERVAL,
        }
    }
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers hold credentials, and so may the URL. The secret is one.
        f.debug_struct("WebhookConfig")
            .field("method", &self.method)
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .field("max_age", &self.max_age)
            .field("dead_letter", &self.dead_letter)
            .field("max_in_flight", &self.max_in_flight)
            .field("is_signed", &self.secret.is_some())
            .field("headers", &self.headers.keys())
            .field("include_request_body", &self.include_request_body)
            .field("batch_size", &self.batch_size)
            .field("batch_interval", &self.batch_interval)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
