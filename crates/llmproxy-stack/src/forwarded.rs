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
/// no `X-Forwarded-For`: a proxy that writes both writes the same into them.
pub(crate) fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    // Nearly always: nothing is read of what a stranger says.
    if !is_trusted(peer, trusted) {
        return peer;
    }
    // Appended to by each proxy on the way: read from the end, as long as the one who wrote is believed.
    let hops: Vec<Option<IpAddr>> = if headers.contains_key(X_FORWARDED_FOR) {
        elements(headers, &X_FORWARDED_FOR).map(address).collect()
    } else {
        elements(headers, &FORWARDED).map(forwarded_for).collect()
    };
    let mut client = peer;
    for hop in hops.into_iter().rev() {
        match hop {
            Some(ip) if is_trusted(client, trusted) => client = ip,
            _ => break,
        }
    }
    client
}

/// The elements of a list that may stand in several lines; a comma between quotes is none that separates.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    lines.flat_map(|line| {
        let mut quoted = false;
        line.split(move |c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
    })
}

/// The address of one hop, with or without a port: `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]`, `[::1]:80`.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let ip = bare.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()))?;
    Some(ip.to_canonical())
}

/// The address in the `for` of one element of `Forwarded`; a name that hides one (`unknown`, `_gateway`) is none.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    address(nodes.next()?.1.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let trusted = ["10.0.0.0/8".parse().expect("a net"), "fd00::/8".parse().expect("a net")];
        let mut map = HeaderMap::new();
        for &(name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        client_ip(peer.parse().expect("an address"), &map, &trusted).to_string()
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
    fn nonsense_in_the_chain_ends_it() {
        check("10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1");
        check("10.0.0.1", &["1.2.3.4, 1.2.3.4.5:80"], "10.0.0.1");
        check("10.0.0.1", &["1.2.3.4,"], "10.0.0.1");
        check("10.0.0.1", &[], "10.0.0.1");
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
            ("for=1.2.3.4, for=_hidden", "10.0.0.1"),
            ("for=1.2.3.4, proto=https", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[("forwarded", value)]), expected, "{value}");
        }
        assert_eq!(client("10.0.0.1", &[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")]), "1.2.3.4");
    }
}
