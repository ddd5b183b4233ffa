//! Values that fit the table, made into the parts' own types and checked by them.

use std::{fs, mem, path::Path, time::Duration};

use figment::{
    error::{Actual, Kind as ErrorKind},
    value::{Dict, Value},
};
use llmproxy_balancer::{
    BackendConfig, DiscoveryConfig, HealthCheckConfig, QueueConfig, RoutingConfig, validate_backends,
    validate_discovery, validate_health_check, validate_queue, validate_routes, validate_routing,
};
use llmproxy_core::duration;
use llmproxy_metering::{InspectConfig, MeteringConfig};
use llmproxy_sse::SseConfig;
use llmproxy_upstream::check_certificates;
use llmproxy_usage::Stores;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Config, ListenerConfig, Mistake, Warning,
    idle::idle,
    table::{self, Kind},
    tree,
};

const NO_BACKEND: &str = "at least one is needed, such as:\nbackends:\n  - url: http://localhost:11434";

/// What `routing:` says to other parts than the balancer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Streams {
    #[serde(with = "duration::option")]
    gap_timeout: Option<Duration>,
}

/// Makes the configuration, adding what is wrong with it to `mistakes`.
pub(crate) fn compose(mut dict: Dict, mistakes: &mut Vec<Mistake>, warnings: &mut Vec<Warning>) -> Config {
    switch_off(&mut dict, warnings);
    let places = [("auth", "pipeline"), ("usage", "reporters"), ("discovery", "sources")]
        .map(|(block, list)| (format!("{block}.{list}"), only_known(&mut dict, block, list, mistakes)));
    let mut parts = Parts { dict: &dict, mistakes, unread: Vec::new(), places };
    let mut config = Config {
        server: parts.block("server"),
        log: parts.block("log"),
        logging: parts.block("logging"),
        metrics: parts.block("metrics"),
        admin: parts.block("admin"),
        auth: parts.block("auth"),
        rate_limit: parts.block("rate_limit"),
        backends: parts.backends(),
        discovery: parts.block::<DiscoveryConfig>("discovery"),
        routing: parts.block::<RoutingConfig>("routing"),
        routing_paths: parts.block("routing"),
        health_check: parts.block::<HealthCheckConfig>("health_check"),
        queue: parts.block::<QueueConfig>("queue"),
        usage: parts.block("usage"),
        storage: parts.block("storage"),
        pricing: parts.block("pricing"),
        abort: parts.block("metering"),
        metering: parts.block::<MeteringConfig>("metering"),
        inspect: InspectConfig::default(),
        sse: SseConfig::default(),
    };
    if config.admin.enabled && !config.admin.is_served() {
        warnings.push(Warning::new(
            "admin.token",
            "is empty, so nothing is administered over HTTP; write a long random text",
        ));
    }
    let streams: Streams = parts.block("routing");
    // Where only others are named, there is none at the default address.
    if !config.server.listeners.is_empty() && tree::get(&dict, &["server", "listen"]).is_none() {
        config.server.listen.clear();
    }
    // A duration of 0 is how `off` is written.
    config.server.heartbeat = config.server.heartbeat.filter(|heartbeat| !heartbeat.is_zero());
    config.inspect = InspectConfig {
        max_body_size: config.server.max_body_size,
        max_upload_size: config.server.max_upload_size.unwrap_or(config.server.max_body_size),
        max_buffered_bytes: config.server.max_buffered_bytes,
        body_gap_timeout: config.server.read_timeout,
    };
    config.sse = SseConfig {
        gap_timeout: streams.gap_timeout.unwrap_or(config.sse.gap_timeout),
        heartbeat: config.server.heartbeat,
    };

    parts.found("server", config.server.validate());
    parts.found("server", config.sse.validate());
    parts.found("log", config.log.validate());
    parts.found("logging", config.logging.validate());
    parts.found("metrics", config.metrics.validate());
    parts.found("auth", config.auth.validate());
    parts.found("admin", wrong_listener(&config));
    parts.found("rate_limit", config.rate_limit.validate());
    parts.found("backends", validate_backends(&config.backends));
    parts.found("backends", unusable_authorities(&config.backends));
    parts.found("discovery", validate_discovery(&config.discovery));
    if config.backends.is_empty() && !config.discovery.enabled {
        parts.found("", vec![("backends".into(), NO_BACKEND.into())]);
    }
    if config.discovery.enabled {
        for (index, source) in config.discovery.sources.iter().enumerate().filter(|(_, source)| source.enabled) {
            let place = format!("discovery.sources[{index}].static.backends");
            parts.found(&place, unusable_authorities(&source.fixed.backends));
        }
    }
    parts.found("routing", validate_routing(&config.routing));
    // Where others may be found, what no backend of the file is or has may be theirs.
    let is_complete = tree::get(&dict, &["discovery", "enabled"]).and_then(Value::to_bool) != Some(true);
    let routes = validate_routes(&config.backends, &config.routing, is_complete);
    parts.found("routing", routes.mistakes);
    parts.found("routing", config.routing_paths.validate());
    parts.found("health_check", validate_health_check(&config.health_check));
    parts.found("queue", validate_queue(&config.queue));
    parts.found("metering", config.metering.validate());
    parts.found("usage", config.usage.validate());
    let stores = Stores { storage: &config.storage, admin_db: &config.admin.db_path };
    parts.found("", config.usage.validate_references(stores));
    parts.found("pricing", config.pricing.validate());
    parts.found("metering", config.abort.validate());
    if config.sse.gap_timeout.is_zero() {
        parts.found("routing", vec![("gap_timeout".into(), "must be longer than 0".into())]);
    }
    let doubts = routes.warnings.into_iter();
    warnings.extend(doubts.map(|(key, message)| Warning::new(format!("routing.{key}"), message)));
    warnings.extend(idle(&dict, &config));
    config
}

/// Of the listener for administration.
fn wrong_listener(config: &Config) -> Vec<(String, String)> {
    let Some(listen) = config.admin_listen() else { return Vec::new() };
    let listener = ListenerConfig { listen: listen.to_owned(), ..ListenerConfig::default() };
    let message = match listener.address() {
        Ok(_) => config.server.all_listeners().into_iter().find(|other| listener.overlaps(other)).map(|other| {
            format!(
                "`{listen}` is taken by the API, which listens on `{}`; give it a port of its own, or leave it out to have \
                 it below /admin beside the API",
                other.listen
            )
        }),
        Err(message) => Some(message),
    };
    message.map(|message| ("listen".to_owned(), message)).into_iter().collect()
}

/// Files of certificates that can't be read, or have none.
fn unusable_authorities(backends: &[BackendConfig]) -> Vec<(String, String)> {
    let files = backends.iter().enumerate().filter_map(|(index, backend)| Some((index, backend.ca_file.as_ref()?)));
    let problem = |path: &Path| match fs::read(path) {
        Ok(pem) => check_certificates(&pem).err().map(|error| format!("{} {error}", path.display())),
        Err(error) => Some(format!(
            "{} can't be read: {error}; see that it is there, and that whoever runs llmproxy may read it",
            path.display()
        )),
    };
    files.filter_map(|(index, path)| Some((format!("[{index}].ca_file"), problem(path)?))).collect()
}

/// `routing.enabled: false` leaves the whole block at its defaults.
fn switch_off(dict: &mut Dict, warnings: &mut Vec<Warning>) {
    let Some(Value::Dict(_, routing)) = dict.get_mut("routing") else { return };
    if routing.remove("enabled").and_then(|enabled| enabled.to_bool()) == Some(false) && !routing.is_empty() {
        warnings.push(Warning::new("routing.enabled", "is false, so nothing else under `routing` has an effect"));
        routing.clear();
    }
}

/// Takes those entries out of a list whose type no part knows: what had to be said of them was said by the walk. Returns
/// where those that stay stood.
fn only_known(dict: &mut Dict, block: &str, list: &str, mistakes: &mut Vec<Mistake>) -> Vec<usize> {
    let Some(Value::Dict(_, block_dict)) = dict.get_mut(block) else { return Vec::new() };
    let on = block_dict.get("enabled").and_then(Value::to_bool) == Some(true);
    let Some(Value::Array(_, entries)) = block_dict.get_mut(list) else { return Vec::new() };
    let enabled = |entry: &Value| entry.find_ref("enabled").and_then(Value::to_bool) != Some(false);
    if on && block == "auth" && !entries.is_empty() && !entries.iter().any(enabled) {
        // With the entries gone the builtin store would be asked, which is not what the file says.
        let message = "every entry is disabled, so nobody could pass; enable one, or remove the list to use the builtin key store";
        mistakes.push(Mistake::new("auth.pipeline", message));
    }
    let words = table::find(&format!("{block}.{list}[].type")).map(|key| key.kind);
    let known = |entry: &Value| match (entry.find_ref("type"), words) {
        (Some(Value::String(_, word)), Some(Kind::Word(words))) => words.allowed.contains(&word.as_str()),
        _ => true,
    };
    let (places, kept) = mem::take(entries).into_iter().enumerate().filter(|(_, entry)| known(entry)).unzip();
    *entries = kept;
    places
}

struct Parts<'a> {
    dict: &'a Dict,
    mistakes: &'a mut Vec<Mistake>,
    /// Places that stand for nothing in the file: what a part finds there is no mistake of the operator's.
    unread: Vec<String>,
    /// Lists that entries were taken out of, and where those that stayed stood.
    places: [(String, Vec<usize>); 3],
}

// === impl Parts ===

impl Parts<'_> {
    fn block<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        let dict = self.dict;
        dict.get(name).and_then(|value| self.read(name, value)).unwrap_or_default()
    }

    fn backends(&mut self) -> Vec<BackendConfig> {
        let entries = match self.dict.get("backends") {
            Some(Value::Array(_, entries)) => entries.as_slice(),
            _ => &[],
        };
        let read = |(index, entry): (usize, &Value)| self.read(&format!("backends[{index}]"), entry);
        // One that can't be read keeps its place, so that the mistakes of those after it name the right one.
        entries.iter().enumerate().map(read).map(Option::unwrap_or_default).collect()
    }

    fn read<T: DeserializeOwned>(&mut self, name: &str, value: &Value) -> Option<T> {
        match value.deserialize::<T>() {
            Ok(part) => Some(part),
            Err(error) => {
                let path = error.path.iter().fold(String::new(), |path, segment| match segment.parse::<usize>() {
                    Ok(index) => format!("{path}[{index}]"),
                    Err(_) if path.is_empty() => segment.clone(),
                    Err(_) => format!("{path}.{segment}"),
                });
                let (path, message) = match &error.kind {
                    ErrorKind::MissingField(field) if path.is_empty() => {
                        (field.to_string(), "must be given".to_owned())
                    }
                    ErrorKind::MissingField(field) => (format!("{path}.{field}"), "must be given".to_owned()),
                    ErrorKind::InvalidType(_, expected) => (path, format!("must be {expected}")),
                    // The walk has seen to it that a number is none below 0.
                    ErrorKind::InvalidValue(Actual::Unsigned(number), _) => (path, format!("{number} is too large")),
                    ErrorKind::InvalidValue(_, expected) => (path, format!("must be {expected}")),
                    ErrorKind::UnknownVariant(_, words) => (path, format!("must be one of {}", words.join(", "))),
                    kind => (path, kind.to_string()),
                };
                self.found(name, vec![(path, message)]);
                self.unread.push(name.to_owned());
                None
            }
        }
    }

    /// Adds what a part found in its block, unless something was said about the same place before.
    fn found(&mut self, block: &str, found: Vec<(String, String)>) {
        for (key, message) in found {
            let path = match (block, key.as_str()) {
                ("", key) => key.to_owned(),
                (block, "") => block.to_owned(),
                (block, key) if key.starts_with('[') => format!("{block}{key}"),
                (block, key) => format!("{block}.{key}"),
            };
            let path = self.original(path);
            let within = |inner: &str, outer: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            let said = self.mistakes.iter().any(|known| within(&known.path, &path) || within(&path, &known.path));
            if !said && !self.unread.iter().any(|unread| within(&path, unread)) {
                self.mistakes.push(Mistake::new(path, message));
            }
        }
    }

    /// The path as it is in the file.
    fn original(&self, path: String) -> String {
        for (list, places) in &self.places {
            let Some(rest) = path.strip_prefix(list.as_str()).and_then(|rest| rest.strip_prefix('[')) else { continue };
            let Some((index, rest)) = rest.split_once(']') else { continue };
            if let Some(place) = index.parse::<usize>().ok().and_then(|index| places.get(index)) {
                return format!("{list}[{place}]{rest}");
            }
        }
        path
    }
}
