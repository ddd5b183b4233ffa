//! The values of a file against the table of keys: what is unknown, mistyped, or not offered yet.
//!
//! What is left afterwards has only keys that are acted on, each of the type that its part expects.

use std::mem;

use figment::value::{Dict, Tag, Value};
use llmproxy_core::nearest;

use crate::{
    Mistake, Warning,
    scalar::{coerce, switch},
    table::{self, Key, Kind, State},
};

/// Entries that decide by conditions: what is lost of one makes it fit more requests, not fewer.
const RULES: &str = "routing.rules[]";
/// The conditions.
const CONDITIONS: &str = "routing.rules[].match";

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<Warning>,
    /// Keys that nothing knows; mistakes or warnings, as the caller decides.
    pub unknown: Vec<Warning>,
    /// What no message may quote.
    pub secrets: Vec<String>,
}

/// Where the walk is.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a str,
    /// Whether what stands here would act: no block around it is off.
    active: bool,
    /// Whether it was said already that nothing here has an effect.
    muted: bool,
}

// === impl Walk ===

impl Walk {
    /// Walks over the whole file.
    pub(crate) fn over(dict: &mut Dict) -> Self {
        let mut walk = Self::default();
        walk.block(dict, "", Place { path: "", active: true, muted: false });
        walk
    }

    fn block(&mut self, dict: &mut Dict, pattern: &str, at: Place<'_>) {
        for (name, value) in mem::take(dict) {
            // An absent value is an absent key. At the top, x-... holds what anchors refer to.
            if matches!(value, Value::Empty(..)) || (pattern.is_empty() && name.starts_with("x-")) {
                self.no_condition(&join(pattern, &name), &join(at.path, &name));
                continue;
            }
            let path = join(at.path, &name);
            let known =
                table::find(&join(pattern, &name)).filter(|key| !pattern.is_empty() || !table::is_fragment(key.path));
            match known {
                Some(key) => {
                    if let Some(value) = self.value(key, value, Place { path: &path, ..at }) {
                        dict.insert(name, value);
                    }
                }
                None => self.unknown(&name, pattern, &path),
            }
        }
    }

    /// What stays of a key's value.
    fn value(&mut self, key: &Key, value: Value, mut at: Place<'_>) -> Option<Value> {
        if at.active && says_something(key, &value) {
            match key.state {
                State::Refused(why) => {
                    self.mistake(at.path, format!("is not supported yet: {why}"));
                    return None;
                }
                State::NoEffect if !at.muted => {
                    self.warn(at.path, "is known, but has no effect in this version".into());
                }
                _ => {}
            }
        }
        at.muted |= key.state == State::NoEffect;
        let value = match (key.kind, value) {
            (Kind::Block, value) => {
                let active = at.active && is_on(key, &value);
                self.map(value, key.path, Place { active, ..at })
            }
            (Kind::Script, value) => self.map(value, "script", Place { active: false, ..at }),
            (Kind::LogFile, Value::String(tag, path)) => {
                Some(Value::Dict(tag, [("path".into(), Value::String(tag, path))].into()))
            }
            (Kind::LogFile, value) => self.map(value, "logfile", at),
            (Kind::Blocks, Value::Array(tag, list)) => Some(Value::Array(tag, self.entries(key.path, list, at))),
            (Kind::Like(pattern), Value::Array(tag, list)) if !pattern.ends_with("[]") => {
                Some(Value::Array(tag, self.entries(pattern, list, at)))
            }
            (Kind::Like(pattern), value) if pattern.ends_with("[]") => self.map(value, pattern, at),
            (Kind::Blocks | Kind::Like(_), _) => {
                self.mistake(at.path, "must be a list: one entry for each, beginning with `-`".into());
                None
            }
            (Kind::Map, Value::Dict(tag, dict)) => Some(Value::Dict(tag, self.names(key, dict, at))),
            (Kind::Map, _) => {
                self.mistake(at.path, "must be a map from names to values".into());
                None
            }
            (_, value) => self.scalar(key, value, at),
        };
        value.filter(|_| key.state == State::Supported)
    }

    fn map(&mut self, value: Value, pattern: &str, at: Place<'_>) -> Option<Value> {
        match value {
            Value::Dict(tag, mut dict) => {
                self.block(&mut dict, pattern, at);
                Some(Value::Dict(tag, dict))
            }
            _ => {
                let names: Vec<&str> = table::names_below(pattern).take(4).collect();
                self.mistake(at.path, format!("must be a map of keys such as {}", names.join(", ")));
                None
            }
        }
    }

    fn entries(&mut self, list_path: &str, list: Vec<Value>, at: Place<'_>) -> Vec<Value> {
        let pattern = format!("{list_path}[]");
        let mut kept = Vec::with_capacity(list.len());
        for (index, value) in list.into_iter().enumerate() {
            let path = format!("{}[{index}]", at.path);
            let on = is_on_at(&pattern, &value);
            let value = self.map(value, &pattern, Place { path: &path, active: at.active && on, ..at });
            // An entry that can't be used keeps its place, so that later mistakes name the right one.
            kept.push(value.unwrap_or_else(|| Value::Dict(Tag::Default, Dict::new())));
        }
        kept
    }

    fn names(&mut self, key: &Key, dict: Dict, at: Place<'_>) -> Dict {
        let pattern = format!("{}.*", key.path);
        let Some(entry) = table::find(&pattern) else { return dict };
        let mut kept = Dict::new();
        for (name, value) in dict {
            if matches!(value, Value::Empty(..)) {
                self.no_condition(&pattern, &join(at.path, &name));
                continue;
            }
            let path = join(at.path, &name);
            let at = Place { path: &path, ..at };
            let value = match entry.kind {
                Kind::Block => self.map(value, &pattern, at),
                _ => self.scalar(entry, value, at),
            };
            if let Some(value) = value {
                kept.insert(name, value);
            }
        }
        kept
    }

    fn scalar(&mut self, key: &Key, value: Value, at: Place<'_>) -> Option<Value> {
        if let Value::String(_, text) = &value {
            self.keep_secret(key.kind, text);
            // What a variable left empty is left out where nothing is opened by it. A switch, a number or a word would
            // fall back to its default, which may be no key asked for and no limit; an empty list of addresses would
            // let all in; an empty secret must not pass for none at all.
            if text.is_empty() {
                match key.kind {
                    Kind::Text | Kind::Url | Kind::Networks | Kind::Scalar | Kind::Any => return None,
                    Kind::File if !at.active => return None,
                    Kind::Secret => {}
                    _ if key.state != State::Supported => return None,
                    _ => {
                        self.mistake(at.path, "is empty; give it a value, or remove the key for the default".into());
                        return None;
                    }
                }
            }
        }
        // A word of the Go program that is not offered here matters only where it would act.
        if let (Kind::Word(words), Value::String(_, text), false) = (key.kind, &value, at.active)
            && words.later.contains(&text.trim().to_ascii_lowercase().as_str())
        {
            return Some(value);
        }
        match coerce(key.kind, &value) {
            Ok(coerced) => {
                if let Some(warning) = coerced.warning {
                    self.warn(at.path, warning);
                }
                Some(coerced.value)
            }
            Err(message) => {
                self.mistake(at.path, message);
                None
            }
        }
    }

    fn keep_secret(&mut self, kind: Kind, text: &str) {
        match kind {
            Kind::Secret => self.secrets.push(text.to_owned()),
            Kind::Url => {
                let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
                let authority = authority.split('/').next().unwrap_or_default();
                if let Some((user, _)) = authority.rsplit_once('@') {
                    self.secrets.push(user.to_owned());
                }
            }
            _ => {}
        }
    }

    fn unknown(&mut self, name: &str, pattern: &str, path: &str) {
        let message = match nearest(name, table::names_below(pattern)) {
            Some(near) => format!("is not a known key; did you mean `{near}`?"),
            None => match elsewhere(name) {
                Some(other) => format!("is not a known key here; did you mean `{other}`?"),
                None => "is not a known key, and has no effect".into(),
            },
        };
        if is_within(pattern, RULES) {
            self.mistake(path, message);
        } else {
            self.unknown.push(Warning::new(path, message));
        }
    }

    /// Of a key without a value. As a condition it would be none, and its rule decide for requests that it is not for.
    fn no_condition(&mut self, pattern: &str, path: &str) {
        if is_within(pattern, CONDITIONS) {
            self.mistake(path, "is empty, so that every request would fit; give it a value, or remove the key".into());
        }
    }

    fn mistake(&mut self, path: &str, message: String) {
        self.mistakes.push(Mistake::new(path, message));
    }

    fn warn(&mut self, path: &str, message: String) {
        self.warnings.push(Warning::new(path, message));
    }
}

/// Whether a value asks for something: 0, an empty string and `enabled: false` do not.
fn says_something(key: &Key, value: &Value) -> bool {
    match value {
        Value::Empty(..) => false,
        Value::Dict(_, dict) => !dict.is_empty() && is_on(key, value),
        Value::Array(_, list) => !list.is_empty(),
        Value::Num(_, number) => number.to_u128() != Some(0) && number.to_f64() != Some(0.0),
        value if matches!(key.kind, Kind::Switch) => switch(value) != Some(false),
        Value::String(_, text) => !text.is_empty() && text != "0",
        Value::Bool(_, on) => *on,
        Value::Char(..) => true,
    }
}

/// Whether a block is on: by what its `enabled` says, or would say if it were there.
fn is_on(key: &Key, value: &Value) -> bool {
    match key.kind {
        Kind::Script => is_on_at("script", value),
        _ => is_on_at(key.path, value),
    }
}

fn is_on_at(pattern: &str, value: &Value) -> bool {
    let said = match value {
        Value::Dict(_, dict) => dict.get("enabled").and_then(switch),
        _ => None,
    };
    said.unwrap_or_else(|| table::find(&join(pattern, "enabled")).is_none_or(|key| key.default != "false"))
}

/// The one place where a key of that name stands, if there is one that it could be meant for.
fn elsewhere(name: &str) -> Option<&'static str> {
    let mut places = table::keys().filter(|key| {
        let supported = key.state == State::Supported && !table::is_fragment(key.path);
        supported && key.path.rsplit('.').next() == Some(name)
    });
    let place = places.next()?;
    places.next().is_none().then_some(place.path)
}

/// Whether `pattern` is `outer`, or a key below it.
fn is_within(pattern: &str, outer: &str) -> bool {
    pattern.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;

    fn walk(text: &str) -> (Dict, Walk) {
        let mut dict = tree::parse(text).unwrap();
        let walk = Walk::over(&mut dict);
        (dict, walk)
    }

    fn mistakes(text: &str) -> Vec<String> {
        walk(text).1.mistakes.iter().map(Mistake::to_string).collect()
    }

    fn warnings(text: &str) -> Vec<String> {
        walk(text).1.warnings.iter().map(Warning::to_string).collect()
    }

    fn unknown(text: &str) -> Vec<String> {
        walk(text).1.unknown.iter().map(Warning::to_string).collect()
    }

    #[test]
    fn values_become_what_their_keys_want() {
        let (dict, walk) = walk("server: {max_body_size: 1MiB, read_timeout: 5, listen: 8000}\nauth: {enabled: yes}\n");
        assert_eq!(tree::get(&dict, &["server", "max_body_size"]), Some(&Value::from(1u64 << 20)));
        assert_eq!(tree::get(&dict, &["server", "read_timeout"]), Some(&Value::from("5s")));
        assert_eq!(tree::get(&dict, &["server", "listen"]), Some(&Value::from("8000")));
        assert_eq!(tree::get(&dict, &["auth", "enabled"]), Some(&Value::from(true)));
        assert!(walk.mistakes.is_empty());
    }

    #[test]
    fn every_mistake_is_found_with_its_path() {
        let found = mistakes(
            "server: {read_timeout: soon, max_header_bytes: -1}\nbackends:\n  - url: http://a\n    weight: heavy\nauth: 3\nrouting: {load_balance: fastest}\n",
        );
        let paths: Vec<&str> = found.iter().filter_map(|line| line.split(':').next()).collect();
        let expected =
            ["auth", "backends[0].weight", "routing.load_balance", "server.max_header_bytes", "server.read_timeout"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_rule_that_lost_a_condition_is_a_mistake() {
        let check = |rule: &str, expected: &[&str]| {
            let (_, walk) = walk(&format!("routing: {{rules: [{{group: big, {rule}}}]}}"));
            let paths: Vec<&str> = walk.mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
            assert_eq!(paths, expected, "{rule}");
            assert!(walk.unknown.is_empty(), "{rule}");
        };
        check("match: {modle: gpt-4}", &["routing.rules[0].match.modle"]);
        check("mach: {model: gpt-4}", &["routing.rules[0].mach"]);
        check("match: {model: ~, tools: null}", &["routing.rules[0].match.model", "routing.rules[0].match.tools"]);
        check("match: ", &["routing.rules[0].match"]);
        check("match: {header: {X-Kind: ~}}", &["routing.rules[0].match.header.X-Kind"]);
        check("match: {header: }", &["routing.rules[0].match.header"]);
        check("match: {min_prompt_tokens: ''}", &["routing.rules[0].match.min_prompt_tokens"]);
        // No condition: who leaves it out says nothing.
        check("name: ~, match: {model: gpt-4, header: {X-Kind: batch}}", &[]);
    }

    #[test]
    fn an_unknown_key_comes_with_what_was_probably_meant() {
        assert_eq!(
            unknown("backends: [{url: x, wieght: 1}]"),
            ["backends[0].wieght: is not a known key; did you mean `weight`?"]
        );
        assert_eq!(
            unknown("max_body_size: 1"),
            ["max_body_size: is not a known key here; did you mean `server.max_body_size`?"]
        );
        assert_eq!(unknown("flavour: 1"), ["flavour: is not a known key, and has no effect"]);
        assert_eq!(unknown("script: {enabled: true}").len(), 1);
        assert!(unknown("x-anchors: {a: 1}").is_empty());
    }

    #[test]
    fn what_would_weaken_access_limits_or_billing_is_refused() {
        let check = |text: &str, path: &str| {
            let found = mistakes(text);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{path}: ")), "{text}: {found:?}");
        };
        check("auth: {enabled: true, pipeline: [{type: redis}]}", "auth.pipeline[0].type");
        check(
            "auth: {enabled: true, pipeline: [{type: static, static: {keys: [{key: a, total_quota: 5}]}}]}",
            "auth.pipeline[0].static.keys[0].total_quota",
        );
        check("auth: {enabled: true, pipeline: [{script: {enabled: true}}]}", "auth.pipeline[0].script");
        check("rate_limit: {enabled: true, storage: redis}", "rate_limit.storage");
        check("rate_limit: {enabled: true, per_user: {requests_per_minute: 1}}", "rate_limit.per_user");
        check("usage: {enabled: true, reporters: [{type: kafka}]}", "usage.reporters[0].type");
        check("discovery: {enabled: true, sources: [{type: consul}]}", "discovery.sources[0].type");
        check(
            "discovery: {enabled: true, sources: [{type: static, script: {enabled: true}}]}",
            "discovery.sources[0].script",
        );
        check("hooks: {enabled: true, on_request: {enabled: true, script: x}}", "hooks.on_request");
        check("routing: {script: {enabled: yes}}", "routing.script");
    }

    #[test]
    fn what_is_off_refuses_nothing() {
        let check = |text: &str| assert_eq!(mistakes(text), Vec::<String>::new(), "{text}");
        check("server: {tls: {enabled: false, cert_file: a}}");
        check("auth: {enabled: false, pipeline: [{type: redis}]}");
        check("auth: {pipeline: [{type: redis}]}");
        check("auth: {enabled: true, pipeline: [{type: redis, enabled: false}]}");
        check("auth: {enabled: true, pipeline: [{type: static, static: {keys: [{key: a, total_quota: 0}]}}]}");
        check("rate_limit: {storage: redis}");
        check("usage: {enabled: true, reporters: [{type: builtin, enabled: off}]}");
        check("hooks: {on_request: {enabled: true, script: x}}");
        check("routing: {script: {enabled: false, script: x}}");
        check("discovery: {enabled: false, sources: [{type: consul}]}");
    }

    #[test]
    fn what_has_no_effect_is_said_once() {
        assert_eq!(
            warnings("logging: {request: {enabled: true, storage: a, include_body: true}}"),
            ["logging.request: is known, but has no effect in this version"]
        );
        assert_eq!(warnings("storage: {caches: [{name: a, driver: redis}]}").len(), 1);
        assert_eq!(
            warnings("logging: {request: {enabled: false}}\nmetrics: {custom_labels: []}"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn null_is_absent() {
        let (dict, walk) = walk("auth:\nserver: {listen: null}\n");
        assert!(walk.mistakes.is_empty() && !dict.contains_key("auth"));
        assert_eq!(tree::get(&dict, &["server", "listen"]), None);
    }

    #[test]
    fn what_a_variable_left_empty_never_switches_off_or_lifts() {
        let check = |text: &str, path: &str| {
            let found = mistakes(text);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{path}: is empty")), "{text}: {found:?}");
        };
        check("auth: {enabled: ''}", "auth.enabled");
        check(
            "rate_limit: {enabled: true, per_key: {requests_per_minute: ''}}",
            "rate_limit.per_key.requests_per_minute",
        );
        check("auth: {mode: ''}", "auth.mode");
        check("server: {tls: {cert_file: ''}}", "server.tls.cert_file");
        check(
            "auth: {pipeline: [{static: {keys: [{key: a, allowed_ips: ''}]}}]}",
            "auth.pipeline[0].static.keys[0].allowed_ips",
        );
        let (dict, walk) = walk(
            "server: {trusted_proxies: '', listen: '', tls: {enabled: false, key_file: ''}}\nstorage: {caches: [{db: ''}]}\nauth: {pipeline: [{name: ''}]}",
        );
        assert!(walk.mistakes.is_empty() && tree::get(&dict, &["server", "listen"]).is_none(), "{:?}", walk.mistakes);
    }

    #[test]
    fn secrets_are_remembered_to_be_left_out_of_messages() {
        let (_, walk) = walk(
            "backends: [{url: 'http://me:pw@a', headers: {Authorization: Bearer t}}]\nauth: {pipeline: [{static: {keys: [{key: sk-1}]}}]}",
        );
        assert_eq!(walk.secrets, ["sk-1", "Bearer t", "me:pw"]);
    }
}
