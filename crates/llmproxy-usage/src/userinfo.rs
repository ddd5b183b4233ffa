//! Credentials that stand in a URL.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri, uri::Authority};
use percent_encoding::percent_decode_str;

/// Parts a URL from its `user:password@`, and makes of that what a request has in Authorization (RFC 7617), as Go's client and
/// curl do.
pub(crate) fn part(url: Uri) -> (Uri, Option<HeaderValue>) {
    let Some((userinfo, host)) = url.authority().and_then(|authority| authority.as_str().rsplit_once('@')) else {
        return (url, None);
    };
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    let basic = STANDARD.encode([&*decoded(user), b":", &*decoded(password)].concat());
    let header = HeaderValue::try_from(format!("Basic {basic}")).ok().map(|mut value| {
        value.set_sensitive(true);
        value
    });
    let mut parts = url.clone().into_parts();
    parts.authority = host.parse::<Authority>().ok();
    match Uri::from_parts(parts) {
        Ok(bare) => (bare, header),
        Err(_) => (url, header),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_parted_from_the_url() {
        let check = |url: &str, bare: &str, credentials: Option<&str>| {
            let (found, header) = part(url.parse().unwrap());
            let expected = credentials.map(|text| format!("Basic {}", STANDARD.encode(text)));
            assert_eq!(
                (found.to_string(), header.map(|value| value.to_str().unwrap().to_owned())),
                (bare.into(), expected)
            );
        };
        check("http://host/usage?x=1", "http://host/usage?x=1", None);
        check("https://me:secret@host:8443/usage", "https://host:8443/usage", Some("me:secret"));
        check("http://me@host/", "http://host/", Some("me:"));
        check("http://a%40b:p%3A%20q@host/", "http://host/", Some("a@b:p: q"));
        check("http://a:b:c@[::1]:80/", "http://[::1]:80/", Some("a:b:c"));
    }
}
