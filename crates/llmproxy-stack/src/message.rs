//! Whether a request's head can be read in one way only.
//!
//! hyper refuses what is no HTTP and frames what is (see the table in docs/operations.md); what it leaves to those who
//! know that they are a gateway is decided here, before anything else looks at the request.

use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
    uri::Authority,
};

use crate::Peer;

/// Why a request is refused by its head alone.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// RFC 9112, section 3.2: each of these must be answered with 400.
    #[error("the request must have exactly one Host header, and HTTP/1.1 asks for one; it has {0}")]
    Hosts(usize),
    #[error("the Host header is no host, or no host and port")]
    Host,
    /// A target that is none of ours: a host and port alone, or `*` with a method that it is not for.
    #[error("the request's target must be a path, or a URL with one")]
    Target,
    /// RFC 9112, section 6.1: what the coding hides can't be framed again.
    #[error("the only Transfer-Encoding that is understood is `chunked`, once; send the body without any other")]
    Coding,
    /// A tunnel to anywhere, and an echo of the backend's own credentials.
    #[error("the method {0} is not offered by a gateway")]
    Method(Method),
}

/// # Errors
///
/// Where the head can be read in two ways, or asks for what a gateway must not do.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), MessageError> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(MessageError::Method(request.method().clone()));
    }
    check_target(request.method(), request.uri())?;
    // What another part of this program hands over came by no connection, and may know no host.
    let is_of_today = request.version() == Version::HTTP_11 && request.extensions().get::<Peer>().is_some();
    check_host(is_of_today, request.headers())?;
    check_coding(request.headers())
}

fn check_target(method: &Method, uri: &Uri) -> Result<(), MessageError> {
    let is_path = uri.path().starts_with('/') && uri.scheme().is_some() == uri.authority().is_some();
    if is_path || is_server_wide(method, uri) { Ok(()) } else { Err(MessageError::Target) }
}

/// `OPTIONS *`: about the server, not about anything on it.
pub(crate) fn is_server_wide(method: &Method, uri: &Uri) -> bool {
    *method == Method::OPTIONS && uri.path() == "*"
}

/// HTTP/1.0 may have none, and HTTP/2 has it in the target.
fn check_host(is_needed: bool, headers: &HeaderMap) -> Result<(), MessageError> {
    let mut hosts = headers.get_all(HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host) => Ok(()),
        (Some(_), None) => Err(MessageError::Host),
        (None, _) if !is_needed => Ok(()),
        (None, _) => Err(MessageError::Hosts(0)),
        (Some(_), Some(_)) => Err(MessageError::Hosts(2 + hosts.count())),
    }
}

/// A client whose URL has no host sends an empty one.
fn is_host(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    bytes.is_empty() || is_plain(bytes) || (!bytes.contains(&b'@') && Authority::try_from(bytes).is_ok())
}

/// Nearly every one: a name or an address, and a port. It needs no copy to be looked at.
fn is_plain(host: &[u8]) -> bool {
    let (name, port) = match host.iter().position(|byte| *byte == b':') {
        Some(colon) => (&host[..colon], &host[colon + 1..]),
        None => (host, &b"80"[..]),
    };
    let is_name = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte));
    is_name && (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit)
}

fn check_coding(headers: &HeaderMap) -> Result<(), MessageError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).into_iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(MessageError::Coding),
    }
}

// === impl MessageError ===

impl MessageError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Hosts(_) | Self::Host | Self::Target => StatusCode::BAD_REQUEST,
            Self::Coding | Self::Method(_) => StatusCode::NOT_IMPLEMENTED,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Hosts(_) | Self::Host => "bad_host",
            Self::Target => "bad_target",
            Self::Coding => "unknown_transfer_coding",
            Self::Method(_) => "method_not_offered",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<(), MessageError> {
        let request = headers.iter().fold(Request::builder().method(method).uri(target), |request, (name, value)| {
            request.header(*name, *value)
        });
        let mut request = request.body(()).expect("a head that the types take");
        request.extensions_mut().insert(Peer(([127, 0, 0, 1], 50_000).into()));
        check(&request)
    }

    #[test]
    fn a_request_has_one_host_or_is_of_a_time_without() {
        let check = |hosts: &[&str], expected: Result<(), MessageError>| {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(checked("GET", "/", &headers), expected, "{hosts:?}");
        };
        for host in ["a", "a.example:8000", "[::1]:80", "127.0.0.1", ""] {
            check(&[host], Ok(()));
        }
        for host in ["a b", "me@a", "a/b", "a:b:c", "http://a"] {
            check(&[host], Err(MessageError::Host));
        }
        check(&[], Err(MessageError::Hosts(0)));
        check(&["a", "a"], Err(MessageError::Hosts(2)));
        check(&["a", "b", "c"], Err(MessageError::Hosts(3)));
        let one = HeaderMap::from_iter([(HOST, HeaderValue::from_static("a"))]);
        assert_eq!((check_host(false, &HeaderMap::new()), check_host(false, &one)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_target_is_a_path_or_a_url() {
        let check = |method: &str, target: &str, expected: Result<(), MessageError>| {
            assert_eq!(checked(method, target, &[("host", "a")]), expected, "{method} {target}");
        };
        check("GET", "/v1/models", Ok(()));
        check("GET", "http://b/v1/models", Ok(()));
        check("GET", "http://b", Ok(()));
        check("OPTIONS", "*", Ok(()));
        check("GET", "*", Err(MessageError::Target));
        check("GET", "b:80", Err(MessageError::Target));
        check("CONNECT", "b:80", Err(MessageError::Method(Method::CONNECT)));
        check("TRACE", "/", Err(MessageError::Method(Method::TRACE)));
    }

    #[test]
    fn the_only_coding_is_chunked_once() {
        let check = |codings: &[&str], expected: Result<(), MessageError>| {
            let codings = codings.iter().map(|coding| ("transfer-encoding", *coding));
            let headers: Vec<_> = [("host", "a")].into_iter().chain(codings).collect();
            assert_eq!(checked("POST", "/", &headers), expected, "{headers:?}");
        };
        check(&[], Ok(()));
        check(&["chunked"], Ok(()));
        check(&["Chunked"], Ok(()));
        for codings in [&["gzip, chunked"][..], &["gzip", "chunked"], &["chunked, chunked"], &["chunked", "chunked"]] {
            check(codings, Err(MessageError::Coding));
        }
    }
}
