//! What serde can't say of a configuration: all mistakes at once, each with its key.

use std::{collections::HashMap, time::Duration};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use llmproxy_core::Backend;

use super::{BackendConfig, HealthCheckConfig, QueueConfig, RoutingConfig, models, rules};
use crate::retry::Trigger;

/// All mistakes in `backends`: each the key's path below `backends` (`[0].url`), and what is wrong with it. No text quotes
/// the value of a header.
///
/// ```
/// use llmproxy_balancer::{BackendConfig, validate_backends};
///
/// assert_eq!(validate_backends(&[BackendConfig::new("vllm:8000")])[0].0, "[0].url");
/// ```
pub fn validate_backends(backends: &[BackendConfig]) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut names: HashMap<String, usize> = HashMap::new();
    for (index, config) in backends.iter().enumerate() {
        let mut wrong = |key: &str, message: String| mistakes.push((format!("[{index}].{key}"), message));
        let url_name = match Backend::new(&config.url) {
            // The URL stands in logs, metrics and records.
            Ok(backend) if backend.url.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
                wrong(
                    "url",
                    "must not hold a user name or password; put credentials into `headers.Authorization`".into(),
                );
                None
            }
            Ok(backend) => Some(backend.name.to_string()),
            Err(error) => {
                wrong("url", error.to_string());
                None
            }
        };
        if config.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
            wrong("name", "is empty; leave it out to use the URL as the name".into());
        } else if let Some(name) = config.name.clone().or(url_name) {
            if let Some(other) = names.get(&name) {
                wrong("name", format!("`{name}` is also the name of backends[{other}]; give each a name of its own"));
            } else {
                names.insert(name, index);
            }
        }
        for (key, timeout) in [("timeout", config.timeout), ("connect_timeout", config.connect_timeout)] {
            if timeout == Some(Duration::ZERO) {
                wrong(key, "must be longer than 0; leave it out to use the one of `routing`".into());
            }
        }
        for (key, is_zero) in
            [("max_concurrent", config.max_concurrent == Some(0)), ("max_tokens", config.max_tokens == Some(0))]
        {
            if is_zero {
                wrong(key, "must be 1 or more; leave it out for no bound, or give the backend `weight: 0`".into());
            }
        }
        if config.group.as_deref().is_some_and(|group| group.trim().is_empty()) {
            wrong("group", "is empty; name a group, or leave it out".into());
        }
        if config.ca_file.is_some() && config.url.trim_start().starts_with("http://") {
            wrong("ca_file", "is for TLS, and the URL says http; write https, or leave this out".into());
        }
        let sets_host = config.headers.keys().any(|name| name.eq_ignore_ascii_case("host"));
        if config.http2 && (config.preserve_host || sets_host) {
            // There the host is part of the target, which must be the address that is connected to.
            let key = if config.preserve_host { "preserve_host" } else { "headers.Host" };
            wrong(key, "can't be had over HTTP/2; leave out `http2`, or this".into());
        }
        for (name, value) in &config.headers {
            // Values are secrets more often than not: never quoted.
            if name.parse::<HeaderName>().is_err() {
                wrong(&format!("headers.{name}"), "is not a header name".into());
            } else if value.parse::<HeaderValue>().is_err() {
                wrong(&format!("headers.{name}"), "has a value that no header can have, like a line break".into());
            }
        }
        if let Some(path) = config.metrics_path.as_deref().filter(|path| !is_path(path)) {
            wrong("metrics_path", format!("`{path}` is not a path; write it like /metrics"));
        }
        for (position, model) in config.models.iter().enumerate() {
            if model.trim().is_empty() {
                wrong(&format!("models[{position}]"), "is empty; name a model, or leave it out".into());
            }
        }
    }
    if !backends.is_empty() && backends.iter().all(|config| config.weight == 0) {
        mistakes.push((
            "[0].weight".into(),
            "every backend has weight 0, so none gets a request; give one a weight of 1".into(),
        ));
    }
    mistakes
}

/// All mistakes in `routing`: each the key's path below `routing`, and what is wrong with it. What it says of backends is
/// held against them by [`validate_routes`](super::validate_routes).
pub fn validate_routing(config: &RoutingConfig) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut wrong = |key: &str, message: String| mistakes.push((key.to_owned(), message));
    for (key, duration) in [("timeout", config.timeout), ("connect_timeout", config.connect_timeout)] {
        if duration.is_zero() {
            wrong(key, "must be longer than 0".into());
        }
    }
    for (position, name) in config.session.headers.iter().enumerate() {
        if name.parse::<HeaderName>().is_err() {
            wrong(
                &format!("session.headers[{position}]"),
                format!("`{name}` is not a header name; write one like x-session-id"),
            );
        }
    }
    // RFC 6265: a cookie's name is a token, as a header's is.
    if let Some(name) = config.session.cookie.as_deref().filter(|name| name.parse::<HeaderName>().is_err()) {
        wrong("session.cookie", format!("`{name}` can't be the name of a cookie; name one, or leave it out"));
    }
    let factor = config.session.load_factor;
    if !factor.is_finite() || factor < 1.0 {
        wrong("session.load_factor", format!("is {factor}; must be 1 or more, 1.25 for a quarter more than its share"));
    }
    for (key, duration) in [("interval", config.load_signals.interval), ("timeout", config.load_signals.timeout)] {
        if duration.is_zero() {
            let message = "must be longer than 0; to ask no backend for its load, set `enabled: false`";
            wrong(&format!("load_signals.{key}"), message.into());
        }
    }
    let retry = &config.retry;
    if !retry.multiplier.is_finite() || retry.multiplier < 1.0 {
        wrong("retry.multiplier", format!("is {}; must be 1 or more", retry.multiplier));
    }
    if !retry.budget.is_finite() || retry.budget < 0.0 {
        wrong("retry.budget", format!("is {}; must be a share of the requests, such as 0.2, or 0", retry.budget));
    }
    if retry.max_wait < retry.initial_wait {
        wrong("retry.max_wait", "is shorter than `retry.initial_wait`; make it at least as long".into());
    }
    for (position, word) in retry.retry_on.iter().enumerate() {
        if let Err(message) = Trigger::parse(word) {
            wrong(&format!("retry.retry_on[{position}]"), message);
        }
    }
    config.prefix_aware.validate(&mut mistakes);
    mistakes.extend(models::validate(config));
    mistakes.extend(rules::validate(&config.rules));
    mistakes
}

/// All mistakes in `queue`: each the key's path below `queue`, and what is wrong with it.
pub fn validate_queue(config: &QueueConfig) -> Vec<(String, String)> {
    if config.timeout.is_zero() {
        return vec![("timeout".into(), "must be longer than 0; to let nobody wait, set `max_waiting: 0`".into())];
    }
    Vec::new()
}

/// All mistakes in `health_check`: each the key's path below `health_check`, and what is wrong with it.
pub fn validate_health_check(config: &HealthCheckConfig) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut wrong = |key: &str, message: String| mistakes.push((key.to_owned(), message));
    for (key, duration) in [("interval", config.interval), ("timeout", config.timeout)] {
        if duration.is_zero() {
            wrong(key, "must be longer than 0; to have no checks, set `enabled: false`".into());
        }
    }
    if config.method.parse::<Method>().is_err() {
        wrong("method", format!("`{}` is not an HTTP method; use GET or HEAD", config.method));
    }
    if let Some(path) = config.path.as_deref().filter(|path| !is_path(path)) {
        wrong("path", format!("`{path}` is not a path; write it like /health"));
    }
    if StatusCode::from_u16(config.expected_status).is_err() {
        wrong("expected_status", format!("{} is not a status; use one from 100 to 599", config.expected_status));
    }
    for (key, threshold) in
        [("unhealthy_threshold", config.unhealthy_threshold), ("healthy_threshold", config.healthy_threshold)]
    {
        if threshold == 0 {
            wrong(key, "must be 1 or more".into());
        }
    }
    let passive = &config.passive;
    for (key, duration) in [("passive.window", passive.window), ("passive.base_ejection", passive.base_ejection)] {
        if duration.is_zero() {
            wrong(key, "must be longer than 0; to look at no share of failures, set `passive.enabled: false`".into());
        }
    }
    if passive.max_ejection < passive.base_ejection {
        wrong("passive.max_ejection", "is shorter than `passive.base_ejection`; make it at least as long".into());
    }
    if passive.min_requests == 0 {
        wrong("passive.min_requests", "must be 1 or more".into());
    }
    if !(passive.error_rate > 0.0 && passive.error_rate <= 1.0) {
        wrong("passive.error_rate", format!("is {}; must be more than 0 and at most 1", passive.error_rate));
    }
    if config.panic_threshold > 100 {
        wrong("panic_threshold", format!("is {}; must be a percentage, from 0 to 100", config.panic_threshold));
    }
    mistakes
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadBalance, PassiveConfig, RetryOn, RuleConfig};

    fn keys(mistakes: Vec<(String, String)>) -> Vec<String> {
        mistakes.into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(validate_backends(&[BackendConfig::new("http://a")]), []);
        assert_eq!(validate_routing(&RoutingConfig::default()), []);
        assert_eq!(validate_health_check(&HealthCheckConfig::default()), []);
    }

    #[test]
    fn all_mistakes_of_the_backends_are_told_at_once() {
        let backends = [
            BackendConfig { headers: [("bad name".into(), "x".into())].into(), ..BackendConfig::new("vllm:8000") },
            BackendConfig::new("http://same/v1"),
            BackendConfig { timeout: Some(Duration::ZERO), ..BackendConfig::new("http://same/") },
            BackendConfig {
                models: vec![" ".into()],
                metrics_path: Some("metrics".into()),
                ..BackendConfig::new("http://user:secret@host")
            },
        ];
        let mistakes = validate_backends(&backends);
        assert!(mistakes.iter().all(|(_, message)| !message.contains("secret")), "{mistakes:?}");
        assert_eq!(
            keys(mistakes),
            [
                "[0].url",
                "[0].headers.bad name",
                "[2].name",
                "[2].timeout",
                "[3].url",
                "[3].metrics_path",
                "[3].models[0]"
            ]
        );
    }

    #[test]
    fn settings_of_a_connection_that_can_t_go_together_are_a_mistake() {
        let http2 = BackendConfig { http2: true, ..BackendConfig::new("https://a") };
        let host = [("host".into(), "virtual.example".into())];
        let backends = [
            BackendConfig { ca_file: Some("ca.pem".into()), ..http2.clone() },
            BackendConfig { ca_file: Some("ca.pem".into()), ..BackendConfig::new("http://b") },
            BackendConfig { url: "https://c".into(), preserve_host: true, ..http2.clone() },
            BackendConfig { url: "https://d".into(), headers: host.into(), ..http2 },
        ];
        assert_eq!(keys(validate_backends(&backends)), ["[1].ca_file", "[2].preserve_host", "[3].headers.Host"]);
    }

    #[test]
    fn weights_that_are_all_zero_are_a_mistake() {
        let idle = BackendConfig { weight: 0, ..BackendConfig::new("http://a") };
        assert_eq!(keys(validate_backends(std::slice::from_ref(&idle))), ["[0].weight"]);
        assert_eq!(validate_backends(&[idle, BackendConfig::new("http://b")]), []);
    }

    #[test]
    fn all_mistakes_of_the_routing_are_told_at_once() {
        let mut config = RoutingConfig { timeout: Duration::ZERO, ..RoutingConfig::default() };
        config.model_mapping.insert("gpt-4".into(), String::new());
        config.rules.push(RuleConfig::default());
        config.load_signals.interval = Duration::ZERO;
        config.retry.multiplier = 0.5;
        config.retry.budget = -0.1;
        config.retry.max_wait = Duration::ZERO;
        config.retry.retry_on = ["connect", "sometimes", "999", "429"].map(RetryOn::new).to_vec();
        assert_eq!(
            keys(validate_routing(&config)),
            [
                "timeout",
                "load_signals.interval",
                "retry.multiplier",
                "retry.budget",
                "retry.max_wait",
                "retry.retry_on[1]",
                "retry.retry_on[2]",
                "model_mapping.gpt-4",
                "rules[0]"
            ]
        );
    }

    #[test]
    fn all_mistakes_of_the_health_check_are_told_at_once() {
        let config = HealthCheckConfig {
            interval: Duration::ZERO,
            method: "GE T".into(),
            path: Some("health".into()),
            expected_status: 0,
            healthy_threshold: 0,
            passive: PassiveConfig {
                window: Duration::ZERO,
                min_requests: 0,
                error_rate: f64::NAN,
                max_ejection: Duration::from_secs(1),
                ..PassiveConfig::default()
            },
            panic_threshold: 101,
            ..HealthCheckConfig::default()
        };
        assert_eq!(
            keys(validate_health_check(&config)),
            [
                "interval",
                "method",
                "path",
                "expected_status",
                "healthy_threshold",
                "passive.window",
                "passive.max_ejection",
                "passive.min_requests",
                "passive.error_rate",
                "panic_threshold"
            ]
        );
    }

    #[test]
    fn strategies_and_retry_words_are_read_as_people_write_them() {
        let routing: RoutingConfig =
            serde_json::from_str(r#"{"load_balance":"least_conn","retry":{"retry_on":["timeout","5xx",429]}}"#)
                .unwrap();
        assert_eq!(routing.load_balance, LoadBalance::LeastConnections);
        assert_eq!(routing.retry.retry_on, ["timeout", "5xx", "429"].map(RetryOn::new));
        assert!(serde_json::from_str::<RoutingConfig>(r#"{"load_balance":"fastest"}"#).is_err());
    }

    #[test]
    fn a_session_is_told_by_names_that_there_can_be() {
        let wrong: RoutingConfig =
            serde_json::from_str(r#"{"session":{"headers":["x-chat","a b"],"cookie":"s=1","load_factor":0.9}}"#)
                .unwrap();
        assert_eq!(keys(validate_routing(&wrong)), ["session.headers[1]", "session.cookie", "session.load_factor"]);
        let right: RoutingConfig = serde_json::from_str(
            r#"{"load_balance":"session","session":{"headers":[],"cookie":"sid","load_factor":1}}"#,
        )
        .unwrap();
        assert!(validate_routing(&right).is_empty());
    }
}
