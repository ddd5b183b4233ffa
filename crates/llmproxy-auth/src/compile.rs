//! From what an operator wrote to what runs, with every mistake on the way.

use std::{collections::HashSet, sync::Arc};

use http::{HeaderName, header};
use jiff::Timestamp;

use crate::{
    AuthConfig, KeyEntry, KeyHash, KeyStatus, SourceKind, StaticKeyConfig, StaticKeys, StatusConfig, mask, parse_net,
    rules::Rules, skip::SkipPaths,
};

/// Headers that say something else, so that no key can be in them and none may be taken out.
const NOT_FOR_KEYS: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::TRANSFER_ENCODING, header::CONNECTION];

/// What an `auth` block means.
pub(crate) struct Compiled {
    pub(crate) header_names: Vec<HeaderName>,
    pub(crate) skip: SkipPaths,
    pub(crate) rules: Rules,
    pub(crate) sources: Vec<Source>,
}

/// A source, as far as it can be built from the block alone.
pub(crate) enum Source {
    Static(StaticKeys),
    Builtin,
}

/// The path of a key below `auth`, and what is wrong there.
type Mistake = (String, String);

/// Reads the block. What was built is to be used only if there are no mistakes.
pub(crate) fn compile(config: &AuthConfig) -> (Compiled, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let header_names = header_names(&config.header_names, &mut mistakes);
    let mut skip = SkipPaths::default();
    for (index, path) in config.skip_paths.iter().enumerate() {
        note(skip.add(path), || format!("skip_paths[{index}]"), &mut mistakes);
    }
    let rules = Rules::new(&config.status_codes, &config.header_names, |path, what| mistakes.push((path, what)));
    let sources = sources(config, &mut mistakes);
    (Compiled { header_names, skip, rules, sources }, mistakes)
}

fn header_names(names: &[String], mistakes: &mut Vec<Mistake>) -> Vec<HeaderName> {
    if names.is_empty() {
        let what = "is empty, so that no key could be found; name at least one header, or leave it out for the default";
        mistakes.push(("header_names".into(), what.into()));
    }
    let read = |name: &String| match HeaderName::from_bytes(name.trim().as_bytes()) {
        Ok(name) if NOT_FOR_KEYS.contains(&name) => Err(format!("`{name}` says something else and can't hold a key")),
        Ok(name) => Ok(name),
        Err(_) => Err(format!("`{name}` is not the name of a header; write it like X-API-Key")),
    };
    let names = names.iter().enumerate();
    names.filter_map(|(index, name)| note(read(name), || format!("header_names[{index}]"), mistakes)).collect()
}

fn sources(config: &AuthConfig, mistakes: &mut Vec<Mistake>) -> Vec<Source> {
    if config.pipeline.is_empty() {
        return vec![Source::Builtin];
    }
    let mut sources = Vec::new();
    for (index, source) in config.pipeline.iter().enumerate() {
        let path = format!("pipeline[{index}]");
        // A source that is off is read too: a mistake in it would show on the day that it is needed.
        let built = match source.kind {
            Some(SourceKind::Builtin) => Source::Builtin,
            Some(SourceKind::Static) => {
                let name = if source.name.is_empty() { path.as_str() } else { source.name.as_str() };
                Source::Static(StaticKeys::new(name, static_keys(&source.static_keys.keys, &path, mistakes)))
            }
            None => {
                mistakes.push((format!("{path}.type"), "is missing; allowed are static and builtin".into()));
                continue;
            }
        };
        if source.kind == Some(SourceKind::Builtin) && !source.static_keys.keys.is_empty() {
            mistakes.push((format!("{path}.static"), "has keys, but the type is builtin; make it static".into()));
        }
        if source.enabled {
            sources.push(built);
        }
    }
    if config.enabled && config.pipeline.iter().all(|source| !source.enabled) {
        let what = "has no entry that is enabled; enable one, or leave pipeline out to use the builtin key store";
        mistakes.push(("pipeline".into(), what.into()));
    }
    sources
}

fn static_keys(configs: &[StaticKeyConfig], path: &str, mistakes: &mut Vec<Mistake>) -> Vec<KeyEntry> {
    let mut seen = HashSet::new();
    let mut entries = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let path = format!("{path}.static.keys[{index}]");
        if let Some(entry) = static_key(config, &path, mistakes) {
            if !seen.insert(*entry.hash()) {
                mistakes.push((format!("{path}.key"), "is there twice in this source; remove one of the two".into()));
            }
            entries.push(entry);
        }
    }
    entries
}

fn static_key(config: &StaticKeyConfig, path: &str, mistakes: &mut Vec<Mistake>) -> Option<KeyEntry> {
    let below = |key: &str| format!("{path}.{key}");
    let hash = note(key_hash(&config.key), || below("key"), mistakes);
    let status = note(key_status(config.status.as_ref()), || below("status"), mistakes);
    let starts_at = note(moment(config.starts_at.as_deref()), || below("starts_at"), mistakes);
    let expires_at = note(moment(config.expires_at.as_deref()), || below("expires_at"), mistakes);
    let mut nets = |key: &str, texts: &[String]| {
        let texts = texts.iter().enumerate();
        texts.filter_map(|(i, text)| note(parse_net(text), || below(&format!("{key}[{i}]")), mistakes)).collect()
    };
    let allowed = nets("allowed_ips", &config.allowed_ips);
    let denied = nets("denied_ips", &config.denied_ips);
    for (index, model) in config.allowed_models.iter().enumerate() {
        if model.trim().is_empty() || (model.contains('*') && model != "*") {
            let what = format!("`{model}` is not the name of a model; write whole names, or `*` alone for all");
            mistakes.push((below(&format!("allowed_models[{index}]")), what));
        }
    }
    let mut entry = KeyEntry::new(hash?);
    if !config.key.starts_with(HASHED) {
        entry.masked = Some(mask(config.key.trim()).into());
    }
    entry.name = some_text(&config.name);
    entry.user_id = some_text(&config.user_id);
    entry.status = status?;
    entry.starts_at = starts_at?;
    entry.expires_at = expires_at?;
    entry.on_abort = config.on_abort;
    entry.tag = some_text(&config.tag);
    entry.addresses.allowed = allowed;
    entry.addresses.denied = denied;
    if !config.allowed_models.is_empty() && !config.allowed_models.iter().any(|model| model == "*") {
        entry.allowed_models = Some(Arc::new(config.allowed_models.iter().cloned().collect()));
    }
    Some(entry)
}

const HASHED: &str = "sha256:";

fn key_hash(key: &str) -> Result<KeyHash, String> {
    let key = key.trim();
    match key.strip_prefix(HASHED) {
        _ if key.is_empty() => Err("is missing; write the key, or sha256: and the hex digits of its SHA-256".into()),
        // What stands there may be a key with an unlucky prefix, so it is not repeated.
        Some(hex) => KeyHash::from_hex(hex.trim()).ok_or_else(|| "is not sha256: and 64 hex digits".into()),
        None => Ok(KeyHash::of(key.as_bytes())),
    }
}

fn key_status(status: Option<&StatusConfig>) -> Result<KeyStatus, String> {
    let (found, shown) = match status {
        None => return Ok(KeyStatus::Active),
        Some(StatusConfig::Number(number)) => (KeyStatus::from_number(*number), number.to_string()),
        Some(StatusConfig::Name(name)) => (KeyStatus::from_name(name), name.clone()),
    };
    let allowed = "active, disabled, quota_exceeded, expired, or their numbers 0 to 3";
    found.ok_or_else(|| format!("`{shown}` is not a status; allowed are {allowed}"))
}

fn moment(text: Option<&str>) -> Result<Option<Timestamp>, String> {
    let wrong = |text| format!("`{text}` is not a time; write it like 2027-01-31T00:00:00Z, or null");
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn some_text(text: &str) -> Option<Arc<str>> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}

fn note<T>(result: Result<T, String>, path: impl FnOnce() -> String, mistakes: &mut Vec<Mistake>) -> Option<T> {
    result.map_err(|what| mistakes.push((path(), what))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn mistakes(json: &str) -> Vec<String> {
        let config: AuthConfig = serde_json::from_str(json).unwrap();
        config.validate().into_iter().map(|(path, _)| path).collect()
    }

    #[track_caller]
    fn check_key(fields: &str, expected: &[&str]) {
        let json = format!(r#"{{"pipeline": [{{"type": "static", "static": {{"keys": [{{{fields}}}]}}}}]}}"#);
        let paths: Vec<_> = expected.iter().map(|key| format!("pipeline[0].static.keys[0].{key}")).collect();
        assert_eq!(mistakes(&json), paths, "{fields}");
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let found = mistakes(
            r#"{"skip_paths": ["/health", "oops"], "header_names": ["X API Key", "Host"],
                "status_codes": {"disabled": {"http_code": 200}},
                "pipeline": [
                    {"name": "x"},
                    {"type": "static", "static": {"keys": [
                        {"key": "a", "status": "paused", "expires_at": "tomorrow"},
                        {"allowed_ips": ["10.0.0.0/8", "office"]}
                    ]}}
                ]}"#,
        );
        let expected = [
            "header_names[0]",
            "header_names[1]",
            "skip_paths[1]",
            "status_codes.disabled.http_code",
            "pipeline[0].type",
            "pipeline[1].static.keys[0].status",
            "pipeline[1].static.keys[0].expires_at",
            "pipeline[1].static.keys[1].key",
            "pipeline[1].static.keys[1].allowed_ips[1]",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn keys_in_good_order_are_read() {
        check_key(r#""key": "sk-1", "name": "alice", "user_id": 17, "status": 0, "expires_at": null"#, &[]);
        check_key(r#""key": 123456, "status": "enabled", "starts_at": "2026-01-01T00:00:00+08:00""#, &[]);
        check_key(r#""key": "a", "created_at": "2026-01-01T00:00:00Z", "updated_at": null, "status": null"#, &[]);
        check_key(r#""key": "a", "allowed_models": ["*"], "status": """#, &[]);
        let hash = KeyHash::of(b"a");
        check_key(&format!(r#""key": "sha256:{hash}""#), &[]);
    }

    #[test]
    fn what_would_silently_mean_something_else_is_refused() {
        check_key(r#""key": " ""#, &["key"]);
        check_key(r#""key": "sha256:abc""#, &["key"]);
        check_key(r#""key": "a", "status": 4"#, &["status"]);
        check_key(r#""key": "a", "status": "inactive""#, &["status"]);
        check_key(r#""key": "a", "expires_at": "2026-01-01""#, &["expires_at"]);
        check_key(r#""key": "a", "starts_at": "2026-01-01T00:00:00""#, &["starts_at"]);
        check_key(r#""key": "a", "denied_ips": ["10.0.0.0/40"]"#, &["denied_ips[0]"]);
        check_key(r#""key": "a", "allowed_models": ["llama-*"]"#, &["allowed_models[0]"]);
    }

    #[test]
    fn a_key_in_clear_and_its_hash_are_the_same_key() {
        let hash = KeyHash::of(b"a");
        let found = mistakes(&format!(
            r#"{{"pipeline": [{{"type": "static", "static": {{"keys": [{{"key": "a"}}, {{"key": "sha256:{hash}"}}]}}}}]}}"#
        ));
        assert_eq!(found, ["pipeline[0].static.keys[1].key"]);
    }

    #[test]
    fn a_pipeline_with_nothing_on_is_a_mistake_while_auth_is_on() {
        let source = r#""pipeline": [{"type": "builtin", "enabled": false}]"#;
        assert_eq!(mistakes(&format!(r#"{{"enabled": true, {source}}}"#)), ["pipeline"]);
        assert!(mistakes(&format!(r#"{{"enabled": false, {source}}}"#)).is_empty());
    }

    #[test]
    fn the_store_is_needed_where_it_is_asked() {
        let check = |json: &str, expected| {
            let config: AuthConfig = serde_json::from_str(json).unwrap();
            assert_eq!(config.needs_store(), expected, "{json}");
        };
        check(r#"{}"#, false);
        check(r#"{"enabled": true}"#, true);
        check(r#"{"enabled": true, "pipeline": [{"type": "builtin"}]}"#, true);
        check(r#"{"enabled": true, "pipeline": [{"type": "builtin", "enabled": false}, {"type": "static"}]}"#, false);
        check(r#"{"enabled": false, "pipeline": [{"type": "builtin"}]}"#, false);
    }

    #[test]
    fn no_mistake_repeats_a_key() {
        let config: AuthConfig = serde_json::from_str(
            r#"{"pipeline": [{"type": "static", "static": {"keys": [{"key": "sha256:secret", "status": 9}]}}]}"#,
        )
        .unwrap();
        assert!(!format!("{:?} {config:?}", config.validate()).contains("secret"));
    }
}
