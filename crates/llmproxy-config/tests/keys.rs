//! The table of keys against the types that read them, and against the documentation.

use std::{env, fs, path::PathBuf};

use llmproxy_config::{Config, KeyDoc, KeyState, LoadOptions, load_str, reference, reference_markdown};

const TLS: &str = "cert_file: c, key_file: k, client_ca_file: ca, client_auth: none";

/// What must stand beside a key so that its block is valid.
const BESIDE: &[(&str, &str)] = &[
    ("server.tls", TLS),
    ("server.listeners[]", "listen: ':9'"),
    ("server.listeners[].tls", TLS),
    ("server.cors", "allowed_origins: ['https://a.example']"),
    ("backends[]", "url: 'http://a'"),
    ("discovery", "sources: [{type: file, file: {path: other.yaml}}]"),
    ("auth.pipeline[]", "type: static"),
    ("auth.pipeline[]", "static: {keys: [{key: sk-a}]}"),
    ("auth.pipeline[].static.keys[]", "key: sk-a"),
    ("usage.reporters[]", "name: a"),
    ("usage.reporters[]", "webhook: {url: 'http://a'}"),
    ("pricing.models[]", "models: [m]"),
    ("usage.reporters[].webhook", "url: 'http://a'"),
    ("admin", "token: t"),
    ("routing.fallback[]", "fallback: [m]"),
    ("routing.models.*", "to: m"),
    ("routing.rules[]", "model: m"),
];

/// Values where the kind alone does not say what is allowed.
const SAMPLES: &[(&str, &str)] = &[
    ("server.listen", "':9'"),
    ("server.max_body_size", "11MiB"),
    ("server.tls.client_auth", "require"),
    ("server.listeners[].listen", "':8443'"),
    ("server.listeners[].tls.client_auth", "require"),
    ("server.cors.allowed_origins", "['https://b.example']"),
    ("metrics.path", "/other"),
    ("admin.listen", "':9'"),
    ("metrics.custom_labels", "[user_id]"),
    ("discovery.sources[].http.method", "PUT"),
    ("auth.skip_paths", "[/other]"),
    ("auth.status_codes.active.http_code", "418"),
    ("auth.status_codes.disabled.http_code", "418"),
    ("auth.status_codes.expired.http_code", "418"),
    ("auth.status_codes.quota_exceeded.http_code", "418"),
    ("auth.status_codes.not_found.http_code", "418"),
    ("backends[].metrics_path", "/other"),
    ("routing.allow_paths", "[/other]"),
    ("routing.rules[].match.path", "/other"),
    ("routing.retry.initial_wait", "2s"),
    ("routing.retry.retry_on", "['429']"),
    ("health_check.method", "HEAD"),
    ("health_check.path", "/other"),
    ("health_check.expected_status", "204"),
    ("health_check.passive.error_rate", "0.7"),
    ("usage.reporters[].webhook.method", "PUT"),
    ("usage.reporters[].webhook.secret", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"),
    ("usage.reporters[].fields", "[model]"),
];

/// Keys that do something else than to set a value.
const ELSEWHERE: &[&str] = &[
    "backends[].ca_file", // is read, so it must be there
    // Not taken by every build, and read by those that do.
    "metering.tokenizers[].models",
    "metering.tokenizers[].file",
    "metering.tokenizers[].config",
    "routing.enabled",    // leaves out the rest of its block
    "rate_limit.storage", // has only one value yet
    "usage.reporters[].type",
    "auth.pipeline[].type",                     // the other value fits another block
    "auth.pipeline[].static.keys[].created_at", // notes
    "auth.pipeline[].static.keys[].updated_at",
];

/// Keys that are warned of where they stand alone.
const ALONE: &[&str] = &[
    "backends[0].metrics_path",
    "health_check.expected_status",
    "queue",
    "routing.commit_after",
    "routing.prefix_aware",
    "routing.rules[0].match.tag",
    "routing.session",
];

fn config(text: &str) -> String {
    let options = LoadOptions { variables: Some([].into()), ..LoadOptions::default() };
    let loaded = load_str(text, &options).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut unexpected = loaded.warnings.iter().filter(|warning| !ALONE.contains(&warning.path.as_str()));
    assert!(unexpected.next().is_none(), "{text}: {:?}", loaded.warnings);
    shown(&loaded.config)
}

/// A configuration as text; keys of callers do not show themselves.
fn shown(config: &Config) -> String {
    let keys = config.auth.pipeline.iter().flat_map(|source| &source.static_keys.keys);
    let keys: Vec<String> = keys
        .map(|key| {
            let status =
                key.status.as_ref().map_or_else(|| "Name(\"active\")".to_owned(), |status| format!("{status:?}"));
            let more = (&key.starts_at, &key.expires_at, key.on_abort, &key.tag);
            format!("{} {status} {:?} {:?} {:?} {more:?}", key.key, key.allowed_ips, key.denied_ips, key.allowed_models)
        })
        .collect();
    let headers: Vec<_> = config.backends.iter().map(|backend| &backend.headers).collect();
    let hooks: Vec<_> = config
        .usage
        .reporters
        .iter()
        .map(|reporter| (&reporter.webhook.url, &reporter.webhook.headers, &reporter.webhook.secret))
        .collect();
    let sources: Vec<_> = config.discovery.sources.iter().map(|source| &source.http.headers).collect();
    let secrets: Vec<_> = config.storage.databases.iter().map(|database| (&database.dsn, &database.password)).collect();
    let token = &config.admin.token;
    format!("{config:?} {token:?} {keys:?} {headers:?} {hooks:?} {sources:?} {secrets:?}")
}

/// A file with `value` at `path`, or with only what stands beside it.
fn file(path: &str, value: Option<&str>) -> String {
    let body = below("", &path.split('.').collect::<Vec<_>>(), value);
    let backends = if path.starts_with("backends") { "" } else { "backends: [{url: 'http://a', group: other}], " };
    format!("{{{backends}{body}}}")
}

fn below(parent: &str, path: &[&str], value: Option<&str>) -> String {
    let Some((name, rest)) = path.split_first() else { return String::new() };
    let at = if parent.is_empty() { (*name).to_owned() } else { format!("{parent}.{name}") };
    let (key, list) = name.strip_suffix("[]").map_or((*name, false), |key| (key, true));
    let key = if key == "*" { "x-any" } else { key };
    if rest.is_empty() {
        return value.map(|value| format!("{key}: {value}")).unwrap_or_default();
    }
    let mut parts = vec![below(&at, rest, value)];
    parts.extend(BESIDE.iter().filter(|(place, _)| *place == at).flat_map(|(_, beside)| split(beside)));
    parts.retain(|part| !part.is_empty());
    // What the key itself sets stands first, and what would stand beside it gives way.
    dedup(&mut parts);
    let inner = parts.join(", ");
    if list { format!("{key}: [{{{inner}}}]") } else { format!("{key}: {{{inner}}}") }
}

/// What stands beside one another; a value in brackets is one piece.
fn split(beside: &str) -> Vec<String> {
    let pieces = if beside.contains(['[', '{']) { vec![beside] } else { beside.split(", ").collect() };
    pieces.into_iter().map(str::to_owned).collect()
}

/// Keeps the first part for each key.
fn dedup(parts: &mut Vec<String>) {
    let mut keys = Vec::new();
    parts.retain(|part| {
        let key = part.split(':').next().unwrap_or_default().to_owned();
        let new = !keys.contains(&key);
        keys.push(key);
        new
    });
}

fn supported() -> impl Iterator<Item = KeyDoc> {
    reference().filter(|key| {
        let fragment = key.path.starts_with("script") || key.path.starts_with("logfile");
        let holds = ["map", "list of maps", "map of names", "log file"].contains(&key.kind.as_str())
            || key.kind.contains(" as `");
        key.state == KeyState::Supported && !fragment && !holds
    })
}

#[test]
fn every_default_in_the_table_is_the_default_of_the_types() {
    let mut checked = 0;
    for key in supported() {
        let Some(default) = key.default else { continue };
        let value = if key.path == "server.listen" { "':8000'" } else { default };
        assert_eq!(config(&file(key.path, Some(value))), config(&file(key.path, None)), "{} {default}", key.path);
        checked += 1;
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn every_key_in_the_table_does_something() {
    for key in supported().filter(|key| !ELSEWHERE.contains(&key.path)) {
        let sample = SAMPLES.iter().find(|(path, _)| *path == key.path).map(|(_, sample)| (*sample).to_owned());
        let sample = sample.unwrap_or_else(|| match (key.kind.as_str(), key.default) {
            ("duration", _) => "77s".into(),
            ("true or false", Some("true")) => "false".into(),
            ("true or false", _) => "true".into(),
            ("whole number", _) => "7".into(),
            ("number", _) => "7.5".into(),
            ("size", _) => "300MiB".into(),
            ("URL", _) => "'http://other'".into(),
            ("list of strings", _) if key.path.ends_with("_ips") => "[10.1.2.3]".into(),
            ("list of strings", _) => "[other]".into(),
            ("list of networks", _) => "[10.0.0.0/8]".into(),
            ("string", _) if key.path.ends_with("_at") => "2030-01-01T00:00:00Z".into(),
            ("string or number", _) => "disabled".into(),
            ("secret", _) | ("string", _) => "other".into(),
            // A choice: the first that is not the default.
            (words, default) => {
                let mut words = words.split('`').skip(1).step_by(2);
                words.find(|word| Some(*word) != default).unwrap_or_else(|| panic!("{}", key.path)).into()
            }
        });
        assert_ne!(config(&file(key.path, Some(&sample))), config(&file(key.path, None)), "{} {sample}", key.path);
    }
}

#[test]
fn the_documentation_has_exactly_the_table() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- keys -->\n", "<!-- /keys -->");
    let start = text.find(begin).unwrap() + begin.len();
    let stop = text.find(end).unwrap();
    let expected = reference_markdown();
    if env::var_os("LLMPROXY_BLESS").is_some() {
        fs::write(&path, format!("{}{expected}\n{}", &text[..start], &text[stop..])).unwrap();
        return;
    }
    let same = text[start..stop].trim() == expected.trim();
    assert!(same, "the table of keys has changed; write it with: LLMPROXY_BLESS=1 cargo test -p llmproxy-config");
}
