//! What serde can't say of the sources of backends: all mistakes at once, each with its key.

use std::{collections::HashMap, time::Duration};

use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::{Map, Value};

use super::{
    super::{BackendConfig, validate_backends},
    BackendDefaults, DiscoveryConfig, DnsRecords, DnsSourceConfig, FileSourceConfig, HttpSourceConfig, SourceType,
};

/// All mistakes in `discovery`: each the key's path below `discovery`, and what is wrong with it. What is off is not looked
/// at, and no text quotes the value of a header.
pub fn validate_discovery(config: &DiscoveryConfig) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    if !config.enabled {
        return mistakes;
    }
    if config.interval.is_zero() {
        mistakes.push(("interval".into(), "must be longer than 0".into()));
    }
    if !config.sources.iter().any(|source| source.enabled) {
        let message = "has no entry that is enabled; give one, or set `discovery.enabled: false`";
        mistakes.push(("sources".into(), message.into()));
    }
    let mut names: HashMap<String, usize> = HashMap::new();
    for (index, source) in config.sources.iter().enumerate().filter(|(_, source)| source.enabled) {
        let mut wrong = |key: &str, message: String| mistakes.push((format!("sources[{index}].{key}"), message));
        let label = source.label();
        if source.name.is_some() && label.trim().is_empty() {
            wrong("name", "is empty; leave it out, or give one".into());
        } else if let Some(other) = names.get(&label) {
            wrong("name", format!("`{label}` is also what discovery.sources[{other}] is called; give each its own"));
        } else if !label.is_empty() {
            names.insert(label, index);
        }
        match source.kind {
            None => wrong("type", "must be given: static, file, dns or http".into()),
            Some(SourceType::Static) if source.fixed.backends.is_empty() => {
                wrong("static.backends", "is empty; list backends as under `backends`, or remove the source".into());
            }
            Some(SourceType::Static) => {
                for (key, message) in validate_backends(&source.fixed.backends) {
                    wrong(&format!("static.backends{key}"), message);
                }
            }
            Some(SourceType::File) => source.file.validate(&mut wrong),
            Some(SourceType::Dns) => source.dns.validate(&mut wrong),
            Some(SourceType::Http) => source.http.validate(&mut wrong),
        }
        if source.kind == Some(SourceType::Static) && !source.backend.0.is_empty() {
            wrong("backend", "is for what is found; write it at the entries of `static.backends`".into());
        } else {
            source.backend.validate(&mut wrong);
        }
    }
    mistakes
}

// === impl BackendDefaults ===

impl BackendDefaults {
    fn validate(&self, wrong: &mut impl FnMut(&str, String)) {
        for key in ["url", "name"].into_iter().filter(|key| self.0.contains_key(*key)) {
            wrong(&format!("backend.{key}"), "is what each backend has of its own; remove it".into());
        }
        // TLS they may speak.
        let probe = Map::from_iter([("url".into(), "https://found".into())]);
        match serde_json::from_value::<BackendConfig>(Value::Object(self.complete(probe))) {
            Ok(probe) => {
                // Of weight 0 they may all be, to be given work by hand.
                let probe = BackendConfig { weight: probe.weight.max(1), ..probe };
                for (key, message) in validate_backends(&[probe]) {
                    wrong(&format!("backend.{}", key.trim_start_matches("[0].")), message);
                }
            }
            // Which value it is must not be said: it may be that of a header.
            Err(_) => wrong("backend", "has a value that no entry of `backends` may have".into()),
        }
    }
}

// === impl FileSourceConfig ===

impl FileSourceConfig {
    fn validate(&self, wrong: &mut impl FnMut(&str, String)) {
        if self.path.as_os_str().is_empty() {
            wrong("file.path", "must be given: the file that has the backends".into());
        }
        if self.interval.is_zero() {
            wrong("file.interval", "must be longer than 0".into());
        }
    }
}

// === impl DnsSourceConfig ===

impl DnsSourceConfig {
    fn validate(&self, wrong: &mut impl FnMut(&str, String)) {
        if self.name.trim().is_empty() {
            wrong("dns.name", "must be given: the name that is looked up".into());
        } else if self.name.contains("://") || self.name.contains([':', '/', ' ']) {
            wrong(
                "dns.name",
                format!("`{}` is not a name; write it like vllm.internal, and its port as `port`", self.name),
            );
        }
        match (self.records, self.port) {
            (DnsRecords::Srv, 1..) => wrong("dns.port", "SRV records say the port; leave this out".into()),
            (DnsRecords::Srv, 0) | (_, 1..) => {}
            (_, 0) => wrong("dns.port", "must be given, from 1 to 65535: addresses have none".into()),
        }
        if self.interval == Some(Duration::ZERO) {
            wrong("dns.interval", "must be longer than 0".into());
        }
        if let Some(server) = &self.server
            && self.server().is_none()
        {
            wrong("dns.server", format!("`{server}` is not an address; write it like 10.0.0.2 or 127.0.0.1:8600"));
        }
    }
}

// === impl HttpSourceConfig ===

impl HttpSourceConfig {
    fn validate(&self, wrong: &mut impl FnMut(&str, String)) {
        match self.url.parse::<Uri>() {
            _ if self.url.is_empty() => wrong("http.url", "must be given: what is asked for backends".into()),
            Ok(url) if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) => {
                wrong("http.url", "must be like http://registry:8080/backends".into());
            }
            Ok(url) if url.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
                wrong("http.url", "must not hold a user name or password; put credentials into `headers`".into());
            }
            Ok(_) => {}
            Err(error) => wrong("http.url", format!("is not a URL: {error}")),
        }
        if self.method.parse::<Method>().is_err() {
            wrong("http.method", format!("`{}` is not an HTTP method; use GET", self.method));
        }
        for (key, zero) in [("interval", self.interval == Some(Duration::ZERO)), ("timeout", self.timeout.is_zero())] {
            if zero {
                wrong(&format!("http.{key}"), "must be longer than 0".into());
            }
        }
        for (name, value) in &self.headers {
            if name.parse::<HeaderName>().is_err() {
                wrong(&format!("http.headers.{name}"), "is not a header name".into());
            } else if value.parse::<HeaderValue>().is_err() {
                wrong(&format!("http.headers.{name}"), "has a value that no header can have, like a line break".into());
            }
        }
    }
}
