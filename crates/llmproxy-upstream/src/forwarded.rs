//! What a backend is told of where a request comes from: `X-Forwarded-For`, `-Proto`, `-Host`, and `Forwarded` (RFC 7239).

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};
use llmproxy_core::{Hop, is_spelling_of};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Lists that each proxy adds to; they are put together anew.
const LISTS: [HeaderName; 2] = [X_FORWARDED_FOR, FORWARDED];
/// What only a proxy can say. A client that says it itself wants to pass for another.
const CLAIMS: [HeaderName; 4] = [
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// Who the client is, as the proxy knows it by its key.
const IDENTITY: [HeaderName; 2] =
    [HeaderName::from_static("x-api-key-userid"), HeaderName::from_static("x-api-key-name")];

/// Whether a name with `_` is that of a header that only a proxy writes, in a spelling that servers after CGI (RFC 3875,
/// section 4.1.18), WSGI's among them, can't tell from it. No proxy writes it so, trusted or not.
pub(crate) fn is_disguised(name: &HeaderName) -> bool {
    LISTS.iter().chain(&CLAIMS).chain(&IDENTITY).any(|known| is_spelling_of(name, known))
}

/// Whether a header of that name goes on as [`append`] writes it, or not at all.
pub(crate) fn is_rewritten(name: &HeaderName, hop: Hop) -> bool {
    LISTS.contains(name) || (!hop.trusted && CLAIMS.contains(name))
}

/// Adds the connection that the request came by: to the lists in `believed`, and to `sent`, in which everything else is
/// already that is believed. `host` is the one that the client asked for.
pub(crate) fn append(
    sent: &mut HeaderMap,
    hop: Hop,
    host: Option<&HeaderValue>,
    believed: &[(&HeaderName, &HeaderValue)],
) {
    let proto = if hop.tls { "https" } else { "http" };
    let address = match hop.ip {
        IpAddr::V4(ip) => dotted(ip),
        IpAddr::V6(ip) => ip.to_string(),
    };
    let element = element(hop.ip, &address, host, proto);
    // A proxy that keeps one of the two lists knows of clients what the other would lack: begun here, with that proxy, it
    // would name another client.
    let is_kept = believed.iter().any(|(name, _)| LISTS.contains(name));
    for (name, last) in LISTS.into_iter().zip([address, element]) {
        let before = || believed.iter().filter(|(found, _)| **found == name).map(|(_, value)| value.as_bytes());
        if is_kept && before().next().is_none() {
            continue;
        }
        if let Some(list) = joined(before(), last) {
            sent.insert(name, list);
        }
    }
    // The first proxy knows what the client did; those after it keep what it said.
    if !sent.contains_key(X_FORWARDED_PROTO) {
        sent.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if let Some(host) = host
        && !sent.contains_key(X_FORWARDED_HOST)
    {
        sent.insert(X_FORWARDED_HOST, host.clone());
    }
}

/// One element of `Forwarded`. Put together by hand, as is all of this: it is done for every request, and the formatting
/// machinery takes several times as long.
fn element(ip: IpAddr, address: &str, host: Option<&HeaderValue>, proto: &str) -> String {
    let mut element = String::with_capacity(64 + host.map_or(0, HeaderValue::len));
    // RFC 7239, section 6: an IPv6 address stands in brackets and so in quotes.
    let (open, close) = if ip.is_ipv6() { ("\"[", "]\"") } else { ("", "") };
    for part in ["for=", open, address, close] {
        element.push_str(part);
    }
    // Quoted, since most hosts have a port; one that would end the quotes early is no host.
    let host = host.and_then(|host| host.to_str().ok()).filter(|host| !host.contains(['"', '\\']));
    for part in host.map(|host| [";host=\"", host, "\""]).into_iter().flatten() {
        element.push_str(part);
    }
    element.push_str(";proto=");
    element.push_str(proto);
    element
}

fn joined<'a>(before: impl Iterator<Item = &'a [u8]>, last: String) -> Option<HeaderValue> {
    let mut list = Vec::new();
    for value in before {
        list.extend_from_slice(value);
        list.extend_from_slice(b", ");
    }
    if list.is_empty() {
        return HeaderValue::try_from(last).ok();
    }
    list.extend_from_slice(last.as_bytes());
    HeaderValue::try_from(list).ok()
}

fn dotted(ip: Ipv4Addr) -> String {
    let mut text = String::with_capacity(15);
    for (index, octet) in ip.octets().into_iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        for (least, divisor) in [(100, 100), (10, 10), (0, 1)] {
            if octet >= least {
                text.push(char::from(b'0' + octet / divisor % 10));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hop: Hop, host: Option<&'static str>, believed: &[(&'static str, &'static str)], expected: &[&str]) {
        let host = host.map(HeaderValue::from_static);
        let mut sent = HeaderMap::new();
        let believed: Vec<(HeaderName, HeaderValue)> = believed
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        for (name, value) in believed.iter().filter(|(name, _)| !is_rewritten(name, hop)) {
            sent.append(name, value.clone());
        }
        let believed: Vec<_> = believed.iter().map(|(name, value)| (name, value)).collect();
        append(&mut sent, hop, host.as_ref(), &believed);
        let mut lines: Vec<String> =
            sent.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_client_is_told_of_in_both_ways() {
        let hop = Hop { ip: [10, 0, 0, 1].into(), tls: false, trusted: false };
        let expected = [
            "forwarded: for=10.0.0.1;host=\"api.example:8000\";proto=http",
            "x-forwarded-for: 10.0.0.1",
            "x-forwarded-host: api.example:8000",
            "x-forwarded-proto: http",
        ];
        check(hop, Some("api.example:8000"), &[], &expected);
        let hop = Hop { ip: "2001:db8::1".parse().unwrap(), tls: true, trusted: false };
        let expected = [
            "forwarded: for=\"[2001:db8::1]\";proto=https",
            "x-forwarded-for: 2001:db8::1",
            "x-forwarded-proto: https",
        ];
        check(hop, None, &[], &expected);
    }

    #[test]
    fn what_a_trusted_proxy_says_stays_and_grows_by_one() {
        let hop = Hop { ip: [10, 0, 0, 1].into(), tls: false, trusted: true };
        let believed = [
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
            ("x-forwarded-for", "3.3.3.3"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "api.example"),
            ("x-real-ip", "1.1.1.1"),
        ];
        let expected = [
            "forwarded: for=1.1.1.1, for=10.0.0.1;host=\"inner\";proto=http",
            "x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1",
            "x-forwarded-host: api.example",
            "x-forwarded-proto: https",
            "x-real-ip: 1.1.1.1",
        ];
        check(hop, Some("inner"), &believed, &expected);
    }

    #[test]
    fn a_list_that_a_trusted_proxy_does_not_keep_is_not_begun_with_that_proxy() {
        let hop = Hop { ip: [10, 0, 0, 1].into(), tls: false, trusted: true };
        let expected = ["x-forwarded-for: 6.6.6.6, 10.0.0.1", "x-forwarded-proto: http"];
        check(hop, None, &[("x-forwarded-for", "6.6.6.6")], &expected);
        let expected = ["forwarded: for=6.6.6.6, for=10.0.0.1;proto=http", "x-forwarded-proto: http"];
        check(hop, None, &[("forwarded", "for=6.6.6.6")], &expected);
        // What asks by itself, such as a probe, is its own client.
        let expected = ["forwarded: for=10.0.0.1;proto=http", "x-forwarded-for: 10.0.0.1", "x-forwarded-proto: http"];
        check(hop, None, &[], &expected);
    }

    #[test]
    fn a_host_that_is_none_does_not_get_out_of_its_quotes() {
        let hop = Hop { ip: [10, 0, 0, 1].into(), tls: false, trusted: false };
        let element = element(hop.ip, "10.0.0.1", Some(&HeaderValue::from_static("a\";for=6.6.6.6")), "http");
        assert_eq!(element, "for=10.0.0.1;proto=http");
    }

    #[test]
    fn addresses_are_written_as_they_are_elsewhere() {
        for ip in [[0, 0, 0, 0], [255, 255, 255, 255], [10, 100, 9, 99], [1, 20, 101, 200]].map(Ipv4Addr::from) {
            assert_eq!(dotted(ip), ip.to_string());
        }
    }
}
