//! The `server.cors:` block: which pages of other origins may ask, and what they may read (the Fetch standard, section 3.2).

use std::time::Duration;

use http::{HeaderName, Method};
use serde::Deserialize;

/// Which pages of other origins may ask, and what they may read.
///
/// ```
/// let cors = llmproxy_config::CorsConfig {
///     allowed_origins: vec!["https://*.example.com".into()],
///     ..Default::default()
/// };
/// assert!(cors.is_on());
/// assert!(cors.validate().is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CorsConfig {
    /// `false` switches the block off, whatever else it says.
    pub enabled: Option<bool>,
    /// Origins as browsers write them, those with `*.` for any name below a domain, or `*` for all.
    pub allowed_origins: Vec<String>,
    /// Methods that they may use; `*` for any.
    pub allowed_methods: Vec<String>,
    /// Headers that they may send; `*` for any.
    pub allowed_headers: Vec<String>,
    /// Headers of answers that they may read; `*` for all.
    pub expose_headers: Vec<String>,
    /// Whether they may send cookies and the like.
    pub allow_credentials: bool,
    /// How long a browser may remember what is allowed; its own word where it is absent.
    #[serde(with = "llmproxy_core::duration::option")]
    pub max_age: Option<Duration>,
}

/// Origins that may ask, as one entry of `allowed_origins` says.
///
/// ```
/// use llmproxy_config::AllowedOrigin;
///
/// let below = AllowedOrigin::parse("https://*.example.com")?;
/// assert!(below.matches("https://chat.example.com"));
/// assert!(!below.matches("https://example.com"));
/// assert!(!below.matches("https://example.com.evil.net"));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// All of them.
    Any,
    /// This one.
    One(String),
    /// Those that begin with the first, end with the second and have a name between.
    Below(String, String),
}

// === impl CorsConfig ===

impl CorsConfig {
    /// What the API's operations use.
    pub const DEFAULT_METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
    /// What a client is told beside the answer.
    pub const DEFAULT_EXPOSE_HEADERS: [&str; 10] = [
        "x-request-id",
        "retry-after",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    ];

    /// Whether anybody is allowed anything.
    pub fn is_on(&self) -> bool {
        self.enabled.unwrap_or(!self.allowed_origins.is_empty())
    }

    /// Everything that is wrong with the block: the key below `server`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        if !self.is_on() {
            return mistakes;
        }
        let mut wrong = |key: String, message: String| mistakes.push((format!("cors.{key}"), message));
        if self.allowed_origins.is_empty() {
            wrong("allowed_origins".into(), "name the origins that may ask, such as https://chat.example.com".into());
        }
        for (index, origin) in self.allowed_origins.iter().enumerate() {
            match AllowedOrigin::parse(origin) {
                Ok(AllowedOrigin::Any) if self.allow_credentials => wrong(
                    format!("allowed_origins[{index}]"),
                    "must not be * where allow_credentials is on: every page that a user opens could ask in the user's \
                     name. Name the origins, or set allow_credentials to false; keys in a header need no credentials"
                        .into(),
                ),
                Ok(_) => {}
                Err(message) => wrong(format!("allowed_origins[{index}]"), message),
            }
        }
        for (index, method) in self.allowed_methods.iter().enumerate().filter(|(_, method)| *method != "*") {
            if Method::from_bytes(method.as_bytes()).is_err() {
                wrong(
                    format!("allowed_methods[{index}]"),
                    format!("`{method}` is no method; write POST, or * for any"),
                );
            }
        }
        for (key, headers) in [("allowed_headers", &self.allowed_headers), ("expose_headers", &self.expose_headers)] {
            for (index, header) in headers.iter().enumerate().filter(|(_, header)| *header != "*") {
                if HeaderName::from_bytes(header.as_bytes()).is_err() {
                    wrong(format!("{key}[{index}]"), format!("`{header}` is no name of a header; write * for any"));
                }
            }
        }
        if self.allow_credentials && self.expose_headers.iter().any(|header| header == "*") {
            wrong(
                "expose_headers".into(),
                "must not be * where allow_credentials is on, as browsers then take it for a header's name; name them"
                    .into(),
            );
        }
        mistakes
    }
}

impl Default for CorsConfig {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            enabled: None,
            allowed_origins: Vec::new(),
            allowed_methods: list(&Self::DEFAULT_METHODS),
            allowed_headers: list(&["*"]),
            expose_headers: list(&Self::DEFAULT_EXPOSE_HEADERS),
            allow_credentials: false,
            max_age: None,
        }
    }
}

// === impl AllowedOrigin ===

impl AllowedOrigin {
    /// Reads an entry. Browsers write an origin in lower case and without a slash at its end, so it is made like that.
    ///
    /// # Errors
    ///
    /// A sentence saying what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "`{text}` {why}; write an origin like https://chat.example.com, https://*.example.com, or * for all"
            )
        };
        let origin = text.trim().trim_end_matches('/').to_ascii_lowercase();
        match origin.as_str() {
            "*" => return Ok(Self::Any),
            "null" => return Err(wrong("is no origin: any page has it, in a sandboxed frame")),
            _ => {}
        }
        let (scheme, host) = origin.split_once("://").ok_or_else(|| wrong("names no scheme"))?;
        // RFC 3986, section 3.1.
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if !is_scheme {
            return Err(wrong("has something other than a scheme, such as https, before its ://"));
        }
        if host.is_empty() || host.contains(['/', '?', '#', '@', ' ', ',']) {
            return Err(wrong("is more or less than a scheme, a host and a port"));
        }
        if matches!((scheme, host.rsplit_once(':')), ("https", Some((_, "443"))) | ("http", Some((_, "80")))) {
            return Err(wrong("names its scheme's own port, which browsers leave out"));
        }
        match host.strip_prefix("*.") {
            Some(domain) if domain.is_empty() || domain.contains('*') => Err(wrong("has a * too much")),
            Some(domain) => Ok(Self::Below(format!("{scheme}://"), format!(".{domain}"))),
            None if host.contains('*') => Err(wrong("has a * elsewhere than before a domain")),
            None => Ok(Self::One(origin)),
        }
    }

    /// Whether `origin`, as a browser wrote it, is among them.
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => origin == one,
            Self::Below(scheme, domain) => origin
                .strip_prefix(scheme.as_str())
                .and_then(|rest| rest.strip_suffix(domain.as_str()))
                .is_some_and(|name| {
                    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_compared_whole() {
        let check = |allowed: &str, origin: &str, expected: bool| {
            let parsed = AllowedOrigin::parse(allowed).expect("an origin");
            assert_eq!(parsed.matches(origin), expected, "{allowed} {origin}");
        };
        check("*", "https://a.example", true);
        check("https://a.example", "https://a.example", true);
        check("HTTPS://A.example/", "https://a.example", true);
        check("https://a.example", "http://a.example", false);
        check("https://a.example", "https://a.example:8443", false);
        check("https://a.example", "https://a.example.evil.net", false);
        check("http://localhost:5173", "http://localhost:5173", true);
        check("app://obsidian.md", "app://obsidian.md", true);
        check("https://*.example.com", "https://a.b.example.com", true);
        check("https://*.example.com", "https://.example.com", false);
        check("https://*.example.com", "https://example.com", false);
        check("https://*.example.com", "https://evilexample.com", false);
        check("https://*.example.com", "https://evil.net/.example.com", false);
        check("https://*.example.com", "https://evil.net:1.example.com", false);
        check("https://*.example.com", "https://user@.example.com", false);
        check("https://*.example.com:8443", "https://a.example.com:8443", true);
    }

    #[test]
    fn what_no_browser_would_send_is_refused() {
        for text in [
            "",
            "example.com",
            "https://",
            "://a.example",
            "http*://a.example",
            "*://a.example",
            "null",
            "Null/",
            "https://a.example/path",
            "https://a.example:443",
            "http://a.example:80",
            "https://*",
            "https://*.",
            "https://a.*.com",
            "https://*.*.com",
            "https://a.example, https://b.example",
        ] {
            assert!(AllowedOrigin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_browser_would_not_honour_is_refused() {
        let keys = |cors: CorsConfig| cors.validate().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        let origins = |list: &[&str]| list.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>();
        assert!(keys(CorsConfig::default()).is_empty());
        assert_eq!(keys(CorsConfig { enabled: Some(true), ..CorsConfig::default() }), ["cors.allowed_origins"]);
        let open = CorsConfig { allowed_origins: origins(&["*"]), ..CorsConfig::default() };
        assert!(keys(open.clone()).is_empty());
        let credentials = CorsConfig { allow_credentials: true, expose_headers: origins(&["*"]), ..open };
        assert_eq!(keys(credentials.clone()), ["cors.allowed_origins[0]", "cors.expose_headers"]);
        assert!(keys(CorsConfig { enabled: Some(false), ..credentials }).is_empty());
        let nonsense = CorsConfig {
            allowed_origins: origins(&["https://a.example"]),
            allowed_methods: origins(&["PO ST"]),
            allowed_headers: origins(&["*", "a b"]),
            ..CorsConfig::default()
        };
        assert_eq!(keys(nonsense), ["cors.allowed_methods[0]", "cors.allowed_headers[1]"]);
    }
}
