//! The whole configuration: every part's own type, under the name that its block has in the file.

use llmproxy_admin::AdminConfig;
use llmproxy_auth::AuthConfig;
use llmproxy_balancer::{BackendConfig, DiscoveryConfig, HealthCheckConfig, QueueConfig, RoutingConfig};
use llmproxy_metering::{AbortConfig, InspectConfig, MeteringConfig, PricingConfig};
use llmproxy_ratelimit::RateLimitConfig;
use llmproxy_sse::SseConfig;
use llmproxy_usage::{StorageConfig, UsageConfig};
use serde::Deserialize;

use crate::{LogConfig, LoggingConfig, ServerConfig};

/// What a file says, checked.
///
/// ```
/// use llmproxy_config::{LoadOptions, load_str};
///
/// let text = "backends: [{url: 'http://localhost:11434'}]\nrouting: {load_balance: least_connections}\n";
/// let config = load_str(text, &LoadOptions::default())?.config;
/// assert_eq!(config.backends[0].url, "http://localhost:11434");
/// assert!(!config.auth.enabled);
/// # Ok::<(), llmproxy_config::LoadError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `server:`
    pub server: ServerConfig,
    /// `log:`
    pub log: LogConfig,
    /// `logging:`
    pub logging: LoggingConfig,
    /// `metrics:`
    pub metrics: MetricsConfig,
    /// `admin:`
    pub admin: AdminConfig,
    /// `auth:`
    pub auth: AuthConfig,
    /// `rate_limit:`
    pub rate_limit: RateLimitConfig,
    /// `backends:`
    pub backends: Vec<BackendConfig>,
    /// `discovery:`
    pub discovery: DiscoveryConfig,
    /// `routing:`
    pub routing: RoutingConfig,
    /// `routing.allow_paths`
    pub routing_paths: PathsConfig,
    /// `health_check:`
    pub health_check: HealthCheckConfig,
    /// `queue:`
    pub queue: QueueConfig,
    /// `usage:`
    pub usage: UsageConfig,
    /// `storage:`
    pub storage: StorageConfig,
    /// `pricing:`
    pub pricing: PricingConfig,
    /// What `metering:` says about clients that leave before the end.
    pub abort: AbortConfig,
    /// What `metering:` says about counting.
    pub metering: MeteringConfig,
    /// What `server:` says about the reading of requests.
    pub inspect: InspectConfig,
    /// What `server.heartbeat` and `routing.gap_timeout` say about streams.
    pub sse: SseConfig,
}

/// The `metrics:` block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MetricsConfig {
    /// Whether they are served.
    pub enabled: bool,
    /// Where.
    pub path: String,
    /// What the tokens of a model are told apart by besides; each multiplies the number of series.
    pub custom_labels: Vec<CustomLabel>,
}

/// A label that series of tokens and of cost may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CustomLabel {
    /// The key's name.
    KeyName,
    /// The user that the key belongs to.
    UserId,
}

/// What of `routing` is not about backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PathsConfig {
    /// By whole segments: `/pooling` lets `/pooling` and `/pooling/x` pass.
    pub allow_paths: Vec<String>,
    /// Whether answers say which backend gave them, and after how many attempts.
    pub explain: bool,
}

// === impl Config ===

impl Config {
    /// Where administration has a listener of its own, if it has one.
    pub fn admin_listen(&self) -> Option<&str> {
        Some(self.admin.listen.as_str()).filter(|listen| self.admin.is_served() && !listen.is_empty())
    }

    /// The keys that differ from `old` and that only a restart puts in force: the listener's and the program's own log.
    ///
    /// ```
    /// let old = llmproxy_config::Config::default();
    /// let mut new = old.clone();
    /// new.server.listen = ":9000".into();
    /// assert_eq!(new.needs_restart(&old), ["server.listen"]);
    /// ```
    pub fn needs_restart(&self, old: &Self) -> Vec<&'static str> {
        let (new, was) = (&self.server, &old.server);
        [
            ("server.listen", new.listen != was.listen),
            ("server.tls", new.tls != was.tls),
            ("server.listeners", new.listeners != was.listeners),
            ("server.http2", new.http2 != was.http2),
            ("server.max_connections", new.max_connections != was.max_connections),
            ("server.read_timeout", new.read_timeout != was.read_timeout),
            ("server.write_timeout", new.write_timeout != was.write_timeout),
            ("server.idle_timeout", new.idle_timeout != was.idle_timeout),
            ("server.max_header_bytes", new.max_header_bytes != was.max_header_bytes),
            ("server.max_headers", new.max_headers != was.max_headers),
            ("server.shutdown_timeout", new.shutdown_timeout != was.shutdown_timeout),
            ("admin.listen", self.admin_listen() != old.admin_listen()),
            ("usage.ledger.path", self.usage.ledger.path != old.usage.ledger.path),
            ("log", self.log != old.log),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

// === impl MetricsConfig ===

impl MetricsConfig {
    /// Where Prometheus looks.
    pub const DEFAULT_PATH: &str = "/metrics";

    /// Everything that is wrong with the block: the key below `metrics`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let taken = matches!(self.path.as_str(), "/" | "/health" | "/ready")
            || ["/v1/", "/admin/"].iter().any(|prefix| self.path.starts_with(prefix));
        let message = match self.path.as_str() {
            path if !path.starts_with('/') || path.contains(['?', '#', ' ', '{', '}', '*', ':']) => {
                "must be a path like /metrics".to_owned()
            }
            path if taken => format!("must not be {path}, which is used otherwise"),
            _ => return Vec::new(),
        };
        vec![("path".into(), message)]
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { enabled: true, path: Self::DEFAULT_PATH.into(), custom_labels: Vec::new() }
    }
}

// === impl PathsConfig ===

impl PathsConfig {
    /// Everything that is wrong: the key below `routing`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let wrong = |path: &str| !path.starts_with('/') || path == "/" || path.contains("..") || path.contains('?');
        let paths = self.allow_paths.iter().enumerate().filter(|(_, path)| wrong(path));
        let message = |path: &str| {
            format!(
                "`{path}` must be a path like /pooling; it passes with all that is below it, and / alone is too much"
            )
        };
        paths.map(|(index, path)| (format!("allow_paths[{index}]"), message(path))).collect()
    }
}
