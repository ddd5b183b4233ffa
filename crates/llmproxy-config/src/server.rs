//! The `server:` block: what the listener does.

use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

/// The listener and what it allows a client.
///
/// ```
/// let server = llmproxy_config::ServerConfig::default();
/// assert_eq!(server.addresses(), ["[::]:8000", "0.0.0.0:8000"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Where to listen: `:8000` on all interfaces, or `host:port`.
    pub listen: String,
    /// The longest wait for a request's head, and for each next piece of its body.
    #[serde(with = "llmproxy_core::duration")]
    pub read_timeout: Duration,
    /// How long a client may go without reading while an answer waits for it.
    #[serde(with = "llmproxy_core::duration")]
    pub write_timeout: Duration,
    /// How long a connection without a request is kept.
    #[serde(with = "llmproxy_core::duration")]
    pub idle_timeout: Duration,
    /// The largest head, in bytes.
    pub max_header_bytes: u64,
    /// The largest body of a request that is read whole, in bytes.
    pub max_body_size: u64,
    /// The most that all bodies together may take while they are held, in bytes.
    pub max_buffered_bytes: u64,
    /// How long requests under way may take to finish once the proxy is told to stop.
    #[serde(with = "llmproxy_core::duration")]
    pub shutdown_timeout: Duration,
    /// Proxies before this one whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// After how much silence a stream gets a comment to keep connections open; none where it is absent.
    #[serde(with = "llmproxy_core::duration::option")]
    pub heartbeat: Option<Duration>,
}

/// Where to listen, taken apart.
///
/// ```
/// use llmproxy_config::{ListenAddress, ServerConfig};
///
/// let server = ServerConfig { listen: "127.0.0.1:9000".into(), ..ServerConfig::default() };
/// assert_eq!(server.listen_address(), Ok(ListenAddress::Host("127.0.0.1".into(), 9000)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// On this port of all interfaces.
    All(u16),
    /// On this port of one address or of what a name stands for.
    Host(String, u16),
}

// === impl ServerConfig ===

impl ServerConfig {
    /// All interfaces, port 8000.
    pub const DEFAULT_LISTEN: &str = ":8000";
    /// 30 s.
    pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(30);
    /// 60 s.
    pub const DEFAULT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
    /// 120 s.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
    /// 1 MiB, in bytes.
    pub const DEFAULT_MAX_HEADER_BYTES: u64 = 1024 * 1024;
    /// 8 KiB, in bytes: the smallest buffer that the HTTP library reads a head into.
    pub const MIN_HEADER_BYTES: u64 = 8192;
    /// 10 MiB, in bytes.
    pub const DEFAULT_MAX_BODY_SIZE: u64 = 10 * 1024 * 1024;
    /// 256 MiB, in bytes.
    pub const DEFAULT_MAX_BUFFERED_BYTES: u64 = 256 * 1024 * 1024;
    /// 30 s.
    pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

    /// Where to listen.
    ///
    /// # Errors
    ///
    /// A sentence saying what is allowed, where `listen` names no port.
    pub fn listen_address(&self) -> Result<ListenAddress, String> {
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
        match self.listen_address() {
            Ok(ListenAddress::All(port)) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
            Ok(ListenAddress::Host(host, port)) => vec![format!("{host}:{port}")],
            Err(_) => Vec::new(),
        }
    }

    /// Everything that is wrong with the block: the key below `server`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        let mut check = |bad: bool, key: &str, message: String| {
            if bad {
                mistakes.push((key.to_owned(), message));
            }
        };
        if let Err(message) = self.listen_address() {
            check(true, "listen", message);
        }
        for (key, value) in [
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            check(value.is_zero(), key, "must be longer than 0; leave it out for the default".into());
        }
        let least = Self::MIN_HEADER_BYTES;
        check(self.max_header_bytes < least, "max_header_bytes", format!("must be at least {least}"));
        check(self.max_body_size == 0, "max_body_size", "must be larger than 0".into());
        check(
            self.max_buffered_bytes < self.max_body_size,
            "max_buffered_bytes",
            format!("must be at least server.max_body_size ({}), or the largest body never fits", self.max_body_size),
        );
        mistakes
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: Self::DEFAULT_LISTEN.into(),
            read_timeout: Self::DEFAULT_READ_TIMEOUT,
            write_timeout: Self::DEFAULT_WRITE_TIMEOUT,
            idle_timeout: Self::DEFAULT_IDLE_TIMEOUT,
            max_header_bytes: Self::DEFAULT_MAX_HEADER_BYTES,
            max_body_size: Self::DEFAULT_MAX_BODY_SIZE,
            max_buffered_bytes: Self::DEFAULT_MAX_BUFFERED_BYTES,
            shutdown_timeout: Self::DEFAULT_SHUTDOWN_TIMEOUT,
            trusted_proxies: Vec::new(),
            heartbeat: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(listen: &str) -> Result<ListenAddress, String> {
        ServerConfig { listen: listen.into(), ..ServerConfig::default() }.listen_address()
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
    fn sizes_that_could_never_work_are_refused() {
        let config = ServerConfig { max_header_bytes: 100, max_body_size: 0, ..ServerConfig::default() };
        let keys: Vec<String> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["max_header_bytes", "max_body_size"]);
        assert!(ServerConfig::default().validate().is_empty());
    }
}
