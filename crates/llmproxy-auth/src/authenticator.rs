//! The decision, from a request's head alone.

use std::{fmt, net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName, header};
use jiff::Timestamp;
use llmproxy_core::{Caller, subprotocol};

use crate::{
    AuthConfig, AuthConfigError, AuthError, KeyEntry, KeyHash, KeySource, KeyStore, Mode, Refusal,
    compile::{Compiled, Source, compile},
    rules::Rules,
    skip::SkipPaths,
};

/// Decides who is calling and whether they may, from a request's head. A key stands in `Authorization`, behind `Bearer`
/// (RFC 6750, section 2.1) or alone, or in any other header that the configuration names.
///
/// ```
/// use llmproxy_auth::{AuthConfig, Authenticator, SourceConfig, StaticKeyConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llmproxy_core::BoxError> {
/// let key = StaticKeyConfig { key: "sk-1".into(), name: "alice".into(), ..StaticKeyConfig::default() };
/// let config = AuthConfig { enabled: true, pipeline: vec![SourceConfig::of_keys([key])], ..AuthConfig::default() };
/// let authenticator = Authenticator::new(&config, None)?;
///
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-api-key", "sk-1".parse()?);
/// let caller = authenticator.authenticate(&headers, "/v1/chat/completions", None).await?;
/// assert_eq!(caller.name(), Some("alice"));
/// # Ok(())
/// # }
/// ```
pub struct Authenticator {
    mode: Mode,
    header_names: Vec<HeaderName>,
    skip: SkipPaths,
    rules: Rules,
    sources: Vec<Arc<dyn KeySource>>,
}

// === impl Authenticator ===

impl Authenticator {
    /// What the block says, with `store` as the builtin key store. Whether the block is `enabled` is not asked here.
    ///
    /// # Errors
    ///
    /// If there are mistakes in the block, or it asks for a store and there is none (see
    /// [`AuthConfig::needs_store`]).
    pub fn new(config: &AuthConfig, store: Option<KeyStore>) -> Result<Self, AuthConfigError> {
        let compiled = Self::compiled(config)?;
        let mut sources: Vec<Arc<dyn KeySource>> = Vec::with_capacity(compiled.sources.len());
        for source in &compiled.sources {
            sources.push(match source {
                Source::Static(keys) => Arc::new(keys.clone()),
                Source::Builtin => Arc::new(store.clone().ok_or(AuthConfigError::NoStore)?),
            });
        }
        Ok(Self::from_parts(config.mode, compiled, sources))
    }

    /// What the block says, but with these sources in the place of its pipeline.
    ///
    /// # Errors
    ///
    /// If there are mistakes in the block.
    pub fn with_sources(config: &AuthConfig, sources: Vec<Arc<dyn KeySource>>) -> Result<Self, AuthConfigError> {
        Ok(Self::from_parts(config.mode, Self::compiled(config)?, sources))
    }

    fn compiled(config: &AuthConfig) -> Result<Compiled, AuthConfigError> {
        match compile(config) {
            (compiled, mistakes) if mistakes.is_empty() => Ok(compiled),
            (_, mistakes) => Err(AuthConfigError::Invalid(mistakes)),
        }
    }

    fn from_parts(mode: Mode, compiled: Compiled, sources: Vec<Arc<dyn KeySource>>) -> Self {
        let Compiled { header_names, skip, rules, .. } = compiled;
        Self { mode, header_names, skip, rules, sources }
    }

    /// The headers in which a key is looked for. Neither they nor a backend's
    /// [credentials](llmproxy_core::Backend::CREDENTIALS) must travel further.
    pub fn header_names(&self) -> &[HeaderName] {
        &self.header_names
    }

    /// Decides about a request by its headers, its path as it was sent, and where it came from.
    ///
    /// # Errors
    ///
    /// The refusal, with the answer's status, code and text.
    ///
    /// # Cancel safety
    ///
    /// Nothing is kept; the future may be dropped at any time.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        path: &str,
        client_ip: Option<IpAddr>,
    ) -> Result<Caller, AuthError> {
        if self.skip.matches(path) {
            return Ok(Caller::anonymous());
        }
        let Some(key) = self.key(headers) else { return Err(self.rules.refuse(Refusal::Missing)) };
        let hash = KeyHash::of(key);
        let now = Timestamp::now();
        let mut first: Option<Arc<KeyEntry>> = None;
        for source in &self.sources {
            let found = source.lookup(hash).await.map_err(|error| {
                tracing::error!(source = source.name(), %error, "a source of API keys failed, the request is refused");
                self.rules.refuse(Refusal::SourceFailed)
            })?;
            match found {
                Some(entry) => {
                    self.rules.check(&entry, now, client_ip)?;
                    first.get_or_insert(entry);
                    if self.mode == Mode::FirstMatch {
                        break;
                    }
                }
                None if self.mode == Mode::All && !self.rules.allows_unknown() => {
                    return Err(self.rules.refuse(Refusal::Unknown));
                }
                None => {}
            }
        }
        match first {
            Some(entry) => Ok(entry.caller(key)),
            None if self.rules.allows_unknown() => Ok(Caller::anonymous()),
            None => Err(self.rules.refuse(Refusal::Unknown)),
        }
    }

    /// The key in the first header that has one; else the one that a page has put among a WebSocket's subprotocols.
    fn key<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let values =
            self.header_names.iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
        let key = values.map(|(name, value)| credential(name, value.as_bytes())).find(|key| !key.is_empty());
        key.or_else(|| subprotocol::key(headers))
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources: Vec<&str> = self.sources.iter().map(|source| source.name()).collect();
        f.debug_struct("Authenticator").field("mode", &self.mode).field("sources", &sources).finish_non_exhaustive()
    }
}

/// The key in a header's value. In `Authorization` it may stand behind `Bearer`, in any case, or alone.
fn credential<'a>(name: &HeaderName, value: &'a [u8]) -> &'a [u8] {
    const SCHEME: &[u8] = b"bearer";
    let value = value.trim_ascii();
    if name != header::AUTHORIZATION {
        return value;
    }
    match value.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => match rest.first() {
            None => &[],
            Some(byte) if byte.is_ascii_whitespace() => rest.trim_ascii(),
            // A bare key that happens to begin like the scheme.
            Some(_) => value,
        },
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{self, BoxFuture, FutureExt};
    use llmproxy_core::BoxError;

    use super::*;
    use crate::{KeyStatus, SourceConfig, StaticKeyConfig, StaticKeys};

    struct Broken;

    impl KeySource for Broken {
        fn name(&self) -> &str {
            "broken"
        }

        fn lookup(&self, _: KeyHash) -> BoxFuture<'_, Result<Option<Arc<KeyEntry>>, BoxError>> {
            future::ready(Err("connection refused".into())).boxed()
        }
    }

    fn source(name: &str, keys: &[(&str, KeyStatus)]) -> Arc<dyn KeySource> {
        Arc::new(StaticKeys::new(
            name,
            keys.iter().map(|(key, status)| {
                let mut entry = KeyEntry::new(KeyHash::of(key.as_bytes()));
                entry.name = Some(format!("{name}-{key}").into());
                entry.status = *status;
                entry
            }),
        ))
    }

    fn config(json: &str) -> AuthConfig {
        serde_json::from_str(json).unwrap()
    }

    /// The caller's name, or the refusal's status and code.
    async fn ask(authenticator: &Authenticator, headers: &[(&str, &str)]) -> Result<String, (u16, &'static str)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        match authenticator.authenticate(&map, "/v1/models", None).await {
            Ok(caller) => Ok(caller.name().unwrap_or("anonymous").to_owned()),
            Err(error) => Err((error.status().as_u16(), error.code())),
        }
    }

    async fn check(headers: &[(&str, &str)], expected: Result<&str, (u16, &'static str)>) {
        let sources = vec![source("file", &[("k", KeyStatus::Active), ("bearer-1", KeyStatus::Active)])];
        let authenticator = Authenticator::with_sources(&config("{}"), sources).unwrap();
        assert_eq!(ask(&authenticator, headers).await, expected.map(str::to_owned), "{headers:?}");
    }

    #[tokio::test]
    async fn a_key_is_found_in_all_its_usual_forms() {
        for value in ["Bearer k", "bearer k", "BEARER   k ", "k", " k"] {
            check(&[("authorization", value)], Ok("file-k")).await;
        }
        check(&[("x-api-key", "k")], Ok("file-k")).await;
        check(&[("X-API-KEY", "k")], Ok("file-k")).await;
        check(&[("authorization", "bearer-1")], Ok("file-bearer-1")).await;
    }

    #[tokio::test]
    async fn other_schemes_and_other_headers_are_taken_verbatim() {
        check(&[("authorization", "Basic k")], Err((401, "NOT_FOUND"))).await;
        check(&[("x-api-key", "Bearer k")], Err((401, "NOT_FOUND"))).await;
        check(&[("x-other", "k")], Err((401, "ERROR"))).await;
    }

    #[tokio::test]
    async fn the_first_header_with_a_value_decides() {
        check(&[("x-api-key", "k"), ("authorization", "Bearer wrong")], Err((401, "NOT_FOUND"))).await;
        check(&[("x-api-key", "k"), ("authorization", "Bearer ")], Ok("file-k")).await;
        check(&[("x-api-key", "k"), ("authorization", "")], Ok("file-k")).await;
        check(&[("x-api-key", ""), ("x-api-key", "k")], Ok("file-k")).await;
    }

    #[tokio::test]
    async fn no_key_and_an_unknown_key_are_told_apart() {
        check(&[], Err((401, "ERROR"))).await;
        check(&[("authorization", "Bearer")], Err((401, "ERROR"))).await;
        check(&[("authorization", "Bearer K")], Err((401, "NOT_FOUND"))).await;
    }

    #[tokio::test]
    async fn headers_are_looked_at_in_the_configured_order() {
        let sources = vec![source("file", &[("a", KeyStatus::Active), ("b", KeyStatus::Active)])];
        let config = config(r#"{"header_names": ["x-team", "AUTHORIZATION"]}"#);
        let authenticator = Authenticator::with_sources(&config, sources).unwrap();
        let headers = [("authorization", "Bearer b"), ("X-Team", "a")];
        assert_eq!(ask(&authenticator, &headers).await.as_deref(), Ok("file-a"));
        assert_eq!(ask(&authenticator, &[("x-api-key", "a")]).await, Err((401, "ERROR")));
    }

    #[tokio::test]
    async fn the_first_source_that_knows_the_key_decides() {
        let first = source("first", &[("a", KeyStatus::Disabled)]);
        let second = source("second", &[("a", KeyStatus::Active), ("b", KeyStatus::Active)]);
        let authenticator = Authenticator::with_sources(&config("{}"), vec![first, second]).unwrap();
        assert_eq!(ask(&authenticator, &[("x-api-key", "a")]).await, Err((403, "DISABLED")));
        assert_eq!(ask(&authenticator, &[("x-api-key", "b")]).await.as_deref(), Ok("second-b"));
    }

    #[tokio::test]
    async fn in_mode_all_every_source_must_accept_and_the_first_says_who_it_is() {
        let first = source("first", &[("a", KeyStatus::Active), ("b", KeyStatus::Active), ("c", KeyStatus::Active)]);
        let second = source("second", &[("a", KeyStatus::Active), ("c", KeyStatus::Expired)]);
        let authenticator = Authenticator::with_sources(&config(r#"{"mode": "all"}"#), vec![first, second]).unwrap();
        assert_eq!(ask(&authenticator, &[("x-api-key", "a")]).await.as_deref(), Ok("first-a"));
        assert_eq!(ask(&authenticator, &[("x-api-key", "b")]).await, Err((401, "NOT_FOUND")));
        assert_eq!(ask(&authenticator, &[("x-api-key", "c")]).await, Err((403, "EXPIRED")));
    }

    #[tokio::test]
    async fn nobody_gets_in_because_a_source_is_down() {
        for mode in ["first_match", "all"] {
            let config =
                config(&format!(r#"{{"mode": "{mode}", "status_codes": {{"not_found": {{"allow": true}}}}}}"#));
            let sources = vec![Arc::new(Broken) as _, source("file", &[("a", KeyStatus::Active)])];
            let authenticator = Authenticator::with_sources(&config, sources).unwrap();
            assert_eq!(ask(&authenticator, &[("x-api-key", "a")]).await, Err((500, "ERROR")), "{mode}");
        }
    }

    #[tokio::test]
    async fn a_source_behind_the_one_that_decided_is_not_asked() {
        let sources = vec![source("file", &[("a", KeyStatus::Active)]), Arc::new(Broken) as _];
        let authenticator = Authenticator::with_sources(&config("{}"), sources).unwrap();
        assert_eq!(ask(&authenticator, &[("x-api-key", "a")]).await.as_deref(), Ok("file-a"));
    }

    #[tokio::test]
    async fn unknown_keys_may_be_let_in_without_a_name_but_a_key_must_be_sent() {
        let config = config(r#"{"status_codes": {"not_found": {"allow": true}}}"#);
        let sources = vec![source("file", &[("a", KeyStatus::Disabled)])];
        let authenticator = Authenticator::with_sources(&config, sources).unwrap();
        assert_eq!(ask(&authenticator, &[("x-api-key", "b")]).await.as_deref(), Ok("anonymous"));
        assert_eq!(ask(&authenticator, &[("x-api-key", "a")]).await, Err((403, "DISABLED")));
        assert_eq!(ask(&authenticator, &[]).await, Err((401, "ERROR")));
    }

    #[tokio::test]
    async fn a_key_that_is_configured_as_a_hash_is_known_and_masked_as_it_was_sent() {
        let key = StaticKeyConfig {
            key: format!("sha256:{}", KeyHash::of(b"sk-0123456789")),
            allowed_models: vec!["llama".into()],
            ..StaticKeyConfig::default()
        };
        let config = AuthConfig { pipeline: vec![SourceConfig::of_keys([key])], ..AuthConfig::default() };
        let authenticator = Authenticator::new(&config, None).unwrap();
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer sk-0123456789".parse().unwrap())]);
        let caller = authenticator.authenticate(&headers, "/", None).await.unwrap();
        assert_eq!(caller.masked_key(), Some("sk-0***6789"));
        assert_eq!(caller.fingerprint().unwrap().len(), 16);
        assert!(caller.may_use("llama") && !caller.may_use("qwen"));
    }

    #[test]
    fn a_pipeline_that_asks_for_the_store_needs_one() {
        let config = AuthConfig { enabled: true, ..AuthConfig::default() };
        assert_eq!(Authenticator::new(&config, None).unwrap_err(), AuthConfigError::NoStore);
    }

    #[test]
    fn mistakes_are_all_in_the_error() {
        let config = config(r#"{"skip_paths": ["a", "b"]}"#);
        let error = Authenticator::new(&config, None).unwrap_err().to_string();
        assert!(error.contains("auth.skip_paths[0]: ") && error.contains("auth.skip_paths[1]: "), "{error}");
    }
}
