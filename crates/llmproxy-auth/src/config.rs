//! What an operator may write under `auth`.

use std::fmt;

use llmproxy_core::OnAbort;
use serde::{Deserialize, Deserializer, de};

/// Where a key is looked for unless `header_names` says otherwise.
pub const DEFAULT_HEADER_NAMES: [&str; 2] = ["Authorization", "X-API-Key"];

/// The `auth` block.
///
/// ```
/// let config: llmproxy_auth::AuthConfig = serde_json::from_str(
///     r#"{"enabled": true, "pipeline": [{"name": "file", "type": "static", "static": {"keys": [{"key": "sk-1"}]}}]}"#,
/// )?;
/// assert!(config.validate().is_empty());
/// assert!(!config.needs_store());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// Whether a key is asked for at all. Default: false.
    pub enabled: bool,
    /// What several sources mean together. Default: `first_match`.
    pub mode: Mode,
    /// Paths that need no key, by whole segments: `/v1` means `/v1` and `/v1/x`, not `/v12`. A slash or `/*` at the end
    /// changes nothing; `/` is only itself. Default: none.
    pub skip_paths: Vec<String>,
    /// The headers that may hold a key, in the order in which they are looked at; the first with a value decides.
    /// Default: `Authorization`, `X-API-Key`.
    pub header_names: Vec<String>,
    /// What the answer is for each status of a key.
    pub status_codes: StatusCodesConfig,
    /// The sources of keys, in order. Default: none, which means the builtin key store.
    pub pipeline: Vec<SourceConfig>,
}

/// What several sources mean together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The first source that knows the key decides.
    #[default]
    FirstMatch,
    /// Every source must know the key and accept it; who the caller is, the first says.
    All,
}

/// One entry of `auth.pipeline`.
///
/// ```
/// use llmproxy_auth::{AuthConfig, SourceConfig};
///
/// let config = AuthConfig { enabled: true, pipeline: vec![SourceConfig::builtin()], ..AuthConfig::default() };
/// assert!(config.needs_store());
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SourceConfig {
    /// A name for the log.
    pub name: String,
    /// What kind of source it is; required.
    #[serde(rename = "type")]
    pub kind: Option<SourceKind>,
    /// Whether it is asked. Default: true.
    pub enabled: bool,
    /// The keys of a source of type `static`.
    #[serde(rename = "static")]
    pub static_keys: StaticConfig,
}

/// A kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Keys in the configuration.
    Static,
    /// The builtin key store.
    Builtin,
}

/// The `static` block of a source.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StaticConfig {
    /// The keys.
    pub keys: Vec<StaticKeyConfig>,
}

/// One key in the configuration.
///
/// `created_at` and `updated_at` may stand beside these and mean nothing: they are notes of whoever keeps the file.
///
/// ```
/// use llmproxy_auth::{KeyHash, StaticKeyConfig};
///
/// // The file need not hold the key itself.
/// let key = format!("sha256:{}", KeyHash::of(b"sk-secret"));
/// let alice = StaticKeyConfig { key, name: "alice".into(), ..StaticKeyConfig::default() };
/// assert!(!format!("{alice:?}").contains("sha256"), "not even the hash is logged");
/// ```
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct StaticKeyConfig {
    /// The key in clear, or `sha256:` and the 64 hex digits of its SHA-256; required.
    #[serde(deserialize_with = "text")]
    pub key: String,
    /// What logs and records call it.
    #[serde(deserialize_with = "text")]
    pub name: String,
    /// The user that it belongs to.
    #[serde(deserialize_with = "text")]
    pub user_id: String,
    /// `active` (also `enabled`, 0 or nothing), `disabled` (1), `quota_exceeded` (2), `expired` (3). Default: active.
    pub status: Option<StatusConfig>,
    /// Addresses and networks (CIDR) that it may be used from. Default: all.
    pub allowed_ips: Vec<String>,
    /// Addresses and networks that it may not be used from, also if `allowed_ips` has them. Default: none.
    pub denied_ips: Vec<String>,
    /// The models that it may use. Default: all.
    pub allowed_models: Vec<String>,
    /// What is billed when its holder leaves an answer. Default: what the meter's own configuration says.
    pub on_abort: Option<OnAbort>,
    /// What its requests may be routed by; means nothing else. Default: none.
    #[serde(deserialize_with = "text")]
    pub tag: String,
    /// When it ends to be valid, as RFC 3339. Default: never.
    pub expires_at: Option<String>,
    /// When it begins to be valid, as RFC 3339. Default: at once.
    pub starts_at: Option<String>,
}

/// A status as it is written: a number or a name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum StatusConfig {
    /// 0 to 3.
    Number(i64),
    /// A name.
    Name(String),
}

/// The `status_codes` block.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatusCodesConfig {
    /// A key in good order. Allowed unless said otherwise.
    pub active: StatusRuleConfig,
    /// A key that was disabled. Default: 403.
    pub disabled: StatusRuleConfig,
    /// A key after its time, or before it. Default: 403.
    pub expired: StatusRuleConfig,
    /// A key whose quota is used up. Default: 429.
    pub quota_exceeded: StatusRuleConfig,
    /// A key that no source knows. Default: 401. Allowing it lets everyone in who sends any key, without a name.
    pub not_found: StatusRuleConfig,
}

/// What the answer is for one status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatusRuleConfig {
    /// Whether the request passes. Default: true for `active`, else false.
    pub allow: Option<bool>,
    /// The status of a refusal, 400 to 599. Default: 0, which means the status's own.
    pub http_code: u16,
    /// What the client reads. Default: an English sentence.
    pub message: String,
}

// === impl AuthConfig ===

impl AuthConfig {
    /// Every mistake at once: the path of the key below `auth`, and what is wrong with it and what is allowed.
    ///
    /// ```
    /// let config = llmproxy_auth::AuthConfig { skip_paths: vec!["health".into()], ..Default::default() };
    /// assert_eq!(config.validate()[0].0, "skip_paths[0]");
    /// ```
    pub fn validate(&self) -> Vec<(String, String)> {
        crate::compile::compile(self).1
    }

    /// Whether the builtin key store is asked, so that it has to be opened.
    pub fn needs_store(&self) -> bool {
        let mut sources = self.pipeline.iter().filter(|source| source.enabled);
        self.enabled && (self.pipeline.is_empty() || sources.any(|source| source.kind == Some(SourceKind::Builtin)))
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            mode: Mode::default(),
            skip_paths: Vec::new(),
            header_names: DEFAULT_HEADER_NAMES.map(str::to_owned).into(),
            status_codes: StatusCodesConfig::default(),
            pipeline: Vec::new(),
        }
    }
}

// === impl SourceConfig ===

impl SourceConfig {
    /// A source made of these keys.
    pub fn of_keys(keys: impl IntoIterator<Item = StaticKeyConfig>) -> Self {
        let static_keys = StaticConfig { keys: keys.into_iter().collect() };
        Self { kind: Some(SourceKind::Static), static_keys, ..Self::default() }
    }

    /// The builtin key store.
    pub fn builtin() -> Self {
        Self { kind: Some(SourceKind::Builtin), ..Self::default() }
    }
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self { name: String::new(), kind: None, enabled: true, static_keys: StaticConfig::default() }
    }
}

// === impl StaticKeyConfig ===

impl fmt::Debug for StaticKeyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Configurations end up in logs; keys must not.
        f.debug_struct("StaticKeyConfig")
            .field("name", &self.name)
            .field("user_id", &self.user_id)
            .finish_non_exhaustive()
    }
}

/// Reads text that may look like a number: a key of digits only, an id.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Text;

    impl de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<String, E> {
            Ok(value.to_owned())
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
            Ok(value.to_string())
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
            Ok(value.to_string())
        }
    }

    deserializer.deserialize_any(Text)
}
