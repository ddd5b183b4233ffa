//! A server that does the work.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Uri, header};

use crate::BoxError;

/// A server that does the work. Built from the configuration; what stays the same over all requests.
///
/// ```
/// use std::time::Duration;
/// use llmproxy_core::Backend;
///
/// let mut backend = Backend::new("http://vllm:8000/v1")?;
/// backend.name = "big".into();
/// backend.timeout = Duration::from_secs(60);
/// assert_eq!(backend.join("/v1/models")?, "http://vllm:8000/v1/models");
/// # Ok::<(), llmproxy_core::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backend {
    /// The name for logs, records and metrics; the URL where none was given.
    pub name: Arc<str>,
    /// Scheme, authority and path prefix, without a trailing slash and without `/v1`.
    pub url: Uri,
    /// Headers that every request to this backend gets; replaces what the client sent under the same name, and all its
    /// [credentials](Self::CREDENTIALS) where one of them is among these.
    pub headers: HeaderMap,
    /// The longest wait for the first byte of an answer, and for the whole of a JSON answer.
    pub timeout: Duration,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// How many idle connections are kept.
    pub max_idle_conns: usize,
    /// Whether it is asked over HTTP/2: at once over `http`, over `https` where it agrees.
    pub http2: bool,
    /// Whether it gets the Host that the client sent, in the place of its own.
    pub preserve_host: bool,
    /// The certificates, in PEM, of which one must vouch for it; those that the machine trusts where there are none.
    pub ca: Option<Arc<[u8]>>,
}

// === impl Backend ===

impl Backend {
    /// A backend at `url`, named by it, with the defaults of a configuration that says no more. A trailing slash and
    /// a `/v1` suffix are taken off.
    ///
    /// # Errors
    ///
    /// If `url` is not an absolute `http` or `https` URL, or has a query. What is said of it leaves out the query and the
    /// user, which may be secrets.
    ///
    /// ```
    /// let backend = llmproxy_core::Backend::new("http://vllm:8000/v1/")?;
    /// assert_eq!(&*backend.name, "http://vllm:8000");
    /// # Ok::<(), llmproxy_core::BoxError>(())
    /// ```
    pub fn new(url: &str) -> Result<Self, BoxError> {
        let trimmed = url.trim().trim_end_matches('/');
        let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed).trim_end_matches('/');
        let parsed: Uri =
            trimmed.parse().map_err(|_| format!("`{}` is not a URL like http://host:8000", plain(url)))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.authority().is_none() {
            return Err(format!("`{}` must start with http:// or https:// and name a host", plain(url)).into());
        }
        if parsed.query().is_some() {
            return Err(format!("`{}` must not have a query", plain(url)).into());
        }
        Ok(Self {
            name: trimmed.into(),
            url: parsed,
            headers: HeaderMap::new(),
            timeout: Self::DEFAULT_TIMEOUT,
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            max_idle_conns: Self::DEFAULT_MAX_IDLE_CONNS,
            http2: false,
            preserve_host: false,
            ca: None,
        })
    }

    /// 300 s: a long prompt on a busy server takes its time before the first token.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
    /// 5 s.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// 256 connections: as many as a busy backend has streams at a time.
    pub const DEFAULT_MAX_IDLE_CONNS: usize = 256;

    /// The headers that servers read a key from.
    pub const CREDENTIALS: [HeaderName; 3] =
        [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

    /// Whether the proxy itself supplies the credentials, so that a 401 of the backend is not the client's fault. Then none
    /// of the client's must reach it, under whichever name.
    ///
    /// ```
    /// let mut backend = llmproxy_core::Backend::new("http://vllm:8000")?;
    /// assert!(!backend.supplies_credentials());
    /// backend.headers.insert("api-key", "ours".parse()?);
    /// assert!(backend.supplies_credentials());
    /// # Ok::<(), llmproxy_core::BoxError>(())
    /// ```
    pub fn supplies_credentials(&self) -> bool {
        Self::CREDENTIALS.iter().any(|name| self.headers.contains_key(name))
    }

    /// The URL as people write it, without a slash at its end.
    ///
    /// ```
    /// assert_eq!(llmproxy_core::Backend::new("http://vllm:8000/")?.url_text(), "http://vllm:8000");
    /// # Ok::<(), llmproxy_core::BoxError>(())
    /// ```
    pub fn url_text(&self) -> String {
        // Put together by hand: every record has it, and the formatting machinery takes four times as long.
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        let parts = [self.url.scheme_str().unwrap_or("http"), "://", authority, self.url.path().trim_end_matches('/')];
        parts.concat()
    }

    /// The URL of `path_and_query` on this backend: below the path prefix of its own, where it has one.
    ///
    /// # Errors
    ///
    /// If the two do not make a URL.
    pub fn join(&self, path_and_query: &str) -> Result<Uri, BoxError> {
        let prefix = self.url.path().trim_end_matches('/');
        let mut parts = http::uri::Parts::default();
        parts.scheme = self.url.scheme().cloned();
        parts.authority = self.url.authority().cloned();
        parts.path_and_query = Some(if prefix.is_empty() {
            path_and_query.parse()?
        } else {
            format!("{prefix}{path_and_query}").parse()?
        });
        Ok(Uri::from_parts(parts)?)
    }
}

/// What may be told of a URL: its scheme, host, port and path. What else is in it may be a secret, as is what stands before an
/// `@` wherever that is: who forgets a slash has not forgotten the password.
fn plain(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.rsplit_once('@') {
        None => url.to_owned(),
        Some((before, host)) => {
            before.split_once("://").map_or(host.to_owned(), |(scheme, _)| format!("{scheme}://{host}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_normalized() {
        let check = |url: &str, expected: &str| {
            assert_eq!(&*Backend::new(url).expect("a good URL").name, expected, "{url}");
        };
        check("http://vllm:8000", "http://vllm:8000");
        check("http://vllm:8000/", "http://vllm:8000");
        check("http://vllm:8000/v1", "http://vllm:8000");
        check("https://host/prefix/v1/", "https://host/prefix");
    }

    #[test]
    fn urls_that_name_no_host_are_refused() {
        for url in ["", "vllm:8000", "ftp://x", "http://", "/v1", "http://x/?a=b"] {
            assert!(Backend::new(url).is_err(), "{url}");
        }
    }

    #[test]
    fn no_error_quotes_more_of_a_url_than_where_it_is() {
        for (url, shown) in [
            ("http://z5/a?token=secret", "`http://z5/a` must not have a query"),
            ("ftp://me:secret@z5:21/a", "`ftp://z5:21/a` must start with"),
            ("z5:80?token=secret", "`z5:80` "),
            ("http://a b/?x=secret#secret", "`http://a b/` is not a URL"),
            ("me:secret@z5", "`z5` "),
            ("http:/me:secret@z5/a", "`z5/a` "),
            ("//me:secret@z5", "`z5` "),
            ("me:secret/x@z5:80", "`z5:80` "),
            ("http://me:sec/ret@z5?secret", "`http://z5` "),
        ] {
            let error = Backend::new(url).expect_err("no good URL").to_string();
            assert!(error.contains(shown) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_prefix_stays_before_the_path() {
        let backend = Backend::new("http://host/llm/v1").expect("a good URL");
        assert_eq!(backend.join("/v1/models?a=b").expect("joins").to_string(), "http://host/llm/v1/models?a=b");
    }
}
