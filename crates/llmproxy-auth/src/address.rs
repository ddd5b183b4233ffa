//! Which addresses a key may be used from.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// The networks that a key may and may not be used from. Denied beats allowed.
///
/// ```
/// use llmproxy_auth::{AddressRules, parse_net};
///
/// let rules = AddressRules { allowed: vec![parse_net("10.0.0.0/8")?], denied: vec![parse_net("10.0.0.66")?] };
/// assert!(rules.permit("10.1.2.3".parse().ok()));
/// assert!(!rules.permit("10.0.0.66".parse().ok()));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRules {
    /// Empty means all.
    pub allowed: Vec<IpNet>,
    /// Empty means none.
    pub denied: Vec<IpNet>,
}

/// Reads a network in CIDR notation or a single address. IPv4 written as IPv6 (`::ffff:10.0.0.1`) becomes IPv4.
///
/// # Errors
///
/// A sentence saying what is allowed.
///
/// ```
/// assert_eq!(llmproxy_auth::parse_net("::ffff:10.1.2.3")?.to_string(), "10.1.2.3/32");
/// assert!(llmproxy_auth::parse_net("localhost").is_err());
/// # Ok::<(), String>(())
/// ```
pub fn parse_net(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
        format!("`{text}` is not an address or a network; write it like 10.1.2.3, 10.0.0.0/8 or fd00::/8")
    })?;
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped().map(|v4| (v4, v6.prefix_len() - 96)),
        _ => None,
    };
    let net = mapped.and_then(|(v4, bits)| Ipv4Net::new(v4, bits).ok()).map_or(net, IpNet::V4);
    Ok(net.trunc())
}

// === impl AddressRules ===

impl AddressRules {
    /// Whether a request from `ip` may pass. An unknown address passes only where there are no rules.
    pub fn permit(&self, ip: Option<IpAddr>) -> bool {
        if self.allowed.is_empty() && self.denied.is_empty() {
            return true;
        }
        let Some(ip) = ip.map(|ip| ip.to_canonical()) else { return false };
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        !within(&self.denied) && (self.allowed.is_empty() || within(&self.allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(allowed: &[&str], denied: &[&str], ip: &str, expected: bool) {
        let nets = |texts: &[&str]| texts.iter().map(|text| parse_net(text).unwrap()).collect();
        let rules = AddressRules { allowed: nets(allowed), denied: nets(denied) };
        assert_eq!(rules.permit(ip.parse().ok()), expected, "{allowed:?} {denied:?} {ip}");
    }

    #[test]
    fn without_rules_every_address_passes_and_so_does_an_unknown_one() {
        check(&[], &[], "192.0.2.1", true);
        check(&[], &[], "unknown", true);
    }

    #[test]
    fn denied_beats_allowed() {
        check(&["10.0.0.0/8"], &["10.0.0.0/24"], "10.0.1.1", true);
        check(&["10.0.0.0/8"], &["10.0.0.0/24"], "10.0.0.1", false);
        check(&["10.0.0.1"], &["10.0.0.1"], "10.0.0.1", false);
    }

    #[test]
    fn only_denied_addresses_are_refused_where_nothing_is_allowed_by_name() {
        check(&[], &["10.0.0.0/8"], "192.0.2.1", true);
        check(&[], &["10.0.0.0/8"], "10.9.9.9", false);
    }

    #[test]
    fn ipv4_in_ipv6_is_ipv4() {
        check(&["10.0.0.0/8"], &[], "::ffff:10.1.1.1", true);
        check(&["::ffff:10.0.0.0/104"], &[], "10.1.1.1", true);
        check(&["::ffff:10.0.0.1"], &[], "10.0.0.1", true);
        check(&[], &["10.0.0.0/8"], "::ffff:10.1.1.1", false);
    }

    #[test]
    fn ipv6_networks_are_compared_by_prefix() {
        check(&["fd00::/8"], &[], "fd12::1", true);
        check(&["fd00::/8"], &[], "fe80::1", false);
        check(&["fd00::1"], &[], "fd00::2", false);
    }

    #[test]
    fn bits_behind_the_prefix_do_not_matter() {
        check(&["10.1.2.3/8"], &[], "10.200.0.1", true);
    }

    #[test]
    fn rules_without_a_known_address_refuse() {
        check(&["0.0.0.0/0"], &[], "unknown", false);
        check(&[], &["10.0.0.1"], "unknown", false);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "10.0.0", "10.0.0.0/33", "localhost", "10.0.0.1-10.0.0.9", "*"] {
            assert!(parse_net(text).is_err(), "{text}");
        }
    }
}
