//! URLs as the client library wants them, and as people may see them.

use std::{net::IpAddr, sync::Arc};

use http::Uri;
use reqwest::Url;

use crate::UpstreamError;

/// Scheme, host and port: what names a server without giving away a password or a path.
pub(crate) fn origin(uri: &Uri) -> Arc<str> {
    let (scheme, host) = (uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default());
    match uri.port() {
        Some(port) => format!("{scheme}://{host}:{port}").into(),
        None => format!("{scheme}://{host}").into(),
    }
}

pub(crate) fn is_tls(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// Whether the host is an address rather than a name.
pub(crate) fn is_address(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

/// `uri` for the client library, which percent-encodes what should have been (quotes, angle and curly brackets), and would
/// also resolve dot segments and turn backslashes around: a path that would so become another one is refused.
pub(crate) fn render(uri: &Uri, backend: &Arc<str>) -> Result<Url, UpstreamError> {
    let wrong = || UpstreamError::Path { backend: backend.clone() };
    let url = Url::parse(&uri.to_string()).map_err(|_| wrong())?;
    let is_same = is_same_but_for_encoding(uri.path(), url.path())
        && is_same_but_for_encoding(uri.query().unwrap_or_default(), url.query().unwrap_or_default());
    if is_same { Ok(url) } else { Err(wrong()) }
}

fn is_same_but_for_encoding(asked: &str, rendered: &str) -> bool {
    let mut rendered = rendered.as_bytes();
    for &byte in asked.as_bytes() {
        let encoded = [b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
        let rest = match rendered.split_first() {
            Some((&first, rest)) if first == byte => Some(rest),
            _ => rendered.strip_prefix(&encoded),
        };
        let Some(rest) = rest else { return false };
        rendered = rest;
    }
    rendered.is_empty()
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(path: &str) -> Option<String> {
        let uri: Uri = format!("http://host:8000{path}").parse().unwrap();
        let url = render(&uri, &origin(&uri)).ok()?;
        Some(url.as_str().strip_prefix("http://host:8000").unwrap().into())
    }

    #[test]
    fn what_is_well_formed_is_sent_as_it_is() {
        for path in [
            "/v1/models",
            "/v1//models/",
            "/v1/models/a%2Fb%20c",
            "/v1/models/meta-llama:8b@x;y=1,2!*()~$&+'[]|^",
            "/v1/models?a=b&c=%20+&d=[x]|^`\\..",
            "/?",
            "/v1/models/a...b/.hidden",
        ] {
            assert_eq!(rendered(path).as_deref(), Some(path));
        }
    }

    #[test]
    fn what_should_have_been_encoded_is() {
        assert!(rendered("/v1/models?q='x'").unwrap().ends_with("?q=%27x%27"));
        assert!(rendered("/v1/{a}").unwrap().ends_with("/v1/%7Ba%7D"));
    }

    #[test]
    fn a_path_that_would_become_another_is_refused() {
        for path in ["/v1/../admin", "/v1/./models", "/v1/%2e%2E/admin", "/v1\\models", "/.."] {
            assert_eq!(rendered(path), None, "{path}");
        }
    }

    #[test]
    fn a_name_is_told_from_an_address() {
        let check = |url: &str, expected: bool| assert_eq!(is_address(&url.parse().unwrap()), expected, "{url}");
        check("http://127.0.0.1:8000", true);
        check("http://[::1]:8000", true);
        check("http://vllm:8000", false);
        check("http://localhost", false);
    }

    #[test]
    fn a_server_is_named_without_its_password() {
        assert_eq!(&*origin(&"http://user:secret@host:8000/prefix".parse().unwrap()), "http://host:8000");
        assert_eq!(&*origin(&"https://host/prefix".parse().unwrap()), "https://host");
        assert_eq!(&*origin(&"http://[::1]:80".parse().unwrap()), "http://[::1]:80");
    }
}
