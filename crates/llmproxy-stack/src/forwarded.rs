//! Who the client is, where proxies before us pass requests on: `X-Forwarded-For`, and `Forwarded` (RFC 7239).

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whether `ip` is that of a proxy which is believed.
pub(crate) fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&ip))
}

/// The last address of the chain that no trusted proxy vouches for; `peer` is its end. `Forwarded` counts where there is
/// no `X-Forwarded-For`: of a proxy that writes both, both say the same.
///
/// `None` where the one before a trusted proxy can't be read: who that is is not known, and the proxy itself it is not.
pub(crate) fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    // Nearly always: nothing is read of what a stranger says.
    if !is_trusted(peer, trusted) {
        return Some(peer);
    }
    // Appended to by each proxy on the way: read from the end, as long as the one who wrote is believed. Whatever stands
    // further left is a stranger's, and must not change how the right is read.
    let lines = |name| headers.get_all(name).into_iter().rev().map(HeaderValue::as_bytes);
    if headers.contains_key(X_FORWARDED_FOR) {
        // A quote means nothing here.
        last_untrusted(peer, trusted, lines(X_FORWARDED_FOR).flat_map(|line| line.rsplit(|b| *b == b',')).map(address))
    } else {
        last_untrusted(peer, trusted, lines(FORWARDED).flat_map(|line| from_the_end(line, b',')).map(forwarded_for))
    }
}

fn last_untrusted(peer: IpAddr, trusted: &[IpNet], hops: impl Iterator<Item = Option<IpAddr>>) -> Option<IpAddr> {
    let mut client = peer;
    for hop in hops {
        client = hop?;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    Some(client)
}

/// What stands between separators outside of quotes (RFC 9110, section 5.6.4), the last first. What a quote without its
/// partner makes of the beginning is nothing.
fn from_the_end(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let mut quoted = false;
        let at = (0..line.len()).rev().find(|&at| {
            quoted ^= line[at] == b'"' && !is_escaped(&line[..at]);
            line[at] == separator && !quoted
        });
        rest = at.map(|at| &line[..at]);
        Some(match at {
            Some(at) => &line[at + 1..],
            None if quoted => b"",
            None => line,
        })
    })
}

/// Whether what follows `before` in quotes is itself meant.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The address of one hop, with or without a port: `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]`, `[::1]:80`.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let ip = bare.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()))?;
    Some(ip.to_canonical())
}

/// The address in the `for` of one element of `Forwarded`; a name that hides one (`unknown`, `_gateway`) is none, and of two
/// one may be a stranger's.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut nodes = from_the_end(element, b';').filter_map(|pair| {
        let (name, node) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        name.trim_ascii().eq_ignore_ascii_case(b"for").then(|| node[1..].trim_ascii())
    });
    let (Some(node), None) = (nodes.next(), nodes.next()) else { return None };
    address(node.strip_prefix(b"\"").and_then(|node| node.strip_suffix(b"\"")).unwrap_or(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, headers: &[(&'static str, impl AsRef<[u8]>)]) -> String {
        let trusted = ["10.0.0.0/8".parse().expect("a net"), "fd00::/8".parse().expect("a net")];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_ref()).expect("no control characters"));
        }
        let client = client_ip(peer.parse().expect("an address"), &map, &trusted);
        client.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string())
    }

    fn check(peer: &str, forwarded: &[&'static str], expected: &str) {
        let headers: Vec<_> = forwarded.iter().map(|&value| ("x-forwarded-for", value)).collect();
        assert_eq!(client(peer, &headers), expected, "{forwarded:?}");
    }

    #[test]
    fn a_stranger_s_word_about_its_address_counts_nothing() {
        check("9.9.9.9", &["1.2.3.4"], "9.9.9.9");
        assert_eq!(client("9.9.9.9", &[("forwarded", "for=1.2.3.4")]), "9.9.9.9");
    }

    #[test]
    fn a_trusted_proxy_s_word_counts_and_what_was_there_before_does_not() {
        check("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6", "1.2.3.4, 10.0.0.7"], "1.2.3.4");
        check("10.0.0.1", &["10.0.0.9, 10.0.0.7"], "10.0.0.9");
    }

    #[test]
    fn whom_a_trusted_proxy_does_not_name_is_not_the_proxy() {
        check("10.0.0.1", &["1.2.3.4, unknown"], "unknown");
        check("10.0.0.1", &["1.2.3.4, 1.2.3.4.5:80"], "unknown");
        check("10.0.0.1", &["1.2.3.4,"], "unknown");
        check("10.0.0.1", &[""], "unknown");
        check("10.0.0.1", &["1.2.3.4, unknown, 10.0.0.7"], "unknown");
        check("10.0.0.1", &["nonsense, 10.0.0.9, 1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &[], "10.0.0.1");
    }

    #[test]
    fn a_stranger_s_bytes_do_not_change_what_a_trusted_proxy_says() {
        for before in
            ["\"", "\"\"", "\\", "\"\\", "\u{e9}", "for=", ",", ";", "", "[", "for=\"", "for=\"\\", "for=\"a;\\\""]
        {
            for value in [format!("{before}, 6.6.6.6"), format!("{before},6.6.6.6, 10.0.0.7")] {
                assert_eq!(client("10.0.0.1", &[("x-forwarded-for", &value)]), "6.6.6.6", "{value}");
            }
            assert_eq!(client("10.0.0.1", &[("x-forwarded-for", before), ("x-forwarded-for", "6.6.6.6")]), "6.6.6.6");
            for said in ["for=6.6.6.6", "for=\"6.6.6.6:80\";host=\"a\\\",b\"", "host=\"a;for=10.0.0.7\";for=6.6.6.6"] {
                for value in [format!("{before}, {said}"), format!("{before},{said}, for=10.0.0.7;host=\"b\\\\\"")] {
                    assert_eq!(client("10.0.0.1", &[("forwarded", &value)]), "6.6.6.6", "{value}");
                }
            }
        }
        assert_eq!(client("10.0.0.1", &[("x-forwarded-for", b"\xff, 6.6.6.6")]), "6.6.6.6");
        assert_eq!(client("10.0.0.1", &[("x-forwarded-for", b"6.6.6.6, \xff")]), "unknown");
        assert_eq!(client("10.0.0.1", &[("forwarded", b"for=\xff, for=6.6.6.6")]), "6.6.6.6");
    }

    #[test]
    fn a_hop_may_have_a_port_or_brackets() {
        for (hop, expected) in [
            ("1.2.3.4:567", "1.2.3.4"),
            ("[::1]:80", "::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("[::ffff:1.2.3.4]:5", "1.2.3.4"),
        ] {
            check("10.0.0.1", &[hop], expected);
        }
        check("10.0.0.1", &["1.2.3.4:5, [fd00::7]:80"], "1.2.3.4");
    }

    #[test]
    fn the_standard_header_is_read_where_the_common_one_is_not_there() {
        for (value, expected) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("For=\"[2001:db8::1]:4711\";proto=https", "2001:db8::1"),
            ("for=6.6.6.6, proto=http; for=\"1.2.3.4:80\" ;host=\"a,b\"", "1.2.3.4"),
            ("for=1.2.3.4, for=10.0.0.7", "1.2.3.4"),
            ("for=1.2.3.4, for=_hidden", "unknown"),
            ("for=1.2.3.4, proto=https", "unknown"),
            ("for=1.2.3.4, for=6.6.6.6;host=a;for=10.0.0.7", "unknown"),
            ("for=1.2.3.4;host=\"a", "unknown"),
        ] {
            assert_eq!(client("10.0.0.1", &[("forwarded", value)]), expected, "{value}");
        }
        assert_eq!(client("10.0.0.1", &[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")]), "1.2.3.4");
    }
}
