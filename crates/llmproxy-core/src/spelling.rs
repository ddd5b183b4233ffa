//! Names of headers that some servers can't tell apart.

use http::HeaderName;

/// Whether `name` is `known`, but for `_` in the place of `-`: servers after CGI (RFC 3875, section 4.1.18), WSGI's among
/// them, read the one as the other.
///
/// ```
/// use http::HeaderName;
/// use llmproxy_core::is_spelling_of;
///
/// let known = HeaderName::from_static("x-api-key");
/// assert!(is_spelling_of(&HeaderName::from_static("x_api-key"), &known));
/// assert!(!is_spelling_of(&HeaderName::from_static("x-api-key-name"), &known));
/// ```
pub fn is_spelling_of(name: &HeaderName, known: &HeaderName) -> bool {
    let (name, known) = (name.as_str().as_bytes(), known.as_str().as_bytes());
    name.len() == known.len()
        && name.iter().zip(known).all(|(byte, known)| byte == known || (*byte == b'_' && *known == b'-'))
}
