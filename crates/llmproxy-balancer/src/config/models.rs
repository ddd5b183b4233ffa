//! `routing.models`, `routing.model_mapping`, `routing.fallback`: models by other names, and what stands in for them.

use std::collections::BTreeMap;

use llmproxy_core::{Backend, Pattern};
use serde::Deserialize;

use super::{BackendConfig, LoadBalance, RoutingConfig};

/// One entry of `routing.models`, under the name that clients use.
///
/// ```
/// use llmproxy_balancer::{ModelConfig, RoutingConfig, validate_routing};
///
/// let gpt4 = ModelConfig {
///     to: Some("qwen-32b".into()),
///     fallbacks: vec!["qwen-7b".into()],
///     ..ModelConfig::default()
/// };
/// let routing = RoutingConfig { models: [("gpt-4".into(), gpt4)].into(), ..RoutingConfig::default() };
/// assert!(validate_routing(&routing).is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// The model that it stands for; the one of that name where none is given.
    pub to: Option<String>,
    /// Models that stand in, in this order, while no backend that has the first is to be had.
    pub fallbacks: Vec<String>,
    /// How a backend is chosen; as for all requests where nothing is said.
    pub load_balance: Option<LoadBalance>,
}

/// One entry of `routing.fallback`. A name is a backend's name or URL, or else a model.
///
/// ```
/// use llmproxy_balancer::{BackendConfig, FallbackConfig, RoutingConfig, validate_routes, validate_routing};
///
/// let fallback = FallbackConfig {
///     models: vec!["qwen*".into()],
///     primary: Some("http://gpu-1:8000".into()),
///     fallback: vec!["http://gpu-2:8000".into()],
/// };
/// let routing = RoutingConfig { fallback: vec![fallback], ..RoutingConfig::default() };
/// assert!(validate_routing(&routing).is_empty());
/// let backends = ["http://gpu-1:8000", "http://gpu-2:8000"].map(BackendConfig::new);
/// assert!(validate_routes(&backends, &routing, true).mistakes.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FallbackConfig {
    /// The models that it is for; where none is given the one that `primary` names, or else all.
    pub models: Vec<Pattern>,
    /// What is asked first; whoever has the model where nothing is said.
    pub primary: Option<String>,
    /// What is asked then, in this order.
    pub fallback: Vec<String>,
}

/// What an operator names where either a backend or a model may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The backend of this name.
    Backend(String),
    /// A model, as no backend is called so.
    Model(String),
    /// An address that no backend has.
    NoBackend,
    /// An address that several have.
    Several,
}

/// All models by other names, and what each stands for.
pub(crate) fn aliases(config: &RoutingConfig) -> BTreeMap<&str, &str> {
    let mapped = config.model_mapping.iter().map(|(name, model)| (name.as_str(), model.as_str()));
    let models = config.models.iter().filter_map(|(name, entry)| Some((name.as_str(), entry.to.as_deref()?)));
    mapped.chain(models).filter(|(name, model)| name != model).collect()
}

/// What `name` is, among `backends`: pairs of name and URL.
pub(crate) fn resolve<'a>(name: &str, backends: impl Iterator<Item = (&'a str, String)>) -> Named {
    let url = name.contains("://").then(|| Backend::new(name).ok()).flatten().map(|backend| backend.url.to_string());
    let mut at_url = Vec::new();
    for (known, address) in backends {
        if known == name {
            return Named::Backend(name.to_owned());
        }
        if url.as_ref() == Some(&address) {
            at_url.push(known.to_owned());
        }
    }
    match (at_url.pop(), at_url.is_empty()) {
        (Some(backend), true) => Named::Backend(backend),
        (Some(_), false) => Named::Several,
        (None, _) if name.contains("://") => Named::NoBackend,
        (None, _) => Named::Model(name.to_owned()),
    }
}

/// The name and the URL of each backend that has a good one.
pub(super) fn addresses(backends: &[BackendConfig]) -> Vec<(String, String)> {
    let address = |config: &BackendConfig| {
        let backend = Backend::new(&config.url).ok()?;
        Some((config.name.clone().unwrap_or_else(|| backend.name.to_string()), backend.url.to_string()))
    };
    backends.iter().filter_map(address).collect()
}

/// All mistakes in these keys that show without the backends: each the key's path below `routing`, and what is wrong.
pub(super) fn validate(config: &RoutingConfig) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let aliases = aliases(config);
    for (alias, model) in &config.model_mapping {
        let key = format!("model_mapping.{alias}");
        if alias.trim().is_empty() || model.trim().is_empty() {
            mistakes.push((key, "must map a name to a model, and neither may be empty".into()));
        } else if let Some(message) = not_a_model(&aliases, alias, model) {
            mistakes.push((key, message));
        }
    }
    for (name, entry) in &config.models {
        let mut wrong = |key: &str, message: String| mistakes.push((format!("models.{name}{key}"), message));
        let to = entry.to.as_deref().unwrap_or(name);
        if name.trim().is_empty() {
            wrong("", "has no name; write the one that clients use".into());
            continue;
        }
        if config.model_mapping.contains_key(name) {
            wrong("", "is in `model_mapping`, too; keep one of them".into());
        }
        if to.trim().is_empty() {
            wrong(".to", "is empty; name a model, or leave it out".into());
        } else if let Some(message) = not_a_model(&aliases, name, to) {
            wrong(".to", message);
        }
        if to == name && entry.fallbacks.is_empty() && entry.load_balance.is_none() {
            wrong("", "changes nothing; name the model that it stands for as `to`, or give it `fallbacks`".into());
        }
        for (position, model) in entry.fallbacks.iter().enumerate() {
            let key = format!(".fallbacks[{position}]");
            if model.trim().is_empty() {
                wrong(&key, "is empty; name a model, or leave it out".into());
            } else if let Some(target) = aliases.get(model.as_str()) {
                wrong(&key, format!("`{model}` is an alias itself; name the model that it stands for: `{target}`"));
            } else if model == to {
                wrong(&key, format!("`{model}` is the first choice already; name another model"));
            } else if entry.fallbacks[..position].contains(model) {
                wrong(&key, format!("`{model}` has had its turn before; leave it out"));
            }
        }
    }
    for (index, entry) in config.fallback.iter().enumerate() {
        let mut wrong = |key: &str, message: String| mistakes.push((format!("fallback[{index}]{key}"), message));
        if entry.fallback.is_empty() {
            wrong(".fallback", "names nothing that could stand in; name backends or models".into());
        }
        for (position, pattern) in entry.models.iter().enumerate() {
            let (key, name) = (format!(".models[{position}]"), pattern.as_str());
            if name.trim().is_empty() {
                wrong(&key, "is empty; name a model, or leave it out".into());
            } else if config.models.get(name).is_some_and(|entry| !entry.fallbacks.is_empty()) {
                wrong(&key, format!("`{name}` has fallbacks in `models`, which count; name them in one place"));
            }
        }
        let turns: Vec<&String> = entry.primary.iter().chain(&entry.fallback).collect();
        for (position, name) in turns.iter().enumerate() {
            let key = match (position, entry.primary.is_some()) {
                (0, true) => ".primary".to_owned(),
                (position, first) => format!(".fallback[{}]", position - usize::from(first)),
            };
            if name.trim().is_empty() {
                wrong(&key, "is empty; name a backend or a model, or leave it out".into());
            } else if turns[..position].contains(name) {
                wrong(&key, format!("`{name}` has had its turn before; leave it out"));
            } else if let Some(target) = aliases.get(name.as_str()) {
                wrong(&key, format!("`{name}` is an alias; name the model that it stands for: `{target}`"));
            }
        }
    }
    mistakes
}

/// Why `model` is nothing that `name` can stand for: it stands for another one itself.
fn not_a_model(aliases: &BTreeMap<&str, &str>, name: &str, model: &str) -> Option<String> {
    if name == model {
        return None;
    }
    let next = aliases.get(model)?;
    let mut way = vec![name, model];
    let mut last = *next;
    while !way.contains(&last) {
        way.push(last);
        match aliases.get(last) {
            Some(next) => last = next,
            None => return Some(format!("`{model}` is an alias itself; name the model in the end: `{last}`")),
        }
    }
    way.push(last);
    Some(format!("goes round in a circle: {}; let one of them be a model", way.join(" -> ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let found = validate(&serde_json::from_str(text).unwrap());
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, expected.iter().map(|(key, _)| *key).collect::<Vec<_>>(), "{text} {found:?}");
        for ((_, message), (_, part)) in found.iter().zip(expected) {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn aliases_of_all_kinds_are_good() {
        check(
            r#"{"model_mapping":{"a":"x","same":"same"},
                "models":{"gpt-4":{"to":"x","fallbacks":["y"]},"x":{"fallbacks":["y"]},"y":{"load_balance":"round_robin"}},
                "fallback":[{"models":["z*"],"primary":"gpu-1","fallback":["gpu-2","y"]},{"fallback":["y"]}]}"#,
            &[],
        );
    }

    #[test]
    fn an_alias_of_an_alias_and_a_circle_are_mistakes() {
        check(r#"{"models":{"a":{"to":"b"},"b":{"to":"c"}}}"#, &[("models.a.to", "in the end: `c`")]);
        check(
            r#"{"model_mapping":{"a":"b"},"models":{"b":{"to":"c"},"c":{"to":"a"}}}"#,
            &[("model_mapping.a", "a -> b -> c -> a"), ("models.b.to", "circle"), ("models.c.to", "circle")],
        );
        check(
            r#"{"model_mapping":{"a":"b","b":"c"},"models":{"x":{"to":"y","fallbacks":["a"]}}}"#,
            &[("model_mapping.a", "is an alias"), ("models.x.fallbacks[0]", "stands for: `b`")],
        );
    }

    #[test]
    fn what_changes_nothing_or_is_said_twice_is_a_mistake() {
        check(r#"{"models":{"a":{},"b":{"to":"b"}}}"#, &[("models.a", "changes nothing"), ("models.b", "")]);
        check(
            r#"{"model_mapping":{"a":"x"},"models":{"a":{"to":"x","fallbacks":["x","y","y",""]}}}"#,
            &[
                ("models.a", "model_mapping"),
                ("models.a.fallbacks[0]", "first choice"),
                ("models.a.fallbacks[2]", "turn"),
                ("models.a.fallbacks[3]", "empty"),
            ],
        );
        check(r#"{"models":{"a":{"to":" "},"":{"to":"x"}}}"#, &[("models.", "no name"), ("models.a.to", "empty")]);
        check(
            r#"{"models":{"a":{"fallbacks":["b"]},"al":{"to":"x"}},
                "fallback":[{"models":["a",""],"primary":"p","fallback":["p","","al"]},{"models":["c"]}]}"#,
            &[
                ("fallback[0].models[0]", "one place"),
                ("fallback[0].models[1]", "empty"),
                ("fallback[0].fallback[0]", "turn"),
                ("fallback[0].fallback[1]", "empty"),
                ("fallback[0].fallback[2]", "`x`"),
                ("fallback[1].fallback", "nothing"),
            ],
        );
    }

    #[test]
    fn a_name_is_a_backend_s_or_a_model_s() {
        let backends =
            [("gpu-1", "http://a"), ("http://b", "http://b"), ("twin-1", "http://c"), ("twin-2", "http://c")];
        let check = |name: &str, expected: Named| {
            let known = backends.iter().map(|(name, url)| (*name, Backend::new(url).unwrap().url.to_string()));
            assert_eq!(resolve(name, known), expected, "{name}");
        };
        check("gpu-1", Named::Backend("gpu-1".into()));
        check("http://a/v1/", Named::Backend("gpu-1".into()));
        check("http://b", Named::Backend("http://b".into()));
        check("http://c", Named::Several);
        check("http://d", Named::NoBackend);
        check("qwen", Named::Model("qwen".into()));
    }
}
