//! The `server:` block: what the listeners do.

use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::{CorsConfig, ListenerConfig, TlsConfig};

/// The listeners and what they allow a client.
///
/// ```
/// let server = llmproxy_config::ServerConfig::default();
/// assert_eq!(server.all_listeners()[0].addresses(), ["[::]:8000", "0.0.0.0:8000"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Where to listen: `:8000` on all interfaces, or `host:port`. Empty where only `listeners` say it.
    pub listen: String,
    /// What is encrypted there.
    pub tls: TlsConfig,
    /// More places to listen at.
    pub listeners: Vec<ListenerConfig>,
    /// What HTTP/2 clients may do.
    pub http2: Http2Config,
    /// How many connections may be open at a time, over all listeners; 0 for any number.
    pub max_connections: usize,
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
    /// The most headers that a request may have.
    pub max_headers: usize,
    /// The largest body of a request that is read whole, in bytes.
    pub max_body_size: u64,
    /// The largest body that passes through, in bytes; as `max_body_size` where it is absent.
    pub max_upload_size: Option<u64>,
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
    /// Which pages of other origins may ask.
    pub cors: CorsConfig,
}

/// The `http2:` block: what a client may do on one HTTP/2 connection.
///
/// ```
/// assert!(llmproxy_config::Http2Config::default().enabled);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Http2Config {
    /// Whether HTTP/2 is spoken at all.
    pub enabled: bool,
    /// How many requests may be under way on a connection at a time.
    pub max_streams: u32,
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
    /// Ten thousand: far more streams than a machine's models serve, and some hundred megabytes where each is an idle one.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 10_000;
    /// 100, which is also what the HTTP library has room for without asking for memory.
    pub const DEFAULT_MAX_HEADERS: usize = 100;
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

    /// All listeners: that of `listen` and `tls`, unless only others are named, then those of `listeners`.
    ///
    /// ```
    /// use llmproxy_config::{ListenerConfig, ServerConfig};
    ///
    /// let more = ListenerConfig { listen: ":8443".into(), ..ListenerConfig::default() };
    /// let server = ServerConfig { listeners: vec![more], ..ServerConfig::default() };
    /// let addresses: Vec<String> = server.all_listeners().into_iter().map(|listener| listener.listen).collect();
    /// assert_eq!(addresses, [":8000", ":8443"]);
    /// ```
    pub fn all_listeners(&self) -> Vec<ListenerConfig> {
        let first = ListenerConfig { listen: self.listen.clone(), tls: self.tls.clone() };
        let first = (!self.has_only_listeners()).then_some(first);
        first.into_iter().chain(self.listeners.iter().cloned()).collect()
    }

    /// Whether `listen` was left out beside `listeners`.
    fn has_only_listeners(&self) -> bool {
        self.listen.is_empty() && !self.listeners.is_empty()
    }

    /// Everything that is wrong with the block: the key below `server`, and what is allowed.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        let mut check = |bad: bool, key: &str, message: String| {
            if bad {
                mistakes.push((key.to_owned(), message));
            }
        };
        if self.has_only_listeners() {
            check(
                self.tls != TlsConfig::default() && self.tls.enabled != Some(false),
                "tls",
                "is for server.listen, which is not given beside server.listeners; move it into the listener that it is for"
                    .into(),
            );
        } else {
            let first = ListenerConfig { listen: self.listen.clone(), tls: self.tls.clone() };
            first.validate().into_iter().for_each(|(key, message)| check(true, &key, message));
        }
        for (index, listener) in self.listeners.iter().enumerate() {
            for (key, message) in listener.validate() {
                check(true, &format!("listeners[{index}].{key}"), message);
            }
        }
        for (key, value) in [
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            check(value.is_zero(), key, "must be longer than 0; leave it out for the default".into());
        }
        check(self.max_headers == 0, "max_headers", "must be larger than 0; leave it out for the default".into());
        check(
            self.http2.max_streams == 0,
            "http2.max_streams",
            "must be larger than 0; to turn HTTP/2 off, set server.http2.enabled to false".into(),
        );
        let least = Self::MIN_HEADER_BYTES;
        check(self.max_header_bytes < least, "max_header_bytes", format!("must be at least {least}"));
        check(self.max_body_size == 0, "max_body_size", "must be larger than 0".into());
        check(
            self.max_upload_size == Some(0),
            "max_upload_size",
            "must be larger than 0; leave it out for max_body_size".into(),
        );
        check(
            self.max_buffered_bytes < self.max_body_size,
            "max_buffered_bytes",
            format!("must be at least server.max_body_size ({}), or the largest body never fits", self.max_body_size),
        );
        mistakes.extend(self.cors.validate());
        mistakes
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: Self::DEFAULT_LISTEN.into(),
            tls: TlsConfig::default(),
            listeners: Vec::new(),
            http2: Http2Config::default(),
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            read_timeout: Self::DEFAULT_READ_TIMEOUT,
            write_timeout: Self::DEFAULT_WRITE_TIMEOUT,
            idle_timeout: Self::DEFAULT_IDLE_TIMEOUT,
            max_header_bytes: Self::DEFAULT_MAX_HEADER_BYTES,
            max_headers: Self::DEFAULT_MAX_HEADERS,
            max_body_size: Self::DEFAULT_MAX_BODY_SIZE,
            max_upload_size: None,
            max_buffered_bytes: Self::DEFAULT_MAX_BUFFERED_BYTES,
            shutdown_timeout: Self::DEFAULT_SHUTDOWN_TIMEOUT,
            trusted_proxies: Vec::new(),
            heartbeat: None,
            cors: CorsConfig::default(),
        }
    }
}

// === impl Http2Config ===

impl Http2Config {
    /// 256 requests at a time on a connection: many for one client, and a bound for what it may have begun.
    pub const DEFAULT_MAX_STREAMS: u32 = 256;
}

impl Default for Http2Config {
    fn default() -> Self {
        Self { enabled: true, max_streams: Self::DEFAULT_MAX_STREAMS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_s_mistakes_are_named_by_its_place() {
        let listener = ListenerConfig { listen: "here".into(), ..ListenerConfig::default() };
        let config = ServerConfig { listeners: vec![listener.clone(), listener], ..ServerConfig::default() };
        let keys: Vec<String> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["listeners[0].listen", "listeners[1].listen"]);
    }

    #[test]
    fn encryption_for_a_listener_that_is_not_there_is_refused() {
        let listener = ListenerConfig { listen: ":8443".into(), ..ListenerConfig::default() };
        let tls = TlsConfig { cert_file: Some("c".into()), key_file: Some("k".into()), ..TlsConfig::default() };
        let config = ServerConfig { listen: String::new(), tls, listeners: vec![listener], ..ServerConfig::default() };
        let keys: Vec<String> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["tls"]);
    }

    #[test]
    fn sizes_that_could_never_work_are_refused() {
        let config = ServerConfig { max_header_bytes: 100, max_body_size: 0, ..ServerConfig::default() };
        let keys: Vec<String> = config.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["max_header_bytes", "max_body_size"]);
        assert!(ServerConfig::default().validate().is_empty());
    }
}
