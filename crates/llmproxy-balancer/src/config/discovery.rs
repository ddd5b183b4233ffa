//! What an operator may write about where backends are found.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use llmproxy_core::duration;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::BackendConfig;

mod validate;

pub use validate::validate_discovery;

#[cfg(test)]
mod tests;

/// The `discovery` block: backends that are found rather than written down.
///
/// ```
/// use llmproxy_balancer::{DiscoveryConfig, FileSourceConfig, SourceConfig, SourceType, validate_discovery};
///
/// let file = FileSourceConfig { path: "backends.yaml".into(), ..FileSourceConfig::default() };
/// let source = SourceConfig { kind: Some(SourceType::File), file, ..SourceConfig::default() };
/// let config = DiscoveryConfig { enabled: true, sources: vec![source], ..DiscoveryConfig::default() };
/// assert!(validate_discovery(&config).is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DiscoveryConfig {
    /// Whether they are looked for.
    pub enabled: bool,
    /// Which sources count.
    pub mode: DiscoveryMode,
    /// How often a source is asked that says nothing else.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Where they are looked for.
    pub sources: Vec<SourceConfig>,
}

/// `discovery.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscoveryMode {
    /// What all sources tell is put together; of backends with the same name or URL the first counts.
    #[default]
    Merge,
    /// The first source that has any backend is the only one that counts.
    First,
}

/// One entry of `discovery.sources`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SourceConfig {
    /// Its name in logs and metrics; if none is given, what is asked: the file, the name, the URL.
    pub name: Option<String>,
    /// Which of the blocks below counts.
    #[serde(rename = "type")]
    pub kind: Option<SourceType>,
    /// Whether it is asked.
    pub enabled: bool,
    /// Backends in the configuration itself.
    #[serde(rename = "static")]
    pub fixed: StaticSourceConfig,
    /// Backends in a file.
    pub file: FileSourceConfig,
    /// Backends that a name stands for.
    pub dns: DnsSourceConfig,
    /// Backends that a server lists.
    pub http: HttpSourceConfig,
    /// What is said of every backend that is found, where it does not say it itself.
    pub backend: BackendDefaults,
}

/// `discovery.sources[].backend`: what an entry of `backends` may have, but for `url` and `name`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct BackendDefaults(Map<String, Value>);

/// `discovery.sources[].type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    /// A list in the configuration.
    Static,
    /// A file with a list, which is read again when it changes.
    File,
    /// A name that is looked up again and again.
    Dns,
    /// A URL whose answer is a list.
    Http,
}

/// `discovery.sources[].static`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StaticSourceConfig {
    /// The backends.
    pub backends: Vec<BackendConfig>,
}

/// `discovery.sources[].file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FileSourceConfig {
    /// Where it is.
    pub path: PathBuf,
    /// How often it is looked at.
    #[serde(with = "duration")]
    pub interval: Duration,
}

/// `discovery.sources[].dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DnsSourceConfig {
    /// The name that is looked up.
    pub name: String,
    /// Which records are asked for.
    #[serde(rename = "type")]
    pub records: DnsRecords,
    /// The port of every backend; SRV records have their own.
    pub port: u16,
    /// How backends are spoken to.
    pub scheme: Scheme,
    /// How often it is looked up; where none is given, when the answer is out of date, at the latest after
    /// `discovery.interval`.
    #[serde(with = "duration::option")]
    pub interval: Option<Duration>,
    /// The server that is asked; those of the system where none is given.
    pub server: Option<String>,
}

/// `discovery.sources[].dns.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsRecords {
    /// A and AAAA.
    #[default]
    Address,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Names with ports, priorities and weights (RFC 2782).
    Srv,
}

/// `discovery.sources[].dns.scheme`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// In clear.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// `discovery.sources[].http`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpSourceConfig {
    /// What is asked.
    pub url: String,
    /// How.
    pub method: String,
    /// How often; `discovery.interval` where none is given.
    #[serde(with = "duration::option")]
    pub interval: Option<Duration>,
    /// The longest wait for the answer.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Headers of the request; credentials belong here.
    pub headers: BTreeMap<String, String>,
}

/// 30 s.
pub const DEFAULT_DISCOVERY_INTERVAL: Duration = Duration::from_secs(30);
/// 2 s: reading a small file costs nothing.
pub const DEFAULT_FILE_INTERVAL: Duration = Duration::from_secs(2);
/// 10 s.
pub const DEFAULT_DISCOVERY_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_PORT: u16 = 53;

// === impl DiscoveryConfig ===

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            mode: DiscoveryMode::default(),
            interval: DEFAULT_DISCOVERY_INTERVAL,
            sources: Vec::new(),
        }
    }
}

// === impl SourceConfig ===

impl SourceConfig {
    /// What logs and metrics call it; empty where it is not said what is asked.
    pub(crate) fn label(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        match self.kind {
            Some(SourceType::Static) => "static".to_owned(),
            Some(SourceType::File) => self.file.path.display().to_string(),
            Some(SourceType::Dns) => self.dns.name.clone(),
            // What is asked may hold what is nobody's business.
            Some(SourceType::Http) => self.http.url.split('?').next().unwrap_or_default().to_owned(),
            None => String::new(),
        }
    }
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            name: None,
            kind: None,
            enabled: true,
            fixed: StaticSourceConfig::default(),
            file: FileSourceConfig::default(),
            dns: DnsSourceConfig::default(),
            http: HttpSourceConfig::default(),
            backend: BackendDefaults::default(),
        }
    }
}

// === impl BackendDefaults ===

impl BackendDefaults {
    /// An entry, with what it does not say itself.
    pub(crate) fn complete(&self, entry: Map<String, Value>) -> Map<String, Value> {
        let mut complete = self.0.clone();
        complete.extend(entry);
        complete
    }
}

impl fmt::Debug for BackendDefaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

// === impl FileSourceConfig ===

impl Default for FileSourceConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), interval: DEFAULT_FILE_INTERVAL }
    }
}

// === impl DnsSourceConfig ===

impl DnsSourceConfig {
    /// The server that is asked, if one is given that can be understood.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        let text = self.server.as_deref()?.trim();
        text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, DNS_PORT)))
    }
}

// === impl HttpSourceConfig ===

impl Default for HttpSourceConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            method: "GET".to_owned(),
            interval: None,
            timeout: DEFAULT_DISCOVERY_TIMEOUT,
            headers: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for HttpSourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSourceConfig")
            .field("url", &self.url)
            .field("method", &self.method)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("headers", &self.headers.keys())
            .finish()
    }
}
