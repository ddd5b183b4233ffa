//! Where the proxy listens: addresses, and what is encrypted there.

use std::path::PathBuf;

use serde::Deserialize;

/// One listener.
///
/// ```
/// use llmproxy_config::{ListenAddress, ListenerConfig};
///
/// let listener = ListenerConfig { listen: "127.0.0.1:9000".into(), ..ListenerConfig::default() };
/// assert_eq!(listener.address(), Ok(ListenAddress::Host("127.0.0.1".into(), 9000)));
/// assert_eq!(listener.addresses(), ["127.0.0.1:9000"]);
/// assert!(!listener.tls.is_on());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ListenerConfig {
    /// `:8000` for all interfaces, or `host:port`.
    pub listen: String,
    /// Whether and how what passes there is encrypted.
    pub tls: TlsConfig,
}

/// Where to listen, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// On this port of all interfaces.
    All(u16),
    /// On this port of one address or of what a name stands for.
    Host(String, u16),
}

/// The `tls:` block of a listener.
///
/// ```
/// use llmproxy_config::TlsConfig;
///
/// let tls = TlsConfig { cert_file: Some("cert.pem".into()), key_file: Some("key.pem".into()), ..TlsConfig::default() };
/// assert!(tls.is_on() && tls.validate().is_empty());
/// assert!(!TlsConfig { enabled: Some(false), ..tls }.is_on());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TlsConfig {
    /// Whether it is on; where it is left out, whether a certificate is named.
    pub enabled: Option<bool>,
    /// The certificate, with those that it was signed by, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key_file: Option<PathBuf>,
    /// The certificates that clients' certificates must be signed by, in PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients must show a certificate; nobody is asked for one where it is left out.
    pub client_auth: Option<ClientAuth>,
}

/// What is asked of a client's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Nothing: it is not asked for.
    #[default]
    None,
    /// That it is good if there is one.
    Request,
    /// That there is a good one.
    Require,
}

// === impl ListenerConfig ===

impl ListenerConfig {
    /// Where to listen.
    ///
    /// # Errors
    ///
    /// A sentence saying what is allowed, where `listen` names no port.
    pub fn address(&self) -> Result<ListenAddress, String> {
        let text = self.listen.trim();
        let wrong = || format!("`{text}` is no address to listen on; write `:8000` for all interfaces, or `host:port`");
        // A port alone is what remains of `:8000` where YAML or a variable made it a number.
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match (host, bare) {
            ("" | "*", _) => Ok(ListenAddress::All(port)),
            (_, Some(v6)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => Ok(ListenAddress::Host(host.into(), port)),
            (_, None) if !host.contains([':', '/', '[', ']', ' ']) => Ok(ListenAddress::Host(host.into(), port)),
            _ => Err(wrong()),
        }
    }

    /// What to bind, in the order to try: the first that can be had is the one. On all interfaces that is IPv6's, which
    /// takes IPv4 along, then IPv4's alone where a machine has no IPv6. Empty where `listen` is no address.
    pub fn addresses(&self) -> Vec<String> {
        match self.address() {
            Ok(ListenAddress::All(port)) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
            Ok(ListenAddress::Host(host, port)) => vec![format!("{host}:{port}")],
            Err(_) => Vec::new(),
        }
    }

    /// Whether both can't be had at once: one port, and one interface or all.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let read = |listener: &Self| match listener.address().ok()? {
            ListenAddress::Host(host, port) if host != "0.0.0.0" && host != "[::]" => Some((Some(host), port)),
            ListenAddress::All(port) | ListenAddress::Host(_, port) => Some((None, port)),
        };
        match (read(self), read(other)) {
            // 0 is any port that is free.
            (Some((here, port)), Some((there, same))) if port == same && port != 0 => {
                here.is_none() || there.is_none() || here == there
            }
            _ => false,
        }
    }

    /// Everything that is wrong with it: the key below it, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let address = self.address().err().map(|message| ("listen".to_owned(), message));
        let tls = self.tls.validate().into_iter().map(|(key, message)| (format!("tls.{key}"), message));
        address.into_iter().chain(tls).collect()
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Whether the listener speaks TLS.
    pub fn is_on(&self) -> bool {
        self.enabled.unwrap_or_else(|| self.cert_file.is_some() || self.key_file.is_some())
    }

    /// Everything that is wrong with the block: the key below `tls`, and what is allowed. Whether the files can be read is
    /// found out where they are.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        let mut check = |bad: bool, key: &str, message: &str| {
            if bad {
                mistakes.push((key.to_owned(), message.to_owned()));
            }
        };
        if self.enabled == Some(false) {
            return mistakes;
        }
        let names_a_client = self.client_ca_file.is_some() || self.client_auth.unwrap_or_default() != ClientAuth::None;
        check(
            self.cert_file.is_none() && (self.is_on() || names_a_client),
            "cert_file",
            "must be given: the file with the certificate, in PEM; or set enabled to false",
        );
        check(
            self.key_file.is_none() && (self.is_on() || names_a_client),
            "key_file",
            "must be given: the file with the certificate's private key, in PEM; or set enabled to false",
        );
        check(
            self.client_auth.unwrap_or_default() != ClientAuth::None && self.client_ca_file.is_none(),
            "client_ca_file",
            "must be given where client_auth is request or require: the file with the certificates that sign clients', in PEM",
        );
        check(
            self.client_ca_file.is_some() && self.client_auth.is_none(),
            "client_auth",
            "must be given beside client_ca_file: require, or request where a client may have no certificate; none asks nobody",
        );
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(listen: &str) -> Result<ListenAddress, String> {
        ListenerConfig { listen: listen.into(), ..ListenerConfig::default() }.address()
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let host = |name: &str, port| Ok(ListenAddress::Host(name.into(), port));
        assert_eq!(at(":8000"), Ok(ListenAddress::All(8000)));
        assert_eq!(at("*:8000"), Ok(ListenAddress::All(8000)));
        assert_eq!(at("8000"), Ok(ListenAddress::All(8000)));
        assert_eq!(at("127.0.0.1:0"), host("127.0.0.1", 0));
        assert_eq!(at("localhost:8000"), host("localhost", 8000));
        assert_eq!(at("[::1]:8000"), host("[::1]", 8000));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", ":", "localhost", ":99999", "http://localhost:8000", "::1:8000", "[x]:80", "a b:80"] {
            assert!(at(text).is_err(), "{text}");
        }
    }

    #[test]
    fn half_of_what_tls_needs_is_refused_rather_than_served_in_clear() {
        let check = |tls: TlsConfig, expected: &[&str]| {
            let keys: Vec<String> = tls.validate().into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, expected, "{tls:?}");
        };
        let (cert, ca) = (Some("cert.pem".into()), Some("ca.pem".into()));
        let whole = TlsConfig { cert_file: cert.clone(), key_file: Some("key.pem".into()), ..TlsConfig::default() };
        check(TlsConfig::default(), &[]);
        check(TlsConfig { enabled: Some(true), ..TlsConfig::default() }, &["cert_file", "key_file"]);
        check(TlsConfig { cert_file: cert, ..TlsConfig::default() }, &["key_file"]);
        check(TlsConfig { client_ca_file: ca.clone(), ..whole.clone() }, &["client_auth"]);
        check(TlsConfig { client_auth: Some(ClientAuth::Require), ..whole.clone() }, &["client_ca_file"]);
        check(TlsConfig { client_ca_file: ca.clone(), client_auth: Some(ClientAuth::None), ..whole.clone() }, &[]);
        check(TlsConfig { client_ca_file: ca.clone(), client_auth: Some(ClientAuth::Request), ..whole }, &[]);
        check(
            TlsConfig { client_ca_file: ca, client_auth: Some(ClientAuth::Require), ..TlsConfig::default() },
            &["cert_file", "key_file"],
        );
        check(TlsConfig { enabled: Some(false), client_auth: Some(ClientAuth::Require), ..TlsConfig::default() }, &[]);
    }
}
